"""Memory, FLOPs and messages of one rank of a plan, traced without a GPU and without a formula.

    python -m benchmarks.oracle PLAN [--rank R] [--json]        (from the root of the repository)

The launcher's own model and training step run under a fake process group of the plan's world with
fake tensors: every operation happens, nothing is computed. The second of two optimizer steps
counts. One process per simulated rank, because DTensor remembers the groups of its first world.

Not seen: the CUDA context, NCCL, workspaces inside kernels, the caching allocator's slack.
"""

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed._tools.fake_collectives  # fake kernels of the collectives
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.pipelining._utils import InferenceMode
from torch.distributed.pipelining.schedules import _PipelineSchedule
from torch.distributed.tensor._sharding_prop import ShardingPropagator
from torch.testing._internal.distributed.fake_pg import FakeStore

from benchmarks.trace import Block, Log, Memory
from planner.launcher import context, dispatch, train
from planner.launcher.dispatch import Dispatch
from planner.launcher.plan_file import PlanFile, read_plan
from planner.launcher.preflight import plan_problems
from planner.launcher.train import Job, Options, build_skeleton
from planner.layout.layout import Recompute
from planner.memory.estimate import RankMemory, rank_memory
from planner.memory.working import WORKSPACE_BYTES
from planner.plan import Plan
from planner.units import GIB

_CPU = torch.device("cpu")
_LISTED = 40
COMPONENTS = (
    "parameters",
    "optimizer",
    "gradients",
    "gathered weights",
    "whole gradients",
    "buffers",
    "activations",
    "transient",
)


class _FusedNorm(torch.autograd.Function):
    """The norm kernel of a GPU; on a CPU torch has only its decomposition."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
        ctx.shape = shape
        with torch._C._AutoDispatchBelowAutograd():  # past the decomposition
            out, root = torch.ops.aten._fused_rms_norm(x, shape, weight, eps)
        ctx.save_for_backward(x, weight, root)
        return out  # type: ignore[no-any-return]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, Tensor, None]:
        x, weight, root = ctx.saved_tensors
        back = torch.ops.aten._fused_rms_norm_backward
        of_x, of_weight = back(gradients[0], x, ctx.shape, root, weight, [True, True])
        return of_x, None, of_weight, None


def _fused_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
    return _FusedNorm.apply(x, shape, weight, eps)  # type: ignore[no-any-return, no-untyped-call]


def _attention(query: Tensor, key: Tensor, value: Tensor, **_: bool) -> Tensor:
    """Call what torch chooses on a GPU: flash, or the kernel that allows two head sizes."""
    if query.shape[-1] != value.shape[-1]:
        efficient = torch.ops.aten._scaled_dot_product_efficient_attention
        return efficient(query, key, value, None, True, 0.0, True)[0]  # type: ignore[no-any-return]
    attend = torch.ops.aten._scaled_dot_product_flash_attention
    return attend(query, key, value, 0.0, True)[0]  # type: ignore[no-any-return]


class _Nowhere:
    """A ticket of what the rank does not hold; it comes back in a block of its own."""

    def __init__(self, flat: Tensor) -> None:
        self.shape, self.dtype = flat.shape, flat.dtype

    def settle(self) -> None:
        """Take no time."""

    def load(self) -> Tensor:
        """Return a new tensor."""
        return torch.empty(self.shape, dtype=self.dtype)

    def arrive(self) -> None:
        """Take no time."""

    def drop(self) -> None:
        """Hold nothing."""


def _static_shapes(schedule: Any, stages: list[Any], *_: Any) -> None:
    """Take the shapes of the plan; the vote over them would read the value of a fake tensor."""
    for stage in stages:
        stage._inference_mode = InferenceMode.STATIC


def _evenly(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return ``Dispatch._away`` with equal counts; real ones depend on numbers nobody computes."""

    def away(self: Dispatch, rows: Tensor, counts: Tensor, experts: Any) -> Tensor:
        ranks = self.ep * self.etp
        part, rest = divmod(rows.shape[0], ranks)
        sent = [part + (rank < rest) for rank in range(ranks)]

        def exchange_counts(counts: Tensor, group: Any) -> tuple[Tensor, list[int], list[int]]:
            return counts, sent, sent

        with mock.patch.object(dispatch, "exchange_counts", exchange_counts):
            return original(self, rows, counts, experts)

    return away


