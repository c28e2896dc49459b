"""Experts copied where tokens want them: losses of one process, bytes as priced (gloo)."""

from pathlib import Path
from typing import Any

import pytest

from planner.cost.experts import placed
from planner.launcher.copies import holders, materialised
from planner.launcher.main import main
from planner.plan import Plan
from tests.formats.plans import build_plan, mixtral
from tests.launcher.launch import Case, launch
from tests.launcher.test_equivalence import assert_close

SMALL = mixtral(layers=2)
PLANS: dict[str, Plan] = {
    "dp4 ep4 zero1": build_plan(SMALL, dp=4, ep=4, zero=1),
    "dp4 ep4 zero3": build_plan(SMALL, dp=4, ep=4, zero=3),
    "dp4 ep2 zero3": build_plan(SMALL, dp=4, ep=2, zero=3),
    "dp4 ep4 recompute": build_plan(SMALL, dp=4, ep=4, zero=1, recompute_layers=2),
    "tp2 dp2 sp ep4": build_plan(
        SMALL, tp=2, dp=2, micro_batch=2, sequence_parallel=True, ep=4, zero=1
    ),
    "pp2 dp2 ep2": build_plan(SMALL, pp=2, dp=2, zero=1, ep=2),
}
CASES: dict[str, Case] = {}
for name, plan in PLANS.items():
    CASES[f"{name}, kept"] = Case(plan, steps=3, expert_slots=2)
    CASES[f"{name}, again"] = Case(plan, steps=3, expert_slots=2, gather_again=True)
CASES["more slots than experts"] = Case(PLANS["dp4 ep4 zero1"], steps=3, expert_slots=9)

Results = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return launch(CASES, 4, tmp_path_factory.mktemp("copies"))


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_copies_train_like_one_process(name: str, results: Results) -> None:
    assert_close(results[name], CASES[name])


EXPERT_BYTES = 3 * 32 * 32 * 4  # gate, up and down in fp32


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kept", "again"])
def test_bytes_copied_are_those_that_are_priced(way: str, results: Results) -> None:
    """``simulate.materialised`` takes ``sparsity * experts / ranks`` copies for each rank."""
    found = results[f"dp4 ep4 zero1, {way}"]
    micro_batches, ranks = 2, 4
    loads = (1 / 8,) * 8  # sparsity does not ask about them
    each = [
        placed(loads, ranks, copies).sparsity * len(loads) / ranks for copies in found["copies"]
    ]
    priced = sum(each) * ranks * EXPERT_BYTES * micro_batches

    assert priced == 2 * 2 * ranks * EXPERT_BYTES * micro_batches  # two slots, two layers
    assert found["copied_bytes"] == [priced * (2 if way == "again" else 1), priced]


def held(copies: tuple[int, ...], ranks: int) -> list[int]:
    """Return how many experts each rank holds, its own included."""
    return [sum(rank in some for some in holders(copies, ranks, ranks)) for rank in range(ranks)]


@pytest.mark.parametrize("slots", [0, 1, 2, 4, 6, 9])
def test_slots_are_dealt_evenly(slots: int) -> None:
    """All of them on average; a rank that is the home of what is copied leaves one to another."""
    loads = (0.5, 0.2, 0.1, 0.05, 0.05, 0.05, 0.03, 0.02)
    found = held(materialised(loads, 4, 99, slots), 4)

    assert sum(found) == 8 + 4 * min(slots, 6)
    assert max(found) <= 2 + slots + 1


ARGUMENTS = [
    (["--expert-slots", "-1"], "must be at least 0"),
    (["--expert-slots", "2"], "ep above 1, etp 1; the plan has 1 and 1"),
    (["--gather-again"], "--gather-again needs --expert-slots"),
]


@pytest.mark.parametrize(("arguments", "words"), ARGUMENTS)
def test_arguments_that_mean_nothing_are_refused(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "plan.json"
    path.write_text(build_plan(SMALL, dp=4).model_dump_json())

    assert main([str(path), "--check", *arguments]) == 2
    assert words in capsys.readouterr().err
