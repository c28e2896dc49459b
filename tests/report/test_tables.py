import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console, RenderableType

from planner.plan import CandidateRecord, Plan
from planner.report import tables
from planner.search.answer import Change, NoFit
from planner.units import GIB
from tests.formats.plans import build_plan, cluster, llama


def printed(answer: RenderableType, columns: int = 80, colour: bool = False) -> str:
    """Return what a terminal of this width shows, without trailing spaces."""
    console = Console(
        width=columns,
        force_terminal=colour,
        color_system="standard" if colour else None,
        highlight=False,
        record=True,
    )
    with console.capture() as capture:
        console.print(answer, crop=False)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def torch_plan(**layout: Any) -> Plan:
    """Return a plan that can be exported."""
    plan = build_plan(**layout)
    software = plan.job.software.model_copy(update={"name": "torch-launcher"})
    return plan.model_copy(update={"job": plan.job.model_copy(update={"software": software})})


def changed(plan: Plan, **estimate: object) -> Plan:
    """Return a plan with another estimate."""
    return plan.model_copy(update={"estimate": plan.estimate.model_copy(update=estimate)})


def lost(number: int) -> CandidateRecord:
    """Return one family that lost."""
    return CandidateRecord(label=f"family {number}", reason=f"{number}% slower")


ANSWER = """\
Fastest: tensor 2, pipeline 2, data 2, micro-batch 1, ZeRO-1: 20 ms per step (10
to 30 ms), 1,000 tokens/s per GPU, 40.0 % MFU of 1000 TFLOP/s bf16 dense peak,
0.9 of 74.5 GiB on the fullest GPU.
tiny-llama on 8 x TestGPU (test), 8 sequences of 16 tokens, bf16, run by
torch-launcher

Where the step goes
  cause     time    share
  compute  20 ms  100.0 %

Stages
  stage  layers  count  recomputed  memory GiB  also holds
  0      0-1         2           0         0.9  embedding
  1      2-3         2           0         0.9  head

1 layouts, 1 fit, 1 simulated, proved within 0.0 % of the best with equal
stages, 0 ns

Next
  planner export p.json --target torch --output tiny-llama-8gpu
  bash tiny-llama-8gpu/launch.sh"""


def test_whole_answer() -> None:
    plan = torch_plan(tp=2, pp=2, dp=2, shard_optimizer=2)

    assert printed(tables.plan_report(plan, Path("p.json"))) == ANSWER


@pytest.mark.parametrize("columns", [40, 80, 160])
def test_colour_changes_nothing_else(columns: int) -> None:
    plan = torch_plan(tp=2, pp=2)
    report = tables.plan_report(plan, Path("p.json"))

    plain, coloured = printed(report, columns), printed(report, columns, colour=True)

    assert "\x1b[1m" in coloured
    stripped = "\n".join(_without_codes(line).rstrip() for line in coloured.splitlines())
    assert stripped == plain


def _without_codes(line: str) -> str:
    parts = line.split("\x1b[")
    return parts[0] + "".join(part.partition("m")[2] for part in parts[1:])


def test_wide_terminal_keeps_the_answer_on_one_line() -> None:
    first = printed(tables.plan_report(torch_plan()), 250).splitlines()[0]

    assert first == tables.answer_line(torch_plan()).replace(", nothing recomputed", "")


def test_recompute_is_part_of_the_answer() -> None:
    plan = build_plan(pp=2, recompute_layers=1)

    assert "2 of 4 layers recomputed: 20 ms" in printed(tables.plan_report(plan), 250)


def test_parts_are_sorted_and_small_ones_left_out() -> None:
    plan = changed(
        torch_plan(),
        step_time_s=1.0,
        parts_s={"host": 0.004, "pipeline": 0.1, "compute": 0.8, "new_cause": 0.096},
    )

    lines = printed(tables.plan_report(plan)).splitlines()

    start = lines.index("Where the step goes")
    names = [line.split("  ")[1] for line in lines[start + 2 : start + 5]]
    assert names == ["compute", "pipeline bubble and transfers", "new_cause"]
    assert "kernel launches" not in "\n".join(lines)


def test_no_stage_table_without_a_pipeline() -> None:
    assert "Stages" not in printed(tables.plan_report(torch_plan(dp=2)))


def test_equal_stages_share_a_line() -> None:
    plan = build_plan(llama(layers=16), pp=8)

    text = printed(tables.plan_report(plan))

    assert "  1-6    2-13        2           0         0.9" in text
    assert "  0      0-1         2           0         0.9  embedding" in text
    assert "  7      14-15       2           0         0.9  head" in text


def test_ranks_with_several_chunks() -> None:
    plan = build_plan(llama(layers=16), pp=2, vpp=4)

    text = printed(tables.plan_report(plan))

    assert "  rank  layers         count" in text
    assert "  0     4 chunks of 2      8           0         0.9  embedding" in text
    assert "  1     4 chunks of 2      8           0         0.9  head" in text