def _named_gradients(memory: Memory) -> Callable[[FSDPParamGroup], None]:
    """Return FSDP's work after a module's backward pass, which first names the gradients."""
    original = FSDPParamGroup.post_backward

    def name(group: FSDPParamGroup) -> None:
        for parameter in group.fsdp_params:
            whole = getattr(parameter, "_unsharded_param", None)
            memory.name(None if whole is None else whole.grad, "whole gradients")
            memory.name(parameter.unsharded_accumulated_grad, "whole gradients")

    def post_backward(self: FSDPParamGroup, *unused: Any) -> None:
        name(self)
        original(self, *unused)
        name(self)

    return post_backward


def _name_states(memory: Memory, job: Job) -> None:
    for parameter in job.parameters:
        memory.name(parameter, "parameters")
        memory.name(parameter.grad, "gradients")
        for state in job.optimizer.state[parameter].values():
            memory.name(state, "optimizer")
    for stage in job.stages:
        for module in stage.modules():
            for group in _groups(module):
                for parameter in group.fsdp_params:
                    for output in parameter.all_gather_outputs:
                        memory.name(output, "gathered weights")


def _groups(module: torch.nn.Module) -> list[FSDPParamGroup]:
    state = getattr(module, "_get_fsdp_state", None)
    return [] if state is None else list(state()._fsdp_param_groups)


def _unseen(memory: Memory) -> Callable[..., Any]:
    """Return DTensor's trial of an operator on global shapes, which allocates nothing on a GPU."""
    original = ShardingPropagator._propagate_tensor_meta_non_cached

    def propagate(self: ShardingPropagator, *args: Any) -> Any:
        with memory.closed_eyes():
            return original(self, *args)

    return propagate


@contextmanager
def _phase(memory: Memory, name: str) -> Iterator[None]:
    before, memory.phase = memory.phase, name
    yield
    memory.phase = before


