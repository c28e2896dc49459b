"""Step times of 8 B200 against SimuMax's own kernel table: ``python -m benchmarks.simumax``.

SimuMax measured each kernel of 43 Megatron-Core cases alone and publishes the table beside the step
times (tests/data/simumax). The table is taken over by ``planner profile import`` and is the profile
of the planner's own model of a step; nothing is fitted to the step times.
"""

import csv
from collections import defaultdict
from pathlib import Path
from statistics import fmean

from planner.cost.layer import Prices
from planner.formats.measurements import import_profile
from planner.layout.layout import Layout, Shard
from planner.simulate.step import estimate_step
from planner.spec.cluster import load_cluster
from planner.spec.job import JobSpec
from planner.spec.machine import apply_profile
from planner.spec.model import MLASpec, ModelSpec, MoESpec
from planner.spec.software import MEGATRON_CORE

DATA = Path(__file__).parents[1] / "tests" / "data"
LAYOUTS = DATA / "memory" / "simumax_b200.csv"
GPUS = 8
# context parallelism by all-to-all; overlap of every kind is off ("non-overlap contract" of its
# docs/b200/b200_real_repro_guide.md)
SOFTWARE = MEGATRON_CORE.model_copy(
    update={
        "context_exchange": "all_to_all",
        "overlap_grad_reduce": False,
        "overlap_param_gather": False,
        "overlap_tp_wgrad": False,
        "overlap_regather": False,
        "overlap_pipeline": False,
    }
)
LATENT = MLASpec(
    q_lora_rank=1536, kv_lora_rank=512, qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128
)
MODELS = {
    "llama3-70b": ModelSpec(
        name="llama3-70b", layers=80, hidden=8192, heads=64, kv_heads=8, head_dim=128,
        ffn_hidden=28672, vocab=128256,
    ),
    "llama3-405b": ModelSpec(
        name="llama3-405b", layers=126, hidden=16384, heads=128, kv_heads=16, head_dim=128,
        ffn_hidden=53248, vocab=128256,
    ),
    "deepseekv2": ModelSpec(
        name="deepseekv2", layers=60, hidden=5120, heads=128, kv_heads=128, head_dim=128,
        ffn_hidden=12288, vocab=102400, mla=LATENT,
        moe=MoESpec(experts=160, top_k=6, ffn_hidden=1536, shared_ffn_hidden=3072, first_layer=1),
    ),
    "deepseekv3": ModelSpec(
        name="deepseekv3", layers=61, hidden=7168, heads=128, kv_heads=128, head_dim=128,
        ffn_hidden=18432, vocab=129280, mla=LATENT,
        moe=MoESpec(experts=256, top_k=8, ffn_hidden=2048, shared_ffn_hidden=2048, first_layer=1),
    ),
}  # fmt: skip


def case_of(row: dict[str, str]) -> tuple[ModelSpec, JobSpec, Layout]:
    """Return the model, the job and the layout of one published case."""
    tp, cp, pp, ep = (int(row[name]) for name in ("tp", "cp", "pp", "ep"))
    dp = GPUS // (tp * cp * pp)
    layout = Layout(
        tp=tp, cp=cp, pp=pp, dp=dp, ep=ep, sequence_parallel=tp > 1, shard=Shard.zero(1, dp * cp)
    )
    batch = dp * int(row["micro_batches"])
    job = JobSpec(global_batch=batch, seq_len=int(row["seq_len"]), software=SOFTWARE)
    return MODELS[row["model"]].model_copy(update={"layers": int(row["layers"])}), job, layout


def family(case: str) -> str:
    """Return what cases are grouped by: experts, long sequences, or the tensor-parallel degree."""
    if "_cp" in case:
        return "dense, long sequences by context parallelism"
    return case.split("_")[0] if "deepseek" in case else f"dense, tp {case.split('_tp')[1][0]}"


def errors(profiled: bool = True) -> dict[str, tuple[float, float]]:
    """Return (ours, SimuMax's) estimated ÷ measured - 1 of each case."""
    cluster = load_cluster("dgx-b200").model_copy(update={"nodes": 1})
    if profiled:
        profile, _ = import_profile([DATA / "simumax" / "b200_bf16_ceperm.json"])
        cluster = apply_profile(cluster, profile)
    with (DATA / "simumax" / "steps.csv").open(encoding="utf-8", newline="") as lines:
        steps = {row["case"]: row for row in csv.DictReader(lines)}
    with LAYOUTS.open(encoding="utf-8", newline="") as lines:
        cases = {row["case"]: row for row in csv.DictReader(lines)}
    found = {}
    for name, row in cases.items():
        model, job, layout = case_of(row)
        ours = 1e3 * estimate_step(Prices(model, cluster, job), layout).step_time_s
        measured, theirs = (float(steps[name][key]) for key in ("measured_ms", "simumax_ms"))
        found[name] = (ours / measured - 1, theirs / measured - 1)
    return found


def main() -> None:
    """Print mean errors by family."""
    shipped, profiled = errors(profiled=False), errors()
    groups = defaultdict(list)
    for case in profiled:
        groups[family(case)].append(case)
    groups["all"] = list(profiled)
    print("| 8 B200 | cases | as shipped | kernel table | signed | SimuMax |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name in sorted(groups, key=lambda one: (one == "all", one)):
        cases = groups[name]
        before = fmean(abs(shipped[case][0]) for case in cases)
        ours, theirs = (fmean(abs(profiled[case][at]) for case in cases) for at in (0, 1))
        signed = fmean(profiled[case][0] for case in cases)
        line = f"{before:.1%} | {ours:.1%} | {signed:+.1%} | {theirs:.1%}"
        print(f"| {name} | {len(cases)} | {line} |")


if __name__ == "__main__":
    main()
