"""What we write is accepted by the frameworks' own parsers, and read by them as we mean it.

They are asked where they are installed; ``PLANNER_ORACLE_PYTHON`` names an interpreter that has
them (torchtitan 0.2, DeepSpeed, accelerate, SkyPilot, nanotron).
"""

import itertools
import json
import random
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from planner.formats.accelerate import read_accelerate
from planner.formats.bundle import cluster_files
from planner.formats.deepspeed import read_deepspeed, write_deepspeed
from planner.formats.nanotron import write_nanotron
from planner.formats.nemo_yaml import write_nemo
from planner.formats.settle import settle
from planner.formats.skypilot import write_skypilot
from planner.formats.torchtitan import read_torchtitan
from planner.formats.torchtitan_toml import write_torchtitan
from planner.formats.work import work_of_plan
from tests.formats.oracles import ask
from tests.formats.test_megatron import WRITABLE as MEGATRON
from tests.formats.test_other_formats import DEEPSPEED, NANOTRON, TORCHTITAN

pytestmark = pytest.mark.slow


def test_deepspeed_reads_what_was_meant() -> None:
    works = [work_of_plan(plan) for plan in DEEPSPEED]
    # tensor parallel ranks see the same batch: DeepSpeed itself learns of them from its engine
    asked = [[json.loads(write_deepspeed(work)), work.layout.dp * work.layout.cp] for work in works]
    answers = ask("oracle_deepspeed.py", "deepspeed", asked)

    for work, answer in zip(works, answers, strict=True):
        assert answer == {
            "error": "", "batch": work.job.global_batch, "micro": work.layout.micro_batch,
            "steps": work.layout.micro_batches(work.job.global_batch),
            "zero": work.layout.shard.zero_stage(),
        }  # fmt: skip


def deepspeed_questions() -> list[list[Any]]:
    rng = random.Random(3)
    found: list[list[Any]] = []
    for batch, micro, steps in itertools.product((16, 32, 30), (1, 2, None), (1, 2, None)):
        sizes = {"train_batch_size": batch, "train_micro_batch_size_per_gpu": micro,
                 "gradient_accumulation_steps": steps}  # fmt: skip
        config: dict[str, Any] = {name: value for name, value in sizes.items() if value}
        zero: dict[str, Any] = {"stage": rng.choice([0, 1, 2, 3, 3, 3, 4])}
        if rng.random() < 0.1:
            zero["no_such_setting"] = 1
        config |= {"zero_optimization": zero, "bf16": {"enabled": True}}
        if rng.random() < 0.1:
            config["fp16"] = {"enabled": True}
        found.append([config, 8])
    return found


def test_deepspeed_refuses_what_our_rules_refuse() -> None:
    questions = deepspeed_questions()
    answers = ask("oracle_deepspeed.py", "deepspeed", questions)

    differ = []
    for (config, ranks), answer in zip(questions, answers, strict=True):
        setup = read_deepspeed(Path("ds.json"), json.dumps(config), {})
        found = settle(setup, gpus=ranks).problems
        if bool(found) != bool(answer["error"]):
            differ.append((config, found, answer["error"]))
    assert differ == []
    assert 5 < sum(bool(answer["error"]) for answer in answers) < len(answers) - 4


def test_torchtitan_reads_what_was_meant() -> None:
    works = [work_of_plan(plan) for plan in TORCHTITAN]
    texts = [write_torchtitan(work) for work in works]
    asked = [[text, work.ranks] for text, work in zip(texts, works, strict=True)]
    answers = ask("oracle_torchtitan.py", "torchtitan.config.job_config", asked)

    assert [answer["error"] for answer in answers] == [""] * len(works)
    for work, text, answer in zip(works, texts, answers, strict=True):
        written = tomllib.loads(text)
        for section in ("parallelism", "training"):
            assert written[section].items() <= answer[section].items()
        assert answer["parallelism"]["tensor_parallel_degree"] == work.layout.tp
        assert answer["mode"] == written["activation_checkpoint"]["mode"]


