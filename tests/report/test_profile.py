"""What is said of a profile: slow links by name, a fabric far below its datasheet, changes."""

from io import StringIO
from typing import Any

import pytest
from rich.console import Console, RenderableType

from planner.report.profile import diff_report, findings, profile_report, values
from planner.spec.cluster import load_cluster
from planner.spec.profile import Profile

GEMM = {"m": 256, "n": 512, "k": 128, "seconds": 1e-3}


def link(rate: float, level: str, ranks: int, per_node: int, **more: Any) -> dict[str, Any]:
    points = [[size, size / rate] for size in (2**12, 2**20, 2**28)]
    return {"kind": "all_gather", "ranks": ranks, "level": level, "ranks_per_node": per_node,
            "points": points} | more  # fmt: skip


def pair(a: int, b: int, rate: float) -> dict[str, Any]:
    return {"ranks": [a, b], "level": "cluster", "latency_s": 1e-5, "latency_median_s": 1e-5,
            "bytes_per_s": rate, "bytes_per_s_median": rate}  # fmt: skip


def profile(**fields: Any) -> Profile:
    head = {"device": "H100", "world_size": 16, "ranks_per_node": 8, "backend": "nccl"}
    return Profile.model_validate(head | fields)


def text(answer: RenderableType) -> str:
    console = Console(width=200, record=True, file=StringIO())
    console.print(answer)
    return console.export_text()


# DGX H100: NVLink 450 GB/s; one 50 GB/s NIC for each of 8 GPUs
@pytest.mark.parametrize(
    ("links", "said"),
    [
        ([link(600e9, "domain", 8, 8)], []),
        ([link(40e9, "domain", 8, 8)], ["inside a node: at best 35 GB/s, 8% of nominal 450 GB/s"]),
        ([link(45e9, "cluster", 2, 1)], []),  # 45 % of the line rate is a bad day, no wrong path
        (
            [link(12e9, "cluster", 2, 1)],
            ["between nodes: at best 6 GB/s, 12% of nominal 50 GB/s; sockets instead of RDMA?"],
        ),
        # whole nodes drive eight NICs: 300 GB/s is fine, 30 is not
        ([link(300e9 * 16 / 15, "cluster", 16, 8)], []),
        ([link(30e9, "cluster", 16, 8)], ["between nodes: at best 3.52 GB/s, 7% of nominal 50"]),
    ],
)
def test_a_fabric_far_below_its_datasheet(links: list[dict[str, Any]], said: list[str]) -> None:
    found = list(findings(profile(links=links), load_cluster("dgx-h100")))

    assert len(found) == len(said)
    for have, want in zip(found, said, strict=True):
        assert have.startswith(want)


def test_slow_pairs_groups_and_ranks_are_named() -> None:
    pairs = [pair(0, 8, 40e9), pair(0, 16, 41e9), pair(8, 16, 20e9)]
    slow = link(1e9, "cluster", 2, 1, slowest_group=[3, 11], slowest_ratio=1.5)
    spread = {"what": "product", "seconds": [1.0, 1.01, 1.3]}

    found = list(findings(profile(pairs=pairs, links=[slow], spread=[spread])))

    assert found == [
        "rank 8 to rank 16: 20 GB/s, 50% of the median pair",
        "all_gather of ranks 3, 11: 1.50 times its siblings",
        "rank 2 takes 1.29 times the median (product)",
    ]


def test_what_is_not_believed_is_shown() -> None:
    shown = text(profile_report(profile(rejected=[{"what": "norm", "reason": "unstable"}])))

    assert "not believed: norm: unstable" in shown
    assert "1 not believed" in shown


def test_a_report_holds_rates_and_counts() -> None:
    shown = text(profile_report(profile(gemms=[GEMM], links=[link(600e9, "domain", 8, 8)],
                                        host={"h2d_bytes_per_s": "55 GB/s"})))  # fmt: skip

    assert "1 curves, 1 products" in shown
    assert "0.03355 TFLOP/s" in shown
    assert "55 GB/s" in shown
    assert "Look at" not in shown


def test_a_diff_lists_large_changes_first() -> None:
    before = profile(gemms=[GEMM, GEMM | {"n": 64}, GEMM | {"n": 32}])
    after = profile(gemms=[GEMM | {"seconds": 1.3e-3}, GEMM | {"n": 64, "seconds": 0.5e-3}])

    shown = text(diff_report(before, after))

    assert "2 measurements in both" in shown
    assert "1 only before, 0 only after" in shown
    assert shown.index("-50%") < shown.index("+30%")
    assert set(values(after)) < set(values(before))


def test_a_diff_of_a_profile_with_itself_is_empty() -> None:
    one = profile(gemms=[GEMM])

    assert "0 differ by over 10%" in text(diff_report(one, one))
