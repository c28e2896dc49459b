"""The HTML page without a browser: what it says is the plan's, and it is only text."""

import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import SpecError
from planner.layout.ranks import ATTENTION_AXES, EXPERT_AXES, groups
from planner.plan import CandidateRecord, Plan, SimulatedRecord
from planner.report.certainty import partition_line, stability_lines
from planner.report.page.candidates import Axis, dots
from planner.report.page.document import html_page
from planner.report.page.facts import facts
from planner.report.page.grids import Grid, grid_of, hue, node_groups
from planner.report.page.links import Crossing, crossing, link_words
from planner.report.page.markup import Markup, data_script, join, tag
from planner.report.page.memory import sizes
from planner.report.page.timeline import MOST_PASSES, TICKS, timeline_data
from planner.report.words import gib
from planner.units import format_s
from tests.cli.command import planner, tiny_plan
from tests.formats.plans import build_plan, cluster, llama, mixtral
from tests.report.pages import JOBS, plan

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>&amp;"


def values(page: str) -> list[float]:
    """Return every exact number in the page."""
    return [float(value) for value in re.findall(r'<data value="([^"]*)"', page)]


def changed(one: Plan, part: str, **fields: Any) -> Plan:
    """Return a plan with other values in one of its parts."""
    return one.model_copy(update={part: getattr(one, part).model_copy(update=fields)})


@given(st.text())
def test_text_stays_text(text: str) -> None:
    made = tag("p", text, title=text)

    inside, title = made[made.index(">") + 1 : -4], made[10 : made.index('">')]
    assert html.unescape(inside) == html.unescape(html.escape(text))
    assert not {"<", ">"} & {*inside, *title}
    assert '"' not in title


def test_markup_is_escaped_once() -> None:
    assert tag("p", tag("b", "a<b"), "&", hidden=True, id=None, data_x=0.5) == (
        '<p hidden data-x="0.5"><b>a&lt;b</b>&amp;</p>'
    )
    assert join("<", Markup("<br>")) == "&lt;<br>"


def test_data_cannot_end_its_script() -> None:
    made = data_script("d", {"name": HOSTILE + "<!--</script>"})

    assert made.count("<") == 2
    assert json.loads(made[made.index(">") + 1 : -9])["name"].startswith(HOSTILE)


@pytest.mark.parametrize("name", JOBS)
def test_numbers_are_those_of_the_plan(name: str) -> None:
    found = values(html_page(plan(name)))

    estimate = plan(name).estimate
    expected = [
        estimate.step_time_s, estimate.mfu, estimate.tokens_per_s_per_gpu, estimate.memory_bytes,
        estimate.capacity_bytes,
        *(part_s for part_s in estimate.parts_s.values() if part_s > 1e-6 * estimate.step_time_s),
        *(stage.memory_bytes for stage in plan(name).stages[:1]),
        *(other.step_time_s for other in plan(name).alternatives),
        *(record.memory_bytes for record in plan(name).simulated),
    ]  # fmt: skip
    assert [value for value in expected if value not in found] == []
    assert facts(plan(name)).differences() == []


@pytest.mark.parametrize("name", JOBS)
def test_components_add_up(name: str) -> None:
    for rank in facts(plan(name)).memory:
        assert sum(sizes(rank).values()) == pytest.approx(rank.device)


def test_every_text_of_the_user_is_harmless() -> None:
    one = changed(plan("tiny"), "model", name=HOSTILE)
    one = changed(one, "cluster", name=HOSTILE, sources={HOSTILE: HOSTILE})
    lost = CandidateRecord(label=HOSTILE, step_time_s=1.0, memory_bytes=1e9, reason=HOSTILE)
    other = SimulatedRecord(label=HOSTILE, step_time_s=1.0, memory_bytes=1e9)
    more = {"command": HOSTILE, "lost": (lost,), "alternatives": (lost,), "simulated": (other,)}
    one = one.model_copy(update=more)

    page = html_page(one, Path(HOSTILE.replace("/", "")))

    assert page.count("<script") == html_page(plan("tiny")).count("<script") == 2
    assert "<img" not in page
    assert html.escape(HOSTILE) in page
    assert "<img" not in one._repr_html_()
    assert "<script" not in one._repr_html_()


def test_a_plan_in_a_notebook_is_a_small_table() -> None:
    text = plan("dense")._repr_html_()

    assert format_s(plan("dense").estimate.step_time_s) in text
    assert plan("dense").to_layout().label() in text
    assert len(text) < 1500


