"""A rule of one framework as data, and the numbers that all of them are asked about."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from planner.layout.layout import Layout, Recompute
from planner.spec.job import JobSpec
from planner.spec.model import ModelSpec

_LAYOUT_FIELDS = (
    "tp", "cp", "pp", "vpp", "dp", "ep", "etp", "micro_batch", "sequence_parallel", "recompute",
)  # fmt: skip
_MODEL_FIELDS = ("layers", "hidden", "heads", "kv_heads", "ffn_hidden", "mtp_layers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Model, job and layout in plain numbers; 0 is a number that nobody stated.

    ``stages``: layers of each (virtual) stage where they are written out; ``free_stages``: the
    planner writes them, any split is possible. ``options`` are a file's own settings by name.
    """

    layers: int = 0
    hidden: int = 0
    heads: int = 0
    kv_heads: int = 0
    ffn_hidden: int = 0
    experts: int = 0
    expert_ffn: int = 0
    mtp_layers: int = 0
    tied: bool = False
    mla: bool = False
    global_batch: int = 0
    micro_batch: int = 0
    seq_len: int = 0
    world: int = 1
    tp: int = 1
    cp: int = 1
    pp: int = 1
    vpp: int = 1
    dp: int = 1
    ep: int = 1
    etp: int = 1
    sequence_parallel: bool = False
    zero: int = 0
    shard_weights: int = 1
    shard_optimizer: int = 1
    offload_optimizer: float = 0.0
    offload_weights: bool = False
    recompute: Recompute = Recompute.NONE
    stages: tuple[int, ...] = ()
    free_stages: bool = False
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one rank in one step; 0 where the batch does not say."""
        return self.global_batch // (self.dp * self.micro_batch) if self.micro_batch else 0

    @property
    def pipeline(self) -> int:
        """Chunks of the whole pipeline."""
        return self.pp * self.vpp

    def on(self, option: str) -> bool:
        """Whether a switch of the file is on."""
        return bool(self.options.get(option))


@dataclass(frozen=True, slots=True)
class Rule:
    """One limit. ``broken`` is the cheap question, ``message`` is asked only when it says yes.

    ``versions`` are those in which the limit was read or seen, ``source`` is where.
    """

    id: str
    versions: str
    source: str
    broken: Callable[[Facts], bool]
    message: Callable[[Facts], str]

    def sentence(self, facts: Facts) -> str:
        """Return what is broken, with the numbers, legal ones near, and where the rule stands."""
        return f"{self.id}: {self.message(facts)} ({self.source}, {self.versions})"


def broken(rules: tuple[Rule, ...], facts: Facts) -> list[str]:
    """Return one sentence for every rule that ``facts`` breaks, all at once."""
    return [rule.sentence(facts) for rule in rules if rule.broken(facts)]


def facts_of(model: ModelSpec | None, job: JobSpec | None, layout: Layout) -> dict[str, object]:
    """Return the fields of ``Facts`` that the planner's own records hold."""
    found: dict[str, object] = {
        "world": layout.gpus,
        "zero": layout.shard.zero_stage(),
        "shard_weights": layout.shard.weights,
        "shard_optimizer": layout.shard.optimizer,
        "offload_optimizer": layout.offload_optimizer,
        "offload_weights": layout.offload_weights,
    }
    found |= {name: getattr(layout, name) for name in _LAYOUT_FIELDS}
    if model is not None:
        found |= {name: getattr(model, name) for name in _MODEL_FIELDS}
        found |= {"tied": model.tied_embeddings, "mla": model.mla is not None}
        if model.moe is not None:
            found |= {"experts": model.moe.experts, "expert_ffn": model.moe.ffn_hidden}
    if job is not None:
        found |= {"global_batch": job.global_batch, "seq_len": job.seq_len}
    return found


def near(wanted: int, legal: Callable[[int], bool], most: int) -> str:
    """Return the closest legal numbers below and above ``wanted``, as ``4 or 8``."""
    below = next((str(n) for n in range(min(wanted - 1, most), 0, -1) if legal(n)), "")
    above = next((str(n) for n in range(wanted + 1, most + 1) if legal(n)), "")
    return " or ".join(filter(None, (below, above))) or "1"


def divisor(knob: str, degree: int, what: str, size: int) -> str:
    """Return ``tp=12 does not divide heads=64; try tp 8 or 16``."""
    tried = near(degree, lambda n: size % n == 0, size)
    return f"{knob}={degree} does not divide {what}={size}; try {knob} {tried}"


def multiple(what: str, size: int, unit: int, because: str) -> str:
    """Return ``global_batch=30 is not a multiple of dp*micro_batch=16; try 16 or 32``."""
    lower, upper = size // unit * unit, -(-size // unit) * unit
    tried = " or ".join(str(n) for n in (lower, upper) if n)
    return f"{what}={size} is not a multiple of {because}={unit}; try {what} {tried}"
