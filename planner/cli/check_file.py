"""``planner check FILE``: a framework's own configuration, read, judged and priced."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import SpecError

if TYPE_CHECKING:
    from planner.cost.layer import Prices
    from planner.formats.settle import Settled
    from planner.formats.setup import Knob, Setup
    from planner.layout.layout import Layout
    from planner.layout.stages import Split
    from planner.report.foreign import Better, FileReport, Row
    from planner.spec.cluster import ClusterSpec

    Judged = tuple[str, list[str], int, Better | None]

YES, NO, UNSURE = 0, 1, 3


@dataclass(frozen=True, slots=True)
class Asked:
    """What the user adds to a file: the machines, and what it leaves open."""

    model: str | None = None
    cluster: str | None = None
    nodes: int | None = None
    global_batch: int | None = None
    seq_len: int | None = None
    micro_batch: int | None = None


def assignments(words: list[str]) -> dict[str, str]:
    """Return ``NAME=VALUE`` words as a mapping; any other word is complained of."""
    pairs = [word.partition("=") for word in words]
    wrong = [
        f"--set: {name!r} has no value; write NAME=VALUE" for name, sign, _ in pairs if not sign
    ]
    if wrong:
        raise SpecError(wrong)
    return {name: value for name, _, value in pairs}


def is_foreign(name: str) -> bool:
    """Whether the argument of ``check`` is a file in a framework's format."""
    from planner.formats.detect import detect
    from planner.spec.files import read_text

    path = Path(name)
    if not path.is_file():
        return False
    # a JSON file of no known format is a model or a plan, and answered as one
    return path.suffix != ".json" or detect(path, read_text(path)) is not None


def check_file(path: Path, given: dict[str, str], asked: Asked) -> tuple["FileReport", int]:
    """Return what is to be printed about a file, and the exit code."""
    from planner.cli.request import chosen_cluster
    from planner.formats.detect import read_foreign
    from planner.formats.settle import settle
    from planner.spec.huggingface import load_model

    setup = filled(read_foreign(path, given), asked)
    model = load_model(asked.model) if asked.model else None
    machines = chosen_cluster(asked.cluster, asked.nodes, None) if asked.cluster else None
    settled = settle(setup, model, machines.gpus if machines else None)
    answer, details, code, better = _judged(setup, settled, machines)
    return replace(_report(setup, settled, answer, details), better=better), code


def filled(setup: "Setup", asked: Asked) -> "Setup":
    """Return the file with what it leaves open taken from the options."""
    changes = {
        name: getattr(asked, name)
        for name in ("global_batch", "seq_len", "micro_batch")
        if getattr(setup, name) is None and getattr(asked, name) is not None
    }
    return replace(setup, **changes)


def _judged(setup: "Setup", settled: "Settled", machines: "ClusterSpec | None") -> "Judged":
    """Return the verdict in a sentence, what else to say, the exit code, and what is better."""
    label = _label(setup)
    if settled.problems:
        count = len(settled.problems)
        rules = "this rule" if count == 1 else f"these {count} rules"
        return f"Does not start: {label} on {settled.gpus} GPUs breaks {rules}", [], NO, None
    starts = f"Starts: {label} on {settled.gpus} GPUs breaks no rule of {setup.framework}"
    missing = _missing(setup, settled, machines)
    if missing or machines is None:
        return starts, [f"Whether it fits was not asked: {', '.join(missing)}."], YES, None
    return _priced(setup, settled, machines)


def _label(setup: "Setup") -> str:
    degrees = [
        f"{name}{getattr(setup, name)}"
        for name in ("tp", "cp", "pp", "vpp", "ep", "etp")
        if getattr(setup, name) > 1
    ]
    return " ".join([*degrees, f"zero{setup.zero}"])


def _missing(setup: "Setup", settled: "Settled", machines: "ClusterSpec | None") -> list[str]:
    """Return what is missing for an estimate, each with the option that states it."""
    needed = {
        "--cluster names the machines": machines,
        "--model names the model": settled.model,
        "--micro-batch is not in the file": settled.layout,
        "--global-batch is not in the file": settled.global_batch,
        "--seq-len is not in the file": setup.seq_len,
    }
    return [option for option, value in needed.items() if value is None]


def _priced(setup: "Setup", settled: "Settled", machines: "ClusterSpec") -> "Judged":
    from planner.cli.request import chosen_job
    from planner.cost.layer import Prices
    from planner.formats.work import work_of_setup
    from planner.layout.stages import Split
    from planner.report.memory import check_sentence, checked
    from planner.report.words import percent, seconds
    from planner.simulate.step import estimate_step, step_interval

    work = work_of_setup(setup, settled, machines.gpus_per_node)
    chosen = chosen_job(work.job.global_batch, work.job.seq_len, work.job.precision, work.model,
                        machines.gpu)  # fmt: skip
    job = chosen.model_copy(update={"software": setup.software})
    split = Split(work.layers, work.again)
    found = checked(work.model, machines, job, work.layout, split, [])
    prices = Prices(work.model, machines, job)
    step = estimate_step(prices, work.layout, split)
    low, high = step_interval(step, machines)
    details = [
        f"Estimated step time {seconds(step.step_time_s)} ({seconds(low)} to {seconds(high)}), "
        f"{step.tokens_per_s_per_gpu:,.0f} tokens/s per GPU, MFU {percent(step.mfu)} of "
        f"{step.peak_flops / 1e12:.0f} TFLOP/s."
    ]
    code = {"fits": YES, "too close to tell": UNSURE}.get(str(found.verdict), NO)
    saves = [what for what in setup.unpriced if re.search("offload|CPU|recompute|precision", what)]
    if code == NO and saves:
        details.append(f"It may fit all the same: the estimate leaves out {', '.join(saves)}.")
        code = UNSURE
    better = _better(setup, prices, work.layout, split, code == YES)
    return check_sentence(found), details, code, better


def _better(
    setup: "Setup", prices: "Prices", layout: "Layout", split: "Split", fits: bool
) -> "Better | None":
    """Return the three best single changes; of a program whose rules a plan knows."""
    from planner.report.foreign import Better
    from planner.search.changes import cheapest, single_changes
    from planner.search.faster import faster_changes
    from planner.search.targets import PRICED, TARGETS
    from planner.simulate.step import estimate_step

    name = "megatron" if setup.framework == "nemo" else setup.framework
    known = (TARGETS | PRICED).get(name)
    if known is None:
        return None
    target = replace(known, software=setup.software)
    step = estimate_step(prices, layout, split)
    if fits:
        changes = faster_changes(prices, layout, target, split)
    else:
        smaller = single_changes(prices, layout, target, split)
        changes = cheapest(smaller, prices.cluster.gpu.memory_bytes, step.memory.device)
    return Better(fits, step.step_time_s, tuple(changes))


def _rows(knobs: tuple["Knob", ...]) -> tuple["Row", ...]:
    return tuple((knob.name, knob.value, knob.meaning) for knob in knobs)


def _report(setup: "Setup", settled: "Settled", verdict: str, details: list[str]) -> "FileReport":
    from planner.formats.detect import TITLES
    from planner.report.foreign import FileReport

    return FileReport(
        TITLES[setup.framework], verdict, tuple(details), _rows(setup.understood),
        _rows(setup.unknown), _rows(setup.neutral), settled.problems, setup.silent,
        (*setup.assumed, *settled.remarks), setup.unpriced,
    )  # fmt: skip
