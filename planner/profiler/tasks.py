"""What is to be measured, as data: every process makes the same list, and ``--dry-run`` prints it.

No torch here. Each task becomes records of ``spec.measured``; its name is what progress, errors and
an interrupted run know it by.
"""

from dataclasses import dataclass
from typing import Literal

from planner.profiler.groups import GroupKind
from planner.spec.gpu import bus_factor
from planner.spec.measured import Kind, Pass
from planner.units import format_size

# what a first guess of the duration needs: (FLOP/s, bytes/s of memory, bytes/s of a link, s a call)
GUESS = {True: (3e14, 1e12, 5e10, 3e-5), False: (5e10, 3e9, 5e8, 5e-4)}


@dataclass(frozen=True, slots=True)
class Effort:
    """How long each thing is measured; ``budget_s`` unless the least repetitions take longer."""

    budget_s: float = 0.2
    warm_up: int = 5
    least_repetitions: int = 5
    most_repetitions: int = 50

    def seconds(self, call_s: float) -> float:
        """Seconds of measuring a call that takes about ``call_s``."""
        return max(1.5 * self.budget_s, (self.least_repetitions + 2) * call_s) + 5e-3


@dataclass(frozen=True, slots=True)
class Machine:
    """The processes of a profile and where they are."""

    world_size: int
    ranks_per_node: int
    domain_ranks: int
    on_gpu: bool

    @property
    def nodes(self) -> int:
        """Machines that take part."""
        return self.world_size // self.ranks_per_node

    def call_s(self, flops: float = 0, moved_bytes: float = 0, link_bytes: float = 0) -> float:
        """Guess the seconds of one call."""
        flops_per_s, memory, link, start = GUESS[self.on_gpu]
        return flops / flops_per_s + moved_bytes / memory + link_bytes / link + start


@dataclass(frozen=True, slots=True)
class CurveTask:
    """A collective over a ladder of sizes, on every group of a kind at once."""

    kind: Kind
    group: GroupKind
    sizes: tuple[int, ...]

    @property
    def name(self) -> str:
        """Name for progress and errors."""
        return f"{self.kind}, {self.group.name}"

    @property
    def needed_bytes(self) -> float:
        """Memory of one rank."""
        return 2.5 * max(self.sizes)

    def seconds(self, machine: Machine, effort: Effort) -> float:
        """Guess of the duration."""
        factor = bus_factor(self.kind, self.group.ranks)
        return sum(effort.seconds(machine.call_s(link_bytes=factor * s)) for s in self.sizes)


@dataclass(frozen=True, slots=True)
class PairsTask:
    """Disjoint pairs of ranks at once, each way: a small message there and back, a large one."""

    number: int
    level: Literal["domain", "cluster"]
    pairs: tuple[tuple[int, int], ...]
    size: int

    @property
    def name(self) -> str:
        """Name for progress and errors."""
        what = "GPUs of a node" if self.level == "domain" else "nodes"
        return f"pairs of {what}, round {self.number}: {_shown(self.pairs)}"

    @property
    def needed_bytes(self) -> float:
        """Memory of one rank."""
        return self.size

    def seconds(self, machine: Machine, effort: Effort) -> float:
        """Guess of the duration."""
        call_s = machine.call_s(link_bytes=self.size)
        return 2 * effort.seconds(call_s) + effort.seconds(machine.call_s())


def _shown(pairs: tuple[tuple[int, int], ...]) -> str:
    first = ", ".join(f"{a}-{b}" for a, b in pairs[:4])
    return first + (f" and {len(pairs) - 4} more" if len(pairs) > 4 else "")


@dataclass(frozen=True, slots=True)
class SharingTask:
    """A collective of one group alone, then of all its siblings."""

    kind: Kind
    group: GroupKind
    size: int

    @property
    def name(self) -> str:
        """Name for progress and errors."""
        return f"sharing: {self.kind}, {self.group.name}"

    @property
    def needed_bytes(self) -> float:
        """Memory of one rank."""
        return 2.5 * self.size

    def seconds(self, machine: Machine, effort: Effort) -> float:
        """Guess of the duration."""
        return 2 * effort.seconds(machine.call_s(link_bytes=2 * self.size))


@dataclass(frozen=True, slots=True)
class ProductTask:
    """(m, k) times (k, n), stored as training stores it; ``copies`` of them are experts.

    ``forward`` multiplies by a weight (n, k) as ``torch.nn.Linear``, ``dgrad`` by the weight as it
    lies, ``wgrad`` multiplies the transposed input (k, m) by the gradient of the output.
    """

    m: int
    n: int
    k: int
    pass_: Pass
    copies: int = 1
    skewed: bool = False

    @property
    def name(self) -> str:
        """Name for progress and errors."""
        grouped = f" of {self.copies} experts" if self.copies > 1 else ""
        skew = ", half of all rows for one" if self.skewed else ""
        return f"{self.pass_} product {self.m} x {self.n} x {self.k}{grouped}{skew}"

    @property
    def flops(self) -> float:
        """Multiplications and additions."""
        return 2.0 * self.m * self.n * self.k * self.copies

    @property
    def needed_bytes(self) -> float:
        """Memory of one rank: operands and result in 2 bytes."""
        m, n, k = self.m, self.n, self.k
        return 2.0 * self.copies * (m * k + k * n + m * n)

    def seconds(self, machine: Machine, effort: Effort) -> float:
        """Guess of the duration."""
        return effort.seconds(machine.call_s(flops=self.flops, moved_bytes=self.needed_bytes))


