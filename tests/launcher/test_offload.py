"""Activations that leave: the same loss and gradients, each storage once, what must stay stays."""

import threading
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from planner.launcher.loss import cross_entropy
from planner.launcher.model import Decoder
from planner.launcher.offload import Counts, Offloader
from planner.launcher.places import Place, place_for
from planner.launcher.plan_file import ModelConfig, StageConfig, parse_plan
from planner.launcher.preflight import plan_problems
from planner.launcher.weights import initialise
from planner.spec.model import ModelSpec
from tests.formats.plans import build_plan, deepseek, gpt, llama, mixtral

CPU = torch.device("cpu")
LEAST = 1024  # of the tiny models' tensors most are larger


@dataclass(frozen=True)
class Outcome:
    loss: float
    gradients: list[Tensor]
    counts: Counts


def config(spec: ModelSpec) -> ModelConfig:
    return parse_plan(build_plan(spec).model_dump(mode="json")).model


def step(
    spec: ModelSpec, fraction: float = 0.0, place: Place | None = None, again: int = 0
) -> Outcome:
    """One forward and backward pass of a whole model, without any group."""
    model = config(spec)
    stage = Decoder(model, StageConfig(0, 0, model.layers, again, True, True))
    initialise(stage, 0, tied_head=model.tied_embeddings)
    offloader = Offloader(fraction, place or place_for("host", CPU, None, 0), LEAST)
    if fraction:
        stage.give_away(offloader)
    tokens = torch.arange(32).reshape(2, 16) % model.vocab
    loss = cross_entropy(stage(tokens), tokens, None, model.vocab)
    loss.backward()  # type: ignore[no-untyped-call]
    gradients = [w.grad.clone() for w in stage.parameters() if w.grad is not None]
    return Outcome(loss.item(), gradients, offloader.counts)


@pytest.mark.parametrize("spec", [llama(), gpt(), mixtral(), deepseek()], ids=lambda s: str(s.name))
@pytest.mark.parametrize("target", ["host", "ssd"])
@pytest.mark.parametrize(("fraction", "again"), [(1.0, 0), (0.5, 0), (1.0, 2), (0.4, 4)])
def test_nothing_changes(
    spec: ModelSpec, target: str, fraction: float, again: int, tmp_path: Path
) -> None:
    before = step(spec, again=again)

    after = step(spec, fraction, place_for(target, CPU, tmp_path, 0), again)

    assert after.loss == before.loss
    pairs = zip(before.gradients, after.gradients, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    assert after.counts.stored > 0


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.8, 1.0])
def test_the_fraction_of_bytes_leaves_and_comes_back_once(fraction: float) -> None:
    counts = step(llama(), fraction).counts

    largest = 2 * 16 * 48 * 4  # fp32 numbers of the activation function
    assert abs(counts.stored - fraction * counts.movable) <= largest / 2 + 1
    assert counts.loaded == counts.stored
    assert counts.forwarded == 0


def test_files_are_gone_after_the_step(tmp_path: Path) -> None:
    place = place_for("ssd", CPU, tmp_path, 3)
    step(llama(), 1.0, place)

    left = tmp_path / "activations-3"
    for _ in range(100):  # a thread removes them
        if not list(left.iterdir()):
            break
        threading.Event().wait(0.02)
    assert left.is_dir()
    assert list(left.iterdir()) == []


def test_files_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    (tmp_path / "activations-0").mkdir()
    (tmp_path / "activations-0" / "7.bin").write_bytes(b"old")

    place_for("ssd", CPU, tmp_path, 0)

    assert list((tmp_path / "activations-0").iterdir()) == []


class Held:
    """A ticket that remembers its tensor; it can be asked what happened to it."""

    def __init__(self, flat: Tensor) -> None:
        self.copy, self.settled, self.loads, self.size = flat.clone(), 0, 0, flat.numel()

    def settle(self) -> None:
        self.settled += 1

    def load(self) -> Tensor:
        self.loads += 1
        return self.copy.clone()

    def arrive(self) -> None:
        assert self.loads == 1

    def drop(self) -> None:
        self.copy = torch.empty(0)


class Recorder:
    """A place that keeps its tickets."""

    def __init__(self) -> None:
        self.tickets: list[Held] = []

    def __call__(self, flat: Tensor) -> Held:
        self.tickets.append(Held(flat))
        return self.tickets[-1]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(32, 32))


