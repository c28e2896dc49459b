"""The three layouts that trained Llama 3 405B beside ours: ``python -m benchmarks.llama3``.

"The Llama 3 Herd of Models" (arXiv 2407.21783), table 4: H100 of 700 W, 400 Gb/s each, MFU in bf16.
Nothing was fitted to these runs. The paper does not print chunks: 126 layers and the two ends on
16 ranks make 8 chunks of one layer each. No recompute, gradients sharded and summed in fp32,
keys and values gathered before attention (sections 3.3.2 and 3.3.3).
"""

from planner.cost.layer import Prices
from planner.layout.layout import Layout, Shard
from planner.simulate.step import estimate_step
from planner.spec.cluster import load_cluster
from planner.spec.huggingface import load_model
from planner.spec.job import JobSpec
from planner.spec.software import MEGATRON_CORE, TORCH_FSDP2

# GPUs, cp, dp, tokens of a sequence, sequences of a step, MFU printed
TABLE_4 = (
    (8192, 1, 64, 8192, 2048, 0.43),
    (16384, 1, 128, 8192, 2048, 0.41),
    (16384, 16, 8, 131072, 128, 0.38),
)
# what the paper says of its own stack, beside the nearest two that we describe
THEIRS = {"context_exchange": "all_gather", "overlap_pipeline": True, "flash_version": 3}
STACKS = tuple(
    software.model_copy(update={"name": f"llama 3 as {software.name}", **THEIRS})
    for software in (TORCH_FSDP2, MEGATRON_CORE)
)


def mfus(cp: int, dp: int, seq_len: int, batch: int) -> list[float]:
    """Return the MFU that each stack is expected to reach."""
    layout = Layout(
        tp=8, cp=cp, pp=16, vpp=8, dp=dp, sequence_parallel=True, shard=Shard.zero(2, dp * cp)
    )
    model, on = load_model("llama-3.1-405b"), load_cluster("dgx-h100", nodes=layout.gpus // 8)
    jobs = (JobSpec(global_batch=batch, seq_len=seq_len, software=stack) for stack in STACKS)
    return [estimate_step(Prices(model, on, job), layout).mfu for job in jobs]


def main() -> None:
    """Print the table."""
    print("| GPUs | layout | tokens | MFU printed | FSDP2 | Megatron-Core | step time |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | --- |")
    for gpus, cp, dp, seq_len, batch, printed in TABLE_4:
        fsdp2, megatron = mfus(cp, dp, seq_len, batch)
        print(
            f"| {gpus:,} | tp8 cp{cp} pp16 dp{dp} | {seq_len:,} | {100 * printed:.0f}% "
            f"| {100 * fsdp2:.1f}% | {100 * megatron:.1f}% "
            f"| {100 * (printed / fsdp2 - 1):+.0f}% and {100 * (printed / megatron - 1):+.0f}% |"
        )


if __name__ == "__main__":
    main()
