"""One kind of GPU: its datasheet, and the fitted curves of its kernels and collectives.

The records are what ``profiles/gpus/NAME.yaml`` holds, each value with its source in the file.
Formulas that use the curves live in ``cost/``.
"""

from difflib import get_close_matches
from functools import cache
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, PositiveInt

from planner.errors import SpecError
from planner.spec.files import data_path, load, read_document, shipped
from planner.units import parse_bytes, parse_flops, parse_rate, parse_seconds

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
BytesPerS = Annotated[float, BeforeValidator(parse_rate), Field(gt=0)]
FlopsPerS = Annotated[float, BeforeValidator(parse_flops), Field(gt=0)]
Seconds = Annotated[float, BeforeValidator(parse_seconds), Field(ge=0)]


class GemmCurve(BaseModel):
    """Seconds of a dense matrix product, see ``cost.compute.gemm_s``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    efficiency: float = Field(gt=0, le=1, description="Largest share of peak reached.")
    k_half: float = Field(ge=0, description="Inner dimension at half of that share.")
    wave_exponent: float = Field(ge=0, description="Loss from tiles that do not fill a wave.")
    tile_m: PositiveInt = 128
    tile_n: PositiveInt = 128
    overhead_s: Seconds = Field(description="Fixed time of one kernel, quantisation included.")
    hbm_fraction: float = Field(gt=0, le=1.1, description="Share of memory bandwidth reached.")


class AttentionCurve(BaseModel):
    """Seconds of fused causal attention, see ``cost.compute.attention_s``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    efficiency: float = Field(gt=0, le=1)
    s_half: float = Field(ge=0, description="Sequence length at half of the efficiency.")
    wave_exponent: float = Field(ge=0)
    overhead_s: Seconds
    backward_ratio: float = Field(gt=0, description="Backward seconds ÷ forward seconds per FLOP.")


class CollectiveCurve(BaseModel):
    """``t(x) = alpha_s + x / bytes_per_s + gamma * sqrt(x)`` for ``x`` bus bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    ranks: PositiveInt
    alpha_s: Seconds
    bytes_per_s: BytesPerS
    gamma_s_per_sqrt_byte: float = Field(0.0, ge=0)

    def seconds(self, bus_bytes: float) -> float:
        """Seconds to move bus bytes."""
        root = float(bus_bytes**0.5)
        return self.alpha_s + bus_bytes / self.bytes_per_s + self.gamma_s_per_sqrt_byte * root


class GroupCurve(CollectiveCurve):
    """A curve measured over several domains, for groups of just this shape."""

    inside: PositiveInt = Field(description="Ranks of the group in each domain.")


class KernelCurve(BaseModel):
    """Measured seconds of one kind of memory-bound operation: ``overhead_s + bytes / rate``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overhead_s: Seconds
    bytes_per_s: BytesPerS


def operation_key(kind: str, *sizes: float) -> str:
    """Return the name under which one operation of exactly these sizes is kept when measured."""
    return " ".join([kind, *(f"{size:.12g}" for size in sizes)])


def bus_factor(kind: str, ranks: int) -> float:
    """Bytes on the busiest link ÷ message bytes, as nccl-tests counts them."""
    if kind in ("send_recv", "broadcast"):
        return 1.0
    return (2.0 if kind == "all_reduce" else 1.0) * (ranks - 1) / ranks


class GpuSpec(BaseModel):
    """A GPU type, per GPU (a dual-die card that the driver shows as two is two)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    memory_bytes: Bytes = Field(description="As the driver reports it.")
    hbm_bytes_per_s: BytesPerS
    sm_count: PositiveInt
    power_w: float = Field(0.0, ge=0, description="Rated power (TDP); 0: not known.")
    peak_flops: dict[str, FlopsPerS] = Field(description="Dense peak by dtype: bf16, fp16, fp8…")
    sustained_fraction: PositiveFloat = Field(
        1.0, le=4, description="Clock in long training steps ÷ clock in short benchmarks."
    )
    memory_bound_fraction: PositiveFloat = Field(
        0.8, le=1, description="Share of memory bandwidth reached by element-wise kernels."
    )
    grouped_fraction: PositiveFloat = Field(
        0.7, le=1, description="Grouped (expert) product ÷ dense product of the same shape."
    )
    flash_fraction: dict[int, float] = Field(
        default_factory=dict, description="Speed of FlashAttention 1, 2 ÷ the attention curve."
    )
    launch_s: Seconds = Field(2e-6, description="Gap between two queued kernels.")
    host_op_s: Seconds | None = Field(
        None, description="Host time of one kernel, measured; before that of the software."
    )
    host_split_op_s: Seconds | None = Field(
        None, description="The same in layers that tensor parallelism splits, where measured."
    )
    in_order: bool = Field(
        False, description="Work runs on the host thread that issues it (a CPU): nothing queues."
    )
    ranks_per_core: float = Field(
        1.0, ge=1, description="Ranks that share a core (a CPU): one that waits frees it."
    )
    interference: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Seconds lost ÷ seconds overlapped when a collective inside a domain runs "
        "beside compute, measured; before the priors of ``cost.overlap``.",
    )
    measured_s: dict[str, Seconds] = Field(
        default_factory=dict, description="Seconds of single operations, by ``operation_key``."
    )
    kernels: dict[str, KernelCurve] = Field(
        default_factory=dict, description="Memory-bound operations by name, measured."
    )
    gemm: dict[str, GemmCurve] = Field(default_factory=dict)
    attention: dict[int, AttentionCurve] = Field(
        default_factory=dict, description="By head dimension; the nearest one is used."
    )
    collectives: dict[str, tuple[CollectiveCurve, ...]] = Field(
        default_factory=dict,
        description="Inside one scale-up domain, by kind: all_reduce, all_gather, "
        "reduce_scatter, all_to_all, send_recv.",
    )
    sources: dict[str, str] = Field(default_factory=dict, description="Where each value is from.")

    def __hash__(self) -> int:
        """Hash by name: the fields hold dictionaries, equality still compares them all."""
        return hash(self.name)


def gpu_names() -> tuple[str, ...]:
    """Names of the GPUs that ship, in alphabetical order."""
    return tuple(shipped("profiles", "gpus/*.yaml"))


@cache
def load_gpu(name: str) -> GpuSpec:
    """Return a shipped GPU by its name or by one of its other names, like ``"H100"``.

    Case, spaces and dashes do not count: ``"MI250X GCD 64GB"`` is ``MI250X-GCD-64GB``.
    """
    own = {_bare(known): known for known in gpu_names()}
    aliases = read_document(data_path("profiles") / "gpu_aliases.yaml").data
    known = own | {_bare(alias): target for alias, target in aliases.items()}
    found = known.get(_bare(name))
    if found is None:
        near = get_close_matches(_bare(name), known, n=1)
        hint = f"did you mean {known[near[0]]!r}? " if near else ""
        remedy = f"{hint}Describe it in full, or use one of: {', '.join(own.values())}"
        raise SpecError(f"GPU {name!r} is not shipped; {remedy}")
    return load(GpuSpec, data_path("profiles") / "gpus" / f"{found}.yaml")


def _bare(name: str) -> str:
    """Return a name without what people write differently: case, spaces, dashes."""
    return "".join(letter for letter in name.lower() if letter.isalnum())
