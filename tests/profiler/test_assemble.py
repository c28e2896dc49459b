"""From pairs of ranks to pairs of nodes."""

import pytest

from planner.profiler.assemble import node_matrix
from planner.spec.profile import Profile


def pair(a: int, b: int, rate: float) -> dict[str, object]:
    return {"ranks": [a, b], "level": "cluster", "latency_s": 1e-5, "latency_median_s": 2e-5,
            "bytes_per_s": rate, "bytes_per_s_median": rate / 2}  # fmt: skip


def profile(**fields: object) -> Profile:
    head = {"device": "CPU", "world_size": 4, "ranks_per_node": 2, "backend": "gloo"}
    return Profile.model_validate(head | fields)


@pytest.mark.parametrize(
    ("hosts", "named"), [(["a", "b"], ("a", "b")), (["vm", "vm"], ("vm-0", "vm-1"))]
)
def test_best_rate_and_least_latency_each_way(hosts: list[str], named: tuple[str, ...]) -> None:
    found = node_matrix(profile(hosts=hosts, pairs=[pair(0, 2, 5e9), pair(2, 0, 4e9)]))

    assert found is not None
    assert found.hosts == named
    assert found.bytes_per_s == ((0.0, 5e9), (4e9, 0.0))
    assert found.latency_s == ((0.0, 1e-5), (1e-5, 0.0))


def test_one_node_has_no_matrix() -> None:
    assert node_matrix(profile(hosts=["a"])) is None
