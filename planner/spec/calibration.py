"""A calibration: a few named factors fitted to measured runs, and how a cluster takes them over.

Each factor multiplies one physical quantity that the cost model already has; 1 leaves it alone. It
is meant for the GPU and software that were measured, on top of the profile (or the shipped curves)
they were fitted with.
"""

from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt

from planner.errors import SpecError
from planner.spec.cluster import ClusterSpec, ScaleOutSpec
from planner.spec.files import load
from planner.spec.gpu import CollectiveCurve, GpuSpec
from planner.spec.job import SoftwareSpec

CALIBRATION_VERSION = 1
FACTORS = {
    "compute_speed": "speed of matrix products and attention",
    "memory_speed": "memory bandwidth that element-wise kernels and the optimizer reach",
    "collective_speed": "bandwidth that collectives reach, inside a node and between nodes",
    "host_time": "host time to issue one operator",
}
LEAST, MOST = 1 / 4, 4.0  # beyond that the runs are not what the file says
_SHARES = ("efficiency", "gather_efficiency", "all_to_all_efficiency", "p2p_efficiency")
_Curve = TypeVar("_Curve", bound=CollectiveCurve)


def _readable(version: int) -> int:
    if version != CALIBRATION_VERSION:
        raise ValueError(f"{version} is not {CALIBRATION_VERSION}; calibrate again")
    return version


def _known(factors: dict[str, float]) -> dict[str, float]:
    for name, value in factors.items():
        if name not in FACTORS:
            raise ValueError(f"{name!r} is no factor; use one of {', '.join(FACTORS)}")
        if not LEAST <= value <= MOST:
            raise ValueError(f"{name}={value:g} is not between {LEAST:g} and {MOST:g}")
    return factors


class Calibration(BaseModel):
    """Factors, and what they were fitted to."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[int, AfterValidator(_readable)] = CALIBRATION_VERSION
    gpu: str = Field(description="Name of the GPU that the runs used.")
    factors: Annotated[dict[str, float], AfterValidator(_known)] = Field(
        description="By name; a quantity that is not named keeps its value."
    )
    runs: PositiveInt = Field(description="Measured runs behind the factors.")
    error_before: NonNegativeFloat = Field(description="Median |estimated - measured| / measured.")
    error_after: NonNegativeFloat | None = Field(
        None, description="The same, each run estimated by factors fitted to the others."
    )
    source: str = Field("", description="The file of the runs.")

    @property
    def origin(self) -> str:
        """What it is and how good, in one phrase."""
        shown = ", ".join(f"{name} {value:.3f}" for name, value in self.factors.items())
        after = "" if self.error_after is None else f" -> {self.error_after:.1%} left out"
        runs = f"{self.runs} runs of {self.source}" if self.source else f"{self.runs} runs"
        return f"{shown or 'no factor'} ({runs} on {self.gpu}: {self.error_before:.1%}{after})"


def load_calibration(path: str | Path) -> Calibration:
    """Read the file that ``planner calibrate`` wrote."""
    return load(Calibration, path)


def apply_calibration(cluster: ClusterSpec, calibration: Calibration) -> ClusterSpec:
    """Return the calibrated cluster; ``sources`` says so. SpecError where it does not belong."""
    gpu = cluster.gpu.name
    if calibration.gpu != gpu:
        raise SpecError(
            f"--calibration: fitted to runs on {calibration.gpu}, the cluster {cluster.name} has "
            f"{gpu}; calibrate with runs on that GPU, or leave it out"
        )
    if "calibration" in cluster.sources:
        was = cluster.sources["calibration"]
        raise SpecError(f"--calibration: the cluster is calibrated already: {was}; leave it out")
    sources = cluster.sources | {"calibration": calibration.origin}
    found = calibrated_cluster(cluster, calibration.factors)
    return found.model_copy(update={"sources": sources})


def calibrated_cluster(cluster: ClusterSpec, factors: dict[str, float]) -> ClusterSpec:
    """Return the cluster with its speeds multiplied; shares of a line rate stay at most 1."""
    collectives = factors.get("collective_speed", 1.0)
    gpu = _calibrated_gpu(cluster.gpu, factors)
    link = cluster.scale_up
    update: dict[str, object] = {
        "gpu": gpu,
        "scale_up": link.model_copy(update={"bytes_per_s": link.bytes_per_s * collectives}),
    }
    if cluster.scale_out is not None:
        update["scale_out"] = _calibrated_net(cluster.scale_out, collectives)
    return cluster.model_copy(update=update)


def calibrated_software(software: SoftwareSpec, factors: dict[str, float]) -> SoftwareSpec:
    """Return the software with its host time multiplied; it keeps its name."""
    cpu_op_s = software.cpu_op_s * factors.get("host_time", 1.0)
    return software.model_copy(update={"cpu_op_s": cpu_op_s})


def _calibrated_gpu(gpu: GpuSpec, factors: dict[str, float]) -> GpuSpec:
    compute, memory = factors.get("compute_speed", 1.0), factors.get("memory_speed", 1.0)
    collectives = factors.get("collective_speed", 1.0)
    host_time = factors.get("host_time", 1.0)
    kernels = {
        name: curve.model_copy(update={"bytes_per_s": curve.bytes_per_s * memory})
        for name, curve in gpu.kernels.items()
    }
    curves = {
        kind: tuple(_faster(curve, collectives) for curve in own)
        for kind, own in gpu.collectives.items()
    }
    return gpu.model_copy(
        update={
            "sustained_fraction": gpu.sustained_fraction * compute,
            "memory_bound_fraction": min(1.0, gpu.memory_bound_fraction * memory),
            "collectives": curves,
            **{
                name: None if (measured := getattr(gpu, name)) is None else measured * host_time
                for name in ("host_op_s", "host_split_op_s")
            },
            "kernels": kernels,
        }
    )


def _faster(curve: _Curve, speed: float) -> _Curve:
    """Return a curve whose times by size shrink; the start of a kernel does not."""
    return curve.model_copy(
        update={
            "bytes_per_s": curve.bytes_per_s * speed,
            "gamma_s_per_sqrt_byte": curve.gamma_s_per_sqrt_byte / speed,
        }
    )


def _calibrated_net(net: ScaleOutSpec, speed: float) -> ScaleOutSpec:
    shares = {name: min(1.0, getattr(net, name) * speed) for name in _SHARES}
    curves = {
        kind: tuple(_faster(curve, speed) for curve in own) for kind, own in net.collectives.items()
    }
    return net.model_copy(update={**shares, "collectives": curves})