def test_torchtitan_refuses_degrees_that_our_rules_refuse() -> None:
    rng = random.Random(8)
    names = ("tensor", "context", "pipeline", "expert", "expert_tensor", "data_parallel_shard")
    questions = []
    for _ in range(300):
        sizes = {name: rng.choice([1, 1, 2, 3, 4]) for name in names}
        sizes["data_parallel_shard"] = rng.choice([-1, -1, 2, 8])
        lines = [f"{name}_parallel_degree = {size}" if "data" not in name
                 else f"{name}_degree = {size}" for name, size in sizes.items()]  # fmt: skip
        text = '[model]\nname = "llama3"\nflavor = "8B"\n[parallelism]\n' + "\n".join(lines)
        questions.append([text, 16])
    answers = ask("oracle_torchtitan.py", "torchtitan.config.job_config", questions)

    differ = []
    for (text, ranks), answer in zip(questions, answers, strict=True):
        setup = read_torchtitan(Path("job.toml"), text, {})
        every = settle(setup, gpus=ranks).problems
        found = [text for text in every if text[:3] in ("T1:", "T2:", "T3:")]
        if bool(found) != bool(answer["error"]):
            differ.append((text, found, answer["error"]))
    assert differ == []
    assert 10 < sum(bool(answer["error"]) for answer in answers) < 280


FSDP2 = "distributed_type: FSDP\nnum_processes: 8\nmixed_precision: bf16\n"
# FSDP 1 looks for a GPU to copy weights to; without these two it does not
QUIET = "fsdp_config:\n  fsdp_sync_module_states: false\n  fsdp_cpu_ram_efficient_loading: false\n"
# extra lines of an accelerate file; the framework decides which it refuses
ACCELERATE = [
    "", "num_machines: 2\n", "foo: 1\n", "  fsdp_foo: 1\n",
    "deepspeed_confg:\n  zero_stage: 3\n", "main_process_port: 29500\n", "gpu_ids: all\n",
]  # fmt: skip


def test_accelerate_refuses_settings_that_we_call_unknown() -> None:
    texts = [FSDP2 + QUIET + extra for extra in ACCELERATE]
    answers = ask("oracle_accelerate.py", "accelerate", texts)

    refused = [bool(answer["error"]) for answer in answers]
    ours = [bool(read_accelerate(Path("a.yaml"), text, {}).problems) for text in texts]
    assert ours == refused == [False, False, True, False, True, False, False]


FSDP = {
    "fsdp_version": (1, 2, 2, 2),
    "fsdp_reshard_after_forward": (True, False, "FULL_SHARD", "SHARD_GRAD_OP"),
    "fsdp_sharding_strategy": ("FULL_SHARD", "HYBRID_SHARD", "NO_SHARD", "ZERO3"),
    "fsdp_activation_checkpointing": (True, False),
    "fsdp_activation_checkpointing_offload": (True, False),
    "fsdp_offload_params": (True, False),
    "fsdp_auto_wrap_policy": ("TRANSFORMER_BASED_WRAP", "NO_WRAP", "BY_LAYER"),
}


def accelerate_mesh(rng: random.Random, processes: int) -> dict[str, int]:
    """Return sizes that often, but not always, fill the processes."""
    left = rng.choice([processes, processes, processes, 4, 24])
    sizes: dict[str, int] = {}
    for name in rng.sample(["dp_replicate", "dp_shard", "tp", "cp", "sp"], k=rng.choice([1, 2, 3])):
        sizes[name] = rng.choice([one for one in (1, 2, 4, 8, 16) if left % one == 0])
        left //= sizes[name]
    if rng.random() < 0.8:
        sizes["dp_shard"] = sizes.get("dp_shard", 1) * left
    if rng.random() < 0.05:
        sizes["tp"] = 0
    return {f"parallelism_config_{name}_size": size for name, size in sizes.items()}


