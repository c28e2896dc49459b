"""The same training in one process with plain torch: no groups, no sharding, no micro-batches."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812 (torch's own convention)
from torch import nn

from planner.launcher.data import rows
from planner.launcher.model import Decoder
from planner.launcher.plan_file import parse_plan
from planner.launcher.weights import initialise
from planner.plan import Plan
from planner.spec.model import ModelSpec
from tests.formats.plans import build_plan

torch.set_num_threads(1)  # tensors are tiny; a second thread would only wait for the first
Spoil = Callable[[Decoder], None]


def whole_model(spec: ModelSpec, seed: int = 0) -> Decoder:
    whole = parse_plan(build_plan(spec).model_dump(mode="json"))
    model = Decoder(whole.model, whole.stages[0])
    initialise(model, seed, tied_head=spec.tied_embeddings)
    return model


@torch.no_grad()
def _hand_over(seen: Decoder, model: Decoder) -> None:
    """Move gradients to ``model``, and bring its weights of before their update to ``seen``."""
    for copy, weight in zip(seen.parameters(), model.parameters(), strict=True):
        weight.grad, copy.grad = copy.grad, None
        copy.copy_(weight)


def reference_losses(
    plan: Plan,
    steps: int = 3,
    lr: float = 0.5,
    optimizer: str = "sgd",
    clip: float = 0.0,
    spoil: Spoil = lambda model: None,
) -> list[float]:
    """Return the loss of each step; ``spoil`` may damage the gradients before the update.

    With a delayed update the passes of a step do not see the update of the step before.
    """
    config = parse_plan(plan.model_dump(mode="json"))
    model = whole_model(plan.model)
    seen = whole_model(plan.model) if config.layout.delayed_update else model
    update: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    if optimizer == "adamw":
        betas, decay = (0.9, 0.95), 0.1
        update = torch.optim.AdamW(model.parameters(), lr=lr, betas=betas, weight_decay=decay)
    losses = []
    for step in range(1, steps + 1):
        batch = rows(0, config.global_batch, step, 0, config.seq_len, config.model.vocab)
        logits = seen(batch[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        update.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if seen is not model:
            _hand_over(seen, model)
        spoil(model)
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        update.step()
        losses.append(loss.item())
    return losses
