"""From one CSV row to what the model needs: model, cluster, job, layout, and what was assumed."""

import csv
import re
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path

from pydantic import ValidationError

from planner.errors import PlannerError, SpecError
from planner.layout.layout import Layout, Recompute, Shard
from planner.layout.stages import Split, balance_layers
from planner.model.parameters import layer_parameters
from planner.spec.cluster import ClusterSpec
from planner.spec.gpu import GpuSpec
from planner.spec.huggingface import load_model, model_names
from planner.spec.job import JobSpec
from planner.spec.model import MLASpec, ModelSpec, MoESpec
from planner.validate.cells import Skip, note, number
from planner.validate.frameworks import Defaults, defaults_for
from planner.validate.machines import machine
from planner.validate.offloads import read_hosted, read_offload
from planner.validate.shapes import Shape, gpt_of_size

csv.field_size_limit(10**7)
_YES = {"1", "yes", "true"}


@dataclass(frozen=True, slots=True)
class Case:
    """One measured run in the planner's own terms."""

    model: ModelSpec
    cluster: ClusterSpec
    job: JobSpec
    layout: Layout
    memory_kind: str
    memory_rank: int | None  # the rank whose memory was printed; None: the fullest
    split: Split | None
    assumed: tuple[str, ...]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a measured-runs file; SpecError when it is not one."""
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = [{k: v or "" for k, v in row.items() if k} for row in reader]
            columns = set(reader.fieldnames or ())
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from None
    missing = sorted({"id", "gpu", "n_gpus", "framework"} - columns)
    if missing:
        raise SpecError(f"{path}:1: columns missing: {', '.join(missing)}; see docs/validate.md")
    return rows


class _Cells:
    """Reads cells and remembers which ones were empty and assumed."""

    def __init__(self, row: dict[str, str]) -> None:
        self.row = row
        self.assumed: list[str] = []

    def need(self, column: str, least: int = 1) -> int:
        """Return a whole number; Skip where the cell has none."""
        value = number(self.row, column)
        if value is None:
            raise Skip(f"{column} is not stated")
        if not isfinite(value) or value != round(value) or value < least:
            raise Skip(f"{column}={self.row[column]} is no whole number from {least} up")
        return round(value)

    def integer(self, column: str, default: int, least: int = 1) -> int:
        """Return a whole number; ``default``, remembered, where the cell has none."""
        if number(self.row, column) is None:
            self.assumed.append(f"{column}={default}")
            return default
        return self.need(column, least)

    def text(self, column: str, default: str) -> str:
        """Return a cell; ``default``, remembered, where it is empty."""
        if not self.row.get(column):
            self.assumed.append(f"{column}={default}")
        return self.row.get(column) or default

    def flag(self, column: str, default: bool) -> bool:
        text = self.row.get(column, "")
        if not text:
            self.assumed.append(f"{column}={int(default)}")
            return default
        return text.lower() in _YES


Fields = tuple[tuple[str, str | int | bool], ...]
# Rows say that attention is latent, not how: the ranks of DeepSeek-V3 (config.json), Kimi K2's too.
_LATENT: Fields = (
    ("q_lora_rank", 1536),
    ("kv_lora_rank", 512),
    ("qk_nope_head_dim", 128),
    ("qk_rope_head_dim", 64),
    ("v_head_dim", 128),
)
_PRECISIONS = {"fp8-blockwise": "fp8_block", "bf16/fp16 mixed": "bf16"}
# ZB-1p and ZB-2p are found automatically within the memory of H1 and of nearly twice that
_SCHEDULES = {"1F1B": "", "1F1B-I": "", "ZB-1p": "zb_h1", "ZB-2p": "zb_2p"}


@lru_cache(maxsize=1024)
def _shipped_model(name: str) -> ModelSpec | None:
    """Return the shipped model of that name, which knows what rows have no column for."""
    return load_model(name.lower()) if name.lower() in model_names() else None


def _agrees(cells: _Cells, known: ModelSpec) -> bool:
    """Whether every size that a row states is that of ``known``."""
    moe = known.moe
    sizes = {
        "n_layers": known.layers,
        "hidden": known.hidden,
        "n_heads": known.heads,
        "vocab": known.vocab,
        "n_experts": moe.experts if moe else 0,
        "top_k": moe.top_k if moe else 0,
        "moe_ffn_hidden": moe.ffn_hidden if moe else 0,
    }
    stated = ((number(cells.row, name), size) for name, size in sizes.items())
    return all(cell in (None, 0, size) for cell, size in stated)


@lru_cache(maxsize=4096)
def _model(fields: Fields, moe: Fields, latent: Fields) -> ModelSpec:
    experts = MoESpec.model_validate(dict(moe)) if moe else None
    mla = MLASpec.model_validate(dict(latent)) if latent else None
    return ModelSpec.model_validate(dict(fields) | {"moe": experts, "mla": mla})


def _usual_shape(row: dict[str, str]) -> Shape | None:
    """Return the GPT of a row whose source speaks of its size alone: how large, how many FLOP/s."""
    stated = number(row, "n_layers") or number(row, "hidden")
    if stated or note(row, "kind") not in ("capacity", "throughput"):
        return None
    return gpt_of_size(row.get("model", ""))


def read_model(cells: _Cells) -> ModelSpec:
    """Build the model of a row from its architecture cells."""
    row = cells.row
    shape = _usual_shape(row)
    if shape is None:
        layers, hidden = cells.need("n_layers"), cells.need("hidden")
        heads = cells.integer("n_heads", max(1, hidden // 128))
    else:
        layers, hidden = (
            cells.integer("n_layers", shape.layers),
            cells.integer("hidden", shape.hidden),
        )
        heads = cells.integer("n_heads", shape.heads)
    moe: Fields = ()
    experts = number(row, "n_experts") or 0
    if experts > 1:
        with_experts = number(row, "n_moe_layers") or layers
        moe = (
            ("experts", int(experts)),
            ("top_k", cells.integer("top_k", 2)),
            ("ffn_hidden", cells.integer("moe_ffn_hidden", int(number(row, "ffn_hidden") or 0))),
            ("shared_ffn_hidden", int(number(row, "shared_expert_ffn") or 0)),
            ("first_layer", int(max(0, layers - with_experts))),
        )
    known = _shipped_model(row.get("model", ""))
    if known is not None and _agrees(cells, known):
        return known
    gated = cells.flag("gated_mlp", shape is None)
    latent = row.get("attention_kind") == "MLA"
    if latent:
        cells.assumed += [f"{key}={value}" for key, value in _LATENT]
    fields = (
        ("name", row.get("model") or "unnamed"),
        ("layers", layers),
        ("hidden", hidden),
        ("heads", heads),
        ("kv_heads", cells.integer("n_kv_heads", heads)),
        ("head_dim", 192 if latent else max(1, hidden // heads)),
        ("ffn_hidden", cells.integer("ffn_hidden", 4 * hidden)),
        ("vocab", cells.integer("vocab", 51200)),
        ("gated_mlp", gated),
        # a plain MLP with tied embeddings is a GPT: learned positions, LayerNorm, biases
        ("positions", 0 if gated else int(number(row, "seq_len") or 2048)),
        ("norm_bias", not gated),
        ("qkv_bias", not gated),
        ("attention_out_bias", not gated),
        ("mlp_bias", not gated),
        ("tied_embeddings", cells.flag("tied_embeddings", not gated)),
    )
    return _model(fields, moe, _LATENT if latent else ())


def _recompute(cells: _Cells, defaults: Defaults) -> Recompute:
    """Return what a row recomputes; the framework's default where it does not say."""
    text = cells.row.get("recompute", "")
    if not text:
        cells.assumed.append(f"recompute={defaults.recompute}")
        text = defaults.recompute
    if text == Recompute.SELECTIVE and defaults.selective_share:
        cells.assumed.append("recompute=selective of operations, not of a share of the layers")
    if text not in {kind.value for kind in Recompute}:
        raise Skip(f"recompute {text!r} cannot be expressed")
    return Recompute(text)