def accelerate_questions(count: int) -> list[str]:
    rng = random.Random(5)
    found = []
    for _ in range(count):
        kind = rng.choice(["FSDP", "FSDP", "FSDP", "MULTI_GPU", "DEEPSPEED"])
        file: dict[str, Any] = {
            "compute_environment": "LOCAL_MACHINE", "distributed_type": kind, "num_machines": 1,
            "num_processes": rng.choice([8, 8, 16]), "mixed_precision": rng.choice(["bf16", "no"]),
        }  # fmt: skip
        if rng.random() < 0.1:
            file[rng.choice(["foo", "fsdp", "zero_stage"])] = 1
        if kind == "FSDP":
            chosen = {name: rng.choice(values) for name, values in FSDP.items()
                      if rng.random() < (0.8 if name == "fsdp_version" else 0.3)}  # fmt: skip
            file["fsdp_config"] = chosen | yaml.safe_load(QUIET)["fsdp_config"]
        if kind == "DEEPSPEED":
            file["deepspeed_config"] = {"zero_stage": rng.choice([1, 2, 3])}
        if rng.random() < 0.75:
            file["parallelism_config"] = accelerate_mesh(rng, file["num_processes"])
        found.append(yaml.safe_dump(file, sort_keys=False))
    return found


def test_accelerate_refuses_what_our_rules_refuse() -> None:
    questions = accelerate_questions(500)
    answers = ask("oracle_accelerate.py", "accelerate", questions)

    differ = []
    for text, answer in zip(questions, answers, strict=True):
        every = settle(read_accelerate(Path("a.yaml"), text, {})).problems
        found = [text for text in every if not text.startswith("A7:")]  # asked at the first step
        if bool(found) != bool(answer["error"]):
            differ.append((text, found, answer["error"]))
    assert differ == []
    assert 100 < sum(bool(answer["error"]) for answer in answers) < 400


def test_skypilot_takes_the_task() -> None:
    works = [work_of_plan(plan) for plan in DEEPSPEED[:20]]
    tasks = [yaml.safe_load(write_skypilot(work, "launch.sh")) for work in works]
    wrong = {"name": "x", "num_nodes": "many", "rum": "y"}

    answers = ask("oracle_skypilot.py", "sky", [*tasks, wrong])

    assert answers[:-1] == [[]] * len(tasks)
    assert len(answers[-1]) == 2


def pods(files: dict[str, str]) -> list[dict[str, Any]]:
    """Return what the operators make of both manifests: a pod of the job's template, a container.

    The manifests themselves are custom resources, which Kubernetes' own schemas do not hold.
    """
    job = yaml.safe_load(files["pytorchjob.yaml"])["spec"]["pytorchReplicaSpecs"].values()
    trainer = yaml.safe_load(files["trainjob.yaml"])["spec"]["trainer"]
    names = {"command": "command", "env": "env", "resourcesPerNode": "resources"}
    container = {names[one]: value for one, value in trainer.items() if one in names}
    specs = [kind["template"]["spec"] for kind in job]
    specs.append({"containers": [container | {"name": "node"}]})
    head = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}}
    return [head | {"spec": spec} for spec in specs]


def test_kubernetes_takes_the_pods() -> None:
    works = [work_of_plan(plan) for plan in DEEPSPEED[:20]]
    asked = [pod for work in works for pod in pods(cluster_files(work, "launch.sh"))]
    wrong = json.loads(json.dumps(asked[0]))
    wrong["spec"]["containers"][0]["env"][0]["value"] = 8

    answers = ask("oracle_kubernetes.py", "kubernetes_validate", [*asked, wrong])

    assert answers[:-1] == [""] * len(asked)
    assert "8 is not of type" in answers[-1]


def test_megatron_core_takes_the_fields_of_bridge() -> None:
    works = [work_of_plan(plan) for plan in MEGATRON if plan.job.precision in ("bf16", "fp16")]
    models = [yaml.safe_load(write_nemo(work))["model"] for work in works]
    wrong = models[0] | {"tensor_model_parallel_sise": 2}

    answers = ask("oracle_megatron.py", "megatron.core", [*models, wrong])

    assert [answer["error"] for answer in answers[:-1]] == [""] * len(works)
    assert "unexpected keyword argument" in answers[-1]["error"]


def test_nanotron_reads_what_was_meant() -> None:
    works = [work_of_plan(plan) for plan in NANOTRON]
    answers = ask("oracle_nanotron.py", "nanotron", [write_nanotron(work) for work in works])

    for work, answer in zip(works, answers, strict=True):
        layout = work.layout
        assert answer == {
            "error": "", "degrees": [layout.dp, layout.tp, layout.pp, layout.cp],
            "batch": [layout.micro_batch, layout.micro_batches(work.job.global_batch)],
            "layers": work.model.layers, "zero": layout.shard.zero_stage(),
        }  # fmt: skip
