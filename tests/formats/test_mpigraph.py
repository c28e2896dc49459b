"""Measured links of nodes: the planner's file and Pipette's tables of mpiGraph."""

import json
from pathlib import Path

import pytest

from planner.errors import SpecError
from planner.formats.mpigraph import read_node_links

RECEIVE = [[9, 2000], [3000, 9]]
SEND = [[9, 2500], [1000, 9]]


def table(rates: object, hosts: object = ("a", "b")) -> dict[str, object]:
    return {"gpus": hosts, "bandwidth": rates}


def written(folder: Path, data: object) -> Path:
    path = folder / "time_0.json"
    path.write_text(json.dumps(data))
    return path


def test_a_pair_gets_the_lower_of_both_tables_in_bytes(tmp_path: Path) -> None:
    found = read_node_links(written(tmp_path, {"0": table(RECEIVE), "1": table(SEND)}))

    assert found.hosts == ("a", "b")
    assert (found.bytes_per_s[0][1], found.bytes_per_s[1][0]) == (2e9, 1e9)
    assert found.source == "mpiGraph, time_0.json"


def test_the_planners_own_file_is_read_as_it_is(tmp_path: Path) -> None:
    data = {"hosts": ["a", "b"], "bytes_per_s": [[0, "2 GB/s"], ["1 GB/s", 0]]}

    assert read_node_links(written(tmp_path, data)).bytes_per_s == ((0, 2e9), (1e9, 0))


REFUSED = [
    ({"0": 1}, "0: not a table of mpiGraph"),
    ({"0": table([[1, 2]])}, "0.bandwidth: not 2 rows of as many numbers"),
    ({"0": table([[1, 2], [1]])}, "0.bandwidth: not 2 rows of as many numbers"),
    ({"0": table([[1, "x"], [1, 1]])}, "0.bandwidth: holds something that is no number"),
    ({"0": table(SEND), "1": table(SEND, ("a", "c"))}, "its tables name different nodes"),
    ({"0": table(SEND, ("a", "; rm -rf"))}, "hosts.1: '; rm -rf' is not accepted"),
    ({"name": "x"}, "hosts: missing"),
]


@pytest.mark.parametrize(("data", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_is_not_a_table_is_refused(tmp_path: Path, data: object, said: str) -> None:
    with pytest.raises(SpecError) as raised:
        read_node_links(written(tmp_path, data))

    assert said in str(raised.value)
    assert "time_0.json" in str(raised.value)
