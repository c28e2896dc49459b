"""The search and the launcher put the same question: both ways to the rules agree."""

from hypothesis import given
from hypothesis import strategies as st

from planner.launcher.plan_file import parse_plan
from planner.launcher.preflight import facts
from planner.launcher.rules import broken_rules
from planner.layout.layout import Layout, Shard
from planner.layout.rules_torch import torch_target_problems
from planner.plan import LayoutRecord
from planner.spec.model import MoESpec
from tests.formats.plans import build_plan, gpt, job, llama, neox

DEGREES = st.sampled_from([1, 2, 3, 4])
MOE = MoESpec(experts=8, top_k=2, ffn_hidden=64)
LAYOUTS = st.builds(
    Layout,
    **{name: DEGREES for name in ("tp", "cp", "pp", "vpp", "dp", "ep", "etp", "micro_batch")},
    sequence_parallel=st.booleans(),
    shard=st.builds(Shard, DEGREES, DEGREES, DEGREES),
)
MODELS = st.sampled_from([llama(), gpt(), neox(), llama(moe=MOE), llama(sliding_window=8)])
JOBS = st.builds(
    job,
    global_batch=st.integers(1, 32),
    seq_len=st.integers(1, 32),
    precision=st.sampled_from(["bf16", "fp8"]),
)


def record(layout: Layout) -> LayoutRecord:
    names = set(LayoutRecord.model_fields) & set(Layout.__slots__)
    values = {name: getattr(layout, name) for name in names}
    shards = {f"shard_{kind}": getattr(layout.shard, kind) for kind in Shard.__slots__}
    return LayoutRecord(**values, **shards)


@given(layout=LAYOUTS, model=MODELS, work=JOBS)
def test_search_and_launcher_agree(layout: Layout, model: object, work: object) -> None:
    plan = build_plan(model, job_spec=work)  # type: ignore[arg-type]
    plan = plan.model_copy(update={"layout": record(layout)})
    asked_by_launcher = broken_rules(facts(parse_plan(plan.model_dump(mode="json"))))

    assert torch_target_problems(plan.model, plan.job, layout) == asked_by_launcher