class Wanted(torch.autograd.Function):
    """Saves the tensors it is given."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *saved: Tensor) -> Tensor:
        ctx.save_for_backward(*saved)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        Wanted.seen = [tensor.clone() for tensor in ctx.saved_tensors]
        return gradients[0], *(None for _ in ctx.saved_tensors)

    seen: list[Tensor] = []  # noqa: RUF012 - what the last backward pass read


def saving(
    place: Recorder, *saved: Tensor, stay: bool = False, **options: Any
) -> tuple[Offloader, Tensor]:
    offloader, block = Offloader(1.0, place, LEAST), options.get("block", Block())
    offloader.begin_pass(options.get("received"))
    x = torch.zeros(4, requires_grad=True)
    with offloader.layer(block, stay, options.get("lasting", ())) as layer:
        out = Wanted.apply(x, *saved)  # type: ignore[no-untyped-call]
    offloader.watch(layer, out)
    return offloader, out


def test_views_of_one_storage_leave_once_and_come_back_as_they_were() -> None:
    place, whole = Recorder(), torch.arange(2048.0).reshape(32, 64)
    views = (whole, whole.t(), whole[3:7, 1::2], whole.view(torch.int32))
    offloader, out = saving(place, *views)
    offloader.end_pass(loss_follows=True)

    out.sum().backward()

    (ticket,) = place.tickets
    assert (ticket.size, ticket.loads) == (2048, 1)
    assert all(torch.equal(got, view) for got, view in zip(Wanted.seen, views, strict=True))


def test_a_changed_tensor_is_not_taken_for_what_it_was() -> None:
    place, x = Recorder(), torch.ones(1024)
    offloader = Offloader(1.0, place, LEAST)
    with offloader.layer(Block(), False, ()):
        start = torch.zeros(4, requires_grad=True)
        out = Wanted.apply(start, x)  # type: ignore[no-untyped-call]
        x.add_(1)
        out = Wanted.apply(out, x)  # type: ignore[no-untyped-call]
    offloader.end_pass(loss_follows=True)

    out.sum().backward()

    assert [ticket.copy.numel() for ticket in place.tickets] == [0, 0]  # dropped after use
    assert torch.equal(Wanted.seen[0], torch.ones(1024))  # the first call runs last


def test_what_is_needed_before_its_store_is_over_is_forwarded() -> None:
    place, x = Recorder(), torch.ones(1024)
    offloader, out = saving(place, x)

    out.sum().backward()

    (ticket,) = place.tickets
    assert (ticket.loads, ticket.settled) == (0, 0)
    assert offloader.counts.forwarded == 4096
    assert Wanted.seen[0].sum() == 1024


BLOCK = Block()
LASTING, RECEIVED = torch.ones(1024), torch.ones(1024)
# what is saved, and why it stays
STAYING: list[tuple[str, Tensor, dict[str, Any]]] = [
    ("parameter", BLOCK.weight, {"block": BLOCK}),
    ("view of a parameter", BLOCK.weight.t(), {"block": BLOCK}),
    ("small", torch.ones(200), {}),
    ("lives on", LASTING[:512], {"lasting": (LASTING,)}),
    ("kept by the pipeline", RECEIVED.view(2, 512), {"received": RECEIVED}),
    ("last layer before the loss", torch.ones(1024), {"stay": True}),
]


@pytest.mark.parametrize(("_why", "tensor", "options"), STAYING, ids=[one[0] for one in STAYING])
def test_what_stays(_why: str, tensor: Tensor, options: dict[str, Any]) -> None:
    place = Recorder()
    offloader, out = saving(place, tensor, **options)

    out.sum().backward()

    assert place.tickets == []
    assert offloader.counts.stored == 0


def test_sources_are_freed_one_layer_later() -> None:
    """The store of a layer runs behind the next one, which has to end before a third begins."""
    place, offloader, alive = Recorder(), Offloader(1.0, Recorder(), LEAST), []
    offloader.place = place
    out = torch.zeros(4, requires_grad=True)
    offloader.begin_pass(None)
    for layer in range(4):
        with offloader.layer(Block(), layer == 3, ()):
            x = torch.ones(1024)
            out = Wanted.apply(out, x)  # type: ignore[no-untyped-call]
        alive.append(weakref.ref(x.untyped_storage()))
        del x
    assert [ticket.settled for ticket in place.tickets] == [1, 1, 0]

    offloader.end_pass(loss_follows=True)

    assert [ticket.settled for ticket in place.tickets] == [1, 1, 1]
    assert [ref() is None for ref in alive] == [True, True, True, False]


def test_a_pipeline_waits_for_all_but_the_newest() -> None:
    place = Recorder()
    offloader, _out = saving(place, torch.ones(1024))

    offloader.end_pass(loss_follows=False)

    assert place.tickets[0].settled == 0


# fields of the layout, the complaint
BAD = [
    ({"offload_fraction": 0.5, "offload_target": "tape"}, "'tape' is not known; use host or ssd"),
    ({"offload_fraction": 1.5, "offload_target": "host"}, "1.5 is not between 0 and 1"),
    ({"offload_fraction": 0.5}, "'' is not known"),
]


@pytest.mark.parametrize(("fields", "words"), BAD)
def test_a_wrong_plan_is_refused(fields: dict[str, Any], words: str) -> None:
    document = build_plan().model_dump(mode="json")
    document["layout"] |= fields

    (problem,) = plan_problems(parse_plan(document))

    assert words in problem
