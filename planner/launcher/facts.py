"""What the rules of the launcher look at."""

from dataclasses import dataclass

from .plan_file import LayoutConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """The numbers of model, job and layout that decide whether torch can run them.

    Batch sizes are in sequences, lengths in tokens; shard sizes are ranks that share one copy.
    ``rotary_dim`` is how much of a head is turned. Without experts ``experts`` and their widths
    are 0.
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    rotary_dim: int
    ffn_hidden: int
    experts: int
    expert_ffn_hidden: int
    shared_ffn_hidden: int
    vocab: int
    positions: int
    sliding_window: int
    attention_sinks: bool
    expert_bias: bool
    mtp_layers: int
    global_batch: int
    seq_len: int
    precision: str
    dropout: bool
    tp: int
    cp: int
    pp: int
    vpp: int
    dp: int
    ep: int
    etp: int
    micro_batch: int
    sequence_parallel: bool
    shard_weights: int
    shard_gradients: int
    shard_optimizer: int
    schedule: str = ""  # empty: 1F1B, interleaved where vpp > 1
    optimizer: str = "adamw"
    lora_rank: int = 0
    offload_optimizer: float = 0.0
    offload_weights: bool = False
    delayed_update: bool = False
    shard_secondary: int = 0
    context_exchange: str = "all_gather"

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one rank in one step."""
        return self.global_batch // (self.dp * self.micro_batch)

    @property
    def stage_ranks(self) -> int:
        """Ranks of one pipeline stage; the expert grid folds the same ones."""
        return self.tp * self.cp * self.dp

    @property
    def edp(self) -> int:
        """Copies of each expert."""
        return self.stage_ranks // (self.ep * self.etp)


def masters_apart(layout: Facts | LayoutConfig) -> bool:
    """Whether master weights are no part of what FSDP gathers from (``masters.Masters``).

    FSDP's own are ZeRO 0 to 3 and HSDP, updated where their weights are.
    """
    weights, gradients = layout.shard_weights, layout.shard_gradients
    optimizer = layout.shard_optimizer
    plain = (weights == 1 and gradients in (1, optimizer)) or weights == gradients == optimizer
    stays = layout.offload_optimizer > 0 and weights > 1 and not layout.offload_weights
    return not plain or stays or layout.delayed_update


def hops_divide(f: Facts) -> bool:
    """Whether hops of one chain scatter gradients from group to group."""
    weights, gradients, optimizer = f.shard_weights, f.shard_gradients, f.shard_optimizer
    if gradients == 1 and weights == 1:
        return True
    divide = gradients % weights == 0 and optimizer % gradients == 0
    return divide and optimizer in (gradients, f.dp * f.cp)
