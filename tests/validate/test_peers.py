"""Step times from other people's measured profiles, nothing fitted to the steps."""

from itertools import pairwise
from statistics import fmean

import pytest

from benchmarks import sailor, simumax


@pytest.fixture(scope="module")
def b200() -> dict[str, tuple[float, float]]:
    return simumax.errors()


def test_43_b200_steps_from_a_kernel_table(b200: dict[str, tuple[float, float]]) -> None:
    """5.1 %, where SimuMax with the same table is 5.6 % off; as shipped, without it, 22 %."""
    ours, theirs = (fmean(abs(both[at]) for both in b200.values()) for at in (0, 1))

    assert len(b200) == 43
    assert theirs == pytest.approx(0.0562, abs=0.0002)
    assert ours < 0.052 < theirs
    assert fmean(abs(both[0]) for both in simumax.errors(profiled=False).values()) > 3 * ours


# family, most mean error
FAMILIES = [
    ("dense, tp 1", 0.02),
    ("dense, tp 2", 0.05),
    ("dense, tp 4", 0.055),
    ("dense, tp 8", 0.08),
    ("dense, long sequences by context parallelism", 0.035),
    ("deepseekv2", 0.09),
    ("deepseekv3", 0.06),
]


@pytest.mark.parametrize(("name", "most"), FAMILIES)
def test_every_family_of_b200_steps(
    b200: dict[str, tuple[float, float]], name: str, most: float
) -> None:
    chosen = [both[0] for case, both in b200.items() if simumax.family(case) == name]

    assert len(chosen) >= 6
    assert fmean(map(abs, chosen)) <= most


def test_no_b200_step_is_far_off(b200: dict[str, tuple[float, float]]) -> None:
    assert all(-0.17 < ours < 0.05 for ours, _ in b200.values())


def test_gh200_steps_from_a_layer_profile() -> None:
    errors = [sailor.step_s(row) / float(row["measured_s"]) - 1 for row in sailor.runs()]

    assert len(errors) == 14
    assert fmean(map(abs, errors)) <= 0.07


def test_a_smaller_micro_batch_is_no_slower_than_a_larger_one() -> None:
    for by_batch in sailor.profile().values():
        layers = [sailor.layers_of(by_batch, batch) for batch in sorted(by_batch)]
        for small, large in pairwise(layers):
            assert all(a <= b for one, two in zip(small, large, strict=True)
                       for a, b in zip(one, two, strict=True))  # fmt: skip