def test_uneven_chunks_show_their_span() -> None:
    plan = build_plan(llama(layers=6), layers=[1, 2, 1, 2], pp=2, vpp=2)

    text = printed(tables.plan_report(plan))

    assert "0     2 chunks of 1      2" in text
    assert "1     2 chunks of 2      4" in text


def test_many_unlike_stages_are_trimmed() -> None:
    counts = [1 + rank % 2 for rank in range(20)]
    plan = build_plan(llama(layers=sum(counts)), layers=counts, pp=20)

    assert "and 4 more in --json" in printed(tables.plan_report(plan))


def test_alternatives() -> None:
    other = CandidateRecord(
        label="tp2 dp4 mb1 zero1", step_time_s=0.0213, memory_bytes=2 * GIB, reason="6.5% slower"
    )
    plan = torch_plan().model_copy(update={"alternatives": (other,)})

    text = printed(tables.plan_report(plan))

    assert "Next best layouts" in text
    assert "tp2 dp4 mb1 zero1  21.3 ms         2.0  6.5% slower" in text


def test_losing_families_are_trimmed_to_ten() -> None:
    plan = torch_plan().model_copy(update={"lost": tuple(map(lost, range(13)))})

    text = printed(tables.plan_report(plan))

    assert text.count("- family ") == 10
    assert "  - family 0: 0% slower" in text
    assert "and 3 more in --json" in text


def test_long_reasons_wrap_under_themselves() -> None:
    family = CandidateRecord(label="tensor parallel", reason="slower, " * 20)
    plan = torch_plan().model_copy(update={"lost": (family,)})

    lines = printed(tables.plan_report(plan)).splitlines()

    start = next(i for i, line in enumerate(lines) if line.startswith("  - tensor parallel"))
    assert lines[start + 1].startswith("    slower")


def test_search_line() -> None:
    search = build_plan().search.model_copy(
        update={
            "layouts": 10619,
            "fitting": 236,
            "simulated": 230,
            "gap": 0.012,
            "gap_any_stages": 0.025,
            "seconds": 1.5,
        }
    )
    plan = build_plan().model_copy(update={"search": search})

    assert tables.search_line(plan) == (
        "10,619 layouts, 236 fit, 230 simulated, proved within 1.2 % of the best with equal "
        "stages, 2.5 % with any, 1.5 s"
    )


def test_unsaved_plan_is_asked_for_again_with_output() -> None:
    command = "planner recommend tiny-llama --cluster dgx-h100 --global-batch 16 --seq-len 64"

    text = printed(tables.plan_report(torch_plan(), None, command), 40)

    assert f"  {command} --output plan.json\n" in text  # one line, however narrow


def test_plan_that_cannot_be_exported_says_so() -> None:
    plan = build_plan()
    other = plan.job.software.model_copy(update={"name": "in-house"})
    plan = plan.model_copy(update={"job": plan.job.model_copy(update={"software": other})})

    text = printed(tables.plan_report(plan))

    assert "cannot be exported" in text
    assert "planner export" not in text


def test_a_plan_for_megatron_is_exported_and_started() -> None:
    plan = build_plan()
    megatron = plan.job.software.model_copy(update={"name": "megatron-core"})
    plan = plan.model_copy(update={"job": plan.job.model_copy(update={"software": megatron})})

    assert tables.next_steps(plan, Path("my plan.json")) == [
        "planner export 'my plan.json' --target megatron --output tiny-llama-1gpu",
        "bash tiny-llama-1gpu/megatron.sh",
    ]


def test_several_nodes_go_to_slurm() -> None:
    plan = build_plan(dp=16)

    assert tables.launch_lines(plan, Path("my plan")) == ["cd 'my plan' && sbatch job.sbatch"]


NO = NoFit(
    "tp8 pp4 mb1 zero1",
    100 * GIB,
    70 * GIB,
    (Change("use 2 nodes (16 GPUs)", 2), Change("train on sequences of 64 tokens", 4)),
)


def test_no_fit() -> None:
    text = printed(tables.no_fit_report(NO, cluster()), 300)

    assert text.splitlines()[0] == (
        "Nothing fits: 30.0 GiB short. The most frugal layout, tp8 pp4 mb1 zero1, needs 100.0 GiB "
        "on its fullest GPU; 70.0 GiB may be used (TestGPU: 74.5 GiB, 4.5 GiB kept free)."
    )
    assert "use 2 nodes (16 GPUs)              2 x" in text
    assert "train on sequences of 64 tokens    4 x" in text


def test_no_fit_and_nothing_helps() -> None:
    text = printed(tables.no_fit_report(NoFit("tp8", 100, 70, ()), cluster()))

    assert "No change of nodes, GPU or sequence length was found to help." in text


def test_no_fit_as_data() -> None:
    answer = json.loads(tables.no_fit_json(NO))

    assert answer["fits"] is False
    assert answer["shortfall_bytes"] == 30 * GIB
    assert answer["changes"][0] == {"text": "use 2 nodes (16 GPUs)", "factor": 2}
