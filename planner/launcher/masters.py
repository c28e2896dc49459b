"""Master weights apart from the weights of the passes: three levels of sharding, delayed updates.

FSDP keeps one sharded copy, gathers from it and updates it. Where gradients or optimizer state are
shared by more ranks than the weights are (arXiv 2501.04266), or the host updates while the next
step runs (ZeRO-Offload, USENIX ATC 21, 5.2), the fp32 masters, their gradients and moments live
here, and the weights of the passes are a copy in the format of the products.

FSDP scatters gradients over ``shard`` ranks (nobody does where weights are whole). Each bucket then
scatters what it got over ``near`` neighbours after every micro-batch, and over ``far`` ones once
per step; updated weights travel the same way back. Hops of one chain send what one collective over
``shard * near * far`` ranks would.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from .hops import Hop
from .mesh import Grid
from .model import Block, Decoder
from .plan_file import LayoutConfig
from .weights import full_weight


def buckets_of(stage: Decoder) -> Iterator[dict[str, nn.Parameter]]:
    """Yield the parameters that travel together: those of a layer, and each other one by itself."""
    seen: set[nn.Parameter] = set()
    for number, block in stage.layers.items():
        assert isinstance(block, Block)
        named = {f"layers.{number}.{name}": weight for name, weight in block.named_parameters()}
        seen.update(named.values())
        yield named
    for name, weight in stage.named_parameters():
        if weight not in seen:
            yield {name: weight}


def _local(weight: Tensor) -> Tensor:
    return weight.to_local() if isinstance(weight, DTensor) else weight


class Bucket:
    """Some parameters of one rank: their masters, and the gradients on their way to them."""

    def __init__(self, weights: dict[str, nn.Parameter], masters: "Masters") -> None:
        self.weights, self.owner = weights, masters
        self.masters = {name: masters.master(name, one) for name, one in weights.items()}
        self.sums: list[Tensor] | None = None
        self._missing = set(weights.values())
        for weight in weights.values():
            weight.register_post_accumulate_grad_hook(self._arrived)  # type: ignore[no-untyped-call]

    def _arrived(self, weight: Tensor) -> None:
        """Begin the near hop when the gradients of all parameters are there."""
        self._missing.discard(weight)
        if self._missing:
            return
        self._missing = set(self.weights.values())
        with self.owner.beside():
            self._add(self._take())

    def _take(self) -> list[Tensor]:
        found = []
        for each in self.weights.values():
            assert each.grad is not None
            local = _local(each.grad)
            if local.is_cuda:  # freed on the stream of the backward pass, read on this one
                local.record_stream(torch.cuda.current_stream(local.device))
            found.append(local.float())
            each.grad = None
        return found

    def _add(self, found: list[Tensor]) -> None:
        pieces = [one.to(self.owner.resting) for one in self.owner.near.scatter(found)]
        if self.sums is None:
            self.sums = pieces
            return
        for total, piece in zip(self.sums, pieces, strict=True):
            total.add_(piece)

    def collect(self) -> None:
        """Give every master the mean gradient over all ranks."""
        assert self.sums is not None
        pieces = self.owner.far.scatter(self.sums)
        self.sums = None
        for master, piece in zip(self.masters.values(), pieces, strict=True):
            self.owner.add_replicas(piece)
            home = piece.to(_local(master).device)
            master.grad = self.owner.spread(home, master.shape)

    @torch.no_grad()
    def snapshot(self) -> list[Tensor]:
        """Return copies of the masters' parts, as they are sent."""
        device, dtype = self.owner.device, self.owner.dtype
        return [
            _local(one).to(device=device, dtype=dtype, copy=True) for one in self.masters.values()
        ]

    @torch.no_grad()
    def refresh(self, pieces: list[Tensor]) -> None:
        """Gather the weights of the passes from the parts of ``snapshot``."""
        locals_ = [_local(weight) for weight in self.weights.values()]
        rows = [len(self.owner.near.own(range(len(one)))) for one in locals_]
        nearer = self.owner.far.gather(pieces, rows)
        whole = self.owner.near.gather(nearer, [len(one) for one in locals_])
        for target, source in zip(locals_, whole, strict=True):
            target.copy_(source)


