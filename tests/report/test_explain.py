import pytest

from planner.report.explain import no_layout_error
from planner.search.targets import TARGETS
from planner.spec.cluster import load_cluster
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec
from tests.formats.plans import cluster, llama


def test_the_batch_that_would_do() -> None:
    machines = load_cluster("dgx-h100").model_copy(update={"nodes": 8})
    job = JobSpec(global_batch=7, seq_len=8192)

    error = no_layout_error(load_model("llama-3-70b"), machines, job, TARGETS["torch"])

    assert error.problems == (
        "--global-batch: 7 sequences divide over no layout of 64 GPUs that llama-3-70b allows; "
        "try 6",
    )
    assert error.exit_code == 2


@pytest.mark.parametrize(
    ("name", "job", "wanted"),
    [
        ("deepseek-v3", JobSpec(global_batch=8, seq_len=64), "multi-token prediction"),
        ("mistral-7b", JobSpec(global_batch=8, seq_len=8192), "sliding_window=4096"),
        ("llama-3-8b", JobSpec(global_batch=8, seq_len=64, precision="fp8"), "precision='fp8'"),
        ("gpt2", JobSpec(global_batch=8, seq_len=2048), "1024 learned positions"),
    ],
)
def test_kind_of_job_that_a_target_cannot_run(name: str, job: JobSpec, wanted: str) -> None:
    error = no_layout_error(load_model(name), load_cluster("dgx-h100"), job, TARGETS["torch"])

    assert wanted in str(error)
    assert all(problem.startswith("--target: torch cannot run") for problem in error.problems)
    assert all(problem.endswith("leave the target to auto") for problem in error.problems)


def test_no_batch_helps() -> None:
    model = llama(layers=1, heads=1, kv_heads=1, ffn_hidden=1)
    job = JobSpec(global_batch=1, seq_len=16)

    error = no_layout_error(model, cluster(nodes=10**4), job, TARGETS["megatron"])

    assert "--nodes: tiny-llama (1 layers, 1 heads and ffn_hidden 1)" in str(error)
    assert "try another number of nodes" in str(error)
