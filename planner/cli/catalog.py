"""``planner models``, ``clusters`` and ``gpus``: what ships, with its key numbers."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from planner.cli.output import show

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import RenderableType

AsJson = Annotated[bool, typer.Option("--json", help="Print the full records as JSON.")]
Record = TypeVar("Record", bound="BaseModel")


def models(as_json: AsJson = False) -> None:
    """List the models that ship."""
    from planner.report.catalog import model_table
    from planner.spec.huggingface import load_model, model_names

    _list([load_model(name) for name in model_names()], model_table, as_json)


def clusters(as_json: AsJson = False) -> None:
    """List the clusters that ship."""
    from planner.report.catalog import cluster_table
    from planner.spec.cluster import cluster_names, load_cluster

    _list([load_cluster(name) for name in cluster_names()], cluster_table, as_json)


def gpus(as_json: AsJson = False) -> None:
    """List the GPUs that ship."""
    from planner.report.catalog import gpu_table
    from planner.spec.gpu import gpu_names, load_gpu

    _list([load_gpu(name) for name in gpu_names()], gpu_table, as_json)


def _list(
    records: Sequence[Record],
    table: Callable[[Sequence[Record]], "RenderableType"],
    as_json: bool,
) -> None:
    if as_json:
        typer.echo(json.dumps([record.model_dump(mode="json") for record in records], indent=1))
    else:
        show(table(records))
