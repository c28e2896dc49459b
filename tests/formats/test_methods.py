"""Optimizers, adapters and host offload in exports: written where a setting exists, or refused."""

import json
from typing import Any

import pytest

from planner.errors import LayoutError
from planner.formats.bundle import framework_files
from planner.formats.work import work_of_plan
from tests.formats.plans import build_plan, job, llama

MODEL = llama(vocab=128)
HOST: dict[str, Any] = {"offload_optimizer": 1.0}
WEIGHTS: dict[str, Any] = HOST | {"offload_weights": True}
PIN = {"device": "cpu", "pin_memory": True}


def files(target: str, job_changes: dict[str, Any] | None = None, **layout: Any) -> dict[str, str]:
    plan = build_plan(MODEL, job_spec=job(**job_changes or {}), **layout)
    return framework_files(work_of_plan(plan), target)


def zero(**layout: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files("deepspeed", **layout)["deepspeed.json"])
    return dict(found["zero_optimization"])


# layout, stage, sections of zero_optimization
DEEPSPEED = [
    ({"dp": 4, "zero": 2}, 2, {}),
    ({"dp": 4, "zero": 2, **HOST}, 2, {"offload_optimizer": PIN}),
    ({"dp": 4, "zero": 3, "offload_optimizer": 0.4}, 3,
     {"offload_optimizer": PIN | {"ratio": 0.4}}),
    ({"dp": 4, "zero": 3, **WEIGHTS}, 3, {"offload_optimizer": PIN, "offload_param": PIN}),
    # one rank has nobody to share with, and DeepSpeed offloads nothing at stage 0
    (HOST, 2, {"offload_optimizer": PIN}),
    (WEIGHTS, 3, {"offload_optimizer": PIN, "offload_param": PIN}),
    ({"offload_optimizer": 0.4}, 3, {"offload_optimizer": PIN | {"ratio": 0.4}}),
]  # fmt: skip


@pytest.mark.parametrize(("layout", "stage", "sections"), DEEPSPEED)
def test_deepspeed(layout: dict[str, Any], stage: int, sections: dict[str, Any]) -> None:
    found = zero(**layout)

    assert found["stage"] == stage
    assert {name: found[name] for name in found if name.startswith("offload")} == sections


def test_megatron_has_a_fraction() -> None:
    plain = files("megatron", dp=4, zero=1)["megatron.sh"]
    script = files("megatron", dp=4, zero=1, offload_optimizer=0.25)["megatron.sh"]

    assert "offload" not in plain
    for words in (
        "--optimizer-cpu-offload",
        "--optimizer-offload-fraction 0.25",
        "--use-precision-aware-optimizer",
        "--use-distributed-optimizer",
    ):
        assert words in script


# target, job, layout, words of the refusal
REFUSED = [
    ("megatron", {}, {"dp": 4, "zero": 1, **WEIGHTS}, "weights stay on the GPU"),
    ("megatron", {"optimizer": "muon"}, {}, "optimizer 'muon' is not written for megatron"),
    ("deepspeed", {"lora_rank": 8}, {}, "adapters are not written for deepspeed"),
    ("deepspeed", {}, {"dp": 4, **HOST}, "offload_optimizer needs stage 1 or more"),
    ("deepspeed", {}, {**HOST, "delayed_update": True}, "no setting for it"),
    ("nanotron", {}, HOST, "nanotron keeps the optimizer on the GPU; use 0"),
    ("torchtitan", {}, {"offload_optimizer": 0.5}, "moves all or nothing; use 0 or 1"),
    ("torchtitan", {}, HOST, "torchtitan moves both"),
]


@pytest.mark.parametrize(("target", "job_changes", "layout", "words"), REFUSED)
def test_what_cannot_be_said_is_refused(
    target: str, job_changes: dict[str, Any], layout: dict[str, Any], words: str
) -> None:
    with pytest.raises(LayoutError) as refused:
        files(target, job_changes, **layout)

    assert words in str(refused.value)