@dataclass(frozen=True, slots=True)
class AttentionTask:
    """Fused causal attention: the last ``seq_q`` of ``seq_kv`` tokens ask."""

    batch: int
    heads: int
    kv_heads: int
    seq_q: int
    seq_kv: int
    head_dim: int
    backward: bool

    @property
    def name(self) -> str:
        """Name for progress and errors."""
        way = "backward" if self.backward else "forward"
        shape = f"{self.heads} heads of {self.head_dim}, {self.seq_q} x {self.seq_kv}"
        return f"attention {way}, {self.batch} x {shape}"

    @property
    def flops(self) -> float:
        """Of one call, causal counted half."""
        forward = 2.0 * self.batch * self.heads * self.seq_q * self.seq_kv * self.head_dim
        return forward * (2.5 if self.backward else 1.0)

    @property
    def needed_bytes(self) -> float:
        """Memory of one rank; a kernel that is not fused keeps the scores."""
        tokens = (self.seq_q + self.seq_kv) * self.head_dim
        return 2.0 * self.batch * self.heads * (8 * tokens + 4 * self.seq_q * self.seq_kv)

    def seconds(self, machine: Machine, effort: Effort) -> float:
        """Guess of the duration."""
        return effort.seconds(machine.call_s(flops=4 * self.flops))


@dataclass(frozen=True, slots=True)
class KernelTask:
    """An operation bound by memory, on the tensors that ``tokens`` of the model make."""

    operation: str
    backward: bool
    tokens: int
    moved_bytes: float

    @property
    def name(self) -> str:
        """Name for progress and errors."""
        return f"{self.operation}{' backward' if self.backward else ''} of {self.tokens} tokens"

    @property
    def needed_bytes(self) -> float:
        """Memory of one rank."""
        return 2 * self.moved_bytes

    def seconds(self, machine: Machine, effort: Effort) -> float:
        """Guess of the duration."""
        return effort.seconds(machine.call_s(moved_bytes=self.moved_bytes))


@dataclass(frozen=True, slots=True)
class LaunchTask:
    """One small operator many times, and one eager layer of the launcher, split over ``tp``."""

    batch: int
    seq_len: int
    kernels: int
    tp: int = 1
    needed_bytes: float = 2**28

    @property
    def name(self) -> str:
        """Name for progress and errors."""
        split = f", tp {self.tp}" if self.tp > 1 else ""
        return f"launch and host time of a layer on {self.batch} x {self.seq_len} tokens{split}"

    def seconds(self, machine: Machine, effort: Effort) -> float:
        """Guess of the duration."""
        return 3 * effort.seconds(20 * machine.call_s())


@dataclass(frozen=True, slots=True)
class SpreadTask:
    """The same product on every rank at once, for longer: which GPU is slow."""

    size: int
    spread_s: float

    @property
    def name(self) -> str:
        """Name for progress and errors."""
        return f"spread of the ranks, product {self.size} x {self.size} x {self.size}"

    @property
    def needed_bytes(self) -> float:
        """Memory of one rank."""
        return 6.0 * self.size**2

    def seconds(self, machine: Machine, effort: Effort) -> float:
        """Guess of the duration."""
        return self.spread_s + effort.seconds(machine.call_s(flops=2 * self.size**3))


@dataclass(frozen=True, slots=True)
class OverlapTask:
    """A square product and a collective of all ranks of a domain, alone and at once."""

    kind: Kind
    group: GroupKind
    message: int
    size: int

    @property
    def name(self) -> str:
        """Name for progress and errors."""
        return f"overlap of a product and {self.kind} of {format_size(self.message)}"

    @property
    def needed_bytes(self) -> float:
        """Memory of one rank."""
        return 2.5 * self.message + 6.0 * self.size**2

    def seconds(self, machine: Machine, effort: Effort) -> float:
        """Guess of the duration."""
        flops = 2 * self.size**3
        return 3 * effort.seconds(machine.call_s(flops=flops, link_bytes=2 * self.message))


@dataclass(frozen=True, slots=True)
class HostTask:
    """One rate of the host: copies over PCIe, in memory, AdamW on the CPU, or a drive."""

    what: Literal["h2d", "d2h", "both", "all_h2d", "all_d2h", "copy", "cpu_adam", "ssd"]
    size: int
    path: str = ""

    @property
    def name(self) -> str:
        """Name for progress and errors."""
        at = f" at {self.path}" if self.path else ""
        return f"host: {self.what} of {format_size(self.size)}{at}"

    @property
    def needed_bytes(self) -> float:
        """Memory of one rank."""
        return 5.0 * self.size

    def seconds(self, machine: Machine, effort: Effort) -> float:
        """Guess of the duration."""
        if self.what == "ssd":
            return 2 * 4 * self.size / 1e9
        return effort.seconds(self.size / (2e10 if machine.on_gpu else 3e9))


Task = (
    CurveTask | PairsTask | SharingTask | ProductTask | AttentionTask | KernelTask | LaunchTask
    | SpreadTask | OverlapTask | HostTask
)  # fmt: skip
