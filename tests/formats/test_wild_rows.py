"""The 27 published files whose kinds a planner meets, by number: read, or refused by name.

Each row has a small file of our own here, in ``test_wild`` or in the test of its format; a row
that is read says what of it must not be lost.
"""

from pathlib import Path
from typing import Any

import pytest

from planner.formats.detect import read_foreign
from planner.formats.settle import settle
from planner.layout.layout import Recompute
from planner.spec.huggingface import load_model
from planner.spec.model import MLASpec
from tests.formats.test_neox import text_of
from tests.formats.test_torchtitan_python import REGISTRY
from tests.formats.test_wild import FILES, UNREAD

MODEL = "--num-layers 12 --hidden-size 512 --num-attention-heads 8 --seq-length 1024 "
BATCH = "--micro-batch-size 1 --global-batch-size 64 --bf16 "
BRIDGE = """\
_target_: megatron.bridge.training.config.ConfigContainer
ddp:
  grad_reduce_in_fp32: false
  overlap_param_gather: true
  use_distributed_optimizer: true
mixed_precision:
  bf16: true
  fp8: hybrid
  params_dtype:
    _call_: false
    _target_: torch.bfloat16
model:
  add_bias_linear: false
  expert_model_parallel_size: 64
  expert_tensor_parallel_size: 1
  ffn_hidden_size: 1024
  fp8: null
  gated_linear_unit: true
  hidden_size: 512
  kv_lora_rank: 64
  moe_ffn_hidden_size: 128
  moe_layer_freq: [0, 1, 1, 1, 1, 1]
  moe_router_topk: 8
  mtp_num_layers: 1
  multi_latent_attention: true
  num_attention_heads: 8
  num_layers: 6
  num_moe_experts: 64
  pipeline_model_parallel_layout: Et|t|t|t|t|t||mL
  pipeline_model_parallel_size: 8
  q_lora_rank: 96
  recompute_granularity: selective
  recompute_modules: [mla_up_proj, mlp]
  seq_length: 4096
  sequence_parallel: true
  tensor_model_parallel_size: 2
  vocab_size: 1024
train:
  global_batch_size: 1024
  micro_batch_size: 1
"""
PRIMUS = """\
modules:
  pre_trainer:
    overrides:
      tensor_model_parallel_size: ${TP:1}
      expert_model_parallel_size: ${EP:8}
      micro_batch_size: 4
      global_batch_size: 256
      seq_length: 4096
      num_layers: 61
      hidden_size: 7168
      num_attention_heads: 128
      num_experts: 256
      moe_router_topk: 8
      multi_latent_attention: false
      mtp_num_layers: null
      bf16: true
"""
# number, file, text, fields of the record, words of a list of it (rules: with all that settle says)
ROWS: list[tuple[int, str, str, dict[str, Any], dict[str, str]]] = [
    # a default of one node, a layout of at least 128 GPUs, a batch that grows
    (1, "gpt3.sh", "NUM_NODES=${NUM_NODES:-1}\nA=(--nproc_per_node 8 --nnodes $NUM_NODES)\n"
     f"torchrun ${{A[@]}} pretrain_gpt.py {MODEL}--num-layers 96 --micro-batch-size 1 --fp16 "
     "--global-batch-size 1536 --rampup-batch-size 16 16 5859375 "
     "--tensor-model-parallel-size 8 --pipeline-model-parallel-size 16\n",
     {"tp": 8, "pp": 16, "gpus": 8, "precision": "fp16"},
     {"rules": "try GPUs 128", "unpriced": "a batch that grows"}),
    # a variable that no flag uses; sequence parallel without tensor parallel
    (2, "fp8.sh", "TP_SIZE=${TP_SIZE:-1}\nPP_SIZE=1\ntorchrun --nproc_per_node 8 --nnodes 1 "
     f"pretrain_gpt.py {MODEL}{BATCH}--tensor-model-parallel-size $TP_SIZE --sequence-parallel "
     "--fp8-format hybrid --use-distributed-optimizer\n",
     {"tp": 1, "zero": 1, "precision": "fp8", "sequence_parallel": False},
     {"silent": "PP_SIZE is set, but no argument uses it --sequence-parallel does nothing"}),
    # latent attention, experts by an expression, FSDP without a pipeline, a list of modules
    (3, "mfsdp.sh", "unset CUDA_DEVICE_MAX_CONNECTIONS\ntorchrun --nproc_per_node 8 --nnodes 8 "
     f"pretrain_gpt.py {MODEL}--num-layers 13 --micro-batch-size 4 --global-batch-size 2048 --bf16 "
     "--multi-latent-attention --q-lora-rank 96 --kv-lora-rank 64 --num-experts 16 "
     "--moe-layer-freq '([0]*3+[1]*10)' --moe-router-topk 8 --expert-model-parallel-size 8 "
     "--expert-tensor-parallel-size 1 --mtp-num-layers 1 --use-megatron-fsdp "
     "--data-parallel-sharding-strategy optim_grads_params --use-distributed-optimizer "
     "--ckpt-format fsdp_dtensor --fsdp-double-buffer --recompute-granularity selective "
     "--recompute-modules mlp moe mla_up_proj layernorm\n",
     {"ep": 8, "etp": 1, "zero": 3, "gpus": 64, "micro_batch": 4},
     {"unknown": "--fsdp-double-buffer", "unpriced": "recompute of layernorm, mla_up_proj"}),
    # ETP left to its default; more GPUs needed than one node has
    (4, "mixtral.sh", "NNODES=${NNODES:-1}\ntorchrun --nproc_per_node 8 --nnodes $NNODES "
     f"pretrain_gpt.py {MODEL}{BATCH}--num-experts 8 --expert-model-parallel-size 8 "
     "--pipeline-model-parallel-size 4\n", {"ep": 8, "etp": 1, "pp": 4},
     {"rules": "etp*ep*pp=32; try GPUs 32"}),
    # two models on grids of their own, layers by a pattern: said, and no estimate
    (7, "mimo.sh", f"torchrun --nproc_per_node 8 pretrain_mimo.py {MODEL}{BATCH}"
     "--hybrid-override-pattern MEM*E --llm-grid-offset 4\n", {},
     {"problems": "a pattern of Mamba, attention and MLP blocks", "unknown": "--llm-grid-offset"}),
    # every batch is auto: the file decides nothing
    (12, "zero3.json", '{"zero_optimization": {"stage": 3, "offload_optimizer": {"device": "cpu"}, '
     '"offload_param": {"device": "cpu"}, "stage3_max_live_parameters": 0}, "bf16": {"enabled": '
     '"auto"}, "train_batch_size": "auto", "train_micro_batch_size_per_gpu": "auto"}',
     {"zero": 3, "offload_weights": True, "offload_optimizer": 1.0, "micro_batch": None,
      "global_batch": None, "precision": None}, {}),
    (16, "20b.yml", text_of(), {"pp": 4, "tp": 2, "zero": 1, "micro_batch": 4, "accumulation": 32},
     {}),
    # the dump of a recipe: a stage string with empty stages, lists, callables, nulls
    (22, "dump.yaml", BRIDGE,
     {"tp": 2, "pp": 8, "ep": 64, "stages": (1, 1, 1, 1, 1, 1, 0, 0), "precision": "fp8",
      "global_batch": 1024, "zero": 1, "sequence_parallel": True, "recompute": Recompute.NONE},
     {"unpriced": "recompute of mla_up_proj, mlp"}),
    # named after a model that it does not describe
    (23, "deepseek_v3.yaml", PRIMUS, {"ep": 8, "micro_batch": 4, "global_batch": 256},
     {"differs": "deepseek-v3 has"}),
]  # fmt: skip
# rows whose file stands in test_wild (read, refused), or in a test of its own
ELSEWHERE = {
    5: "sizes.sh", 6: "oss.sh", 8: "moe.sh", 10: "nano.yaml", 11: "ds.json", 13: "hsdp.yaml",
    15: "fsdp.yaml", 20: "positional.sh", 21: "nemo.yaml", 24: "rl.yaml",
}  # fmt: skip
REFUSED = {
    17: "foundry.yaml", 18: "axolotl.yaml", 19: "axolotl-ep.yml", 25: "olmo.py",
    26: "internevo.py", 27: "arctic.yml",
}  # fmt: skip
ALONE = {9: REGISTRY, 14: "test_a_file_that_another_one_names"}


