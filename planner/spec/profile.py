"""A profile: what the profiler measured on one machine.

Points stay in the file as they were measured; curves are fitted when a profile is applied
(``spec.machine``), so a better fit needs no new measurement.
"""

from datetime import date
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

from planner.spec.files import load
from planner.spec.gpu import Bytes
from planner.spec.measured import (
    AttentionMeasurement,
    GemmMeasurement,
    HostMeasurement,
    KernelMeasurement,
    LaunchMeasurement,
    LinkCurve,
    OverlapMeasurement,
    PairLink,
    RankSpread,
    Rejected,
    SharingMeasurement,
)
from planner.spec.nodes import NodeLinks

PROFILE_VERSION = 2
READABLE = (1, PROFILE_VERSION)  # 1 had links and gemms only


def _readable(version: int) -> int:
    if version not in READABLE:
        raise ValueError(f"{version} is not {PROFILE_VERSION}; profile again with this planner")
    return version


def _as_text(value: object) -> object:
    """YAML reads an unquoted date as a date."""
    return value.isoformat() if isinstance(value, date) else value


class Profile(BaseModel):
    """Measurements of one machine, with what is needed to tell where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Annotated[int, AfterValidator(_readable)] = PROFILE_VERSION
    device: str = Field(description="As the driver names it.")
    world_size: PositiveInt
    backend: str = Field(description="nccl, gloo, rccl…")
    date: Annotated[str, BeforeValidator(_as_text)] = Field("", description="Like 2025-01-31.")
    torch_version: str = ""
    driver: str = Field("", description="Version of the GPU driver, or the kernel of a CPU run.")
    library: str = Field("", description="Collective library and version, like NCCL 2.27.3.")
    hosts: tuple[str, ...] = Field((), description="Names of the nodes, in the order of ranks.")
    ranks_per_node: PositiveInt | None = None
    domain_ranks: PositiveInt | None = Field(None, description="Ranks of one scale-up fabric.")
    topology: tuple[str, ...] = Field((), description="What the driver or sysfs says of links.")
    source: str = Field("", description="Files of other programs that this was read from.")
    memory_bytes: Bytes | None = Field(None, description="Of one GPU, as the driver reports it.")
    ranks_per_core: float = Field(1.0, ge=1, description="Of a CPU: ranks ÷ cores, at least 1.")
    links: tuple[LinkCurve, ...] = ()
    pairs: tuple[PairLink, ...] = ()
    node_links: NodeLinks | None = Field(None, description="Pairs of nodes: rate and latency.")
    sharing: tuple[SharingMeasurement, ...] = ()
    gemms: tuple[GemmMeasurement, ...] = ()
    attention: tuple[AttentionMeasurement, ...] = ()
    kernels: tuple[KernelMeasurement, ...] = ()
    launch: tuple[LaunchMeasurement, ...] = ()
    overlaps: tuple[OverlapMeasurement, ...] = ()
    spread: tuple[RankSpread, ...] = ()
    host: HostMeasurement | None = None
    rejected: tuple[Rejected, ...] = Field((), description="Named, and used by no estimate.")

    @property
    def origin(self) -> str:
        """Where and when this was measured, in one phrase."""
        if self.source:
            return f"measured on {self.device} ({self.source})"
        return (
            f"measured on {self.device}, {self.date} ({self.backend}, torch {self.torch_version})"
        )


def load_profile(path: str | Path) -> Profile:
    """Read a profile from the JSON or YAML file that the profiler wrote."""
    return load(Profile, path)
