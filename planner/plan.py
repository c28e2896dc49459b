"""The plan: one JSON document that reports, formats and the launcher read.

layout + stage table + rank map + estimate with interval + why the others lost. It repeats the
inputs, so a plan can be checked and re-estimated without the files it came from.
"""

from html import escape
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from planner.layout.layout import Layout, Offload, Recompute, Shard
from planner.layout.stages import Split
from planner.schedule.kinds import kind_of, stage_of
from planner.spec.cluster import ClusterSpec
from planner.spec.files import load
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec
from planner.units import format_bytes, format_s

PLAN_VERSION = 1
# fields of a layout that its record holds under the same name and in the same form
PLAIN_FIELDS = (
    "tp", "cp", "pp", "vpp", "dp", "ep", "etp", "micro_batch", "sequence_parallel",
    "offload_optimizer", "offload_weights", "delayed_update",
)  # fmt: skip
_FROZEN = ConfigDict(frozen=True, extra="forbid")


class LayoutRecord(BaseModel):
    """A layout as written in a plan; the same fields as ``layout.Layout``."""

    model_config = _FROZEN

    tp: int = Field(1, ge=1)
    cp: int = Field(1, ge=1)
    pp: int = Field(1, ge=1)
    vpp: int = Field(1, ge=1)
    dp: int = Field(1, ge=1)
    ep: int = Field(1, ge=1)
    etp: int = Field(1, ge=1)
    micro_batch: int = Field(1, ge=1)
    sequence_parallel: bool = False
    shard_weights: int = Field(1, ge=1, description="Ranks that share one copy of the weights.")
    shard_gradients: int = Field(1, ge=1)
    shard_optimizer: int = Field(1, ge=1)
    shard_secondary: int = Field(
        0, ge=0, description="Ranks that share a second copy of the weights (hpZ); 0: none."
    )
    recompute: str = "none"
    offload_optimizer: float = Field(0, ge=0, le=1, description="Share of the state on the host.")
    offload_weights: bool = False
    delayed_update: bool = False
    offload_fraction: float = Field(
        0, ge=0, le=1, description="Of the saved activations that may leave the GPU."
    )
    offload_target: str = Field("", pattern="^(|host|ssd)$", description="host or ssd.")


class StageRecord(BaseModel):
    """The model layers of one pipeline stage (one chunk of a rank when ``vpp > 1``)."""

    model_config = _FROZEN

    stage: int = Field(ge=0, description="Position in the pipeline (stages_of_rank).")
    first_layer: int = Field(ge=0)
    layers: int = Field(ge=0)
    recompute_layers: int = Field(0, ge=0, description="Of these, recomputed in full, from first.")
    embedding: bool = False
    head: bool = False
    memory_bytes: float = Field(0, ge=0, description="Peak of the rank that holds this stage.")


class EstimateRecord(BaseModel):
    """What the cost model says of the plan."""

    model_config = _FROZEN

    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float
    tokens_per_s_per_gpu: float
    mfu: float = Field(description="Model FLOPs ÷ (time · GPUs · peak); recompute not counted.")
    peak_flops: float = Field(description="The denominator of MFU, per GPU.")
    memory_bytes: float = Field(description="Peak of the fullest rank.")
    capacity_bytes: float
    parts_s: dict[str, float] = Field(description="Seconds of the step by cause; they add up.")


class CandidateRecord(BaseModel):
    """A layout that was scored, or a family that lost, and why."""

    model_config = _FROZEN

    label: str
    step_time_s: float | None = None
    memory_bytes: float | None = None
    reason: str


class SimulatedRecord(BaseModel):
    """A layout whose step was simulated, with equal stages."""

    model_config = _FROZEN

    label: str
    step_time_s: float
    memory_bytes: float


class SearchRecord(BaseModel):
    """How much of the space the search covered and what it proved."""

    model_config = _FROZEN

    layouts: int
    fitting: int
    simulated: int
    gap: float = Field(
        description="Proved distance to the fastest fitting layout with equal stages, as a "
        "fraction."
    )
    gap_any_stages: float = Field(
        0.0,
        description="The same over all stages and recompute, by chains of passes and memory; "
        "wider where layers would have to be cut in two. 0 where it was not asked for.",
    )
    seconds: float


class SlowLinkRecord(BaseModel):
    """A pair of nodes much slower than most, and what of the job crosses it."""

    model_config = _FROZEN

    first: str
    second: str
    share: float = Field(description="Rate ÷ that of a healthy link.")
    carries: tuple[str, ...] = Field((), description="Empty: the placement keeps off it.")


class PlacementRecord(BaseModel):
    """What the order of ``hosts`` gains on measured links, and which links it avoids.

    ``listed`` is the same layout on the nodes as the measurement lists them, ``healthy`` if no link
    were slow. Seconds of communication are of one step's critical path, hidden or not.
    """

    model_config = _FROZEN

    communication_s: float
    listed_communication_s: float
    listed_step_time_s: float
    healthy_step_time_s: float
    exact: bool = Field(description="Whether all orders were compared.")
    unused: tuple[str, ...] = Field((), description="Measured nodes that the job leaves out.")
    slow_links: tuple[SlowLinkRecord, ...] = ()


