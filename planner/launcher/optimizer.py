"""The optimizer and gradient clipping over parameters that live on different meshes."""

from collections import defaultdict
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

_BETAS = (0.9, 0.95)
_WEIGHT_DECAY = 0.1


def by_mesh(parameters: Iterable[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Return ``parameters`` grouped by their device mesh; torch's list operators need one mesh."""
    groups: dict[object, list[nn.Parameter]] = defaultdict(list)
    for parameter in parameters:
        mesh = parameter.device_mesh if isinstance(parameter, DTensor) else None
        groups[mesh].append(parameter)
    return list(groups.values())


def build_optimizer(name: str, parameters: list[nn.Parameter], lr: float) -> torch.optim.Optimizer:
    """Return ``sgd`` (plain, exact for comparisons) or ``adamw``."""
    groups = [{"params": group} for group in by_mesh(parameters)]
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr)
    # one kernel; torch's default, operations over lists, needs 4 more bytes per parameter in a step
    return torch.optim.AdamW(groups, lr=lr, betas=_BETAS, weight_decay=_WEIGHT_DECAY, fused=True)


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Let the next step use the learning rate ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def start_moments(optimizer: torch.optim.Optimizer, step: int) -> None:
    """Give AdamW the state it has after ``step`` steps, all zeros, to be filled from a file."""
    if not isinstance(optimizer, torch.optim.AdamW):
        return
    for group in optimizer.param_groups:
        for weight in group["params"]:
            zeros = {name: torch.zeros_like(weight) for name in ("exp_avg", "exp_avg_sq")}
            optimizer.state[weight] = {
                "step": torch.tensor(float(step), device=weight.device),
                **zeros,
            }


def moments(optimizer: torch.optim.Optimizer, weight: nn.Parameter) -> dict[str, Tensor]:
    """Return the state of ``weight`` that has its shape; how many steps were made is no part."""
    state = optimizer.state[weight]
    return {name: value for name, value in state.items() if name != "step"}


def gradient_norm(
    parameters: list[nn.Parameter], pipeline: dist.ProcessGroup | None, device: torch.device
) -> Tensor:
    """Return the norm of the whole model's gradient, the same number on every rank.

    ``parameters`` are this rank's, each weight of the model on one stage only.
    """
    squares = torch.zeros((), device=device)
    for group in by_mesh(parameters):
        gradients = [p.grad for p in group if p.grad is not None]
        total = torch.nn.utils.get_total_norm(gradients)
        if isinstance(total, DTensor):
            total = total.full_tensor()
        squares += total.to(device) ** 2
    if pipeline is not None:
        dist.all_reduce(squares, group=pipeline)
    return squares.sqrt()


@torch.no_grad()
def clip_gradients(parameters: list[nn.Parameter], norm: Tensor, limit: float) -> None:
    """Scale all gradients so that their ``norm`` is at most ``limit``."""
    factor = (limit / (norm + 1e-6)).clamp(max=1.0)
    for parameter in parameters:
        if parameter.grad is not None:
            gradient = parameter.grad
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            local.mul_(factor.to(local.device))  # gradients may lie on the host
