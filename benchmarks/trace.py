"""Every storage that a rank allocates and frees, written down while the program runs.

It watches real and fake tensors alike and knows no formula. A log of a real run on CPUs and one of
a simulated rank (``benchmarks/oracle.py``) can therefore be compared byte by byte.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import _resolve_process_group
from torch._guards import active_fake_mode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

_ROUNDING = 512  # the CUDA caching allocator hands out multiples of this
_OWNERS = ("/fsdp/_fully_shard/", "/pipelining/", "/torch/optim/", "/launcher/", "/tensor/")
_COLLECTIVES = ("c10d", "_c10d_functional")
_NOT_SENT = ("wait_tensor", "_wrap_tensor_autograd")
_WAIT = torch.ops._c10d_functional.wait_tensor.default
_DEVICE = torch.ops.prim.device.default


def _grouped_flops(left: Tensor, right: Tensor, *_: Any, **__: Any) -> int:
    """Multiplications and additions of rows times matrices, or of the matrices' gradient."""
    return 2 * left.shape[0] * left.shape[1] * right.shape[-1]


_FLOPS = {**flop_registry, torch.ops.aten._grouped_mm: _grouped_flops}


@dataclass(slots=True)
class Block:
    """One allocation, from ``born`` to ``died``: counts of changes since the log began.

    ``phase`` is load, forward, backward or what ``Memory.phase`` said; ``passes`` counts the turns
    between forward and backward before it. ``origin`` is the operation and the nearest function
    that belongs to FSDP, the pipeline, the optimizer, DTensor or this package.
    """

    size: int
    born: int
    phase: str
    passes: int
    origin: str
    shape: tuple[int, ...]
    died: int | None = None
    died_passes: int | None = None
    role: str = ""

    @property
    def outlives_pass(self) -> bool:
        """Whether it lives beyond the forward or backward pass that made it."""
        return self.died_passes != self.passes


@dataclass(frozen=True, slots=True)
class Collective:
    """One kind of message: operation, the ranks of its group, bytes of the larger buffer."""

    operation: str
    ranks: tuple[int, ...]
    message_bytes: int


@dataclass
class Log:
    """All blocks in the order of their allocation, and what was computed and sent."""

    blocks: list[Block] = field(default_factory=list)
    turns: list[tuple[int, str]] = field(default_factory=list)
    collectives: Counter[Collective] = field(default_factory=Counter)
    flops: int = 0
    operations: int = 0


