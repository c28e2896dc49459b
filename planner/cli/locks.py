"""The user's locks on a layout: ``--tp 8``, ``--max-cp 4``, the same options for every search."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

from planner.errors import SpecError

_WORDS = {
    "tp": "tensor parallelism",
    "cp": "context parallelism",
    "pp": "pipeline stages",
    "vpp": "chunks of a pipeline rank",
    "dp": "data parallelism",
    "ep": "expert parallelism",
    "etp": "tensor parallelism of experts",
    "micro_batch": "sequences of one forward pass",
}
_MOST = ("tp", "cp", "pp", "vpp", "ep", "micro_batch")


def _number(name: str, help_text: str, least: int) -> inspect.Parameter:
    annotation = Annotated[int | None, typer.Option(min=least, help=help_text, metavar="N")]
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
    )


def _parameters() -> list[inspect.Parameter]:
    fixed = [_number(name, f"Lock {words}.", 1) for name, words in _WORDS.items()]
    most = [_number(f"max_{name}", f"Most {_WORDS[name]}.", 1) for name in _MOST]
    return [*fixed, *most, _number("zero", "Lock the ZeRO stage, 0 to 3.", 0), _folding()]


def _folding() -> inspect.Parameter:
    help_text = "Experts on a grid of their own, or with the tensor parallelism of the rest."
    annotation = Annotated[bool, typer.Option("--folding/--no-folding", help=help_text)]
    return inspect.Parameter(
        "folding", inspect.Parameter.KEYWORD_ONLY, default=True, annotation=annotation
    )


def with_locks(command: Callable[..., None]) -> Callable[..., None]:
    """Add an option for every lock to ``command``, which takes them together as ``limits``."""
    added = _parameters()
    names = [parameter.name for parameter in added]

    @wraps(command)
    def locked(*args: Any, **options: Any) -> None:
        values = {name: options.pop(name, None) for name in names}
        command(*args, **options, limits=_limits(values))

    own = [one for one in inspect.signature(command).parameters.values() if one.name != "limits"]
    own = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in own]
    locked.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
    locked.__annotations__ = {one.name: one.annotation for one in (*own, *added)}
    return locked


def _limits(values: dict[str, Any]) -> Any:
    """Return the locks; every one that cannot be obeyed is named."""
    from planner.layout.limits import Limits

    fixed = {name: values[name] for name in _WORDS if values[name] is not None}
    most = {name: top for name in _MOST if (top := values[f"max_{name}"]) is not None}
    zero = values["zero"]
    problems = [
        f"--{_flag(name)}: {fixed[name]} is above --max-{_flag(name)} {top}; leave one out"
        for name, top in most.items()
        if fixed.get(name, 0) > top
    ]
    if zero is not None and zero > 3:
        problems.append(f"--zero: there is no stage {zero}; use 0, 1, 2 or 3")
    if problems:
        raise SpecError(problems)
    return Limits(tuple(fixed.items()), tuple(most.items()), zero, values["folding"])


def _flag(name: str) -> str:
    return name.replace("_", "-")