def run_two_steps(job: Job, memory: Memory) -> int:
    """Train two steps on zeros; return the moment at which the second one began."""
    plan = job.plan
    shape = (plan.global_batch // plan.layout.dp, plan.seq_len // plan.layout.cp)
    step = job.optimizer.step

    def named_step(*args: Any) -> Any:
        _name_states(memory, job)
        with _phase(memory, "optimizer"):
            return step(*args)

    job.optimizer.step = named_step  # type: ignore[method-assign]
    begin = 0
    for _ in range(2):
        with _phase(memory, "batch"):
            tokens, targets = (torch.zeros(shape, dtype=torch.long) for _ in "xy")
        memory.clear_counts()
        if job.offloader is not None:
            job.offloader.counts.clear()
        begin = memory.now
        with _phase(memory, "step"):
            job.update(tokens, targets)
        _name_states(memory, job)
    return begin


@dataclass(frozen=True)
class Moment:
    """The fullest moment of a phase: what was just allocated, and what is alive; bytes.

    ``largest`` names (bytes, blocks, kind) of what is neither weight nor optimizer state.
    """

    size: int
    when: str
    parts: dict[str, int]
    largest: list[tuple[int, int, str]]


@dataclass(frozen=True)
class Traced:
    """What one rank holds, computes and sends in one step; bytes.

    Without a pipeline the states are those after the step; ``phases`` are those of the step.
    """

    rank: int
    parameters: int
    gradients: int
    optimizer: int
    phases: dict[str, Moment]
    flops: int
    collectives: list[dict[str, Any]]
    operations: int
    seconds: float
    offloaded: int = 0  # activations that leave in one step

    @property
    def peak(self) -> Moment:
        """The fullest moment of the step."""
        return max(self.phases.values(), key=lambda moment: moment.size)


def component(block: Block, began: int) -> str:
    """Return which of ``COMPONENTS`` a block belongs to."""
    if block.role:
        return block.role
    if block.born <= began:
        return "buffers"
    if block.phase == "forward" and block.outlives_pass:
        return "activations"
    return "transient"


def _timeline(log: Log) -> list[int]:
    """Return the live bytes after each change."""
    end = 1 + max(max(block.born, block.died or 0) for block in log.blocks)
    change = [0] * end
    for block in log.blocks:
        change[block.born] += block.size
        if block.died is not None:
            change[block.died] -= block.size
    return list(accumulate(change))


def _fullest(log: Log, timeline: list[int], began: int) -> dict[str, int]:
    """Return when each phase of the last step is fullest."""
    fullest: dict[str, int] = {}
    ends = [begin for begin, _ in log.turns[1:]] + [len(timeline)]
    for (begin, phase), end in zip(log.turns, ends, strict=True):
        if begin >= began and end > begin:
            top = max(range(begin, end), key=timeline.__getitem__)
            fullest[phase] = max(fullest.get(phase, top), top, key=timeline.__getitem__)
    return fullest


def _moment(log: Log, time: int, began: int) -> Moment:
    live = [b for b in log.blocks if b.born <= time and (b.died is None or b.died > time)]
    parts = dict.fromkeys(COMPONENTS, 0)
    kinds: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for block in live:
        part = component(block, began)
        parts[part] += block.size
        if part not in ("parameters", "optimizer"):
            kind = f"{part}: {block.phase} {list(block.shape)} {block.origin}"
            kinds[kind] += block.size
            counts[kind] += 1
    last = max(live, key=lambda block: block.born)
    return Moment(
        size=sum(parts.values()),
        when=f"{last.phase}: {last.origin} {list(last.shape)}",
        parts=parts,
        largest=[(size, counts[kind], kind) for kind, size in kinds.most_common(_LISTED)],
    )


def summarise(log: Log, rank: int, began: int, seconds: float) -> Traced:
    """Read the log of two steps, the second of which began at ``began``."""
    timeline = _timeline(log)
    times = _fullest(log, timeline, began)
    held = [block for block in log.blocks if block.died is None]
    states = {part: sum(b.size for b in held if b.role == part) for part in COMPONENTS[:3]}
    sent = [
        asdict(message) | {"calls": calls, "bytes": calls * message.message_bytes}
        for message, calls in log.collectives.items()
    ]
    return Traced(
        rank=rank,
        **states,
        phases={phase: _moment(log, time, began) for phase, time in times.items()},
        flops=log.flops,
        collectives=sent,
        operations=log.operations,
        seconds=round(seconds, 1),
    )


@contextmanager
def _gpu_kernels() -> Iterator[None]:
    """Call the kernels of a GPU: they save other tensors for the backward pass than a CPU's."""
    with (
        mock.patch.object(F, "rms_norm", _fused_norm),
        mock.patch.object(context, "lower_right", context.flash_lower_right),
        mock.patch.object(F, "scaled_dot_product_attention", _attention),
    ):
        yield


@contextmanager
def _watching(memory: Memory) -> Iterator[None]:
    trial = "_propagate_tensor_meta_non_cached"
    with (
        mock.patch.object(FSDPParamGroup, "post_backward", _named_gradients(memory)),
        mock.patch.object(ShardingPropagator, trial, _unseen(memory)),
        memory,
    ):
        yield


def observe(plan: PlanFile, options: Options) -> Traced:
    """Return what this rank of a real run on CPUs holds. Collective."""
    begin = time.perf_counter()
    skeleton = build_skeleton(plan, options, _CPU)
    memory = Memory()
    with _watching(memory):
        began = run_two_steps(Job(plan, options, _CPU, skeleton), memory)
    return summarise(memory.log, dist.get_rank(), began, time.perf_counter() - begin)


def trace(
    plan: PlanFile,
    rank: int,
    options: Options = Options(dtype=torch.bfloat16),
    kernels: str = "gpu",
) -> Traced:
    """Return what ``rank`` of ``plan`` needs. Once per process: it starts the process group.

    ``kernels`` is "gpu", or "cpu" for a comparison with ``observe``.
    """
    begin = time.perf_counter()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module")  # as the launcher does
    dist.init_process_group("fake", rank=rank, world_size=plan.layout.ranks, store=FakeStore())
    skeleton = build_skeleton(plan, options, _CPU)
    memory = Memory()
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(_PipelineSchedule, "_warmup_p2p", _static_shapes))
        if kernels == "gpu":
            stack.enter_context(_gpu_kernels())
        stack.enter_context(mock.patch.object(train, "place_for", return_value=_Nowhere))
        stack.enter_context(mock.patch.object(Dispatch, "_away", _evenly(Dispatch._away)))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(_watching(memory))
        job = Job(plan, options, _CPU, skeleton)
        began = run_two_steps(job, memory)
        found = summarise(memory.log, rank, began, time.perf_counter() - begin)
        away = 0 if job.offloader is None else job.offloader.counts.stored
        return replace(found, offloaded=away)


