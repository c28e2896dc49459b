"""Logs of frameworks, with numbers of our own: the steps, and what is refused."""

from pathlib import Path

import pytest

from planner.errors import SpecError
from planner.layout.layout import Layout
from planner.plan import Plan
from planner.search.recommend import Options, search
from planner.search.targets import TARGETS
from planner.spec.cluster import load_cluster
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec
from planner.spec.software import TORCH_LAUNCHER
from planner.tune.candidates import best_plans, one_plan, priced
from planner.tune.compare import Trial, best, blame, runs_csv
from planner.tune.logs import read_log
from planner.tune.report import as_json
from planner.tune.run import Measured

MODEL, CLUSTER = load_model("tiny-llama"), load_cluster("dgx-h100").model_copy(update={"nodes": 1})
JOB = JobSpec(global_batch=16, seq_len=128, software=TORCH_LAUNCHER)
FOUND = search(MODEL, CLUSTER, JOB, TARGETS["torch"], Options(keep=1))


def plan(layout: Layout) -> Plan:
    step = priced(MODEL, CLUSTER, JOB, layout)
    assert step is not None
    return one_plan(MODEL, CLUSTER, JOB, step, FOUND)


PLAN = plan(Layout(dp=8))
MEGATRON = """\
 [2025-03-01 10:00:0{n}] iteration        {n}/     100 | consumed samples:          {n}6 | \
elapsed time per iteration (ms): {ms} | throughput per GPU (TFLOP/s/GPU): 400.1 | \
learning rate: 1.5E-05 | global batch size:    16 | lm loss: 1.1E+01 | grad norm: 2.3 |
"""
DEEPSPEED = "steps: {n} loss: 10.4213 iter time (s): {s} samples/sec: 12.5\n"
TITAN = ("[titan] 2025-03-01 10:00:0{n},123 - root - INFO - \x1b[31mstep: {n:2}  \x1b[32mloss: "
         "10.2  \x1b[38;2;180;60;0mmemory: 12.0GiB(15.1%)  \x1b[34mtps: {tps}  \x1b[36mtflops: "
         "99.0  \x1b[35mmfu: 10.0%\x1b[39m\n")  # fmt: skip
SAMPLES = ("[2025-03-01 10:00:0{n},456] [INFO] [timer.py:264:stop] epoch=0/micro_step={n}0/"
           "global_step={n}, RunningAvgSamplesPerSec=40.1, CurrSamplesPerSec={rate}, "
           "MemAllocated=9.5GB, MaxMemAllocated=11.25GB\n")  # fmt: skip
VALIDATION = ("[rank0]:[titan] 2025-03-01 10:00:09,123 - root - INFO - \x1b[33mvalidate step: 20  "
              "\x1b[32mloss:  9.1000  \x1b[38;2;54;234;195mmemory: 14.00GiB(17.68%)  "
              "\x1b[34mtps: 8,192\x1b[39m\n")  # fmt: skip
NOISE = (
    "W0301 10:00:00.000000 140 torch/distributed/run.py:793] \n"
    "[INFO] [engine.py:2000:step] step=10, skipped=0, lr=[1e-05], mom=[(0.9, 0.95)]\n"
)
MEGATRON_PEAK = ("[Rank {rank}] (after 2 iterations) memory (MB) | allocated: 900.25 | "
                 "max allocated: {mib} | reserved: 2000.0 | max reserved: 2048.0\n")  # fmt: skip
BRIDGE_PEAK = ("[Rank 1] (after 2 iterations) memory (GB) | mem-allocated-gigabytes: 0.9 | "
               "mem-max-allocated-gigabytes: 1.5 | mem-max-reserved-gigabytes: 2.2\n")  # fmt: skip
LAUNCHER = '{{"event": "step", "step": {n}, "step_time_s": {s}, "loss": 6.0}}\n'
# 16 sequences of 128 tokens on 8 GPUs: 256 tokens each; 1,024 tokens/s take 0.25 s
LOGS = [
    ("megatron", [MEGATRON.format(n=n, ms=ms) for n, ms in enumerate([9000, 900, 250.5, 249.5])]),
    ("deepspeed", [DEEPSPEED.format(n=n, s=s) for n, s in enumerate([9, 0.9, "0.2505", 0.2495])]),
    # 16 sequences of a step: 64 of them per second
    ("samples", [SAMPLES.format(n=n, rate=r) for n, r in enumerate([2, 16.5, 63.9, 64.1])]),
    ("titan", [TITAN.format(n=n, tps=t) for n, t in enumerate([10, 500, "1,024", "1,024"])]),
    ("launcher", [LAUNCHER.format(n=n, s=s) for n, s in enumerate([9.0, 0.9, 0.2505, 0.2495])]),
]


