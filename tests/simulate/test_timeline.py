"""The timeline of a step lasts as long as its estimate, and its parts follow one another."""

import numpy as np
import pytest

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Shard
from planner.layout.stages import Split
from planner.simulate.step import estimate_step
from planner.simulate.timeline import timeline
from planner.spec.cluster import load_cluster
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec

LAYOUTS = (
    (Layout(dp=8, shard=Shard.zero(3, 8)), None),
    (Layout(tp=2, pp=4, sequence_parallel=True), None),
    (Layout(pp=4, vpp=2, dp=2, shard=Shard.zero(1, 2)), None),
    (Layout(pp=4, dp=2, shard=Shard.zero(1, 2)), Split((9, 8, 8, 7), (2, 0, 0, 8))),
)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("layout", "split"), LAYOUTS)
def test_lasts_as_long_as_the_estimate(layout: Layout, split: Split | None, overlap: bool) -> None:
    job = JobSpec(global_batch=64, seq_len=4096)
    software = job.software.model_copy(update={"overlap_pipeline": overlap})
    job = job.model_copy(update={"software": software})
    prices = Prices(load_model("llama-3-8b"), load_cluster("dgx-h100"), job)

    found = timeline(prices, layout, split)

    assert found.step_time_s == pytest.approx(estimate_step(prices, layout, split).step_time_s)
    assert len(found.costs) == layout.pp * layout.vpp
    assert len(found.tails) == layout.pp
    done = found.passes.end_s[:, -1] + np.array([tail.total_s for tail in found.tails])
    assert found.passes.critical[done.argmax(), -1]