def estimate(plan: Plan, rank: int) -> RankMemory:
    """Return what ``planner.memory`` says of the same rank."""
    layout = replace(plan.to_layout(), recompute=Recompute.NONE)  # the stages say which layers
    pp_rank = rank // (len(plan.rank_map) // layout.pp)
    return rank_memory(plan.model, plan.job, layout, pp_rank, plan.to_split())


# Fields of the estimate, and the traced components that are the same bytes under torch's names.
SAME = {
    "weights": ("gathered weights",),
    "gradients": ("gradients", "whole gradients"),
    "optimizer": ("parameters", "optimizer"),
    "buffers": ("buffers",),
    "activations": ("activations",),
    "working": ("transient",),
}


def comparison(plan: Plan, traced: Traced) -> list[tuple[str, float, float]]:
    """Return (component, estimated bytes, traced bytes) at the peak; the last row is the peak.

    cuBLAS takes its workspace on a GPU only, so it is left out of the estimate.
    """
    guess = estimate(plan, traced.rank)
    rows = [
        (name, float(getattr(guess, name)), float(sum(traced.peak.parts[part] for part in parts)))
        for name, parts in SAME.items()
    ]
    rows = [(name, e - WORKSPACE_BYTES * (name == "buffers"), t) for name, e, t in rows]
    return [*rows, ("peak", guess.allocated - WORKSPACE_BYTES, float(traced.peak.size))]


def _lines(plan: Plan, traced: Traced) -> Iterator[str]:
    yield f"{'GiB':20}{'estimated':>12}{'traced':>12}"
    for name, guess, seen in comparison(plan, traced):
        yield f"{name:20}{guess / GIB:12.3f}{seen / GIB:12.3f}"
    yield f"fullest at {traced.peak.when}; traced in {traced.seconds} s"
    for size, blocks, kind in traced.peak.largest[:10]:
        yield f"  {size / GIB:8.3f} GiB in {blocks} x {kind}"


def main() -> None:
    """Trace one rank and print it beside the estimate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("plan", type=Path)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    file = read_plan(arguments.plan)
    problems = plan_problems(file)
    if problems:
        sys.exit("\n".join(problems))
    plan = Plan.model_validate_json(arguments.plan.read_text(encoding="utf-8"))
    traced = trace(file, arguments.rank)
    if arguments.json:
        rows = {name: [guess, seen] for name, guess, seen in comparison(plan, traced)}
        print(json.dumps(asdict(traced) | {"comparison": rows}))
    else:
        print("\n".join(_lines(plan, traced)))


if __name__ == "__main__":
    main()
