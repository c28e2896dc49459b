"""What a profile holds: one record for each kind of measurement, as it was taken.

Seconds are medians over repetitions of the slowest rank; ``spread`` is the distance between the
quartiles as a share of the median.
"""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)

from planner.spec.gpu import Bytes, BytesPerS
from planner.units import parse_seconds

Kind = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv"]
Level = Literal["domain", "cluster"]
Pass = Literal["", "forward", "dgrad", "wgrad"]
_FROZEN = ConfigDict(frozen=True, extra="forbid")
Measured = Annotated[float, BeforeValidator(parse_seconds), Field(gt=0)]


class LinkCurve(BaseModel):
    """Seconds of one collective by message size, for one kind of group.

    Sizes follow nccl-tests: the full buffer, for all_gather and reduce_scatter the gathered one.
    """

    model_config = _FROZEN

    kind: Kind
    ranks: Annotated[int, Field(ge=2)]
    level: Level = Field(
        description="domain: all ranks share one scale-up fabric; cluster: the group spans nodes."
    )
    ranks_per_node: PositiveInt = Field(1, description="Ranks of the group on each node.")
    points: tuple[tuple[Bytes, Measured], ...] = Field(
        min_length=1, description="Pairs of message bytes and seconds."
    )
    slowest_group: tuple[int, ...] = Field(
        (), description="Ranks of the sibling group that was slowest at the largest size."
    )
    slowest_ratio: float = Field(
        1.0, ge=1, description="Seconds of that group ÷ median of its siblings, all at once."
    )


class PairLink(BaseModel):
    """One pair of ranks, measured while disjoint pairs measure too; ``min`` of its repetitions."""

    model_config = _FROZEN

    ranks: tuple[int, int]
    level: Level
    latency_s: Measured = Field(description="Half of a round trip of a small message, least.")
    latency_median_s: Measured
    bytes_per_s: BytesPerS = Field(description="One way, of a large message, best.")
    bytes_per_s_median: BytesPerS


class GemmMeasurement(BaseModel):
    """Seconds of ``copies`` dense products (m, k) x (k, n) in one call."""

    model_config = _FROZEN

    m: PositiveInt
    n: PositiveInt
    k: PositiveInt
    dtype: str = "bf16"
    seconds: Measured
    pass_name: Pass = Field("", description="How the operands lie; empty: not told.")
    copies: PositiveInt = Field(1, description="More than 1: a grouped product, of experts.")
    skewed: bool = Field(False, description="One expert has half of all rows.")
    accumulates: bool = Field(False, description="A weight gradient that adds to an fp32 one.")
    spread: NonNegativeFloat = 0.0


class AttentionMeasurement(BaseModel):
    """Seconds of fused causal attention of ``heads`` query heads (batch times heads)."""

    model_config = _FROZEN

    heads: PositiveInt
    kv_heads: PositiveInt
    seq_q: PositiveInt
    seq_kv: PositiveInt
    head_dim: PositiveInt
    backward: bool = False
    seconds: Measured
    spread: NonNegativeFloat = 0.0


class KernelMeasurement(BaseModel):
    """Seconds of an operation bound by memory; ``moved_bytes`` as ``model.operations`` counts."""

    model_config = _FROZEN

    name: str = Field(description="Of the operation: norm, residual, swiglu, loss, optimizer…")
    backward: bool = False
    moved_bytes: PositiveFloat
    seconds: Measured
    spread: NonNegativeFloat = 0.0


class LaunchMeasurement(BaseModel):
    """What the host needs to issue work."""

    model_config = _FROZEN

    tokens: PositiveInt
    op_s: Measured = Field(description="One small operator, many in a row, without waiting.")
    layer_s: Measured = Field(description="One eager layer, forward and backward, to its end.")
    layer_issue_s: Measured = Field(description="The same without waiting for the device.")
    layer_kernels: PositiveInt = Field(description="Kernels that the layer is priced with.")
    layer_priced_s: NonNegativeFloat = Field(
        0.0, description="Seconds of these kernels by this profile, without host time."
    )
    in_order: bool = Field(False, description="The device is the host: nothing is queued.")
    seq_len: PositiveInt | None = Field(None, description="Of each sequence; None: one of all.")
    tp: PositiveInt = Field(1, description="Ranks that split the layer; waiting is not counted.")

    @property
    def host_op_s(self) -> float:
        """Host seconds of one kernel; where nothing is queued, beyond the kernel itself."""
        if self.in_order:
            return max(0.0, self.layer_s - self.layer_priced_s) / self.layer_kernels
        return self.layer_issue_s / self.layer_kernels


class OverlapMeasurement(BaseModel):
    """A computation and a collective, alone and at once."""

    model_config = _FROZEN

    compute: str
    collective: Kind
    ranks: PositiveInt
    message_bytes: Bytes
    compute_s: Measured
    collective_s: Measured
    together_s: Measured

    @property
    def interference(self) -> float:
        """Seconds lost ÷ seconds that could be hidden: 0 hides all, 1 hides nothing."""
        longer = max(self.compute_s, self.collective_s)
        shorter = min(self.compute_s, self.collective_s)
        return min(1.0, max(0.0, (self.together_s - longer) / shorter))


class SharingMeasurement(BaseModel):
    """A collective of one group alone, and of all its siblings at once."""

    model_config = _FROZEN

    kind: Kind
    ranks: PositiveInt
    groups: PositiveInt
    level: Level
    message_bytes: Bytes
    alone_s: Measured
    together_s: Measured


class RankSpread(BaseModel):
    """The same work on every rank at once: seconds by rank."""

    model_config = _FROZEN

    what: str
    seconds: tuple[Measured, ...]


class HostMeasurement(BaseModel):
    """Host side of one rank, and of one node's drive; None was not measured."""

    model_config = _FROZEN

    h2d_bytes_per_s: BytesPerS | None = Field(None, description="Pinned copy to the GPU, alone.")
    d2h_bytes_per_s: BytesPerS | None = None
    both_bytes_per_s: BytesPerS | None = Field(None, description="Each way, both at once.")
    all_h2d_bytes_per_s: BytesPerS | None = Field(
        None, description="Per GPU, all GPUs of a node at once."
    )
    all_d2h_bytes_per_s: BytesPerS | None = None
    copy_bytes_per_s: BytesPerS | None = Field(
        None, description="Read and write of a copy in host memory, all ranks at once, per rank."
    )
    cpu_adam_parameters_per_s: PositiveFloat | None = Field(
        None, description="Fused AdamW on the CPU, all ranks at once, per rank."
    )
    ssd_path: str = ""
    ssd_read_bytes_per_s: BytesPerS | None = Field(None, description="O_DIRECT, one node.")
    ssd_write_bytes_per_s: BytesPerS | None = None
    ssd_direct: bool = Field(False, description="Whether O_DIRECT was accepted.")


class Rejected(BaseModel):
    """What was measured and is not believed: no estimate uses it."""

    model_config = _FROZEN

    what: str
    reason: str
