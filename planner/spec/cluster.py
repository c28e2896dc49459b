"""The cluster a job may use: nodes of identical GPUs or groups of them, and their links."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PositiveInt,
    model_validator,
)

from planner.errors import SpecError
from planner.spec.files import check, read_document, shipped, shipped_or_file
from planner.spec.gpu import Bytes, BytesPerS, GpuSpec, GroupCurve, Seconds
from planner.spec.gpu import load_gpu as load_gpu  # a cluster and its GPU are read together
from planner.spec.nodes import Host, NodeLinks


def _by_name(value: object) -> object:
    """Replace the name of a shipped GPU by its record."""
    if not isinstance(value, str):
        return value
    try:
        return load_gpu(value)
    except SpecError as error:
        raise ValueError(str(error)) from None


class ScaleUpSpec(BaseModel):
    """The fabric inside one domain: NVLink, xGMI, PCIe, or the memory of a host."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["nvlink", "xgmi", "pcie", "host"]
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
    gather_efficiency: float = Field(
        0.82, gt=0, le=1, description="The same of all-gather and reduce-scatter on 400 Gb/s."
    )
    all_to_all_efficiency: float = Field(0.7, gt=0, le=1)
    p2p_efficiency: float = Field(0.6, gt=0, le=1, description="One pair of GPUs over one NIC.")
    collectives: dict[str, tuple[GroupCurve, ...]] = Field(
        default_factory=dict, description="Groups that a profile measured across domains, by kind."
    )

    def __hash__(self) -> int:
        """Hash by fabric and rates: the curves are a dictionary, equality still compares them."""
        return hash((self.fabric, self.nics_per_node, self.nic_bytes_per_s, self.latency_s))


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

    def shared_link_bytes_per_s(self, gpus: int) -> float:
        """Bytes per second and direction of each GPU while ``gpus`` of the node copy at once."""
        return self.gpu_link_bytes_per_s / min(self.link_gpus, gpus)


class NodeGroup(BaseModel):
    """Nodes of a mixed cluster that are alike; what is left out is as the cluster says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpu: Annotated[GpuSpec, BeforeValidator(_by_name)]
    nodes: PositiveInt
    speed: float = Field(1.0, gt=0, le=1, description="Clock of these nodes ÷ the usual one.")
    scale_up: ScaleUpSpec | None = None
    scale_out: ScaleOutSpec | None = None
    hosts: tuple[Host, ...] = Field((), description="Names of the nodes, where the order matters.")

    @model_validator(mode="after")
    def _one_name_each(self) -> "NodeGroup":
        if self.hosts and len(self.hosts) != self.nodes:
            raise ValueError(
                f"hosts={len(self.hosts)} names for nodes={self.nodes}; name every node or none"
            )
        return self


class SsdSpec(BaseModel):
    """The local drives of one node together, as the training job sees them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    capacity_bytes: Bytes
    write_bytes_per_s: BytesPerS = Field(description="Sequential, all drives of a node together.")
    read_bytes_per_s: BytesPerS
    endurance_bytes: Bytes = Field(
        description="Bytes that all drives of a node may be written in their life (TBW)."
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
    node_links: NodeLinks | None = Field(
        None, description="Measured links of each pair of nodes; node i of the job is row i."
    )
    node_groups: tuple[NodeGroup, ...] = Field(
        (), description="Nodes of several kinds, in the order that the job numbers them."
    )

    ssd: SsdSpec | None = None
    sources: dict[str, str] = Field(default_factory=dict, description="Where each value is from.")

    @model_validator(mode="before")
    @classmethod
    def _groups_say_gpu_and_nodes(cls, data: Any) -> Any:
        """Fill in what a list of groups says already: the first group's GPU, the sum of nodes."""
        groups = data.get("node_groups") if isinstance(data, dict) else None
        if not isinstance(groups, list) or not all(isinstance(group, dict) for group in groups):
            return data
        counts = [group.get("nodes") for group in groups]
        if groups and "gpu" in groups[0] and all(isinstance(count, int) for count in counts):
            return {"gpu": groups[0]["gpu"], "nodes": sum(counts), **data}
        return data

    @model_validator(mode="after")
    def _groups_are_the_nodes(self) -> "ClusterSpec":
        if not self.node_groups:
            return self
        held = sum(group.nodes for group in self.node_groups)
        problems = []
        if held != self.nodes:
            problems.append(f"nodes={self.nodes} but node_groups hold {held}; leave nodes out")
        if self.gpu.name != self.node_groups[0].gpu.name:
            problems.append(
                f"gpu={self.gpu.name} is not that of the first of node_groups, "
                f"{self.node_groups[0].gpu.name}; leave gpu out"
            )
        if self.domain_gpus > self.gpus_per_node:
            problems.append(
                f"domain_gpus={self.domain_gpus} spans nodes, which node_groups cannot; "
                "set it to gpus_per_node or fewer"
            )
        if self.node_links is not None:
            problems.append(
                "node_links beside node_groups: placing groups on measured links is not known; "
                "give one of them"
            )
        if problems:
            raise ValueError("; and ".join(problems))
        return self

    @model_validator(mode="after")
    def _links_are_between_nodes(self) -> "ClusterSpec":
        if self.node_links is None:
            return self
        measured = len(self.node_links.hosts)
        if measured < self.nodes:
            raise ValueError(
                f"node_links: {measured} nodes were measured, nodes={self.nodes}; "
                f"measure all or set at most {measured}"
            )
        if self.domain_gpus > self.gpus_per_node:
            raise ValueError(
                f"node_links: domain_gpus={self.domain_gpus} spans nodes, whose links are the "
                "fabric's; leave node_links out"
            )
        return self

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

    def gpu_words(self, count: int) -> str:
        """Return ``64 x H100-SXM-80GB``, or the GPUs of every group."""
        if not self.node_groups:
            return f"{count} x {self.gpu.name}"
        each = self.gpus_per_node
        return " + ".join(f"{each * group.nodes} x {group.gpu.name}" for group in self.node_groups)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Names of the nodes in the order of their GPU slots; empty where any order will do."""
        if self.node_links is not None:
            return self.node_links.hosts[: self.nodes]
        named = [group.hosts for group in self.node_groups]
        return tuple(host for hosts in named for host in hosts) if all(named) else ()


def cluster_names() -> tuple[str, ...]:
    """Names of the clusters that ship, in alphabetical order."""
    return tuple(shipped("cluster_specs", "*.yaml"))


def load_cluster(name_or_path: str | Path, nodes: int | None = None) -> ClusterSpec:
    """Return a shipped cluster by name, or read a YAML or JSON file that describes one.

    ``nodes`` replaces the number of machines that the file states.

    >>> load_cluster("dgx-h100", nodes=8).gpus
    64
    """
    known = shipped("cluster_specs", "*.yaml")
    document = read_document(shipped_or_file("cluster", name_or_path, known))
    if nodes is not None:
        document = replace(document, data={**document.data, "nodes": nodes})
    return check(ClusterSpec, document)
