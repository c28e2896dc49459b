"""One way to split a training job over ``gpus`` ranks, and the two rank grids it implies."""

from dataclasses import dataclass
from enum import StrEnum


class Recompute(StrEnum):
    """What the backward pass computes again instead of keeping it.

    ``SELECTIVE`` repeats the attention core (softmax and its products), or, with a fused attention
    that keeps no scores, nothing. ``FULL`` keeps only the input of each layer.
    """

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Shard:
    """How many ranks share one copy of each tensor class, filled innermost rank first.

    Group sizes divide ``dp * cp``; ``weights <= gradients <= optimizer``. ZeRO-1 is ``(1, 1, W)``,
    ZeRO-2 ``(1, W, W)``, ZeRO-3 ``(W, W, W)``, HSDP ``(s, s, s)``
    (ZeRO, arXiv 1910.02054, 5; PyTorch FSDP, arXiv 2304.11277, 3.2), three levels ``(2, 8, W)``
    (arXiv 2501.04266). ``secondary`` ranks share a second copy of the weights, which the backward
    pass gathers from (ZeRO++'s hpZ: ``(W, W, W, 8)``, arXiv 2306.10209); 0: there is none.
    """

    weights: int = 1
    gradients: int = 1
    optimizer: int = 1
    secondary: int = 0

    @classmethod
    def zero(cls, stage: int, group: int) -> "Shard":
        """Return the sharding of ZeRO stage 0 to 3 over ``group`` ranks."""
        return cls(*(group if stage >= least else 1 for least in (3, 2, 1)))

    def zero_stage(self) -> int:
        """Return the ZeRO stage this sharding is spelled as."""
        return (self.optimizer > 1) + (self.gradients > 1) + (self.weights > 1)


@dataclass(frozen=True, slots=True)
class Offload:
    """Where saved activations wait for their backward pass, and how much of each layer goes there.

    ``fraction`` is that of the bytes which each layer keeps and may give away (``memory.offload``
    says which those are), the same in every layer, so that stores and loads spread over the whole
    pass: SSDTrain's and Kwai's alpha. Megatron's ``--cpu-offloading-num-layers n`` moves whole
    layers, as many bytes as the fraction ``n / (layers - 1)``.
    """

    fraction: float = 0.0
    target: str = ""  # host or ssd

    @classmethod
    def layers(cls, count: int, layers: int, target: str = "host") -> "Offload":
        """Return the offload of ``count`` of ``layers`` layers, the last of which never moves."""
        return cls(min(1.0, count / max(1, layers - 1)), target)

    def label(self) -> str:
        """Return ``offload-ssd-40%``; empty where nothing moves."""
        return f"offload-{self.target}-{100 * self.fraction:.4g}%" if self.fraction else ""


def offload_words(offload: Offload) -> str:
    """Return ``40 % of the movable activations on drives``."""
    where = "on drives" if offload.target == "ssd" else "in host memory"
    return f"{100 * offload.fraction:.4g} % of the movable activations {where}"


OFFLOAD_TARGETS = ("host", "ssd")


@dataclass(frozen=True, slots=True)
class Layout:
    """Degrees of parallelism. ``gpus = tp * cp * dp * pp = etp * ep * edp * pp``.

    ``schedule`` names the pipeline's (``schedule.kinds.SCHEDULES``); empty is 1F1B, interleaved
    where ``vpp > 1``. ``offload_optimizer`` is the share of optimizer state and master weights that
    lies in the host's memory and is updated there (ZeRO-Offload, ATC 21), ``offload_weights`` keeps
    the weights there too and brings them in layer by layer (ZeRO-Infinity, arXiv 2104.07857),
    ``delayed_update`` hides the host's update behind the next step.
    """

    tp: int = 1
    cp: int = 1
    pp: int = 1
    vpp: int = 1
    dp: int = 1
    ep: int = 1
    etp: int = 1
    micro_batch: int = 1
    sequence_parallel: bool = False
    shard: Shard = Shard()
    recompute: Recompute = Recompute.NONE
    schedule: str = ""
    offload_optimizer: float = 0.0
    offload_weights: bool = False
    delayed_update: bool = False
    offload: Offload = Offload()

    @property
    def gpus(self) -> int:
        """Ranks of the whole job."""
        return self.tp * self.cp * self.dp * self.pp

    @property
    def edp(self) -> int:
        """Copies of each expert: the data-parallel degree of the folded expert grid."""
        return self.tp * self.cp * self.dp // (self.etp * self.ep)

    def micro_batches(self, global_batch: int) -> int:
        """Micro-batches of one rank in one step (callers check that the batch divides)."""
        return global_batch // (self.dp * self.micro_batch)

    def _sharding(self) -> str:
        """Return ``zero0`` to ``zero3``, ``hsdp8``, or ``shard2-8-64``; with hpZ ``zero3-hpz8``."""
        shard = self.shard
        sizes = (shard.weights, shard.gradients, shard.optimizer)
        second = f"-hpz{shard.secondary}" if shard.secondary else ""
        plain = shard.weights == 1 and shard.gradients in (1, shard.optimizer)
        if set(sizes) <= {1, self.dp * self.cp} or plain:
            return f"zero{shard.zero_stage()}{second}"
        if len(set(sizes)) == 1:
            return f"hsdp{shard.weights}{second}"
        return "shard" + "-".join(map(str, sizes)) + second

    def label(self) -> str:
        """Return a short name such as ``tp8 pp4 dp2 mb1 zero1 selective``."""
        degrees = ("tp", "cp", "pp", "vpp", "dp", "ep", "etp")
        parts = [f"{name}{getattr(self, name)}" for name in degrees if getattr(self, name) > 1]
        parts += [f"mb{self.micro_batch}", self._sharding()]
        if self.recompute is not Recompute.NONE:
            parts.append(f"recompute-{self.recompute}")
        if self.offload.fraction:
            parts.append(self.offload.label())
        if self.schedule:
            parts.append(self.schedule)
        if self.offload_optimizer:
            share = "" if self.offload_optimizer == 1 else f"{100 * self.offload_optimizer:.3g}%"
            parts.append(f"offload-optimizer{share}")
        parts += ["offload-weights"] if self.offload_weights else []
        parts += ["delayed-update"] if self.delayed_update else []
        return " ".join(parts)
