"""One step pass by pass: it takes as long as the estimate says, and one path explains why."""

from functools import cache

import numpy as np
import pytest
from hypothesis import given

from planner.cost.layer import Prices
from planner.layout.layout import Layout
from planner.simulate.step import estimate_step
from planner.simulate.timeline import timeline
from tests.properties.strategies import cluster, job, layouts_of, small

LAYOUTS = layouts_of("small", "dgx-h100", 2)


@cache
def prices() -> Prices:
    return Prices(small(), cluster("dgx-h100", 2), job(32))


@given(LAYOUTS)
def test_it_takes_as_long_as_the_estimate(layout: Layout) -> None:
    found = timeline(prices(), layout)

    assert found.step_time_s == pytest.approx(estimate_step(prices(), layout).step_time_s)
    assert len(found.tails) == layout.pp
    assert len(found.costs) == layout.pp * layout.vpp


@given(LAYOUTS)
def test_the_critical_path_leads_from_the_start_to_the_end(layout: Layout) -> None:
    found = timeline(prices(), layout)
    passes = found.passes
    tails = np.array([tail.total_s for tail in found.tails])

    assert passes.start_s[passes.critical].min() == pytest.approx(0, abs=1e-9)
    assert passes.critical[(passes.end_s[:, -1] + tails).argmax(), -1]
