"""What the user demands of a layout: degrees that are fixed, and degrees that may not be larger."""

from dataclasses import dataclass

from planner.layout.layout import Layout

DEGREES = ("tp", "cp", "pp", "vpp", "dp", "ep", "etp", "micro_batch")


@dataclass(frozen=True, slots=True)
class Limits:
    """Locks on the search: ``fixed`` and ``most`` are (degree, number) pairs.

    ``zero`` is a ZeRO stage. Without ``folding`` experts have the tensor parallelism of the dense
    layers and ``ep`` divides ``dp``, as before MoE Parallel Folding (arXiv 2504.14960, 2.2). Groups
    that do not tile the scale-up domains (``tiles``) are tried only where the user fixes their
    degree.
    """

    fixed: tuple[tuple[str, int], ...] = ()
    most: tuple[tuple[str, int], ...] = ()
    zero: int | None = None
    folding: bool = True

    def allows(self, name: str, size: int) -> bool:
        """Whether one degree may be ``size``."""
        return all(size == want for own, want in self.fixed if own == name) and all(
            size <= top for own, top in self.most if own == name
        )

    def names(self, name: str) -> bool:
        """Whether the user gave the degree a number of its own."""
        return any(own == name for own, _ in self.fixed)

    def allows_layout(self, layout: Layout) -> bool:
        """Whether a layout obeys every lock."""
        if self.zero is not None and layout.shard.zero_stage() != self.zero:
            return False
        return all(self.allows(name, getattr(layout, name)) for name in DEGREES)

    def said(self) -> str:
        """Return the locks as the command line spells them."""
        words = [f"--{name.replace('_', '-')} {size}" for name, size in self.fixed]
        words += [f"--max-{name.replace('_', '-')} {size}" for name, size in self.most]
        words += [f"--zero {self.zero}"] if self.zero is not None else []
        words += [] if self.folding else ["--no-folding"]
        return " ".join(words)


def tiles(size: int, domain_gpus: int) -> bool:
    """Whether groups of ``size`` neighbours fill scale-up domains, or domains fill the groups.

    Three ranks on eight GPUs leave groups that straddle two domains beside groups that do not.
    """
    return domain_gpus % size == 0 or size % domain_gpus == 0