class Masters:
    """All masters of a rank. ``delayed``: each update runs behind the next step's passes."""

    def __init__(
        self, stage: Decoder, grid: Grid, layout: LayoutConfig, dtype: torch.dtype
    ) -> None:
        """Make the masters of ``stage``, whose weights are in memory but not filled. Collective."""
        self.dtype, self.delayed = dtype, layout.delayed_update
        self.device = next(_local(weight) for weight in stage.parameters()).device
        self.home = torch.device("cpu") if layout.offload_optimizer else self.device
        self.near, self.far, self.shard = (Hop.over(grid.mesh, n) for n in ("near", "far", "shard"))
        self.replicas = Hop.over(grid.mesh, "replicate")
        # with the optimizer on the host, gradients leave in each pass if all that is left to do is
        # to add them up; else they wait on the GPU
        own = layout.shard_gradients > 1 or self.replicas.size == 1
        self.resting = self.home if self.far.size == 1 and own else self.device
        self.mesh = grid.master_mesh
        self.buckets = [Bucket(weights, self) for weights in buckets_of(stage)]
        cuda = self.device.type == "cuda"
        self._stream = torch.cuda.Stream(self.device) if cuda else None  # type: ignore[no-untyped-call]
        self._update: threading.Thread | None = None
        self._failed: BaseException | None = None

    @property
    def named(self) -> dict[str, nn.Parameter]:
        """The masters by the names of their weights."""
        return {name: one for bucket in self.buckets for name, one in bucket.masters.items()}

    def spread(self, local: Tensor, shape: torch.Size) -> DTensor:
        """Return ``local`` as this rank's rows of a tensor of ``shape``."""
        assert self.mesh is not None
        places = [Shard(0)] * self.mesh.ndim
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(local, self.mesh, places, shape=shape, stride=stride)

    def master(self, name: str, weight: nn.Parameter) -> nn.Parameter:
        """Return the part of ``weight`` that this rank updates, not filled."""
        rows = self._rows(weight.shape)
        local = torch.empty((len(rows), *weight.shape[1:]), device=self.home)
        return nn.Parameter(self.spread(local, weight.shape))

    def _rows(self, shape: torch.Size) -> range:
        return self.far.own(self.near.own(self.shard.own(range(shape[0]))))

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Fill masters and weights as ``weights.initialise`` does. Collective."""
        for name, master in self.named.items():
            rows = self._rows(master.shape)
            full = full_weight(name, master.shape, seed, self.device)
            _local(master).copy_(full[rows.start : rows.stop])
        self.refresh()

    def refresh(self) -> None:
        """Bring the masters' values to the weights of the passes. Collective."""
        for bucket in self.buckets:
            bucket.refresh(bucket.snapshot())

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Run what follows after what is queued, beside the rest of the backward pass."""
        if self._stream is None:
            yield
            return
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            yield

    def add_replicas(self, piece: Tensor) -> None:
        """Make ``piece`` the mean over the ranks that hold the same part."""
        if self.replicas.size > 1:
            dist.all_reduce(piece, group=self.replicas.group)
            piece.div_(self.replicas.size)

    def collect(self) -> None:
        """Give every master its gradient, once the update before is over. Collective."""
        self.settle()
        if self._stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self._stream)
        for bucket in self.buckets:
            bucket.collect()

    def update(self, optimizer: torch.optim.Optimizer) -> None:
        """Update the masters and the weights. Collective.

        Delayed, the weights get the values before the update: the passes of step N + 1 then see the
        updates of steps 1 to N - 1 (ZeRO-Offload, Fig. 6).
        """
        if not self.delayed:
            optimizer.step()
            self.refresh()
            return
        sent = [bucket.snapshot() for bucket in self.buckets]
        self._update = threading.Thread(target=self._run, args=(optimizer,))
        self._update.start()
        for bucket, pieces in zip(self.buckets, sent, strict=True):
            bucket.refresh(pieces)

    def _run(self, optimizer: torch.optim.Optimizer) -> None:
        try:
            optimizer.step()
        except BaseException as error:  # a thread's own traceback would end nothing
            self._failed = error

    def settle(self) -> None:
        """Wait for the update that is under way."""
        if self._update is not None:
            self._update.join()
            self._update = None
        if self._failed is not None:
            raise self._failed
