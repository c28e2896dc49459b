"""What a job must be for a writer: one sentence for each thing that is not."""

from planner.errors import LayoutError
from planner.formats.work import Work


def refuse(problems: list[str]) -> None:
    """Raise ``LayoutError`` with all problems at once; nothing where there is none."""
    if problems:
        raise LayoutError(list(dict.fromkeys(problems)))


def rank_order(work: Work, framework: str) -> list[str]:
    """Return the complaint about a rank map that a fixed order of ranks cannot express."""
    if work.rank_map == tuple(range(len(work.rank_map))):
        return []
    return [
        f"rank_map: {framework} numbers ranks in its own order; it cannot place rank "
        f"{work.rank_map[0]} on GPU 0; use --target torch"
    ]


def offloaded(work: Work, framework: str) -> list[str]:
    """Return the complaint about activations that leave the GPU."""
    if not work.layout.offload.fraction:
        return []
    return [
        f"{work.layout.offload.label()}: it is not written for {framework}; use --target torch, or "
        "plan with --no-offload"
    ]


def second_shards(work: Work, framework: str) -> list[str]:
    """Return the complaint about a second copy of the weights (hpZ)."""
    if not work.layout.shard.secondary:
        return []
    return [
        f"{work.layout.label()}: {framework} keeps no second shard of the weights; use --target "
        "torch or deepspeed"
    ]


def uneven_stages(work: Work, framework: str) -> list[str]:
    """Return the complaint about stages of unequal layers."""
    if len(set(work.layers)) <= 1:
        return []
    listed = ", ".join(map(str, work.layers))
    return [f"stages of {listed} layers: {framework} has no setting for them; use --target torch"]


def partial_recompute(work: Work, framework: str) -> list[str]:
    """Return the complaint about layers of which only some are recomputed."""
    again = sum(work.again)
    if again in (0, work.model.layers):
        return []
    return [
        f"{again} of {work.model.layers} layers are recomputed: {framework} recomputes all or none"
    ]


def unlike_llama(work: Work, framework: str, *, allowed: frozenset[str] = frozenset()) -> list[str]:
    """Return what of the model is beyond a Llama with rotary positions and no biases."""
    model = work.model
    features = {
        "an MLP of two matrices": not model.gated_mlp,
        "learned positions": model.positions > 0,
        "LayerNorm": model.norm_bias,
        "biases": model.qkv_bias or model.attention_out_bias or model.mlp_bias,
        "a norm of q and k": model.qk_norm,
        "parallel attention and MLP": model.parallel_block,
        "experts": model.moe is not None,
        "latent attention": model.mla is not None,
        "multi-token prediction": model.mtp_layers > 0,
        "an attention window": model.sliding_window > 0,
        "tied embeddings": model.tied_embeddings,
    }
    return [
        f"model {model.name!r} has {what}, which {framework} is not given"
        for what, present in features.items()
        if present and what not in allowed
    ]
