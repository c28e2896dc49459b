"""The least recompute that fits: no fewer layers would."""

from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.layout.layout import Layout, Recompute
from planner.layout.stages import Split, split_layers
from planner.memory.estimate import peak_memory, rank_memory
from planner.memory.fit import least_recompute
from tests.properties.strategies import job, layouts_of, quick, small

JOB = job(64, 4096)
LAYOUTS = layouts_of("small", "dgx-h100", 2)


def device(layout: Layout, split: Split) -> list[float]:
    return [rank_memory(small(), JOB, layout, rank, split).device for rank in range(layout.pp)]


def limit_of(layout: Layout, share: float) -> float:
    """Return a limit between what full recompute and none of it need."""
    full, none = (
        peak_memory(small(), JOB, replace(layout, recompute=kind)).device
        for kind in (Recompute.FULL, Recompute.NONE)
    )
    return full + share * (none - full)


@quick
@given(LAYOUTS, st.floats(0.01, 1.2))
def test_what_is_found_fits(layout: Layout, share: float) -> None:
    limit = limit_of(layout, share)
    split = least_recompute(small(), JOB, layout, limit)
    assume(split is not None)  # recompute of a single layer saves nothing
    assert split is not None

    assert max(device(layout, split)) <= limit
    assert split.layers == split_layers(16, layout.pp * layout.vpp)


@quick
@given(LAYOUTS, st.floats(0.01, 0.99), st.data())
def test_one_layer_fewer_does_not_fit(layout: Layout, share: float, data: st.DataObject) -> None:
    limit = limit_of(layout, share)
    split = least_recompute(small(), JOB, layout, limit)
    assume(split is not None and any(split.recomputed or ()))
    assert split is not None
    assert split.recomputed is not None
    rank = data.draw(st.sampled_from([i % layout.pp for i, n in enumerate(split.recomputed) if n]))
    chunks = range(rank, len(split.layers), layout.pp)
    fewer = [n - 1 if i in chunks else n for i, n in enumerate(split.recomputed)]

    assert device(layout, Split(split.layers, tuple(fewer)))[rank] > limit


def test_nothing_is_recomputed_where_all_fits() -> None:
    assert least_recompute(small(), JOB, Layout(pp=4), 1e12) == Split((4,) * 4, (0,) * 4)


def test_nothing_fits_in_no_memory() -> None:
    assert least_recompute(small(), JOB, Layout(pp=4), 1e9) is None


def test_full_recompute_is_not_kept_where_less_will_do() -> None:
    layout = Layout(pp=4, recompute=Recompute.FULL)

    assert least_recompute(small(), JOB, layout, 1e12) == Split((4,) * 4, (0,) * 4)


def test_the_first_stage_recomputes_most() -> None:
    layout = Layout(pp=4, micro_batch=4)
    limit = limit_of(layout, 0.3)

    split = least_recompute(small(), JOB, layout, limit)

    assert split is not None
    assert split.recomputed is not None
    assert split.recomputed[0] == max(split.recomputed) > min(split.recomputed)


@pytest.mark.parametrize(
    "layout", [Layout(pp=4, micro_batch=4), Layout(pp=2, vpp=2, micro_batch=4)]
)
def test_uniform_recomputes_what_the_fullest_needs_everywhere(layout: Layout) -> None:
    limit = limit_of(layout, 0.3)
    each, same = (least_recompute(small(), JOB, layout, limit, it) for it in (False, True))

    assert each is not None
    assert same is not None
    assert same.recomputed == (max(each.recomputed or ()),) * len(same.layers)
