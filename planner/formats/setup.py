"""What a foreign file says, in the planner's words: the record every reader returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from planner.layout.layout import Offload, Recompute
from planner.spec.job import SoftwareSpec
from planner.spec.model import ModelSpec

_STAYS = Offload()


@dataclass(frozen=True, slots=True)
class Knob:
    """One setting as the file spells it; ``meaning`` in the planner's words."""

    name: str
    value: str
    meaning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A job as a framework's own file states it; None: the file leaves it to somebody else.

    ``zero`` is the ZeRO stage over groups of ``shard_ranks`` (None: all ranks that hold the same
    layers, divided into ``replicas`` groups). ``accumulation`` counts micro-batches of one rank in
    one step. ``stages`` are the layers of each (virtual) stage where the file writes them out,
    ``recompute_layers`` those recomputed in full of each. ``schedule`` and the
    ``offload`` fields are those of ``Layout``. ``problems`` are broken rules of the
    framework that show already, ``silent`` settings that do nothing, ``assumed`` what the file
    does not say, ``unpriced`` what is understood but not in the estimate. ``options`` are switches
    that the framework's rules ask about.
    """

    framework: str
    path: str
    software: SoftwareSpec
    model: ModelSpec | None = None
    tp: int = 1
    cp: int = 1
    pp: int = 1
    vpp: int = 1
    ep: int = 1
    etp: int = 1
    dp: int | None = None
    micro_batch: int | None = None
    accumulation: int | None = None
    global_batch: int | None = None
    seq_len: int | None = None
    precision: str | None = None
    sequence_parallel: bool = False
    zero: int = 0
    shard_ranks: int | None = None
    replicas: int = 1
    recompute: Recompute = Recompute.NONE
    recompute_layers: int | None = None
    stages: tuple[int, ...] = ()
    schedule: str = ""
    offload_optimizer: float = 0.0
    offload_weights: bool = False
    offload: Offload = _STAYS
    gpus: int | None = None
    open_fields: tuple[str, ...] = ()
    understood: tuple[Knob, ...] = ()
    neutral: tuple[Knob, ...] = ()
    unknown: tuple[Knob, ...] = ()
    silent: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    unpriced: tuple[str, ...] = ()
    options: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What one setting is: the reader's name for it, its type, and the words for a person.

    ``has_none``: "none" is one of its values; elsewhere it leaves a setting open.
    """

    name: str
    kind: Callable[[Any], Any]
    words: str
    has_none: bool = False


@dataclass(slots=True)
class Reading:
    """The settings of one file, sorted by whether their meaning is known."""

    values: dict[str, Any] = field(default_factory=dict)
    understood: list[Knob] = field(default_factory=list)
    neutral: list[Knob] = field(default_factory=list)
    unknown: list[Knob] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)
    assumed: list[str] = field(default_factory=list)
    unpriced: list[str] = field(default_factory=list)

    def lists(self) -> dict[str, Any]:
        """Return the fields of ``Setup`` that this record fills."""
        names = ("understood", "neutral", "unknown", "problems", "silent", "assumed", "unpriced")
        return {name: tuple(dict.fromkeys(getattr(self, name))) for name in names}


def whole(value: Any) -> int:
    """Return a whole number, written as ``8``, ``"8"`` or ``1.0e3``."""
    if isinstance(value, bool):
        raise ValueError("write a whole number, like 8")
    number = float(str(value).replace("_", ""))
    if number != int(number):
        raise ValueError("write a whole number, like 8")
    return int(number)


def number(value: Any) -> float:
    """Return a number, written as ``0.1`` or ``"1e-3"``."""
    return float(str(value).replace("_", ""))


def switch(value: Any) -> bool:
    """Return yes or no; a flag without a value is yes."""
    text = str(value).strip().lower()
    if text in ("", "true", "yes", "on", "1"):
        return True
    if text in ("false", "no", "off", "0", "none"):
        return False
    raise ValueError("write true or false")


def text_of(value: Any) -> str:
    """Return the text of a value."""
    return str(value)


def sort_settings(
    settings: Mapping[str, Any],
    table: Mapping[str, Meaning],
    is_neutral: Callable[[str], bool],
    place: str,
) -> Reading:
    """Return ``settings`` (name as spelled -> value) sorted into understood, neutral, unknown.

    A value that cannot be read is a problem that names file, setting and value.
    """
    reading = Reading()
    for name, value in settings.items():
        meaning = table.get(name)
        shown = shown_value(value)
        if meaning is None:
            known = reading.neutral if is_neutral(name) else reading.unknown
            known.append(Knob(name, shown))
            continue
        is_open = ("auto", "null") if meaning.has_none else ("auto", "null", "none")
        if value is None or str(value).lower() in is_open:
            reading.neutral.append(Knob(name, shown, f"{meaning.words}: left open"))
            continue
        try:
            reading.values[meaning.name] = meaning.kind(value)
        except (ValueError, TypeError, OverflowError) as error:
            remedy = str(error) if str(error).startswith("write") else "write a number, like 8"
            reading.problems.append(f"{place}: {name}: {shown!r} is not accepted; {remedy}")
            continue
        reading.understood.append(Knob(name, shown, _said(meaning, reading.values[meaning.name])))
    return reading


def shown_value(value: Any) -> str:
    """Return a value on one line, cut where it is long."""
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def _said(meaning: Meaning, value: Any) -> str:
    if value is True:
        return meaning.words
    if value is False:
        return f"no {meaning.words}"
    return f"{meaning.words} {shown_value(value)}"
