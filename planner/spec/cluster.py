"""The cluster a job may use: identical nodes of identical GPUs, and the links between them."""

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from planner.spec.gpu import Bytes, BytesPerS, GpuSpec, Seconds


class ScaleUpSpec(BaseModel):
    """The fabric inside one domain: NVLink, xGMI, or PCIe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str = Field(description="nvlink, xgmi or pcie.")
    bytes_per_s: BytesPerS = Field(description="Per GPU and direction.")
    latency_s: Seconds = 3e-6


class ScaleOutSpec(BaseModel):
    """The network between nodes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fabric: str = Field(description="ib, roce, efa, tcpxo, slingshot or ethernet.")
    nics_per_node: PositiveInt
    nic_bytes_per_s: BytesPerS = Field(description="Line rate of one NIC, per direction.")
    latency_s: Seconds = 5e-6
    efficiency: float = Field(0.92, gt=0, le=1, description="Share of line rate that rings reach.")
    all_to_all_efficiency: float = Field(0.7, gt=0, le=1)
    p2p_efficiency: float = Field(0.6, gt=0, le=1, description="One pair of GPUs over one NIC.")


class HostSpec(BaseModel):
    """CPU side of one node."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    memory_bytes: Bytes
    gpu_link_bytes_per_s: BytesPerS = Field(description="Pinned copies, per GPU and direction.")


class ClusterSpec(BaseModel):
    """A cluster. ``nodes`` is the default; commands may use fewer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    gpu: GpuSpec
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

    @property
    def gpus(self) -> int:
        """GPUs of the whole cluster."""
        return self.nodes * self.gpus_per_node
