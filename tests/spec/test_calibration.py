"""The calibration record: what each factor changes, and files and clusters it refuses."""

import json
from pathlib import Path

import pytest

from planner.errors import SpecError
from planner.spec.calibration import (
    FACTORS,
    MOST,
    Calibration,
    apply_calibration,
    calibrated_cluster,
    calibrated_software,
    load_calibration,
)
from planner.spec.cluster import ClusterSpec
from planner.spec.software import MEGATRON_CORE
from tests.properties.strategies import cluster

FOUND = Calibration(gpu="H100-SXM-80GB", factors={"compute_speed": 0.9}, runs=6, error_before=0.1)


def test_a_factor_changes_its_own_quantity_and_no_other() -> None:
    machine = cluster("dgx-h100", 2)
    changed: dict[str, set[str]] = {}
    for name in FACTORS:
        other = calibrated_cluster(machine, {name: 0.5})
        fields = {f"gpu.{key}" for key in type(machine.gpu).model_fields
                  if getattr(machine.gpu, key) != getattr(other.gpu, key)}  # fmt: skip
        fields |= {key for key in ("scale_up", "scale_out", "domain_gpus", "nodes")
                   if getattr(machine, key) != getattr(other, key)}  # fmt: skip
        changed[name] = fields

    assert changed == {
        "compute_speed": {"gpu.sustained_fraction"},
        "memory_speed": {"gpu.memory_bound_fraction"},
        "collective_speed": {"gpu.collectives", "scale_up", "scale_out"},
        "host_time": set(),
    }
    assert calibrated_software(MEGATRON_CORE, {"host_time": 2}).cpu_op_s == (
        2 * MEGATRON_CORE.cpu_op_s
    )
    assert calibrated_software(MEGATRON_CORE, {"compute_speed": 2}) == MEGATRON_CORE


def test_no_factor_changes_nothing() -> None:
    assert calibrated_cluster(cluster("dgx-h100", 2), {}) == cluster("dgx-h100", 2)


def test_shares_stay_shares() -> None:
    fast = calibrated_cluster(cluster("dgx-h100", 2), dict.fromkeys(FACTORS, MOST))

    again = ClusterSpec.model_validate(fast.model_dump())  # what a plan file holds must be readable

    assert again == fast
    assert fast.scale_out is not None
    assert fast.scale_out.efficiency == fast.gpu.memory_bound_fraction == 1.0


def test_the_cluster_says_that_it_is_calibrated() -> None:
    found = apply_calibration(cluster("dgx-h100"), FOUND)

    assert found.sources["calibration"] == FOUND.origin
    assert FOUND.origin == "compute_speed 0.900 (6 runs on H100-SXM-80GB: 10.0%)"
    with pytest.raises(SpecError, match="calibrated already"):
        apply_calibration(found, FOUND)


def test_another_gpu_is_refused() -> None:
    with pytest.raises(SpecError, match="fitted to runs on H100-SXM-80GB, the cluster dgx-a100"):
        apply_calibration(cluster("dgx-a100"), FOUND)


def test_a_file_is_read_back(tmp_path: Path) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(FOUND.model_dump_json(indent=1))

    assert load_calibration(file) == FOUND


BAD: list[tuple[dict[str, object], str]] = [
    ({"factors": {"luck": 2}}, "factors: 'luck' is no factor; use one of compute_speed"),
    ({"factors": {"compute_speed": 9}}, "compute_speed=9 is not between 0.25 and 4"),
    ({"version": 7}, "version: 7 is not 1; calibrate again"),
    ({"runs": 0}, "runs: 0 is not accepted"),
    ({"speed": 1}, "speed: unknown field"),
]


@pytest.mark.parametrize(("change", "words"), BAD)
def test_a_bad_file_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(FOUND.model_dump() | change, indent=1))

    with pytest.raises(SpecError) as caught:
        load_calibration(file)
    assert words in str(caught.value)
    assert f"{file}:" in str(caught.value)
