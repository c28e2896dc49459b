"""Chains of passes: the longest is the simulated time, and all are below it for any seconds."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.schedule.kinds import KINDS, kind_of, stage_of
from planner.simulate.chains import FloatArray, longest_chain, plain_chains
from planner.simulate.pipeline import pipeline_time
from tests.properties.strategies import quick

# crossed pipelines hold every stage twice, and the order of zb_2p follows the seconds
NAMES = [name for name in KINDS if kind_of(name).pipelines == 1 and name != "zb_2p"]
named = pytest.mark.parametrize("name", NAMES)
WITHIN = 1 + 1e-9


class Drawn:
    """A pipeline of a schedule, and seconds for it as often as asked."""

    def __init__(self, name: str, data: st.DataObject) -> None:
        self.kind = kind_of(name)
        self.ranks = data.draw(st.integers(2, 5))
        chunks = self.kind.chunks or data.draw(st.integers(2, 3))
        self.micro_batches = data.draw(st.integers(1, 4)) * (self.ranks if chunks > 1 else 1)
        self.of_rank = stage_of(name, self.ranks, chunks)
        self.random = np.random.default_rng(data.draw(st.integers(0, 10**6)))
        self.shape: dict[str, Any] = {
            "kind": name, "stages": self.ranks, "chunks": chunks,
            "micro_batches": self.micro_batches, "overlap_p2p": data.draw(st.booleans()),
        }  # fmt: skip
        self.tails_s = self.random.uniform(0, 2, self.ranks)

    def seconds(self) -> dict[str, Any]:
        count = self.of_rank.size
        return {
            "forward_s": self.random.uniform(0.1, 1, count),
            "backward_s": self.random.uniform(0.1, 2, count),
            "send_s": self.random.uniform(0, 0.3, count - 1),
            "weight_s": self.random.uniform(0.1, 1, count) if self.kind.splits else None,
        }

    def simulated_s(self, seconds: dict[str, Any]) -> float:
        found = pipeline_time(**self.shape, **seconds)
        starts_s = found.first_forward_start_s if self.kind.own_pace else 0.0
        return float((found.last_backward_end_s - starts_s + self.tails_s).max())


def stages_s(seconds: dict[str, Any]) -> FloatArray:
    forward_s = seconds["forward_s"]
    weight_s = np.zeros_like(forward_s) if seconds["weight_s"] is None else seconds["weight_s"]
    return np.stack([forward_s, seconds["backward_s"], weight_s], axis=-1)


@named
@quick
@given(data=st.data())
def test_the_longest_chain_is_the_simulated_time(name: str, data: st.DataObject) -> None:
    drawn = Drawn(name, data)
    seconds = drawn.seconds()

    found_s, chain = longest_chain(drawn.shape | seconds, drawn.kind, drawn.tails_s)

    assert found_s == pytest.approx(drawn.simulated_s(seconds), rel=1e-9)
    own_s = chain.seconds(stages_s(seconds), seconds["send_s"])
    assert own_s + drawn.tails_s[chain.rank] == pytest.approx(found_s, rel=1e-9)


@named
@quick
@given(data=st.data())
def test_no_chain_is_longer_than_what_other_seconds_take(name: str, data: st.DataObject) -> None:
    """Found for some seconds, a chain is one of the schedule's for all."""
    drawn = Drawn(name, data)
    _, chain = longest_chain(drawn.shape | drawn.seconds(), drawn.kind, drawn.tails_s)
    others = drawn.seconds()
    simulated_s = drawn.simulated_s(others)

    for one in (chain, *plain_chains(drawn.kind, drawn.of_rank, drawn.micro_batches)):
        own_s = one.seconds(stages_s(others), others["send_s"])
        assert own_s + drawn.tails_s[one.rank] <= simulated_s * WITHIN


def test_balanced_1f1b_takes_its_textbook_chain() -> None:
    """All micro-batches on the last rank, one passing the others: (m + p - 1) (F + B)."""
    ranks, micro_batches = 4, 8
    ones, none = np.ones(ranks), np.zeros(ranks - 1)
    shape = {"kind": "1f1b", "stages": ranks, "chunks": 1, "micro_batches": micro_batches}
    seconds = {"forward_s": ones, "backward_s": 2 * ones, "send_s": none, "weight_s": None}

    found_s, chain = longest_chain(
        shape | seconds | {"overlap_p2p": True}, kind_of("1f1b"), np.zeros(ranks)
    )

    assert found_s == (micro_batches + ranks - 1) * 3
    assert chain.passes.sum(axis=0).tolist() == [micro_batches + ranks - 1] * 2 + [0]
