"""Read plan.json with the standard library: every problem at once, each with its place."""

import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

PLAN_VERSION = 1
_Record = TypeVar("_Record")


class PlanError(Exception):
    """The plan cannot be read or run; ``problems`` holds one sentence each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True)
class MoEConfig:
    """The expert layers; the same fields as the planner's record."""

    experts: int
    top_k: int
    ffn_hidden: int
    shared_ffn_hidden: int = 0
    shared_gate: bool = False
    router_bias: bool = False
    expert_bias: bool = False
    groups: int = 1
    top_groups: int = 1
    first_layer: int = 0
    every: int = 1
    dense_layers: tuple[int, ...] = ()

    def at(self, layer: int) -> bool:
        """Whether layer number ``layer`` (from 0) holds experts."""
        if layer < self.first_layer or layer in self.dense_layers:
            return False
        return (layer + 1) % self.every == 0


@dataclass(frozen=True)
class MLAConfig:
    """Latent attention; the same fields as the planner's record."""

    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int


@dataclass(frozen=True)
class ModelConfig:
    """The decoder to build; the same fields as the planner's model record."""

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_hidden: int
    vocab: int
    gated_mlp: bool = True
    tied_embeddings: bool = False
    positions: int = 0
    norm_bias: bool = False
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    parallel_block: bool = False
    sliding_window: int = 0
    full_attention_every: int = 0
    attention_sinks: bool = False
    moe: MoEConfig | None = None
    mla: MLAConfig | None = None
    mtp_layers: int = 0


@dataclass(frozen=True)
class LayoutConfig:
    """Degrees of parallelism; the same fields as the plan's layout record."""

    tp: int = 1
    cp: int = 1
    pp: int = 1
    vpp: int = 1
    dp: int = 1
    ep: int = 1
    etp: int = 1
    micro_batch: int = 1
    sequence_parallel: bool = False
    shard_weights: int = 1
    shard_gradients: int = 1
    shard_optimizer: int = 1
    shard_secondary: int = 0
    recompute: str = "none"
    offload_optimizer: float = 0.0
    offload_weights: bool = False
    delayed_update: bool = False
    offload_fraction: float = 0.0
    offload_target: str = ""

    @property
    def ranks(self) -> int:
        """Processes of the whole job."""
        return self.tp * self.cp * self.dp * self.pp

    @property
    def edp(self) -> int:
        """Copies of each expert."""
        return self.tp * self.cp * self.dp // (self.ep * self.etp)


@dataclass(frozen=True)
class StageConfig:
    """The layers of one pipeline stage; the same fields as the plan's stage record."""

    stage: int
    first_layer: int
    layers: int
    recompute_layers: int = 0
    embedding: bool = False
    head: bool = False
    memory_bytes: float = 0.0


@dataclass(frozen=True)
class EstimateConfig:
    """What the plan promises on the plan's own GPUs, printed beside the measurement."""

    step_time_s: float
    step_time_low_s: float
    step_time_high_s: float


