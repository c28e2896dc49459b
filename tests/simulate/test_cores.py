"""Ranks that share cores: by hand, between the work of all and the step without sharing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.search.bound import lower_bounds_s
from planner.simulate.cores import on_shared_cores_s, summing_to
from planner.simulate.step import estimate_step
from planner.simulate.waterfall import waterfall
from planner.spec.cluster import load_cluster
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec

SECONDS = st.floats(1e-6, 1e3)


@pytest.mark.parametrize(
    ("work_s", "alone_s", "crowd", "expected"),
    [
        ([2.0, 2.0, 2.0, 2.0], 2.0, 2.0, 2.0),  # all are busy all the time: nothing to gain
        ([2.0, 2.0, 2.0, 2.0], 3.5, 2.0, 2.0),  # bubbles are filled by the others
        ([2.0, 0.2, 0.2, 0.2], 2.4, 2.0, 1.2),  # one has most to do, on a core of its own at last
        ([1.0, 1.0], 1.5, 1.0, 1.5),  # a core each: bubbles are idle
    ],
)
def test_by_hand(work_s: list[float], alone_s: float, crowd: float, expected: float) -> None:
    assert on_shared_cores_s(np.array(work_s), alone_s, crowd) == pytest.approx(expected)


@given(st.dictionaries(st.sampled_from("abcd"), SECONDS, min_size=1), SECONDS)
def test_parts_add_up(parts_s: dict[str, float], total_s: float) -> None:
    found = summing_to(total_s, parts_s)

    assert sum(found.values()) == pytest.approx(total_s)
    assert min(found.values()) >= 0


@pytest.mark.parametrize("layout", [Layout(pp=4), Layout(dp=4), Layout(dp=2, pp=2), Layout(tp=4)])
def test_a_step_on_shared_cores(layout: Layout) -> None:
    model = load_model("tiny-llama")
    job = JobSpec(global_batch=8, seq_len=128)
    own = load_cluster("dgx-h100").model_copy(update={"nodes": 1})
    gpu = own.gpu.model_copy(update={"ranks_per_core": 2.0})
    shared = own.model_copy(update={"gpu": gpu})

    alone_s = estimate_step(Prices(model, own, job), layout).step_time_s
    step = estimate_step(Prices(model, shared, job), layout)

    assert alone_s / 2 <= step.step_time_s <= alone_s * (1 + 1e-9)
    assert (step.step_time_s < 0.95 * alone_s) == (layout.pp > 1)  # only a bubble is filled
    assert sum(step.parts_s.values()) == pytest.approx(step.step_time_s)
    causes = waterfall(Prices(model, shared, job), step).parts_s
    assert causes["pipeline_parallel"] >= -1e-9
    assert causes["bubble"] >= -1e-9
    assert lower_bounds_s(Prices(model, shared, job), [layout])[0] <= step.step_time_s
