"""From what a file says to one layout of a job on so many GPUs, and every rule it breaks."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from planner.formats.pipeline_layout import end_stages
from planner.formats.setup import Setup
from planner.layout.layout import Layout, Shard
from planner.layout.rule import Facts, Rule, broken, facts_of
from planner.layout.rules_accelerate import RULES as ACCELERATE
from planner.layout.rules_deepspeed import RULES as DEEPSPEED
from planner.layout.rules_megatron import RULES as MEGATRON
from planner.layout.rules_megatron import WRAPPED
from planner.layout.rules_nanotron import RULES as NANOTRON
from planner.layout.rules_neox import RULES as NEOX
from planner.layout.rules_torchtitan import RULES as TORCHTITAN
from planner.layout.stages import Split, split_layers
from planner.spec.model import ModelSpec

RULES: Mapping[str, tuple[Rule, ...]] = {
    "megatron": MEGATRON,
    "torchtitan": TORCHTITAN,
    "deepspeed": DEEPSPEED,
    "accelerate": ACCELERATE,
    "nanotron": NANOTRON,
    "nemo": WRAPPED,
    "neox": NEOX,
}


@dataclass(frozen=True, slots=True)
class Settled:
    """One layout of a file on ``gpus`` GPUs. ``remarks``: where the file and the user differ.

    Without a micro-batch, or where the degrees do not divide the GPUs, there is no ``layout``.
    """

    gpus: int
    model: ModelSpec | None
    layout: Layout | None
    split: Split | None
    global_batch: int | None
    problems: tuple[str, ...]
    remarks: tuple[str, ...]


def settle(setup: Setup, model: ModelSpec | None = None, gpus: int | None = None) -> Settled:
    """Return the layout that ``setup`` means on ``gpus`` GPUs (None: as many as it starts).

    ``model`` fills in what the file leaves open; what the file states stays.
    """
    chosen, remarks = _model(setup, model)
    stages, problems = _stages(setup, chosen)
    setup = replace(setup, stages=stages, problems=(*setup.problems, *problems))
    world = gpus or setup.gpus or _fewest(setup)
    if gpus and setup.gpus and gpus != setup.gpus:
        remarks.append(f"the file starts {setup.gpus} ranks, the cluster has {gpus} GPUs")
    block = setup.tp * setup.cp * setup.pp
    dp = max(1, world // block)
    micro = setup.micro_batch or 0
    batch = setup.global_batch
    if not micro and batch and setup.accumulation:
        micro = batch // (setup.accumulation * dp)
    if batch is None and micro and setup.accumulation:
        batch = micro * setup.accumulation * dp
    shard = _shard(setup, dp * setup.cp)
    layout = Layout(
        setup.tp, setup.cp, setup.pp, setup.vpp, dp, setup.ep, setup.etp, micro or 1,
        setup.sequence_parallel, shard, setup.recompute, setup.schedule,
        offload_optimizer=setup.offload_optimizer, offload_weights=setup.offload_weights,
        offload=setup.offload,
    )  # fmt: skip
    facts = facts_of(chosen, None, layout)
    facts |= {"world": world, "micro_batch": micro, "global_batch": batch or 0}
    facts |= {"seq_len": setup.seq_len or 0, "zero": setup.zero, "stages": setup.stages}
    options = dict(setup.options) | {"stated_dp": setup.dp or 0, "shard_ranks": setup.shard_ranks}
    found = Facts(**facts, options=options)  # type: ignore[arg-type]
    every = (*setup.problems, *broken(RULES[setup.framework], found))
    usable = world % block == 0 and bool(micro)
    split = _split(setup, chosen) if usable else None
    return Settled(world, chosen, layout if usable else None, split, batch,
                   tuple(dict.fromkeys(every)), tuple(remarks))  # fmt: skip


def _fewest(setup: Setup) -> int:
    """Return the fewest GPUs that hold both grids of ranks."""
    block = setup.tp * setup.cp * setup.pp * (setup.dp or 1)
    world, experts = block, setup.etp * setup.ep * setup.pp
    while world % experts and world < block * experts:
        world += block
    return world


def _model(setup: Setup, model: ModelSpec | None) -> tuple[ModelSpec | None, list[str]]:
    """Return the model: the file's, what it leaves open taken from ``model``."""
    if setup.model is None or model is None:
        return setup.model or model, []
    taken = {name: getattr(model, name) for name in setup.open_fields}
    chosen = setup.model.model_copy(update=taken)
    skipped = {"name", *setup.open_fields}
    differ = [
        f"{name}: the file says {getattr(chosen, name)}, {model.name} has {getattr(model, name)}"
        for name in ModelSpec.model_fields
        if name not in skipped and getattr(chosen, name) != getattr(model, name)
    ]
    return chosen, differ


def _stages(setup: Setup, model: ModelSpec | None) -> tuple[tuple[int, ...], list[str]]:
    """Return the stages; where a file gives those of the ends only, the model decides the rest."""
    ends = [setup.options.get(name) for name in ("first_layers", "last_layers")]
    if setup.stages or setup.model is not None or model is None or setup.pp == 1 or not any(ends):
        return setup.stages, []
    first, last = (int(str(end)) if end else None for end in ends)
    try:
        return end_stages(model.layers, setup.pp, setup.vpp, first, last), []
    except ValueError as error:
        return (), [f"M5: {error} (training/arguments.py)"]


def _shard(setup: Setup, ranks: int) -> Shard:
    """Return the shard groups of ``zero`` over the ranks that hold the same layers."""
    group = setup.shard_ranks or max(1, ranks // max(1, setup.replicas))
    second = int(str(setup.options.get("hpz") or 0)) if setup.zero == 3 else 0
    shard = Shard.zero(setup.zero, min(group, ranks))
    return replace(shard, secondary=second) if 1 < second < shard.weights else shard


def _split(setup: Setup, model: ModelSpec | None) -> Split | None:
    """Return the stages where the file writes them or their recompute out."""
    if model is None or not (setup.stages or setup.recompute_layers):
        return None
    layers = setup.stages or split_layers(model.layers, setup.pp * setup.vpp)
    again: tuple[int, ...] | None = None
    if setup.recompute_layers is not None:
        again = tuple(min(setup.recompute_layers, count) for count in layers)
    return Split(layers, again)


def described(settled: Settled) -> dict[str, Any]:
    """Return layout and model of a settled file as plain data, for comparing and for JSON."""
    model = settled.model.model_dump(exclude={"name"}) if settled.model else None
    return {"gpus": settled.gpus, "global_batch": settled.global_batch, "model": model,
            "layout": settled.layout, "split": settled.split}  # fmt: skip
