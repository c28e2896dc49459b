"""Writes a job as torchtitan's TOML (0.1 to 0.2)."""

import json
from string import Template

from planner.formats.methods import method_problems
from planner.formats.unsupported import (
    offloaded,
    partial_recompute,
    rank_order,
    refuse,
    second_shards,
)
from planner.formats.work import Work
from planner.layout.layout import Recompute
from planner.layout.rule import Facts, broken, facts_of
from planner.layout.rules_torchtitan import RULES, flavor_of, unwritable

_TOML = Template("""# torchtitan 0.2 reads this file: torchtitan.sh starts it.
[model]
name = $family
flavor = $flavor
$converters
[training]
local_batch_size = $local
global_batch_size = $batch
seq_len = $seq_len
steps = 20
$offload
[parallelism]
data_parallel_replicate_degree = $copies
data_parallel_shard_degree = $shard
fsdp_reshard_after_forward = "$reshard"
tensor_parallel_degree = $tp
context_parallel_degree = $cp
pipeline_parallel_degree = $pp
$pipeline$experts
[activation_checkpoint]
mode = "$mode"
$selective
[compile]
enable = $compiled
""")


def torchtitan_problems_of(work: Work) -> list[str]:
    """Return every reason why torchtitan cannot run a job."""
    asked = (work.model, work.job, work.layout)
    facts = Facts(**facts_of(*asked), stages=work.layers)  # type: ignore[arg-type]
    problems = broken(RULES, facts) + rank_order(work, "torchtitan") + offloaded(work, "torchtitan")
    problems += partial_recompute(work, "torchtitan") + method_problems(work, "torchtitan")
    return problems + second_shards(work, "torchtitan") + unwritable(*asked)


def write_torchtitan(work: Work) -> str:
    """Return the TOML of a job; ``LayoutError`` with every reason why torchtitan cannot run it."""
    refuse(torchtitan_problems_of(work))
    layout, job = work.layout, work.job
    copies, shard, passes, reshard = mesh_of(work)
    family, flavor = flavor_of(work.model) or ("", "")
    converter = {"fp8": "quantize.linear.float8", "mxfp8": "quantize.linear.mx"}.get(job.precision)
    modes = {Recompute.FULL: "full", Recompute.SELECTIVE: "selective", Recompute.NONE: "none"}
    selective = work.recompute is Recompute.SELECTIVE
    return _TOML.substitute(
        family=json.dumps(family), flavor=json.dumps(flavor),
        converters=f"converters = [{json.dumps(converter)}]\n" if converter else "",
        local=layout.micro_batch * passes, batch=job.global_batch, seq_len=job.seq_len,
        copies=copies, shard=shard, reshard=reshard,
        tp=layout.tp, cp=layout.cp, pp=layout.pp, pipeline=_pipeline(work), experts=_experts(work),
        offload="enable_cpu_offload = true\n" if layout.offload_optimizer else "",
        mode=modes[work.recompute], selective='selective_ac_option = "op"\n' if selective else "",
        compiled=str(job.software.loss == "fused").lower(),
    )  # fmt: skip


def mesh_of(work: Work) -> tuple[int, int, int, str]:
    """Return copies, ranks that share one, passes of the pipeline, and when weights reshard."""
    layout = work.layout
    ranks, optimizer = layout.dp * layout.cp, layout.shard.optimizer
    copies = ranks // optimizer if optimizer > 1 else layout.dp
    passes = layout.micro_batches(work.job.global_batch) if layout.pp > 1 else 1
    zero2 = layout.pp == 1 and layout.shard.weights == 1 and layout.shard.gradients > 1
    return copies, layout.dp // copies, passes, "never" if zero2 else "default"


def stage_names(work: Work, head: str = "output") -> list[list[str]]:
    """Return the modules of each stage; ``head`` is what the version calls the output matrix."""
    parts: list[list[str]] = []
    first = 0
    for count in work.layers:
        parts.append([f"layers.{layer}" for layer in range(first, first + count)])
        first += count
    parts[0].insert(0, "tok_embeddings")
    parts[-1] += ["norm", head]
    return parts


def _pipeline(work: Work) -> str:
    """Return schedule, micro-batch and stages; stages are written out, so none is guessed."""
    if work.layout.pp == 1:
        return ""
    schedule = "1F1B" if work.layout.vpp == 1 else "Interleaved1F1B"
    lines = ",\n".join(f"  {json.dumps(part)}" for part in stage_names(work))
    return (
        f'pipeline_parallel_schedule = "{schedule}"\n'
        f"pipeline_parallel_microbatch_size = {work.layout.micro_batch}\n"
        f"module_fqns_per_model_part = [\n{lines},\n]\n"
    )


def _experts(work: Work) -> str:
    if work.model.moe is None:
        return ""
    layout = work.layout
    return f"expert_parallel_degree = {layout.ep}\nexpert_tensor_parallel_degree = {layout.etp}\n"
