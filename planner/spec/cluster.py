"""The cluster a job may use: identical nodes of identical GPUs, and the links between them."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    model_validator,
)

from planner.errors import SpecError
from planner.spec.files import load, shipped, shipped_or_file
from planner.spec.gpu import Bytes, BytesPerS, GpuSpec, Seconds
from planner.spec.gpu import load_gpu as load_gpu  # a cluster and its GPU are read together


def _by_name(value: object) -> object:
    """Replace the name of a shipped GPU by its record."""
    if not isinstance(value, str):
        return value
    try:
        return load_gpu(value)
    except SpecError as error:
        raise ValueError(str(error)) from None


class ScaleUpSpec(BaseModel):
    """The fabric inside one domain: NVLink, xGMI, or PCIe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["nvlink", "xgmi", "pcie"]
    bytes_per_s: BytesPerS = Field(description="Per GPU and direction.")
    latency_s: Seconds = Field(1e-6, description="One step of a ring inside the domain.")


class ScaleOutSpec(BaseModel):
    """The network between nodes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fabric: Literal["ib", "roce", "efa", "tcpx", "tcpxo", "slingshot", "ethernet"]
    nics_per_node: PositiveInt
    nic_bytes_per_s: BytesPerS = Field(description="Line rate of one NIC, per direction.")
    latency_s: Seconds = Field(5e-6, description="One step between nodes, as NCCL counts it.")
    ring_step_s: Seconds = Field(
        3e-6, description="Time of one ring step on top of its bytes: 2.3-8 us on InfiniBand."
    )
    efficiency: float = Field(0.92, gt=0, le=1, description="Share of line rate that rings reach.")
    all_to_all_efficiency: float = Field(0.7, gt=0, le=1)
    p2p_efficiency: float = Field(0.6, gt=0, le=1, description="One pair of GPUs over one NIC.")


class HostSpec(BaseModel):
    """CPU side of one node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_bytes: Bytes
    gpu_link_bytes_per_s: BytesPerS = Field(description="Pinned copies, per GPU and direction.")
    link_gpus: PositiveInt = Field(
        1, description="GPUs behind one link to the host, a PCIe switch; they share its rate."
    )
    stream_bytes_per_s: BytesPerS = Field(
        110e9,
        description="Memory traffic of the whole node in an optimizer that runs on its CPUs. "
        "Default: CPU-Adam on a DGX-2 of 2018 (4.1 G parameters/s; ZeRO-Offload, ATC 21, table 4).",
    )


class ClusterSpec(BaseModel):
    """A cluster. ``nodes`` is the default; commands may use fewer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    gpu: Annotated[GpuSpec, BeforeValidator(_by_name)] = Field(
        description="A shipped name such as H100-SXM-80GB, or a full description."
    )
    nodes: PositiveInt = 1
    gpus_per_node: PositiveInt
    domain_gpus: PositiveInt = Field(description="GPUs that share one scale-up fabric.")
    scale_up: ScaleUpSpec
    scale_out: ScaleOutSpec | None = None
    host: HostSpec | None = None
    sources: dict[str, str] = Field(default_factory=dict, description="Where each value is from.")

    @model_validator(mode="after")
    def _several_nodes_need_a_network(self) -> "ClusterSpec":
        if self.nodes > 1 and self.scale_out is None:
            raise ValueError(f"nodes={self.nodes} need scale_out; describe the network or set 1")
        return self

    @model_validator(mode="after")
    def _domains_tile_the_nodes(self) -> "ClusterSpec":
        node, domain = self.gpus_per_node, self.domain_gpus
        if node % domain and domain % node:
            raise ValueError(
                f"domain_gpus={domain} neither divides nor is a multiple of "
                f"gpus_per_node={node}; count the GPUs that share one fabric"
            )
        return self

    def __hash__(self) -> int:
        """Hash by names: the fields hold dictionaries, equality still compares them all."""
        return hash((self.name, self.gpu.name, self.nodes))

    @property
    def gpus(self) -> int:
        """GPUs of the whole cluster."""
        return self.nodes * self.gpus_per_node


def cluster_names() -> tuple[str, ...]:
    """Names of the clusters that ship, in alphabetical order."""
    return tuple(shipped("cluster_specs", "*.yaml"))


def load_cluster(name_or_path: str | Path) -> ClusterSpec:
    """Return a shipped cluster by name, or read a YAML or JSON file that describes one."""
    known = shipped("cluster_specs", "*.yaml")
    return load(ClusterSpec, shipped_or_file("cluster", name_or_path, known))