class PartitionRecord(BaseModel):
    """How the layers came to their stages."""

    model_config = _FROZEN

    solver: str = Field(
        description="dynamic programme, HiGHS (integer programme) or equal; with '+ climb' where "
        "moving layers under the simulator found better."
    )
    status: str = Field(description="``optimal``, ``time limit`` or ``not solved``.")
    objective_s: float = Field(description="What the solver minimised, for its own answer.")
    bound_s: float = Field(description="Proved: no stages have a smaller objective.")
    equal_step_time_s: float = Field(description="Simulated step with equal stages.")


class UpsetRecord(BaseModel):
    """Another layout would win if one cause of the step took ``factor`` times as long."""

    model_config = _FROZEN

    cause: str
    factor: float
    label: str
    slower: float = Field(description="How much slower it is as estimated, as a fraction.")
    gain: float = Field(description="How much faster it would then be, as a fraction.")


class StabilityRecord(BaseModel):
    """Whether the answer would be another one if the model were wrong in one cause."""

    model_config = _FROZEN

    error: float = Field(description="Error tried, both ways, for one cause at a time.")
    holds: bool
    upsets: tuple[UpsetRecord, ...] = ()
    settled_by: str = Field("", description="links or kernels: what to measure to settle it.")


class Plan(BaseModel):
    """One executable answer."""

    model_config = _FROZEN

    version: int = PLAN_VERSION
    model: ModelSpec
    cluster: ClusterSpec
    job: JobSpec
    layout: LayoutRecord
    schedule: str = Field(
        "1f1b", description="1f1b, interleaved_1f1b or another of docs/schedules.md."
    )
    stages: tuple[StageRecord, ...]
    rank_map: tuple[int, ...] = Field(description="rank_map[slot] = rank of GPU slot (node-major).")
    hosts: tuple[str, ...] = Field(
        (), description="Node names in the order of their slots; empty: any order is as good."
    )
    estimate: EstimateRecord
    search: SearchRecord
    placement: PlacementRecord | None = Field(None, description="Where links were measured.")
    node_choices: tuple[CandidateRecord, ...] = Field(
        (), description="Of a mixed cluster: each choice of kinds of nodes, the plan's first."
    )
    partition: PartitionRecord | None = None
    alternatives: tuple[CandidateRecord, ...] = ()
    lost: tuple[CandidateRecord, ...] = ()
    simulated: tuple[SimulatedRecord, ...] = Field(
        (), description="The fastest of the other layouts that were simulated."
    )
    stability: StabilityRecord | None = None
    pareto: tuple[SimulatedRecord, ...] = Field(
        (), description="Simulated layouts that no other beats in both step time and free memory."
    )
    command: str = Field("", description="The command that made this plan, where one did.")

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read the file that ``planner recommend --output`` wrote; SpecError where it is none."""
        return load(cls, path)

    def to_layout(self) -> Layout:
        """Return the layout as the rules and the cost model take it."""
        record = self.layout
        return Layout(
            **{name: getattr(record, name) for name in PLAIN_FIELDS},
            shard=Shard(
                record.shard_weights,
                record.shard_gradients,
                record.shard_optimizer,
                record.shard_secondary,
            ),
            recompute=Recompute(record.recompute),
            offload=Offload(record.offload_fraction, record.offload_target),
            schedule="" if self.schedule in ("1f1b", "interleaved_1f1b") else self.schedule,
        )

    def stages_of_rank(self, rank: int) -> tuple[StageRecord, ...]:
        """Return the stages that a pipeline rank holds, in order of its chunks."""
        chunks = self.layout.vpp * kind_of(self.schedule).pipelines
        table = stage_of(self.schedule, self.layout.pp, chunks)
        return tuple(self.stages[stage % len(self.stages)] for stage in table[:, rank])

    def to_split(self) -> Split:
        """Return the layers of each stage, and those recomputed in full."""
        again = tuple(stage.recompute_layers for stage in self.stages)
        return Split(tuple(stage.layers for stage in self.stages), again)

    def _repr_html_(self) -> str:
        """Return the answer as a small table, for notebooks."""
        estimate = self.estimate
        low_s, high_s = estimate.step_time_low_s, estimate.step_time_high_s
        rows = (
            ("layout", self.to_layout().label()),
            ("step time", f"{format_s(estimate.step_time_s)} "
             f"({format_s(low_s)} to {format_s(high_s)})"),
            ("tokens/s per GPU", f"{estimate.tokens_per_s_per_gpu:,.0f}"),
            ("MFU", f"{100 * estimate.mfu:.1f} % of {estimate.peak_flops / 1e12:.4g} TFLOP/s"),
            ("memory", f"{format_bytes(estimate.memory_bytes)} "
             f"of {format_bytes(estimate.capacity_bytes)}"),
        )  # fmt: skip
        gpus = self.cluster.gpu_words(len(self.rank_map))
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{escape(value)}</td></tr>"
            for name, value in rows
        )
        title = escape(f"{self.model.name} on {gpus}")
        return f"<table><caption>{title}</caption>{cells}</table>"