class Memory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While entered, keeps ``log``; the caller names what it does in ``phase``.

    In phase "step" forward and backward are told apart by whether autograd is at work, so a
    forward pass that recomputes belongs to the backward pass that asks for it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase = "load"
        self.log = Log()
        self._now = 0
        self._passes = 0
        self._last = ""
        self._closed = False
        self._live: dict[int, Block] = {}
        self._group_ranks: dict[str, tuple[int, ...]] = {}

    def name(self, tensor: Tensor | None, role: str) -> None:
        """Say what the storage of ``tensor`` is for, now and each time it is allocated again."""
        for storage in () if tensor is None else _storages(tensor):
            if (block := self._live.get(storage._cdata)) is not None:
                block.role = role

    @contextmanager
    def closed_eyes(self) -> Iterator[None]:
        """Let what runs inside pass unseen."""
        before, self._closed = self._closed, True
        try:
            yield
        finally:
            self._closed = before

    def clear_counts(self) -> None:
        """Forget what was computed and sent so far; live blocks stay."""
        self.log.collectives.clear()
        self.log.flops = self.log.operations = 0

    @property
    def now(self) -> int:
        """How often memory changed since the log began."""
        return self._now

    def _turn(self) -> str:
        phase = self.phase
        if phase == "step":
            phase = "forward" if torch._C._current_graph_task_id() == -1 else "backward"
        if phase != self._last:
            self._last, self._passes = phase, self._passes + 1
            self.log.turns.append((self._now, phase))
        return phase

    def _allocate(self, key: int, size: int, operation: str, shape: Sequence[int]) -> Block:
        self._now += 1
        phase = self._turn()
        origin = f"{operation} in {_caller()}"
        size = -(-size // _ROUNDING) * _ROUNDING
        block = Block(size, self._now, phase, self._passes, origin, tuple(shape))
        self._live[key] = block
        self.log.blocks.append(block)
        return block

    def _free(self, key: int) -> None:
        block = self._live.pop(key, None)
        if block is not None:
            self._now += 1
            self._turn()
            block.died, block.died_passes = self._now, self._passes

    def _see(self, tensor: Tensor, operation: str) -> None:
        if tensor.device.type == "meta":  # shapes only
            return
        for storage in _storages(tensor):
            key = storage._cdata
            if key not in self._live:
                self._allocate(key, storage.nbytes(), operation, tensor.shape)
                weakref.finalize(storage, self._free, key)

    def _resized(self, key: int, size: int) -> None:
        if (old := self._live.get(key)) is not None:
            self._free(key)
            self._allocate(key, size, "resize", old.shape).role = old.role

    def __enter__(self) -> "Memory":
        self._fake_mode = active_fake_mode()
        self._resize: Callable[..., Any] = torch.UntypedStorage.resize_
        memory, resize = self, self._resize

        def resize_and_see(storage: torch.UntypedStorage, size: int) -> Any:
            done = resize(storage, size)
            memory._resized(storage._cdata, storage.nbytes())
            return done

        torch.UntypedStorage.resize_ = resize_and_see  # type: ignore[assignment, method-assign]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        torch.UntypedStorage.resize_ = self._resize  # type: ignore[method-assign]
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if DTensor in types:
            return NotImplemented  # come back with the local tensors
        if func is _DEVICE:  # half of all calls of fake tensors
            return func(*args)
        if func is _WAIT and self._fake_mode is not None:
            return args[0]
        out = func(*args, **kwargs)
        if not self._closed and active_fake_mode() is self._fake_mode:
            self._count(func, args, kwargs, out)
            for tensor in _tensors(out):
                self._see(tensor, func._opname)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        self.log.operations += 1
        if func.namespace in _COLLECTIVES and func._opname not in _NOT_SENT:
            self._count_collective(func._opname, args, out)
        formula = _FLOPS.get(func._overloadpacket)
        if formula is not None:
            self.log.flops += formula(*args, **kwargs, out_val=out)

    def _count_collective(self, operation: str, args: Any, out: Any) -> None:
        buffers = (*args, out)
        sizes = [sum(t.numel() * t.element_size() for t in _tensors(x)) for x in buffers]
        self.log.collectives[Collective(operation, self._ranks(_group(args)), max(sizes))] += 1

    def _ranks(self, group: str) -> tuple[int, ...]:
        if group not in self._group_ranks:
            found = _resolve_process_group(group)
            self._group_ranks[group] = tuple(dist.get_process_group_ranks(found))
        return self._group_ranks[group]


def _group(args: Any) -> str:
    """Return the name of the process group among the arguments of a collective."""
    leaves = tree_leaves(args)
    for leaf in leaves:
        if isinstance(leaf, torch.ScriptObject):
            with suppress(RuntimeError):  # a reduction operation is another object of this kind
                return str(dist.ProcessGroup.unbox(leaf).group_name)
    return str([leaf for leaf in leaves if isinstance(leaf, str)][-1])


def _tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor))


def _storages(tensor: Tensor) -> list[torch.UntypedStorage]:
    if isinstance(tensor, DTensor):
        return _storages(tensor._local_tensor)
    if type(tensor).__name__ == "AsyncCollectiveTensor":
        return _storages(tensor.elem)  # type: ignore[attr-defined]
    try:
        return [tensor.untyped_storage()]
    except (NotImplementedError, RuntimeError):  # wrappers without memory of their own
        return []


def _caller() -> str:
    """Return ``file.function`` of the nearest frame outside this file that says who allocates."""
    frame: FrameType | None = sys._getframe(3)
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__ and any(owner in path for owner in _OWNERS):
            return f"{path.rsplit('/', 1)[-1].removesuffix('.py')}.{frame.f_code.co_name}"
        frame = frame.f_back
    return "autograd"