@pytest.mark.parametrize(
    ("name", "text", "fields", "said"), [row[1:] for row in ROWS], ids=[str(row[0]) for row in ROWS]
)
def test_a_row_is_read(
    name: str, text: str, fields: dict[str, Any], said: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    setup = read_foreign(tmp_path / name)
    settled = settle(setup, load_model("deepseek-v3") if "differs" in said else None)

    assert {field: getattr(setup, field) for field in fields} == fields
    found = {"rules": settled.problems, "differs": settled.remarks,
             "unknown": [knob.name for knob in setup.unknown]}  # fmt: skip
    for where, words in said.items():
        assert words in " ".join(found.get(where) or getattr(setup, where)), where
    assert bool(settled.problems) == bool({"rules", "problems"} & set(said))
    assert ("unknown" in said) == bool(setup.unknown)


def test_what_the_model_of_a_row_is(tmp_path: Path) -> None:
    texts = {number: (name, text) for number, name, text, _, _ in ROWS}
    models = {}
    for number in (3, 22):
        name, text = texts[number]
        (tmp_path / name).write_text(text)
        models[number] = read_foreign(tmp_path / name).model
    three, dump = models[3], models[22]
    assert three is not None
    assert three.moe is not None
    assert three.mla == MLASpec(q_lora_rank=96, kv_lora_rank=64, qk_nope_head_dim=128,
                                qk_rope_head_dim=64, v_head_dim=128)  # fmt: skip
    assert [three.is_moe_layer(layer) for layer in range(13)] == [False] * 3 + [True] * 10
    assert dump is not None
    assert dump.moe is not None
    assert (dump.moe.experts, dump.mtp_layers, dump.gated_mlp) == (64, 1, True)


def test_every_row_has_its_file() -> None:
    numbers = [row[0] for row in ROWS] + [*ELSEWHERE, *REFUSED, *ALONE]
    assert sorted(numbers) == list(range(1, 28))
    assert set(ELSEWHERE.values()) <= {one[0] for one in FILES}
    assert set(REFUSED.values()) <= set(UNREAD)
