"""The options that state one layout of a job, the same for ``check`` and ``explain``."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from planner.cli.question import Question

Model = Annotated[
    str,
    typer.Argument(help="A shipped name, a config.json, or a plan file.", metavar="MODEL|PLAN"),
]
Cluster = Annotated[
    str | None, typer.Option(help="A shipped name (planner clusters) or YAML.", metavar="SPEC")
]
Nodes = Annotated[int | None, typer.Option(min=1, help="Machines.", metavar="N")]
Batch = Annotated[int | None, typer.Option(min=1, help="Sequences of one step.", metavar="B")]
Length = Annotated[int | None, typer.Option(min=1, help="Tokens of one sequence.", metavar="S")]
Precision = Annotated[str, typer.Option(help="bf16, fp16, fp8, ...", metavar="TYPE")]
Runner = Annotated[
    str,
    typer.Option(
        "--target",
        help="torch, megatron, torchtitan or auto; deepspeed, zero++: only priced.",
        metavar="NAME",
    ),
]
Tensor = Annotated[int, typer.Option(min=1, help="Tensor parallel.", metavar="D")]
Context = Annotated[int, typer.Option(min=1, help="Context parallel.", metavar="D")]
Pipeline = Annotated[int, typer.Option(min=1, help="Pipeline stages.", metavar="D")]
Chunks = Annotated[int, typer.Option(min=1, help="Chunks of each pipeline rank.", metavar="D")]
Expert = Annotated[int, typer.Option(min=1, help="Expert parallel.", metavar="D")]
ExpertTensor = Annotated[int, typer.Option(min=1, help="Tensor parallel of experts.", metavar="D")]
Micro = Annotated[int, typer.Option(min=1, help="Sequences of a micro-batch.", metavar="D")]
Zero = Annotated[int, typer.Option(min=0, max=3, help="ZeRO stage.", metavar="0-3")]
Groups = Annotated[
    str | None,
    typer.Option(
        help="Ranks that share weights, gradients, optimizer[, second weights]; replaces --zero.",
        metavar="W,G,O[,S]",
    ),
]
Again = Annotated[str, typer.Option(help="none, selective or full.", metavar="KIND")]
Away = Annotated[
    str,
    typer.Option(help="Activations leave the GPU: none, host, ssd:50%, ...", metavar="WHERE"),
]
Sequence = Annotated[bool, typer.Option(help="Split activations over tensor-parallel ranks.")]
Optimizer = Annotated[str, typer.Option(help="adamw, adamw-8bit, lamb, muon, ...", metavar="NAME")]
Adapters = Annotated[
    int, typer.Option(min=0, help="Rank of LoRA adapters; weights are frozen.", metavar="R")
]
Offloaded = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of the optimizer's state on the host.", metavar="0-1"),
]
OffloadedWeights = Annotated[
    bool, typer.Option("--offload-weights", help="Weights on the host too, fetched by layer.")
]
Delayed = Annotated[
    bool, typer.Option("--delayed-update", help="The host's update runs behind the next step.")
]
Calibrated = Annotated[
    Path | None,
    typer.Option(
        "--calibration", help="Factors of your machine (planner calibrate).", metavar="FILE"
    ),
]
Profiled = Annotated[
    Path | None,
    typer.Option(
        "--profile", help="Measurements of your machine (planner profile).", metavar="FILE"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the answer as JSON.")]


@dataclass(frozen=True, slots=True)
class Stated:
    """What was typed of ``_OPTIONS``, or their defaults."""

    values: dict[str, Any]

    def __getitem__(self, name: str) -> Any:
        """Return the value of one option, by its name in Python."""
        return self.values[name]

    def question(self, model: str) -> "Question":
        """Return the question about ``model``, or about the plan in a file of that name."""
        from dataclasses import fields

        from planner.cli.question import Degrees, asked
        from planner.cli.request import Method

        degrees = Degrees(**{one.name: self.values[one.name] for one in fields(Degrees)})
        method = Method(self.values["optimizer"], self.values["lora_rank"])
        names = ("cluster", "nodes", "global_batch", "seq_len", "precision", "target",
                 "calibration", "profile")  # fmt: skip
        given = {name: self.values[name] for name in names}
        return asked(model, degrees=degrees, method=method, mixed=True, **given)


# name, annotation, default
_OPTIONS = (
    ("cluster", Cluster, None),
    ("nodes", Nodes, None),
    ("global_batch", Batch, None),
    ("seq_len", Length, None),
    ("precision", Precision, "bf16"),
    ("target", Runner, "auto"),
    ("tp", Tensor, 1),
    ("cp", Context, 1),
    ("pp", Pipeline, 1),
    ("vpp", Chunks, 1),
    ("ep", Expert, 1),
    ("etp", ExpertTensor, 1),
    ("micro_batch", Micro, 1),
    ("zero", Zero, 1),
    ("shard", Groups, None),
    ("recompute", Again, "none"),
    ("sequence_parallel", Sequence, True),
    ("optimizer", Optimizer, "adamw"),
    ("lora_rank", Adapters, 0),
    ("offload_optimizer", Offloaded, 0.0),
    ("offload_weights", OffloadedWeights, False),
    ("delayed_update", Delayed, False),
    ("offload", Away, "none"),
    ("calibration", Calibrated, None),
    ("profile", Profiled, None),
)


def with_layout(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command``, in place of its parameter ``stated``, an option for all of a layout."""
    added = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
        for name, kind, default in _OPTIONS
    ]
    names = [name for name, _, _ in _OPTIONS]

    @wraps(command)
    def stating(*args: Any, **options: Any) -> None:
        stated = Stated({name: options.pop(name) for name in names})
        command(*args, stated=stated, **options)

    listed: list[inspect.Parameter] = []
    for own in inspect.signature(command).parameters.values():
        alone = own.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        listed += added if own.name == "stated" else [alone]
    stating.__signature__ = inspect.Signature(listed)  # type: ignore[attr-defined]
    stating.__annotations__ = {one.name: one.annotation for one in listed}
    return stating
