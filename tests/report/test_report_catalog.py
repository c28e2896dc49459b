from rich.table import Table

from planner.report.catalog import cluster_table, gpu_table, model_table
from planner.spec.cluster import load_cluster
from planner.spec.gpu import load_gpu
from planner.spec.huggingface import load_model
from tests.report.test_tables import printed


def rows(table: Table) -> list[list[str]]:
    return [line.split() for line in printed(table).splitlines()[1:]]


def test_dense_and_expert_models() -> None:
    table = model_table([load_model("llama-3-8b"), load_model("mixtral-8x7b")])

    assert rows(table) == [
        ["llama-3-8b", "8.03B", "8.03B", "32", "4096", "32", "8", "-"],
        ["mixtral-8x7b", "46.7B", "12.9B", "32", "4096", "32", "8", "2", "of", "8"],
    ]


def test_latent_attention_has_no_kv_heads() -> None:
    assert "latent" in rows(model_table([load_model("deepseek-v3")]))[0]


def test_clusters_with_and_without_a_network() -> None:
    table = cluster_table([load_cluster("dgx-h100"), load_cluster("workstation")])

    assert rows(table) == [
        ["dgx-h100", "H100-SXM-80GB", "8", "8", "nvlink", "450", "ib", "50"],
        ["workstation", "RTX-4090-24GB", "1", "1", "pcie", "31", "-"],
    ]


def test_gpus_with_and_without_fp8() -> None:
    table = gpu_table([load_gpu("H100"), load_gpu("A100-SXM-80GB"), load_gpu("V100-SXM-32GB")])

    assert rows(table) == [
        ["H100-SXM-80GB", "79.6", "3350", "989", "1979"],
        ["A100-SXM-80GB", "80.0", "2039", "312", "-"],
        ["V100-SXM-32GB", "31.7", "900", "125", "(fp16)", "-"],
    ]
