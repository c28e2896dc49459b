"""Files as people publish them: small ones of our own, each with one oddity met in the wild.

The table says of each what the reader must make of it; none may be read in silence and wrong.
"""

from pathlib import Path
from typing import Any

import pytest

from planner.errors import SpecError
from planner.formats.detect import READERS, TITLES, detect, read_foreign
from planner.formats.settle import RULES, settle
from planner.layout.layout import Recompute
from planner.spec.huggingface import load_model

MODEL = "--num-layers 12 --hidden-size 512 --num-attention-heads 8 --seq-length 1024 "
BATCH = "--micro-batch-size 1 --global-batch-size 64 --bf16 "

# name, text, fields of the record, words that a list of the record must hold
FILES: list[tuple[str, str, dict[str, Any], dict[str, str]]] = [
    # layers that the pipeline does not divide, the pipeline as long as the node
    ("oss.sh", f"N=1\nW=$((8*$N))\nPP=${{W}}\ntorchrun --nproc_per_node 8 --nnodes $N "
     f"pretrain_gpt.py {MODEL}{BATCH}--pipeline-model-parallel-size $PP\n",
     {"pp": 8, "gpus": 8}, {"rules": "M5: pp=8 does not divide layers=12; try pp 6 or 12"}),
    # a branch per size; the size is a variable on top
    ("sizes.sh", "SIZE=big\nif [ $SIZE == small ]; then TP=1; L=4\n"
     "elif [ $SIZE == big ]; then TP=4\n"
     f"L=12; fi\ntorchrun --nproc_per_node 8 --nnodes 1 pretrain_gpt.py {MODEL}{BATCH}"
     "--tensor-model-parallel-size $TP --num-layers $L\n", {"tp": 4}, {"assumed": "given twice"}),
    # a branch that only a run decides
    ("case.sh", "TP=1\ncase $HOST in a*) TP=4;; esac\n"
     f"python pretrain_gpt.py {MODEL}{BATCH}--tensor-model-parallel-size $TP\n",
     {}, {"problems": "--tensor-model-parallel-size: depends on TP"}),
    # arguments by position only
    ("positional.sh", "TP=$4\ntorchrun --nproc_per_node 8 --nnodes 1 pretrain_gpt.py "
     f"{MODEL}{BATCH}--tensor-model-parallel-size $TP\n", {}, {"problems": "add --set 4=VALUE"}),
    # a Slurm script that hands a quoted command to srun
    ("job.sbatch", "#!/bin/bash\n#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=8\n"
     f'options="{MODEL} \\\n {BATCH} --tensor-model-parallel-size 8 --sequence-parallel"\n'
     'run="python -u ${DIR}/pretrain_gpt.py $options"\nsrun -l --output=x.log sh -c "${run}"\n',
     {"gpus": 32, "tp": 8, "sequence_parallel": True}, {}),
    # a script that writes a script
    ("submit.sh", f"ARGS=({MODEL}{BATCH}--tensor-model-parallel-size 2)\n"
     'CMD="cd x; python pretrain_gpt.py ${ARGS[@]}"\nsbatch <<EOF\n#!/bin/bash\n'
     "#SBATCH --nodes=2\n#SBATCH --gpus-per-node=8\n"
     'srun bash -c "${CMD}"\nEOF\n', {"gpus": 16, "tp": 2}, {}),
    # arguments collected for another script
    ("config.sh", f'export PARAMS=" {MODEL} {BATCH} --tensor-model-parallel-size ${{TP:-2}} "\n',
     {"tp": 2, "gpus": None}, {}),
    # a bare list
    ("run.args", f"{MODEL}\n{BATCH}\n--tensor-model-parallel-size=2\n", {"tp": 2}, {}),
    # experts by a list, stages by a string with repetition, on a grid that only M2 refuses
    ("moe.sh", f"torchrun --nproc_per_node 8 --nnodes 2 pretrain_gpt.py {MODEL}{BATCH}"
     "--num-experts 16 --moe-layer-freq [0]*2+[1]*10 --expert-model-parallel-size 16 "
     "--pipeline-model-parallel-size 2 "
     "--pipeline-model-parallel-layout 'Et|(tt|)*4tttL' --expert-tensor-parallel-size 1\n",
     {"vpp": 3, "stages": (1, 2, 2, 2, 2, 3)},
     {"rules": "M2: GPUs=16 is not a multiple of etp*ep*pp=32"}),
    # YAML of arguments with holes
    ("model.yaml", "ENV_VARS:\n  CUDA_DEVICE_MAX_CONNECTIONS: 1\nMODEL_ARGS:\n  --num-layers: 12\n"
     "  --hidden-size: 512\n  --num-attention-heads: 8\n  --swiglu: true\n  --qk-layernorm: false\n"
     "  --tensor-model-parallel-size: ${TP}\n  --pipeline-model-parallel-size: ${PP:4}\n",
     {"pp": 4}, {"problems": "depends on TP, which is not set; add --set TP=VALUE"}),
    # nested blocks of NeMo, old names, an interpolation
    ("nemo.yaml", "trainer:\n  num_nodes: 2\n  devices: 8\n  precision: bf16\nmodel:\n"
     "  micro_batch_size: 1\n  global_batch_size: 1_024\n  tensor_model_parallel_size: 2\n"
     "  virtual_pipeline_model_parallel_size: 2\n  pipeline_model_parallel_size: 4\n"
     "  num_layers: 32\n  hidden_size: 4096\n  num_attention_heads: 32\n  bias: false\n"
     "  activation: fast-swiglu\n  encoder_seq_length: ${model.max}\n  max: 4096\n"
     "  share_embeddings_and_output_weights: false\n  activations_checkpoint_granularity: null\n",
     {"gpus": 16, "vpp": 2, "global_batch": 1024, "seq_len": 4096, "precision": "bf16"}, {}),
    # a product of settings, generation with a grid of its own
    ("rl.yaml", "policy:\n  max_total_sequence_length: 512\n  gen: 8\n"
     "  train_global_batch_size: ${mul:${policy.gen}, 16}\n  train_micro_batch_size: 2\n"
     "  megatron_cfg:\n    enabled: true\n    tensor_model_parallel_size: 4\n"
     "    fp8_cfg:\n      enabled: false\n      fp8: e4m3\n"
     "  generation:\n    vllm_cfg:\n      tensor_model_parallel_size: 32\n"
     "cluster:\n  gpus_per_node: 8\n  num_nodes: 1\n",
     {"tp": 4, "global_batch": 128, "seq_len": 512, "gpus": 8, "precision": "fp32"}, {}),
    # a key that stands twice
    ("nano.yaml", "model:\n  model_config:\n    num_hidden_layers: 4\n    moe_config: null\n"
     "    moe_config:\n      num_experts: 8\n    hidden_size: 64\n    num_attention_heads: 4\n"
     "    intermediate_size: 128\n    vocab_size: 512\nparallelism:\n  dp: 2\n  tp: 2\n  pp: 1\n"
     "  tp_mode: REDUCE_SCATTER\ntokens:\n  micro_batch_size: 3\n  sequence_length: 64\n"
     "  batch_accumulation_per_replica: 2\noptimizer:\n  zero_stage: 2\n",
     {"tp": 2, "dp": 2, "gpus": 4, "zero": 1, "sequence_parallel": True, "accumulation": 2},
     {"assumed": "'moe_config' stands twice", "silent": "zero_stage 2 acts as 1"}),
    # a key that ends with a blank, auto values
    ("ds.json", '{"train_batch_size": "auto", "gradient_accumulation_steps ": 4,\n'
     '"train_micro_batch_size_per_gpu": 2, "zero_optimization": {"stage": 3,\n'
     '"offload_optimizer": {"device": "cpu"}}, "bf16": {"enabled": true}}',
     {"zero": 3, "micro_batch": 2, "global_batch": None, "accumulation": 1,
      "offload_optimizer": 1.0, "offload_weights": False},
     {"silent": "has a blank in its name"}),
    # comments in JSON, a misspelled setting at the top, an unknown one in ZeRO
    ("bad.json", '{\n  // micro\n  "train_micro_batch_size_per_gpu": 1,\n'
     '  "train_batch_sise": 64,\n  "zero_optimization": {"stage": 2, "stge": 1}\n}',
     {"zero": 2, "micro_batch": 1},
     {"problems": "refuses settings it does not know",
      "silent": "did you mean 'train_batch_size'"}),
    # FSDP 1 names under FSDP 2
    ("fsdp.yaml", "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nnum_processes: 8\n"
     "fsdp_config:\n  fsdp_version: 2\n  fsdp_use_orig_params: true\n"
     "  fsdp_reshard_after_forward: FULL_SHARD\n",
     {"zero": 3, "gpus": 8},
     {"silent": "fsdp_use_orig_params is of FSDP 1", "rules": "A4"}),
    # replicate x shard x tp is not the number of processes
    ("hsdp.yaml", "distributed_type: FSDP\nnum_processes: 8\nmixed_precision: bf16\n"
     "parallelism_config:\n  parallelism_config_dp_replicate_size: 2\n"
     "  parallelism_config_dp_shard_size: 4\n  parallelism_config_tp_size: 2\n",
     {"tp": 2, "dp": 8, "replicas": 2}, {"rules": "A1: dp_replicate*dp_shard*cp*sp*tp=16 is not"}),
    # FSDP 1 and hybrid shards
    ("hybrid.yaml", "distributed_type: FSDP\nnum_machines: 4\nnum_processes: 32\nfsdp_config:\n"
     "  fsdp_sharding_strategy: HYBRID_SHARD\n", {"zero": 3, "replicas": 4, "gpus": 32}, {}),
    # YAML like JSON, with comments and trailing commas
    ("neox.yaml", '{\n  # layout\n  "tokens": {"micro_batch_size": 4, "sequence_length": 64,},\n'
     '  "parallelism": {"dp": 2, "tp": 2, "pp": 1, "recompute_layer": True,},\n}',
     {"tp": 2, "recompute": Recompute.FULL}, {"assumed": "the model is not in the file"}),
    # torchtitan TOML with its defaults
    ("titan.toml", '[model]\nname = "llama3"\nflavor = "70B"\n[training]\nlocal_batch_size = 8\n'
     "seq_len = 8192\n[parallelism]\npipeline_parallel_degree = 4\ntensor_parallel_degree = 8\n"
     'pipeline_parallel_schedule = "ZBVZeroBubble"\nfsdp_reshard_after_forward = "always"\n'
     '[activation_checkpoint]\nmode = "selective"\nselective_ac_option = "op"\n',
     {"pp": 4, "vpp": 2, "micro_batch": 1, "accumulation": 8, "recompute": Recompute.SELECTIVE,
      "schedule": "zb_v"},
     {"rules": "T11: schedule ZBVZeroBubble"}),
    # torchtitan flags of later versions
    ("titan.sh", "NGPU=8\ntorchrun --nproc_per_node=${NGPU} --nnodes 2 -m torchtitan.train "
     "--module llama3 --config llama3_8b --parallelism.tensor_parallel_degree 4 "
     "--training.local-batch-size=2 "
     "--parallelism.enable_async_tensor_parallel\n",
     {"tp": 4, "micro_batch": 2, "gpus": 16}, {"rules": "T13: enable_async_tensor_parallel"}),
    # a setting that a version does not have
    ("typo.toml", '[model]\nname = "llama3"\nflavor = "8B"\n[parallelism]\n'
     "tensor_parallel_degre = 4\n",
     {"tp": 1}, {"unknown": "parallelism.tensor_parallel_degre"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text", "fields", "said"), FILES, ids=[one[0] for one in FILES])
def test_a_published_shape(
    name: str, text: str, fields: dict[str, Any], said: dict[str, str], tmp_path: Path
) -> None:
    file = tmp_path / name
    file.write_text(text)
    setup = read_foreign(file)

    assert {field: getattr(setup, field) for field in fields} == fields
    for where, words in said.items():
        if where == "rules":
            found = " ".join(settle(setup).problems)
        elif where == "unknown":
            found = " ".join(knob.name for knob in setup.unknown)
        else:
            found = " ".join(getattr(setup, where))
        assert words in found, where
    if "problems" not in said:
        assert setup.problems == ()


def test_rules_are_silent_where_the_table_says_nothing(tmp_path: Path) -> None:
    for name, text, _, said in FILES:
        (tmp_path / name).write_text(text)
        problems = settle(read_foreign(tmp_path / name)).problems
        assert bool(problems) == bool({"rules", "problems"} & set(said)), name


def test_a_file_that_another_one_names(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "ds.json").write_text(
        '{"zero_optimization": {"stage": 3}, "sequence_parallel_size": 4}'
    )
    main = tmp_path / "a.yaml"
    main.write_text("distributed_type: DEEPSPEED\nnum_processes: 8\ndeepspeed_config:\n"
                    "  deepspeed_config_file: sub/ds.json\n")  # fmt: skip

    setup = read_foreign(main)

    assert (setup.zero, setup.cp, setup.gpus, setup.framework) == (3, 4, 8, "deepspeed")
    assert setup.software.context_exchange == "all_to_all"
    main.write_text(main.read_text().replace("sub/", "nowhere/"))
    with pytest.raises(SpecError, match=r"nowhere/ds\.json is not there"):
        read_foreign(main)


def test_a_file_that_inherits(tmp_path: Path) -> None:
    block = "policy:\n  megatron_cfg:\n    tensor_model_parallel_size: "
    (tmp_path / "base.yaml").write_text(f"{block}8\n    context_parallel_size: 2\n")
    own = tmp_path / "own.yaml"
    own.write_text(f"defaults: base.yaml\n{block}4\n")

    setup = read_foreign(own)

    assert (setup.tp, setup.cp) == (4, 2)
    own.write_text(
        "defaults: own.yaml\npolicy:\n  megatron_cfg:\n    tensor_model_parallel_size: 4\n"
    )
    assert read_foreign(own).tp == 4  # a file that inherits from itself ends


def test_stages_wait_for_the_model(tmp_path: Path) -> None:

    file = tmp_path / "rl.yaml"
    file.write_text("tensor_model_parallel_size: 1\npipeline_model_parallel_size: 8\n"
                    "num_layers_in_first_pipeline_stage: 7\nnum_layers_in_last_pipeline_stage: 6\n"
                    "train_micro_batch_size: 1\n")  # fmt: skip
    setup = read_foreign(file)

    split = settle(setup, load_model("deepseek-v3")).split
    assert split is not None
    assert split.layers == (7, 8, 8, 8, 8, 8, 8, 6)
    assert any("M5" in text for text in settle(setup, load_model("llama-3-8b")).problems)


# files that are none of ours, and hostile ones
OTHERS = ["notes.txt", "model.json", "recipe.py", "data.yaml", "pyproject.toml", "README"]


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_not_taken_for_ours(name: str, tmp_path: Path) -> None:
    text = {"model.json": '{"hidden_size": 4096}', "data.yaml": "a: 1\n",
            "pyproject.toml": "[project]\nname = 'x'\n"}.get(name, "hello\n")  # fmt: skip
    file = tmp_path / name
    file.write_text(text)

    assert detect(file, text) is None
    with pytest.raises(SpecError, match="not recognised"):
        read_foreign(file)


# files of trainers that are not read: refused by name, never taken for another format
UNREAD = {
    "foundry.yaml": ("variables:\n  max_seq_len: 4096\nfsdp_config:\n", "llm-foundry's YAML"),
    "axolotl.yaml": ("base_model: x\ndp_shard_size: 2\ncontext_parallel_size: 2\n"
                     "tensor_parallel_size: 2\nmicro_batch_size: 1\n", "axolotl's YAML"),
    "axolotl-ep.yml": ("base_model: x\nexpert_parallel_size: 2\ndp_shard_size: 2\n"
                       "optimizer: adamw_bnb_8bit\n", "axolotl's YAML"),
    "arctic.yml": ("type: sft\nmicro_batch_size: 1\nsequence_parallel_size: 32\nmax_length: "
                   "4_000_000\ndeepspeed:\n  zero_optimization:\n    stage: 3\n",
                   "ArcticTraining's YAML"),
    "internevo.py": ("parallel = dict(zero1=dict(size=-1), weight=dict(size=4), "
                     "tensor=dict(size=2, mode='isp'))\n", "InternEvo's Python configuration"),
    "olmo.py": ("from olmo_core.train import TrainerConfig\nGLOBAL_BATCH_SIZE = 8 * 1024 * 1024\n",
                "OLMo-core's Python script"),
    "bridge.py": ("from megatron.bridge.training.config import ConfigContainer\n\n"
                  "def deepseek_v3() -> ConfigContainer:\n    cfg = base()\n"
                  "    cfg.model.tensor_model_parallel_size = 2\n",
                  "Megatron-Bridge's Python recipe"),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREAD)
def test_a_trainer_that_is_not_read_is_refused(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(UNREAD[name][0])

    with pytest.raises(SpecError) as refused:
        read_foreign(file)

    assert f"{UNREAD[name][1]} is not read: " in str(refused.value)


# format, text: a broken file is bad input with a place, never a traceback
BROKEN = [
    ("nanotron", "a: [1\nb: 2"), ("deepspeed", '{"zero_optimization": '),
    ("torchtitan", "[a\nb = 1"),
    ("nemo", "- 1\n- 2\n"), ("accelerate", "just words"), ("nemo", "a: &x [*x]"),
    ("deepspeed", '{"train_batch_size": Infinity, "x": [[[[' + "]" * 4 + "}"),
    ("nanotron", "!!python/object/apply:os.system ['touch HIT']"),
    ("megatron", "torchrun x.py --num-layers"), ("torchtitan", "echo"),
]  # fmt: skip


def complaints(file: Path, form: str) -> tuple[str, ...]:
    try:
        setup = read_foreign(file, form=form)
    except SpecError as error:
        return error.problems
    return (*setup.problems, *setup.assumed)


@pytest.mark.parametrize(("form", "text"), BROKEN)
def test_a_broken_file_is_bad_input(form: str, text: str, tmp_path: Path) -> None:
    suffix = {"torchtitan": ".toml", "deepspeed": ".json", "megatron": ".sh"}.get(form, ".yaml")
    file = tmp_path / f"x{suffix}"
    file.write_text(text)

    said = complaints(file, form)

    assert said
    assert str(file) in said[0] or "missing" in said[0] or "not in the file" in said[0]
    assert not list(Path.cwd().glob("HIT"))


def test_every_format_has_a_title() -> None:
    assert set(READERS) == set(TITLES) == set(RULES)
