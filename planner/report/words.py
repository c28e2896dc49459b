"""Numbers and layouts in the words of an answer."""

from planner.layout.layout import Offload, offload_words
from planner.plan import LayoutRecord, Plan
from planner.spec.gpu import GpuSpec
from planner.units import GIB, format_s

DEGREES = (
    ("tp", "tensor"),
    ("cp", "context"),
    ("pp", "pipeline"),
    ("dp", "data"),
    ("ep", "expert"),
    ("etp", "expert tensor"),
)


def seconds(value: float) -> str:
    """Return a duration; thousands of seconds keep all their digits."""
    return format_s(value) if value < 999.5 else f"{value:,.0f} s"


def interval(low_s: float, high_s: float) -> str:
    """Return an interval of a duration, the unit said once where it is the same."""
    low, high = seconds(low_s), seconds(high_s)
    same = low.rpartition(" ")[2] == high.rpartition(" ")[2]
    return f"{low.rpartition(' ')[0] if same else low} to {high}"


def percent(fraction: float, digits: int = 1) -> str:
    """Return a share of one in percent."""
    return f"{100 * fraction:.{digits}f} %"


def gib(size_bytes: float) -> str:
    """Return the number of a size in GiB, for columns and sentences that name the unit."""
    return f"{size_bytes / GIB:.1f}"


def sharding(layout: LayoutRecord) -> str:
    """Return what data-parallel ranks share, by its usual name; empty when nothing."""
    ranks = layout.dp * layout.cp
    sizes = (layout.shard_weights, layout.shard_gradients, layout.shard_optimizer)
    stage = sum(size > 1 for size in sizes)
    if stage == 0:
        return ""
    widest, second = max(sizes), layout.shard_secondary
    if len({size for size in sizes if size > 1}) > 1:
        words = "weights over {}, gradients over {}, optimizer over {} ranks".format(*sizes)
    else:
        words = f"ZeRO-{stage}" + (f" over {widest} of {ranks} ranks" if widest < ranks else "")
    return words + (f" with a second copy of the weights over {second}" if second else "")


def layout_words(layout: LayoutRecord) -> str:
    """Return a layout as ``tensor 4, pipeline 8, data 2, micro-batch 1, ZeRO-1``."""
    parts = [f"{word} {size}" for name, word in DEGREES if (size := getattr(layout, name)) > 1]
    if layout.vpp > 1:
        parts.append(f"{layout.vpp} chunks per rank")
    parts.append(f"micro-batch {layout.micro_batch}")
    if shared := sharding(layout):
        parts.append(shared)
    return ", ".join(parts + offload_parts(layout))


def offload_parts(layout: LayoutRecord) -> list[str]:
    """Return what of a layout is not on the GPUs."""
    parts = []
    if layout.offload_optimizer:
        share = layout.offload_optimizer
        what = "optimizer and weights" if layout.offload_weights else "optimizer"
        whole = what if share == 1 else f"{percent(share, 0)} of the {what}"
        parts.append(f"{whole} on the host" + (", delayed" if layout.delayed_update else ""))
    if layout.offload_fraction:
        parts.append(offload_words(Offload(layout.offload_fraction, layout.offload_target)))
    return parts


def schedule_words(plan: Plan) -> str:
    """Return the schedule where it is neither 1F1B nor interleaved 1F1B, after a comma."""
    usual = plan.layout.pp == 1 or plan.schedule in ("1f1b", "interleaved_1f1b")
    return "" if usual else f", schedule {plan.schedule}"


def recomputed(plan: Plan) -> str:
    """Return how much of the forward pass runs twice."""
    layers = sum(stage.layers for stage in plan.stages)
    again = sum(stage.recompute_layers for stage in plan.stages)
    if again:
        return f"{again} of {layers} layers recomputed"
    if plan.layout.recompute != "none":
        return f"{plan.layout.recompute} recompute"
    return "nothing recomputed"


def peak_name(gpu: GpuSpec, peak_flops: float) -> str:
    """Return the denominator of MFU, as ``989 TFLOP/s bf16 dense peak``."""
    dtype = next((name for name in ("bf16", "fp16") if gpu.peak_flops.get(name) == peak_flops), "")
    return f"{peak_flops / 1e12:.4g} TFLOP/s {dtype} dense peak".replace("  ", " ")
