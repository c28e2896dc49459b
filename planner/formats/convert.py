"""From one framework's file to another's: the text, and all that could not be carried over.

What was written is read back, so a difference that nobody thought of is listed too.
"""

from dataclasses import dataclass, replace
from pathlib import Path

from planner.errors import LayoutError, SpecError
from planner.formats.bundle import EXPORTS, Export
from planner.formats.detect import READERS, detect
from planner.formats.settle import settle
from planner.formats.setup import Setup
from planner.formats.work import Work, work_of_setup
from planner.layout.layout import Offload
from planner.spec.model import ModelSpec


@dataclass(frozen=True, slots=True)
class Converted:
    """The text of the new file, and one sentence for each thing that it does not say."""

    text: str
    lost: tuple[str, ...]


def convert(
    setup: Setup, target: str, model: ModelSpec | None = None, gpus: int | None = None
) -> Converted:
    """Return ``setup`` in the words of ``target``.

    Raises ``LayoutError`` with every reason why the source or the target cannot run the job, and
    ``SpecError`` with what the source leaves open.
    """
    if target not in EXPORTS:
        raise SpecError(f"--to: {target!r} is not written; use one of {', '.join(EXPORTS)}")
    work = work_of_setup(setup, settle(setup, model, gpus))
    export = EXPORTS[target]
    text = _written(work, export)
    form = detect(Path(export.config), text) or target
    back = _completed(READERS[form](Path(export.config), text, {}), work)
    lost = [*(export.lost(work) if export.lost else []), *_left_behind(setup)]
    return Converted(text, tuple(dict.fromkeys([*lost, *_differences(work, back)])))


def _written(work: Work, export: Export) -> str:
    """Return the text of a job, without its offload where the target has no place for that.

    Where it is left out the comparison of both files says so.
    """
    try:
        return export.write(work)
    except LayoutError:
        layout = replace(
            work.layout, offload_optimizer=0.0, offload_weights=False, offload=Offload()
        )
        if layout == work.layout:
            raise
        return export.write(replace(work, layout=layout))


def _completed(back: Setup, work: Work) -> Setup:
    """Return the new file's record; where the format has no batch, with that of the job."""
    if back.micro_batch is not None:
        return back
    batch = work.job.global_batch
    return replace(back, micro_batch=work.layout.micro_batch, global_batch=batch)


def _left_behind(setup: Setup) -> list[str]:
    """Return the settings of the source that no field of the planner holds."""
    lost = [f"{knob.name} {knob.value}: not understood" for knob in setup.unknown]
    lost += [f"{what}: understood, but the planner has no field for it" for what in setup.unpriced]
    return lost + [
        f"{knob.name} {knob.value}: neither layout nor memory depends on it"
        for knob in setup.neutral
        if not knob.meaning
    ]


def _differences(work: Work, back: Setup) -> list[str]:
    """Return what reads otherwise in the new file; None there is a thing that it does not say."""
    settled = settle(back, work.model, work.ranks)
    found = settled.layout or work.layout
    pairs = {
        name: (getattr(work.layout, name), getattr(found, name))
        for name in ("tp", "cp", "pp", "vpp", "dp", "ep", "etp", "micro_batch", "shard",
                     "sequence_parallel", "schedule", "offload_optimizer", "offload_weights",
                     "offload")
    } | {
        "global_batch": (work.job.global_batch, settled.global_batch),
        "seq_len": (work.job.seq_len, back.seq_len or work.job.seq_len),
        "precision": (work.job.precision, back.precision),
    }  # fmt: skip
    lost = [f"{name}: {before} becomes {after}"
            for name, (before, after) in pairs.items() if before != after]  # fmt: skip
    if back.model is not None:
        plain = {"name", "moe"}  # experts are placed by other words for the same layers
        own, other = (one.model_dump(exclude=plain) for one in (work.model, back.model))
        lost += [f"model {name}: {value} becomes {other[name]}"
                 for name, value in own.items() if other[name] != value]  # fmt: skip
    return lost