def read_layout(cells: _Cells, defaults: Defaults, gpus: int, global_batch: int) -> Layout:
    """Build the layout of a row; raises Skip where it cannot be expressed."""
    row = cells.row
    if row.get("tp") == "mixed":
        raise Skip("stages with different degrees cannot be expressed")
    inside = min(gpus, int(number(row, "gpus_per_node") or 8))
    tp = cells.integer("tp", inside if "TP" in row.get("framework", "") else 1)
    cp, pp = (cells.integer(name, 1) for name in ("cp", "pp"))
    ep, vpp = cells.integer("ep", 1), cells.integer("vpp", 1)
    dp = gpus // (tp * cp * pp)
    if dp < 1 or dp * tp * cp * pp != gpus:
        raise Skip("the degrees do not multiply to the GPU count")
    if row.get("dp") and cells.need("dp") not in (dp, dp * cp):
        raise Skip(f"dp={row['dp']} contradicts the GPU count, which leaves {dp}")
    experts = (number(row, "n_experts") or 0) > 1
    # Megatron-Core: expert tensor parallelism follows tp unless set; with ep it is set to 1
    etp = cells.integer("etp", 1 if ep > 1 else tp) if experts else 1
    if tp * cp * dp % (ep * etp):
        raise Skip("the expert grid does not divide the ranks of a stage")
    micro_batch = cells.integer("mbs", 1)
    if global_batch % (dp * micro_batch):
        raise Skip("the global batch does not divide into micro-batches")
    stage = cells.integer("zero_stage", defaults.zero_stage, least=0)
    if stage > 3:
        raise Skip(f"zero_stage={stage} does not exist")
    sequence_parallel = cells.flag("sp", defaults.sequence_parallel) if tp > 1 else False
    if experts and tp > 1:  # Megatron-LM accepts nothing else
        sequence_parallel = True
    return Layout(
        tp, cp, pp, vpp, dp, ep, etp, micro_batch, sequence_parallel,
        Shard.zero(stage, dp * cp), _recompute(cells, defaults),
        _SCHEDULES.get(note(row, "schedule"), ""),
        offload=read_offload(row),
        **read_hosted(row),  # type: ignore[arg-type]
    )  # fmt: skip


