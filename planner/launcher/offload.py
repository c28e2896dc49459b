"""Activations wait outside the GPU between a layer's forward and backward pass.

Hooks on saved tensors (SSDTrain, arXiv 2408.10013, section 3) give away the plan's fraction of what
each layer saves. Views of one storage leave together and come back together. Parameters, tensors
that live on anyway and small ones stay, and so does the whole last layer before the loss. A store
runs behind the next layer; the backward pass of a layer begins to load what the layer before it
gave away. What is needed before its store is over is handed back without a load.
"""

import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.tensor import DTensor

from .places import Place, Ticket

LEAST_BYTES = 2**18  # a copy of 300 kB reaches half of a link's rate
_WINDOW = 1  # layers whose stores may be under way while the next one computes


@dataclass
class Counts:
    """Bytes since the last ``clear``: seen by the hooks and movable, stored, loaded, forwarded."""

    movable: int = 0
    stored: int = 0
    loaded: int = 0
    forwarded: int = 0

    def clear(self) -> None:
        """Begin to count again."""
        self.movable = self.stored = self.loaded = self.forwarded = 0


def _local(tensor: Tensor) -> Tensor:
    """Return the plain tensor of this rank."""
    if isinstance(tensor, DTensor):
        return _local(tensor._local_tensor)
    if isinstance(tensor, AsyncCollectiveTensor):
        return tensor.trigger_wait()  # type: ignore[no-any-return, no-untyped-call]
    return tensor


class Stored:
    """One storage that was given away; it is loaded once, whoever asks for it first."""

    def __init__(self, flat: Tensor, place: Place, counts: Counts) -> None:
        self.counts, self.size = counts, flat.numel() * flat.element_size()
        self.ticket: Ticket = place(flat)
        self.flying: Tensor | None = flat
        self.loading: Tensor | None = None
        self.arrived = False
        counts.stored += self.size
        weakref.finalize(self, self.ticket.drop).atexit = False

    def settle(self) -> None:
        """Free the source when its store is over."""
        if self.flying is not None:
            self.ticket.settle()
            self.flying = None

    def load(self) -> None:
        """Begin to load, unless it never left."""
        if self.flying is None and self.loading is None:
            self.loading = self.ticket.load()
            self.counts.loaded += self.size

    def flat(self) -> Tensor:
        """Return the storage's content, flat."""
        if self.flying is not None:
            self.loading, self.flying, self.arrived = self.flying, None, True
            self.counts.forwarded += self.size
        self.load()
        assert self.loading is not None
        if not self.arrived:
            self.ticket.arrive()
            self.arrived = True
        return self.loading


@dataclass(frozen=True)
class _View:
    """A saved tensor as a view of a storage that is away."""

    stored: Stored
    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    spec: Any  # of a DTensor

    def tensor(self) -> Tensor:
        flat = self.stored.flat()
        flat = flat if flat.dtype == self.dtype else flat.view(self.dtype)
        local = flat.as_strided(self.shape, self.stride, self.offset)
        if self.spec is None:
            return local
        return DTensor(local, self.spec, requires_grad=False)  # type: ignore[no-untyped-call]


class _Layer:
    """What one layer gave away in one pass, and the layer before it in that pass."""

    def __init__(self, before: "_Layer | None") -> None:
        self.before = before
        self.stored: list[weakref.ref[Stored]] = []

    def _alive(self) -> Iterator[Stored]:
        return (found for ref in self.stored if (found := ref()) is not None)

    def settle(self) -> None:
        for stored in self._alive():
            stored.settle()

    def load(self) -> None:
        for stored in self._alive():
            stored.load()

    def begin_backward(self, gradient: Tensor) -> None:
        self.load()
        if self.before is not None:
            self.before.load()


class Offloader:
    """The hooks of one rank. ``least_bytes``: smaller storages stay."""

    def __init__(self, fraction: float, place: Place, least_bytes: int = LEAST_BYTES) -> None:
        self.fraction, self.place, self.least_bytes = fraction, place, least_bytes
        self.counts = Counts()
        self._flight: deque[_Layer] = deque()
        self._latest: _Layer | None = None
        self._input: set[int] = set()
        self._seen = self._moved = 0
        # by storage and version: the storage, still the same one, and what became of it
        self._known: dict[tuple[int, int], tuple[Any, weakref.ref[Stored] | None]] = {}

    def begin_pass(self, received: Tensor | None) -> None:
        """Begin one pass of a stage; ``received`` is kept by the pipeline anyway."""
        self._latest = None
        self._seen = self._moved = 0
        self._known.clear()
        self._input = set() if received is None else {_local(received).untyped_storage()._cdata}

    def end_pass(self, loss_follows: bool) -> None:
        """Wait for stores: for all of them where what comes next, the loss, needs the room."""
        self._settle(0 if loss_follows else _WINDOW)

    def _settle(self, most: int) -> None:
        """Leave at most so many layers whose stores are under way."""
        while len(self._flight) > most:
            self._flight.popleft().settle()

    @contextmanager
    def layer(self, block: nn.Module, stay: bool, lasting: Iterable[Tensor]) -> Iterator[_Layer]:
        """Give away what ``block`` saves meanwhile; all of it stays with ``stay``."""
        layer = self._latest = _Layer(self._latest)
        self._settle(_WINDOW)
        self._flight.append(layer)
        kept = {_local(tensor).untyped_storage()._cdata for tensor in lasting} | self._input

        def pack(tensor: Tensor) -> Any:
            return tensor if stay else self._pack(tensor, layer, block, kept)

        with saved_tensors_hooks(pack, _unpack):
            yield layer

    def watch(self, layer: _Layer, out: Tensor) -> None:
        """Load what ``layer`` needs when the gradient of its output is there."""
        if out.requires_grad:
            out.register_hook(layer.begin_backward)  # type: ignore[no-untyped-call]

    def _pack(self, tensor: Tensor, layer: _Layer, block: nn.Module, kept: set[int]) -> Any:
        spec = tensor._spec if isinstance(tensor, DTensor) else None
        local = _local(tensor).detach()
        storage = local.untyped_storage()
        key = (storage._cdata, local._version)
        known = self._known.get(key)
        if known is None or known[0]() is not storage:
            stored = self._decide(local, storage, block, kept)
            if stored is not None:
                layer.stored.append(weakref.ref(stored))
            found = None if stored is None else weakref.ref(stored)
            self._known[key] = (weakref.ref(storage), found)
        else:
            stored = None if known[1] is None else known[1]()
        if stored is None:
            return tensor
        place = int(local.storage_offset())
        return _View(stored, local.dtype, local.shape, local.stride(), place, spec)

    def _decide(
        self, local: Tensor, storage: torch.UntypedStorage, block: nn.Module, kept: set[int]
    ) -> Stored | None:
        """Give a storage away if it may leave and the fraction asks for it."""
        size = storage.nbytes()
        if size < self.least_bytes or storage._cdata in kept or _is_parameter(storage, block):
            return None
        self._seen += size
        self.counts.movable += size
        if self._moved + size / 2 > self.fraction * self._seen:
            return None
        self._moved += size
        return Stored(
            local.as_strided((size // local.element_size(),), (1,), 0), self.place, self.counts
        )


def _is_parameter(storage: torch.UntypedStorage, block: nn.Module) -> bool:
    """Whether a storage is that of a weight, gathered or not, or of a view of one."""
    return any(
        _local(weight).untyped_storage()._cdata == storage._cdata for weight in block.parameters()
    )


def _unpack(saved: Any) -> Tensor:
    return saved.tensor() if isinstance(saved, _View) else saved
