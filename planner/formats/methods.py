"""Which optimizers, adapters and host offload an export can say: the rest is refused."""

from dataclasses import dataclass

from planner.formats.work import Work


@dataclass(frozen=True, slots=True)
class Methods:
    """What the written files of one framework carry.

    ``shares``: any share of the optimizer's state may lie on the host, not only all of it.
    """

    optimizers: frozenset[str] = frozenset({"adamw"})
    offload_optimizer: bool = False
    shares: bool = False
    offload_weights: bool = False
    delayed_update: bool = False


METHODS = {
    # --optimizer-cpu-offload, --optimizer-offload-fraction (megatron/training/arguments.py)
    "megatron": Methods(offload_optimizer=True, shares=True),
    "nemo": Methods(offload_optimizer=True, shares=True),  # the same fields of OptimizerConfig
    # the optimizer stands in the training program; ratios below 1 need stage 3 (D5)
    "deepspeed": Methods(offload_optimizer=True, shares=True, offload_weights=True),
    # training.enable_cpu_offload moves weights, gradients and state (FSDP2 CPUOffloadPolicy)
    "torchtitan": Methods(offload_optimizer=True, offload_weights=True),
    # FSDP 2's CPUOffloadPolicy moves both, its DeepSpeed also the optimizer alone; no ratio
    "accelerate": Methods(offload_optimizer=True, offload_weights=True),
    "nanotron": Methods(),
}


def method_problems(work: Work, target: str) -> list[str]:
    """Return one sentence for everything of ``work`` that the target's files cannot say."""
    known, layout, job = METHODS[target], work.layout, work.job
    share = layout.offload_optimizer
    found = []
    if job.optimizer not in known.optimizers:
        names = ", ".join(sorted(known.optimizers))
        found.append(f"optimizer {job.optimizer!r} is not written for {target}; use {names}")
    if job.lora_rank:
        found.append(f"lora_rank={job.lora_rank}: adapters are not written for {target}")
    if share and not known.offload_optimizer:
        found.append(f"offload_optimizer={share:g}: {target} keeps the optimizer on the GPU; use 0")
    elif share not in (0, 1) and not known.shares:
        found.append(f"offload_optimizer={share:g}: {target} moves all or nothing; use 0 or 1")
    if layout.offload_weights and not known.offload_weights:
        found.append(f"offload_weights: {target} keeps weights on the GPU; leave it out")
    if target == "torchtitan" and share and not layout.offload_weights:
        found.append("offload_optimizer without offload_weights: torchtitan moves both")
    if layout.delayed_update:
        found.append(f"delayed_update: {target} has no setting for it; leave it out")
    return found