def _is_modern(row: dict[str, str]) -> bool:
    """Whether a run uses what came with Megatron-Core and Hopper."""
    newer = re.match(r"(GB?[23]00|B[23]00|H[12]00|H800)", row.get("gpu", ""))
    eight_bit = "8" in row.get("precision", "") or "fp4" in row.get("precision", "")
    parallel = (number(row, "cp") or 1) > 1 or (number(row, "n_experts") or 0) > 1
    return bool(newer) or eight_bit or parallel


def _refuse(row: dict[str, str]) -> None:
    """Raise Skip for what the cost model cannot express at all."""
    if not any(row.get(name) for name in ("tp", "pp", "dp", "zero_stage")):
        raise Skip("no layout is stated")
    away = row.get("offload", "")
    if away not in ("", "none") and not re.search("activations-cpu|optimizer|params", away):
        raise Skip("offload is not estimated yet")
    schedule = note(row, "schedule")
    if schedule and schedule not in _SCHEDULES:
        raise Skip(f"schedule {schedule} cannot be expressed")
    if note(row, "kind") == "optimizer":
        raise Skip("it times an optimizer, not a step")
    if row.get("attention_kind") == "hybrid":
        raise Skip("hybrid attention layers cannot be expressed")
    if row.get("task", "pretrain") not in ("", "pretrain", "sft", "lora"):
        raise Skip(f"task {row['task']} is not estimated yet")


