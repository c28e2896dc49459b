"""The measured runs of a user: one line for each, as CSV or as JSON lines."""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError

from planner.cli.question import Degrees
from planner.cli.request import Method, chosen_job
from planner.errors import PlannerError, SpecError
from planner.layout.rules import layout_problems
from planner.search.targets import chosen_target
from planner.spec.cluster import ClusterSpec
from planner.spec.files import read_text
from planner.spec.huggingface import load_model
from planner.spec.problems import explain
from planner.units import parse_seconds
from planner.validate.calibrate import Run

_PLAIN = re.compile(r"\s*[\d.]+(?:[eE][+-]?\d+)?\s*")


def _seconds(value: object) -> object:
    """Return seconds; a CSV cell is text, and a number alone is seconds."""
    plain = isinstance(value, str) and _PLAIN.fullmatch(value)
    return parse_seconds(float(value) if plain else value)  # type: ignore[arg-type]


class RunRecord(BaseModel):
    """One line: the job, the layout, and the step time that was measured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step_time_s: Annotated[float, BeforeValidator(_seconds), Field(gt=0)] = Field(
        description="Measured seconds from optimizer step to optimizer step."
    )
    global_batch: PositiveInt = Field(description="Sequences of one step.")
    seq_len: PositiveInt = Field(description="Tokens of one sequence.")
    model: str | None = Field(None, description="A shipped name or a config.json.")
    nodes: PositiveInt | None = Field(None, description="Machines of this run.")
    precision: str = "bf16"
    target: str | None = Field(None, description="What ran it: torch or megatron.")
    tp: PositiveInt = 1
    cp: PositiveInt = 1
    pp: PositiveInt = 1
    vpp: PositiveInt = 1
    ep: PositiveInt = 1
    etp: PositiveInt = 1
    micro_batch: PositiveInt = 1
    zero: Annotated[int, Field(ge=0, le=3)] = 1
    shard: str | None = Field(None, description="Group sizes W,G,O[,S] instead of zero.")
    recompute: str = "none"
    sequence_parallel: bool = True
    optimizer: str = "adamw"
    offload_optimizer: Annotated[float, Field(ge=0, le=1)] = 0.0
    offload_weights: bool = False
    delayed_update: bool = False
    offload: str = Field("none", description="none, host, ssd, or host:50% of the activations.")
    name: str | None = Field(None, description="How you call the run.")
    note: str | None = Field(None, description="Anything; not read.")

    def degrees(self) -> Degrees:
        """Return the layout as ``check`` takes it from its options."""
        return Degrees(**{name: getattr(self, name) for name in Degrees.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class Context:
    """What holds for all runs of a file: the cluster, and what a line may leave out."""

    cluster: ClusterSpec
    model: str | None
    target: str


def read_runs(path: Path, context: Context) -> list[Run]:
    """Return the runs of a file; SpecError with every bad line at once."""
    runs, problems = [], []
    for line, data in _lines(path):
        place = f"{path}:{line}"
        if isinstance(data, str):
            problems.append(f"{place}: {data}")
            continue
        try:
            runs.append(_run(_record(data), context, place))
        except PlannerError as error:
            problems += [f"{place}: {_as_column(problem)}" for problem in error.problems]
    if problems:
        raise SpecError(problems)
    if not runs:
        raise SpecError(f"{path}: holds no runs; write one line for each, see docs/calibrate.md")
    return runs


def _as_column(problem: str) -> str:
    """Return a complaint about an option as one about the column of the same name."""
    return re.sub(r"^--([a-z-]+)", lambda match: match[1].replace("-", "_"), problem)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """Yield (line number, fields or what is wrong with the line)."""
    text = read_text(path)
    if path.suffix in (".jsonl", ".ndjson") or text.lstrip().startswith("{"):
        yield from _json_lines(text)
    else:
        yield from _csv_lines(path, text)


def _json_lines(text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            data = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"not valid JSON: {error.msg}; write one object on each line"
            continue
        yield number, data if isinstance(data, dict) else "is no JSON object; write {...}"


def _csv_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any] | str]]:
    reader = csv.reader(StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    twice = sorted({name for name in header if header.count(name) > 1})
    if "step_time_s" not in header or twice:
        wrong = f"column {twice[0]!r} stands twice" if twice else "no column step_time_s"
        raise SpecError(f"{path}:1: {wrong}; name each column once, see docs/calibrate.md")
    unknown = [name for name in header if name not in RunRecord.model_fields]
    for name in unknown:
        yield 1, _unknown(name)
    for cells in reader:
        if not any(cell.strip() for cell in cells):
            continue
        if len(cells) > len(header):
            yield (
                reader.line_num,
                (f"{len(cells)} cells under {len(header)} columns; quote cells that hold commas"),
            )
            continue
        pairs = zip(header, (cell.strip() for cell in cells), strict=False)
        filled = {name: cell for name, cell in pairs if cell and name not in unknown}
        yield reader.line_num, filled


def _unknown(name: str) -> str:
    """Return the complaint about a column nobody knows; it is one whatever the lines."""
    near = get_close_matches(name, RunRecord.model_fields, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{name}: unknown column; {hint}Known here: {', '.join(RunRecord.model_fields)}"


def _record(data: dict[str, Any]) -> RunRecord:
    try:
        return RunRecord.model_validate(data)
    except ValidationError as error:
        found = error.errors(include_url=False)
        raise SpecError(explain(RunRecord, data, details) for details in found) from None


def _run(record: RunRecord, context: Context, place: str) -> Run:
    """Return the run of a line; every rule that its layout breaks is named."""
    cluster, name = context.cluster, record.model or context.model
    if name is None:
        raise SpecError("model: missing; add the column, or give --model for all lines")
    if record.nodes is not None:
        if record.nodes > 1 and cluster.scale_out is None:
            raise SpecError(
                f"nodes: {record.nodes} nodes of {cluster.name!r} have no network between them; "
                "describe scale_out in its file"
            )
        cluster = cluster.model_copy(update={"nodes": record.nodes})
    model = load_model(name)
    job = chosen_job(record.global_batch, record.seq_len, record.precision, model, cluster.gpu,
                     Method(record.optimizer))  # fmt: skip
    target, _ = chosen_target(record.target or context.target, model, job)
    job = job.model_copy(update={"software": target.software})
    layout = record.degrees().layout(cluster.gpus)
    if problems := layout_problems(model, cluster, job, layout):
        raise SpecError(problems)
    return Run(record.name or place, model, cluster, job, layout, record.step_time_s)
