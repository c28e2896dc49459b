"""What leaves the GPU, as each framework spells it: read, written back, kept in a conversion."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from planner.errors import LayoutError
from planner.formats.bundle import EXPORTS
from planner.formats.convert import convert
from planner.formats.detect import READERS
from planner.formats.megatron_script import write_megatron
from planner.formats.settle import settle
from planner.formats.setup import Setup
from planner.formats.work import Work, work_of_plan, work_of_setup
from planner.layout.layout import Layout, Offload, Recompute
from planner.spec.huggingface import load_model
from tests.formats.plans import build_plan, llama

FILES = {"torchtitan": "job.toml"}
STAYS: dict[str, Any] = {
    "offload_optimizer": 0.0, "offload_weights": False, "offload": Offload(),
}  # fmt: skip
ALL: dict[str, Any] = {"offload_optimizer": 1.0, "offload_weights": True}
MEGATRON = (
    "--num-layers 5 --hidden-size 64 --num-attention-heads 8 --seq-length 128 --bf16 --swiglu "
    "--micro-batch-size 1 --global-batch-size 8 --vocab-size 640 --disable-bias-linear "
    "--attention-dropout 0 --hidden-dropout 0 --normalization RMSNorm "
    "--position-embedding-type rope --use-distributed-optimizer --use-precision-aware-optimizer "
)
HOST = "--optimizer-cpu-offload --optimizer-offload-fraction"
FINE = "--fine-grained-activation-offloading --offload-modules"
TITAN = '[model]\nname = "llama3"\nflavor = "8B"\n[training]\nseq_len = 4096\n'


def deepspeed(stage: int, **zero: Any) -> str:
    batch = {"train_batch_size": 8, "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}}
    return json.dumps(batch | {"zero_optimization": {"stage": stage} | zero})


def fsdp(*lines: str) -> str:
    return "distributed_type: FSDP\nnum_processes: 8\nfsdp_config:\n" + "".join(
        f"  {line}\n" for line in lines
    )


CPU, NVME = {"device": "cpu"}, {"device": "nvme", "nvme_path": "/d"}
# format, text, fields of the record that differ from those of a job on its GPUs
READ: list[tuple[str, str, dict[str, Any]]] = [
    ("megatron", MEGATRON, {}),
    ("megatron", MEGATRON + "--optimizer-cpu-offload", {"offload_optimizer": 1.0}),
    ("megatron", MEGATRON + f"{HOST} 0.25", {"offload_optimizer": 0.25}),
    ("megatron", MEGATRON + "--optimizer-offload-fraction 0.25", {}),
    ("megatron", MEGATRON + "--cpu-offloading-num-layers 3", {"offload": Offload(0.75, "host")}),
    ("deepspeed", deepspeed(2), {}),
    ("deepspeed", deepspeed(2, offload_optimizer=CPU), {"offload_optimizer": 1.0}),
    ("deepspeed", deepspeed(2, cpu_offload=True), {"offload_optimizer": 1.0}),
    ("deepspeed", deepspeed(0, offload_optimizer=CPU), {}),
    ("deepspeed", deepspeed(3, offload_optimizer=CPU | {"ratio": 0.4}), {"offload_optimizer": 0.4}),
    ("deepspeed", deepspeed(3, offload_optimizer=CPU, offload_param=CPU), ALL),
    ("deepspeed", deepspeed(3, offload_optimizer=NVME, offload_param=NVME), ALL),
    ("accelerate", fsdp("fsdp_version: 2", "fsdp_offload_params: true"), ALL),
    ("accelerate", fsdp("fsdp_version: 2", "fsdp_offload_params: false"), {}),
    ("accelerate", "distributed_type: DEEPSPEED\nnum_processes: 8\ndeepspeed_config:\n"
     "  zero_stage: 2\n  offload_optimizer_device: cpu\n", {"offload_optimizer": 1.0}),
    ("torchtitan", TITAN + "enable_cpu_offload = true\n", ALL),
    ("torchtitan", TITAN, {}),
]  # fmt: skip


def read(form: str, text: str) -> Setup:
    return READERS[form](Path(FILES.get(form, "file")), text, {})


@pytest.mark.parametrize(("form", "text", "fields"), READ)
def test_what_leaves_the_gpu(form: str, text: str, fields: dict[str, Any]) -> None:
    setup = read(form, text)
    layout = settle(setup, load_model("llama-3-8b")).layout or Layout()

    assert setup.problems == ()
    for name, value in (STAYS | fields).items():
        assert getattr(setup, name) == value
        if setup.micro_batch:
            assert getattr(layout, name) == value


def test_checkpoints_on_the_host_are_inputs_of_recomputed_layers() -> None:
    text = json.loads(deepspeed(2)) | {"activation_checkpointing": {"cpu_checkpointing": True}}

    setup = read("deepspeed", json.dumps(text))

    assert (setup.recompute, setup.offload) == (Recompute.FULL, Offload(1.0, "host"))
    assert any("deepspeed.checkpointing" in remark for remark in setup.assumed)


# modules whose inputs leave, in order of what they hold: none moves more than the next
MODULES = ["", "attn_norm", "attn_norm,qkv_linear", "core_attn", "core_attn,attn_proj",
           "core_attn,attn_proj,attn_norm,mlp_norm,qkv_linear"]  # fmt: skip


def test_inputs_of_modules_are_a_share_of_what_can_move() -> None:
    shares = [read("megatron", MEGATRON + (f"{FINE} {one}" if one else "")).offload.fraction
              for one in MODULES]  # fmt: skip
    # 5 layers of 64 wide, 8 heads of 8: an input of h, keys and values as wide as queries
    assert shares == sorted(set(shares))
    assert shares[3] == pytest.approx(3 * shares[1])
    half = read("megatron", f"{MEGATRON}{FINE} core_attn --activation-offload-fraction 0.5")
    assert half.offload.fraction == pytest.approx(shares[3] / 2)
    assert 0 < shares[-1] < 1


HOST_LAYOUT: dict[str, Any] = {"dp": 4, "offload_optimizer": 1.0}
WRITTEN = [
    ("megatron", build_plan(zero=1, dp=4, offload_optimizer=0.5)),
    ("megatron", build_plan(zero=1, dp=4, offload_fraction=2 / 3, offload_target="host")),
    ("deepspeed", build_plan(zero=2, **HOST_LAYOUT)),
    ("deepspeed", build_plan(zero=3, dp=4, offload_optimizer=0.5)),
    ("deepspeed", build_plan(zero=3, offload_weights=True, **HOST_LAYOUT)),
]


@pytest.mark.parametrize(("target", "plan"), WRITTEN)
def test_what_leaves_the_gpu_comes_back(target: str, plan: Any) -> None:
    work = work_of_plan(plan)

    back = READERS[target](Path("file"), EXPORTS[target].write(work), {})

    found = settle(back, work.model, work.ranks)
    assert found.problems == ()
    assert found.layout is not None
    for name in STAYS:
        assert getattr(found.layout, name) == getattr(work.layout, name)


def work_with(offload: Offload, **layout: Any) -> Work:
    work = work_of_plan(build_plan(llama(layers=5), **layout))
    return replace(work, layout=replace(work.layout, offload=offload))


REFUSED = [
    (work_with(Offload(0.3, "host")), "offloads whole layers to the host, 4 at most; try "
     "--offload host:25%"),
    (work_with(Offload(0.5, "ssd")), "offloads whole layers to the host"),
    (work_with(Offload(0.5, "host"), pp=5), "M17"),
    (work_with(Offload(0.5, "host"), recompute_layers=5), "M17"),
]  # fmt: skip


@pytest.mark.parametrize(("work", "words"), REFUSED)
def test_what_megatron_cannot_move_is_refused(work: Work, words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        write_megatron(work)


def test_a_conversion_keeps_the_optimizer_on_the_host() -> None:
    setup = read("megatron", MEGATRON + f"{HOST} 1.0")

    converted = convert(setup, "deepspeed", gpus=4)

    zero = json.loads(converted.text)["zero_optimization"]
    assert zero["offload_optimizer"]["device"] == "cpu"
    assert not any("offload" in sentence for sentence in converted.lost)


# where from, where to, and the sentence about what stays behind
LEFT = [
    (MEGATRON + f"{HOST} 0.5", "nanotron", "offload_optimizer: 0.5 becomes 0.0"),
    (MEGATRON + f"{HOST} 0.5", "deepspeed", "offload_optimizer: 0.5 becomes 0.0"),
    (MEGATRON + "--cpu-offloading-num-layers 3", "deepspeed", "offload: Offload(fraction=0.75, "),
]


@pytest.mark.parametrize(("text", "target", "sentence"), LEFT)
def test_what_a_target_cannot_move_is_listed(text: str, target: str, sentence: str) -> None:
    lost = convert(read("megatron", text), target, gpus=4).lost

    assert sum(one.startswith(sentence) for one in lost) == 1
    assert sum("offload" in one for one in lost) == 1


def test_what_is_wrong_without_offload_too_is_refused() -> None:
    setup = read("megatron", MEGATRON + f"{HOST} 0.5 --tensor-model-parallel-size 8")

    with pytest.raises(LayoutError) as refused:
        convert(setup, "torchtitan", gpus=8)

    assert not any("offload" in problem for problem in refused.value.problems)


def test_a_job_of_a_file_is_that_of_a_plan() -> None:
    setup = read("megatron", MEGATRON + f"{HOST} 0.5")

    work = work_of_setup(setup, settle(setup, gpus=8))

    assert work.layout.offload_optimizer == 0.5