def test_nothing_is_loaded_from_anywhere() -> None:
    page = html_page(plan("dense"))

    assert re.findall(r'(?:src|href)="(?!#|data:)[^"]*"', page) == []
    assert "@import" not in page
    assert "url(" not in page


def test_a_page_of_64_gpus_is_small() -> None:
    assert len(html_page(plan("dense")).encode()) < 500_000
    assert len(html_page(plan("interleaved")).encode()) < 500_000


@pytest.mark.parametrize("name", JOBS)
def test_the_timeline_is_that_of_the_simulator(name: str) -> None:
    found = facts(plan(name))
    data = timeline_data(found)

    ends = [start + own for tail in data["tails"] for _, start, own in tail]
    assert max(ends) == pytest.approx(TICKS, abs=5)
    assert data["tick_s"] * TICKS == pytest.approx(plan(name).estimate.step_time_s)
    for rank, flat in enumerate(data["ranks"]):
        start, code, _ = np.array(flat).reshape(-1, 3).T
        own = np.array([data["stages"][c // 6]["own"][c % 3] for c in code.tolist()])
        assert (start[1:] - (start + own)[:-1]).min() >= -2  # no two at once, but for rounding
        kinds = [piece.kind for piece in found.timeline.slices if piece.rank == rank]
        passes = sum(kind in "FBW" for kind in kinds)
        assert (len(start) < passes) == (data["fold"] is not None)
        if data["fold"]:
            low, high = data["fold"]
            warm_up = kinds.index("B")
            assert not ((low <= start) & (start < high)).any()
            assert warm_up <= (start < low).sum()  # the whole warm-up and cool-down are shown
            assert warm_up <= (start >= high).sum()
    assert not data["cut"]
    assert sum(map(len, data["ranks"])) <= 3 * (MOST_PASSES + len(data["ranks"]))


def test_a_warm_up_longer_than_what_is_drawn_is_said() -> None:
    spec = llama(layers=256, heads=32, kv_heads=8)
    one = build_plan(spec, cluster_spec=cluster(nodes=8), pp=64, vpp=4)
    one = changed(one, "job", global_batch=512)

    data = timeline_data(facts(one))
    assert data["cut"]
    assert sum(map(len, data["ranks"])) <= 3 * (MOST_PASSES + len(data["ranks"]))
    assert "with a part of warm-up and cool-down" in html_page(one)
    assert "the steady state in the middle are folded" in html_page(plan("large"))


def section(page: str, name: str) -> str:
    """Return one part of a page."""
    return page.partition(f'<section id="{name}"')[2].partition("</section>")[0]


def test_order_of_machines_is_shown_with_its_gain() -> None:
    placed = plan("placed").placement
    assert placed is not None
    page = html_page(plan("placed"))

    assert values(section(page, "placement")) == [
        plan("placed").estimate.step_time_s, placed.communication_s,
        placed.listed_step_time_s, placed.listed_communication_s, placed.healthy_step_time_s,
        *(link.share for link in placed.slow_links),
    ]  # fmt: skip
    assert "nothing: avoided" in page
    assert ", ".join(plan("placed").hosts) in page
    for node, host in enumerate(plan("placed").hosts):
        assert f"node {node}: {host}" in page
    assert 'href="#placement"' not in html_page(plan("dense"))


def test_kinds_of_nodes_have_their_own_capacity() -> None:
    one = plan("mixed")
    found, page = facts(one), html_page(plan("mixed"))
    sizes = [group.gpu.memory_bytes for group in one.cluster.node_groups]

    assert [found.capacity_bytes(rank) for rank in range(one.layout.pp)] == sizes
    assert page.count('class="capacity"') == 2
    for group in one.cluster.node_groups:
        assert f"8 x {group.gpu.name}" in page
        assert f"on {group.gpu.name}" in section(page, "memory")
    assert [choice.step_time_s for choice in one.node_choices if choice.step_time_s] == [
        value for value in values(section(page, "placement")) if value < 1e6
    ]
    for command in ("explain memory", "explain speed", "simulate"):  # which know such plans
        assert f"planner {command} plan.json" in page


def test_what_leaves_the_gpus_is_shown_for_each_node() -> None:
    one = plan("offload")
    found, shown = facts(one), section(html_page(plan("offload")), "offload")

    assert one.cluster.host is not None
    held = sum(rank.offloaded for rank in found.memory) * one.cluster.gpus_per_node
    assert f"<td>{gib(held)}</td>" in shown
    assert {one.cluster.host.memory_bytes, one.estimate.parts_s["offload"]} <= {*values(shown)}
    assert "use of the link" in shown
    assert not section(html_page(plan("dense")), "offload")


def test_stages_and_firmness_are_said_as_on_a_terminal() -> None:
    page = html_page(plan("interleaved"))

    assert html.escape(partition_line(plan("interleaved"))) in section(page, "step")
    for line in stability_lines(plan("interleaved")):
        assert html.escape(line) in section(page, "sources")
    for name in JOBS:
        shown = 'id="partition"' in html_page(plan(name))
        assert shown == (plan(name).partition is not None)


def test_the_front_is_marked_where_the_plan_says_so() -> None:
    one = plan("dense")
    front = {dot.name for dot in dots(one) if dot.front}

    assert front == {record.label for record in one.pareto}
    assert len(front) > 2
    page = html_page(one)
    assert page.count(" on-front") - page.partition("<body")[0].count(" on-front") == len(front)
    (points,) = re.findall(r'<polyline points="([^"]*)"', page)
    across = [float(point.split(",")[0]) for point in points.split()]
    assert across == sorted(across)
    assert len(across) == len(front)


@pytest.mark.parametrize("name", JOBS)
def test_the_marked_passes_are_the_critical_path(name: str) -> None:
    found = facts(plan(name))
    data = timeline_data(found)

    marked = sum((code // 3) % 2 for flat in data["ranks"] for code in flat[1::3])
    path = [found.timeline.slices[place] for place in found.timeline.path]
    passes = [round(p.start_s / data["tick_s"]) for p in path if p.kind in "FBW"]
    low, high = data["fold"] or (TICKS, TICKS)
    assert marked == sum(not low <= start < high for start in passes) > 0
    assert path[-1].rank == data["critical_rank"]


def test_weight_gradient_passes_are_drawn() -> None:
    one = build_plan(pp=4, dp=2).model_copy(update={"schedule": "zb_h1"})

    kinds = {code % 3 for flat in timeline_data(facts(one))["ranks"] for code in flat[1::3]}
    assert kinds == {0, 1, 2}
    assert "weight gradient" in html_page(one)
    assert (
        "t-w" not in html_page(build_plan(pp=4, dp=2)).partition("<body")[2].partition("<script")[0]
    )


def test_a_plan_of_another_planner_says_so() -> None:
    page = html_page(changed(plan("tiny"), "estimate", step_time_s=1.0))

    assert "computes another step time than the plan says" in page
    assert "computes another" not in html_page(plan("tiny"))


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ({"rank_map": (0, 1, 2, 3, 4, 5, 6, 6)}, "rank_map: 8 entries"),
        ({"rank_map": (0,)}, "rank_map: 1 entries: does not hold each of the 8 ranks"),
        ({"stages": ()}, "stages: 0 entries, but pp*vpp="),
        ({"job": plan("tiny").job.model_copy(update={"global_batch": 7})}, "global_batch=7"),
    ],
)
def test_a_plan_that_contradicts_itself_is_refused(update: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError) as error:
        facts(plan("tiny").model_copy(update=update))

    assert any(said in problem for problem in error.value.problems)


def test_every_layout_is_one_dot_and_the_plan_is_on_top() -> None:
    found = dots(plan("dense"))

    assert len({dot.name for dot in found}) == len(found)
    assert found[-1].kind == "best"
    assert found[-1].name == plan("dense").to_layout().label()
    labels = {one.label for one in (*plan("dense").simulated, *plan("dense").alternatives)}
    assert labels <= {dot.name for dot in found}


@given(st.floats(1e-3, 1e3), st.floats(1, 1e4), st.floats(0, 1), st.booleans())
def test_places_on_an_axis_rise_with_the_value(
    low: float, ratio: float, share: float, log: bool
) -> None:
    axis = Axis(low, low * ratio, log)

    places = [axis.share(value) for value in (low, low + share * (axis.high - low), axis.high)]
    assert places == sorted(places)
    assert 0 < places[0] <= places[-1] < 1
    assert all(0 < axis.share(tick) < 1 for tick in axis.ticks())


def groups_of(grid: Grid, axis: str) -> set[frozenset[int]]:
    """Return the ranks that differ only along ``axis``, as the page marks them."""
    column = grid.axes.index(axis)
    found: dict[tuple[int, ...], set[int]] = {}
    for place, rank in zip(grid.places.reshape(-1, 4), grid.ranks.ravel(), strict=True):
        key = tuple(np.delete(place, column).tolist())
        found.setdefault(key, set()).add(int(rank))
    return {frozenset(group) for group in found.values()}


@pytest.mark.parametrize(("name", "axes"), [("attention", ATTENTION_AXES), ("expert", EXPERT_AXES)])
def test_marked_groups_are_the_groups_of_the_layout(name: str, axes: tuple[str, ...]) -> None:
    shuffled = np.random.default_rng(0).permutation(16).tolist()
    one = build_plan(mixtral(), rank_map=shuffled, tp=2, cp=2, dp=2, pp=2, ep=4,
                     cluster_spec=cluster(nodes=2))  # fmt: skip
    grid = grid_of(one, name, axes)

    assert grid.ranks.ravel().tolist() == shuffled
    for axis in axes:
        expected = {frozenset(group) for group in groups(one.to_layout(), axis)}
        assert groups_of(grid, axis) == expected


SPREAD = (0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15)  # even ranks on the first node


@pytest.mark.parametrize(
    ("layout", "rank_map", "axis", "expected"),
    [
        ({"tp": 8, "dp": 2}, (), "tp", (8, 2, 0)),
        ({"tp": 8, "dp": 2}, (), "dp", (2, 0, 8)),
        ({"tp": 2, "pp": 8}, SPREAD, "tp", (2, 0, 8)),
        ({"dp": 4, "pp": 4}, SPREAD, "dp", (4, 0, 4)),
        ({"tp": 4, "cp": 4, "ep": 8}, (), "ep", (8, 2, 0)),
        ({"tp": 4, "cp": 4, "ep": 8}, (), "edp", (2, 0, 8)),
        ({"tp": 16}, (), "dp", (1, 16, 0)),
    ],
)
def test_groups_that_leave_their_domain_are_counted(
    layout: dict[str, int], rank_map: tuple[int, ...], axis: str, expected: tuple[int, int, int]
) -> None:
    one = build_plan(mixtral(), rank_map=rank_map, cluster_spec=cluster(nodes=2), **layout)

    assert crossing(one, axis) == Crossing(axis, *expected)


def test_links_say_fabric_and_network() -> None:
    one = build_plan(cluster_spec=cluster(nodes=2), tp=8, dp=2)

    assert link_words(one, Crossing("tp", 8, 2, 0)) == "nvlink, 450 GB/s per GPU"
    assert link_words(one, Crossing("dp", 2, 0, 8)) == "ib network, 50 GB/s per GPU"
    assert link_words(one, Crossing("cp", 2, 1, 3)) == (
        "1 inside a domain (nvlink, 450 GB/s per GPU), 3 over the ib network, 50 GB/s per GPU"
    )
    page = html_page(one)
    assert "ib network, 50 GB/s per GPU" in page
    assert "Links of the expert grid" not in page
    assert "Links of the expert grid" in html_page(plan("experts"))


def test_gpus_without_a_rank_are_shown_unused() -> None:
    grid = grid_of(build_plan(tp=2, dp=2), "attention", ATTENTION_AXES)

    assert (grid.ranks == -1).sum() == 4
    assert "unused" in html_page(build_plan(tp=2, dp=2))


@pytest.mark.parametrize("name", JOBS)
def test_every_machine_is_in_one_drawing(name: str) -> None:
    found = node_groups(grid_of(plan(name), "attention", ATTENTION_AXES))

    assert [node for group in found for node in group] == list(range(JOBS[name][1]))


def test_neighbours_on_an_axis_have_other_colours() -> None:
    for size in range(2, 65):
        assert len({hue(place, size) for place in range(size)}) == size


def test_command_writes_a_page_and_replaces_none(tmp_path: Path) -> None:
    file, output = tiny_plan(tmp_path), tmp_path / "page.html"

    written = planner("report", file, "--output", output)
    again = planner("report", file, "--output", output)

    assert written.exit_code == 0, written.stderr
    assert written.stdout == ""
    assert "page of" in written.stderr
    assert html.escape(f"planner export {file}") in output.read_text()
    assert "planner recommend tiny-llama" in output.read_text()
    assert again.exit_code == 2
    assert "--force" in again.stderr
    assert planner("report", file, "--output", output, "--force").exit_code == 0


def test_command_names_the_file_of_a_broken_plan(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.write_text(plan("tiny").model_copy(update={"rank_map": (0,)}).model_dump_json())

    result = planner("report", file, "--output", tmp_path / "page.html")

    assert result.exit_code == 2
    assert f"{file}: rank_map" in result.stderr
    assert not (tmp_path / "page.html").exists()