@dataclass(frozen=True)
class PlanFile:
    """What the launcher needs of a plan. Batch in sequences, length in tokens."""

    model: ModelConfig
    layout: LayoutConfig
    stages: tuple[StageConfig, ...]
    rank_map: tuple[int, ...]
    schedule: str
    estimate: EstimateConfig
    global_batch: int
    seq_len: int
    precision: str
    dropout: bool
    gpu: str
    optimizer: str = "adamw"
    lora_rank: int = 0
    context_exchange: str = "all_gather"

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one rank in one step."""
        return self.global_batch // (self.layout.dp * self.layout.micro_batch)


def _fits(value: object, kind: type) -> bool:
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind)


def _are_numbers(value: object) -> bool:
    return isinstance(value, list) and all(_fits(one, int) for one in value)


class _Reader:
    """Collects problems while it takes records out of the document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document = document
        self.problems: list[str] = []

    def value(self, place: str, kind: type, fallback: Any) -> Any:
        """Return the value at a dotted ``place``; note a problem and return the fallback."""
        found: Any = self.document
        for key in place.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if _fits(found, kind):
            return found
        self.problems.append(f"{place}: {found!r} is not of type {kind.__name__}")
        return fallback

    def record(self, found: object, place: str, cls: type[_Record]) -> _Record | None:
        """Return ``cls`` filled from ``found``, or None with all its problems noted."""
        if not isinstance(found, dict):
            self.problems.append(f"{place}: {found!r} is not a record")
            return None
        known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
        kinds = get_type_hints(cls)
        before = len(self.problems)
        for key in found.keys() - known.keys():
            self.problems.append(f"{place}.{key}: this launcher does not know it; export again")
        values = {}
        for key, field in known.items():
            if key in found:
                values[key] = self._field(found[key], f"{place}.{key}", kinds[key])
            elif field.default is MISSING:
                self.problems.append(f"{place}.{key}: missing")
        return cls(**values) if len(self.problems) == before else None

    def _field(self, found: Any, place: str, kind: Any) -> Any:
        """Return one value as ``kind``: a number, a word, a tuple of numbers or a record."""
        if isinstance(kind, UnionType):  # a record or null
            return None if found is None else self.record(found, place, get_args(kind)[0])
        if get_origin(kind) is tuple:
            if _are_numbers(found):
                return tuple(found)
            self.problems.append(f"{place}: {found!r} is not a list of numbers")
        elif not _fits(found, kind):
            self.problems.append(f"{place}: {found!r} is not of type {kind.__name__}")
        elif kind is int and found < 0:
            self.problems.append(f"{place}: {found} is negative")
        return found


def _stages(reader: _Reader) -> list[StageConfig]:
    listed = reader.value("stages", list, [])
    read = (reader.record(one, f"stages[{i}]", StageConfig) for i, one in enumerate(listed))
    return [stage for stage in read if stage is not None]


def _estimate(reader: _Reader) -> EstimateConfig:
    numbers = (reader.value(f"estimate.{f.name}", float, 0.0) for f in fields(EstimateConfig))
    return EstimateConfig(*numbers)


def parse_plan(document: object) -> PlanFile:
    """Return the plan held in a decoded JSON document; raise ``PlanError`` with every problem."""
    if not isinstance(document, dict):
        raise PlanError(["the plan is not a JSON object"])
    reader = _Reader(document)
    version = reader.value("version", int, PLAN_VERSION)
    if version != PLAN_VERSION:
        raise PlanError([f"version: {version} is not {PLAN_VERSION}; export the plan again"])
    model = reader.record(document.get("model"), "model", ModelConfig)
    layout = reader.record(document.get("layout"), "layout", LayoutConfig)
    rank_map = reader.value("rank_map", list, [])
    if not _are_numbers(rank_map):
        reader.problems.append(f"rank_map: {rank_map!r} is not a list of ranks")
    values = {
        "stages": tuple(_stages(reader)),
        "rank_map": tuple(rank_map),
        "schedule": reader.value("schedule", str, ""),
        "estimate": _estimate(reader),
        "global_batch": reader.value("job.global_batch", int, 1),
        "seq_len": reader.value("job.seq_len", int, 1),
        "precision": reader.value("job.precision", str, ""),
        "dropout": reader.value("job.software.dropout", bool, False),
        "gpu": reader.value("cluster.gpu.name", str, ""),
        "optimizer": reader.value("job.optimizer", str, "adamw"),
        "lora_rank": reader.value("job.lora_rank", int, 0),
        "context_exchange": reader.value("job.software.context_exchange", str, "all_gather"),
    }
    if reader.problems or model is None or layout is None:
        raise PlanError(reader.problems)
    return PlanFile(model=model, layout=layout, **values)


def read_plan(path: Path) -> PlanFile:
    """Return the plan in ``path``; raise ``PlanError`` that names the file in every problem."""
    try:
        return parse_plan(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise PlanError([f"{path}: {error.strerror}"]) from None
    except ValueError as error:
        raise PlanError([f"{path}: not JSON: {error}"]) from None
    except PlanError as error:
        raise PlanError([f"{path}: {problem}" for problem in error.problems]) from None