def _precision(cells: _Cells, gpu: GpuSpec) -> str:
    """Return the training precision in the planner's words; Skip where the GPU lacks it."""
    usual = "bf16" if "bf16" in gpu.peak_flops else "fp16"
    text = cells.text("precision", usual)
    precision = _PRECISIONS.get(text, text)
    if precision not in gpu.peak_flops:
        raise Skip(f"precision {text!r} is none of {gpu.name}: {', '.join(gpu.peak_flops)}")
    return precision


def _optimizer(row: dict[str, str]) -> str:
    """Return the optimizer that the notes or the name of a run speak of, else AdamW."""
    said = f"{row.get('notes', '')} {row.get('model', '')}".lower()
    if re.search(r"8-bit adam|adam 8-?bit|adamw-8bit", said):
        return "adamw-8bit"
    return "muon" if re.search(r"\bmuon\b|_muon\b", said) else "adamw"


def _dealt_stages(model: ModelSpec, layout: Layout) -> Split:
    """Return the stages of a framework that deals blocks to stages by their size."""
    kinds = [model.is_moe_layer(layer) for layer in range(model.layers)]
    sizes = tuple(float(layer_parameters(model, moe).total) for moe in kinds)
    head = float(model.vocab * model.hidden)
    return Split(balance_layers(sizes, head, layout.pp * layout.vpp))


def read_case(row: dict[str, str]) -> Case:
    """Return the case of a row; raises Skip with the reason where there is none."""
    _refuse(row)
    cells = _Cells(row)
    gpus = cells.need("n_gpus")
    shape = _usual_shape(row)
    if shape is None:
        seq_len, global_batch = cells.need("seq_len"), cells.need("gbs")
    else:  # how large a GPT a machine holds is asked with the smallest batch
        seq_len = cells.integer("seq_len", shape.seq_len)
        global_batch = cells.integer("gbs", gpus * int(number(row, "mbs") or 1))
    defaults = defaults_for(
        row.get("framework", ""),
        row.get("notes", ""),
        _is_modern(row),
        seq_len,
        row.get("precision", ""),
        row.get("model", ""),
    )
    try:
        model = read_model(cells)
        if defaults.parallel_block:
            model = model.model_copy(update={"parallel_block": True})
        layout = read_layout(cells, defaults, gpus, global_batch)
        cluster = machine(
            row["gpu"],
            cells.integer("gpus_per_node", 8),
            row.get("interconnect_intra", ""),
            row.get("interconnect_inter", ""),
            gpus,
        )
        if not row.get("interconnect_intra") and gpus > 1:
            cells.assumed.append(f"interconnect_intra={cluster.scale_up.kind}")
        if not row.get("interconnect_inter") and cluster.nodes > 1:
            cells.assumed.append("interconnect_inter=usual for the GPU")
    except ValidationError as error:
        raise Skip(f"contradiction: {error.errors()[0]['msg']}") from None
    except PlannerError as error:
        raise Skip(str(error)) from None
    software = defaults.software
    job = JobSpec(
        global_batch=global_batch,
        seq_len=seq_len,
        precision=_precision(cells, cluster.gpu),
        optimizer=_optimizer(row),
        software=software,
    )
    if row.get("task") == "lora":
        adapters = {"lora_rank": defaults.lora_rank, "lora_targets": defaults.lora_targets}
        job = job.model_copy(update=adapters)
        cells.assumed += [f"{name}={value}" for name, value in adapters.items()]
    split = _dealt_stages(model, layout) if software.balanced_stages and layout.pp > 1 else None
    # written to TensorBoard, which in Megatron-LM is open on the last rank (global_vars.py)
    rank = layout.pp - 1 if "golden values" in row.get("notes", "") else None
    return Case(model, cluster, job, layout, defaults.memory, rank, split, tuple(cells.assumed))