@pytest.mark.parametrize(("name", "lines"), LOGS)
def test_steps_after_the_first_two(tmp_path: Path, name: str, lines: list[str]) -> None:
    log = tmp_path / f"{name}.log"
    log.write_text("".join(lines))

    found = read_log(log, PLAN)

    assert len(found.steps_s) == 2
    assert found.step_time_s == pytest.approx(0.25, rel=1e-4)


@pytest.mark.parametrize(("name", "lines"), LOGS[:-1])
@pytest.mark.parametrize("prefix", ["", "[rank0]:", "3: ", "[default7]:"])
def test_launchers_add_to_lines_and_frameworks_print_more(
    tmp_path: Path, name: str, lines: list[str], prefix: str
) -> None:
    log = tmp_path / name
    mixed = [NOISE, *(part for line in lines for part in (prefix + line, VALIDATION, NOISE))]
    log.write_text("".join(mixed if name == "titan" else [part for part in mixed
                                                          if part != VALIDATION]))  # fmt: skip

    found = read_log(log, PLAN)

    assert len(found.steps_s) == 2
    assert found.step_time_s == pytest.approx(0.25, rel=0.01)


MEGATRON_LINES = "".join(LOGS[0][1])
PEAKS = [
    (MEGATRON_LINES, None),
    (MEGATRON_LINES + MEGATRON_PEAK.format(rank=0, mib=1000.5), 1000.5 * 2**20),
    ("".join(MEGATRON_PEAK.format(rank=rank, mib=1000 + rank) for rank in range(8))
     + MEGATRON_LINES, 1007 * 2**20),
    (BRIDGE_PEAK + MEGATRON_LINES, 1.5e9),
    ("".join(LOGS[2][1]), 11.25 * 2**30),
    ("".join(LOGS[3][1]), 12 * 2**30),
]  # fmt: skip


@pytest.mark.parametrize(("text", "peak_bytes"), PEAKS)
def test_the_fullest_gpu_of_a_log(tmp_path: Path, text: str, peak_bytes: float | None) -> None:
    (tmp_path / "run.log").write_text(text)

    assert read_log(tmp_path / "run.log", PLAN).peak_memory_bytes == peak_bytes


@pytest.mark.parametrize(("name", "lines"), LOGS)
def test_two_steps_only_settle(tmp_path: Path, name: str, lines: list[str]) -> None:
    log = tmp_path / name
    log.write_text("".join(lines[:2]))

    with pytest.raises(SpecError, match="2 steps; 2 settle first"):
        read_log(log, PLAN)


@pytest.mark.parametrize("text", ["", "Traceback (most recent call last):\n", "step: 5 loss: 3\n"])
def test_logs_without_steps(tmp_path: Path, text: str) -> None:
    (tmp_path / "run.log").write_text(text)

    with pytest.raises(SpecError, match="no line of a step of megatron, deepspeed, torchtitan or"):
        read_log(tmp_path / "run.log", PLAN)


def trials() -> list[Trial]:
    layouts = [Layout(dp=8), Layout(tp=2, dp=4, sequence_parallel=True), Layout(pp=2, dp=4)]
    found = []
    for factor, layout in zip((1.0, 2.0, 0.5), layouts, strict=True):
        made = plan(layout)
        found.append(Trial(made, Measured((factor * made.estimate.step_time_s,) * 2)))
    return found


def test_the_fastest_measured_wins() -> None:
    found = trials()
    least = min(found, key=lambda trial: trial.measured.step_time_s)

    assert best(found) is least
    assert [trial.error for trial in found] == pytest.approx([0.0, -0.5, 1.0])
    shown = as_json(found)[1]
    assert shown["estimated_step_time_s"] != shown["measured_step_time_s"]


def test_the_part_that_goes_with_the_errors_is_blamed() -> None:
    found = blame(trials())

    assert found["tensor_parallel"] < 0 < found["pipeline"]


def test_runs_are_what_calibrate_reads(tmp_path: Path) -> None:
    from planner.cli.runs_file import Context, read_runs

    file = tmp_path / "runs.csv"
    file.write_text(runs_csv(trials()))

    runs = read_runs(file, Context(CLUSTER, "tiny-llama", "auto"))

    assert [run.layout for run in runs] == [trial.plan.to_layout() for trial in trials()]
    assert [run.measured_s for run in runs] == pytest.approx(
        [trial.measured.step_time_s for trial in trials()]
    )


def test_best_plans_are_different_and_in_order() -> None:
    found = best_plans(PLAN, 3)

    assert len({one.to_layout() for one in found}) == 3
    times = [one.estimate.step_time_s for one in found]
    assert times == sorted(times)
