import pytest

from planner.plan import LayoutRecord
from planner.report import words
from planner.spec.gpu import load_gpu
from tests.formats.plans import build_plan


@pytest.mark.parametrize(
    ("value", "text"),
    [(67.555, "67.6 s"), (0.0045, "4.5 ms"), (999.6, "1,000 s"), (1234.5, "1,234 s")],
)
def test_seconds(value: float, text: str) -> None:
    assert words.seconds(value) == text


def test_interval_says_its_unit_once() -> None:
    assert words.interval(60.8, 84.4) == "60.8 to 84.4 s"


def test_interval_across_units() -> None:
    assert words.interval(0.9, 1.25) == "900 ms to 1.25 s"


def test_percent_and_gib() -> None:
    assert words.percent(0.4406) == "44.1 %"
    assert words.percent(1.0, 0) == "100 %"
    assert words.gib(80 * 2**30) == "80.0"


@pytest.mark.parametrize(
    ("layout", "text"),
    [
        (LayoutRecord(), "micro-batch 1"),
        (LayoutRecord(tp=4, pp=8, dp=2), "tensor 4, pipeline 8, data 2, micro-batch 1"),
        (LayoutRecord(pp=2, vpp=5), "pipeline 2, 5 chunks per rank, micro-batch 1"),
        (LayoutRecord(dp=8, shard_optimizer=8), "data 8, micro-batch 1, ZeRO-1"),
        (
            LayoutRecord(dp=8, ep=4, etp=2, micro_batch=2),
            "data 8, expert 4, expert tensor 2, micro-batch 2",
        ),
    ],
)
def test_layout_words(layout: LayoutRecord, text: str) -> None:
    assert words.layout_words(layout) == text


@pytest.mark.parametrize(
    ("weights", "gradients", "optimizer", "text"),
    [
        (1, 1, 1, ""),
        (1, 1, 64, "ZeRO-1"),
        (1, 64, 64, "ZeRO-2"),
        (64, 64, 64, "ZeRO-3"),
        (8, 8, 8, "ZeRO-3 over 8 of 64 ranks"),
    ],
)
def test_sharding(weights: int, gradients: int, optimizer: int, text: str) -> None:
    layout = LayoutRecord(
        dp=64, shard_weights=weights, shard_gradients=gradients, shard_optimizer=optimizer
    )

    assert words.sharding(layout) == text


def test_sharding_counts_context_ranks() -> None:
    assert words.sharding(LayoutRecord(dp=4, cp=2, shard_optimizer=8)) == "ZeRO-1"


def test_recomputed() -> None:
    assert words.recomputed(build_plan(pp=2, recompute_layers=1)) == "2 of 4 layers recomputed"
    assert words.recomputed(build_plan()) == "nothing recomputed"
    assert words.recomputed(build_plan(recompute="selective")) == "selective recompute"


def test_peak_names_its_type() -> None:
    assert words.peak_name(load_gpu("H100"), 989e12) == "989 TFLOP/s bf16 dense peak"
    assert words.peak_name(load_gpu("V100-SXM-32GB"), 125e12) == "125 TFLOP/s fp16 dense peak"
    assert words.peak_name(load_gpu("H100"), 1e12) == "1 TFLOP/s dense peak"
