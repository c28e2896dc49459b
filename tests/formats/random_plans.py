"""Random plans that a target can run: models of every kind, layouts, uneven stages, recompute."""

import random
from collections.abc import Iterator, Sequence
from functools import cache

from planner.layout.layout import Layout, Recompute
from planner.layout.space import Problems, layouts
from planner.plan import LayoutRecord, Plan
from planner.spec.huggingface import load_model
from planner.spec.model import MLASpec, ModelSpec, MoESpec
from tests.formats.plans import build_plan, stage_table
from tests.properties.strategies import cluster, gpt, job, small, small_moe

_MLA = MLASpec(
    q_lora_rank=256, kv_lora_rank=64, qk_nope_head_dim=64, qk_rope_head_dim=32, v_head_dim=64
)
_EVERY_OTHER = MoESpec(experts=8, top_k=2, ffn_hidden=512, first_layer=2, dense_layers=(5, 9))
MODELS: dict[str, ModelSpec] = {
    "llama": small(),
    "tied": small(name="tied", tied_embeddings=True, sliding_window=4096),
    "qwen": small(name="qwen", qkv_bias=True, qk_norm=True),
    "gpt": gpt(16, 1024, 16, positions=4096),
    "experts": small_moe(),
    "placed": small(name="placed", moe=_EVERY_OTHER),
    "latent": small_moe(
        name="latent", mla=_MLA, kv_heads=16, head_dim=96, mtp_layers=1, qk_norm=False
    ),
    "llama-3-8b": load_model("llama-3-8b"),
    "qwen3-30b-a3b": load_model("qwen3-30b-a3b"),
}
OWN = [name for name in MODELS if "-3" not in name and not name.startswith("qwen3")]


@cache
def _space(name: str, nodes: int, batch: int, problems: Problems | None) -> tuple[Layout, ...]:
    machines = cluster("dgx-h100", nodes)
    return tuple(layouts(MODELS[name], machines, job(batch), problems))


def record(layout: Layout, recompute: Recompute) -> LayoutRecord:
    names = set(LayoutRecord.model_fields) & set(Layout.__slots__)
    values = {name: getattr(layout, name) for name in names}
    shards = {f"shard_{kind}": getattr(layout.shard, kind)
              for kind in ("weights", "gradients", "optimizer")}  # fmt: skip
    return LayoutRecord(**(values | shards | {"recompute": str(recompute)}))


def kind(layout: Layout) -> tuple[object, ...]:
    """Return what tells kinds of layouts apart, so that rare kinds are drawn as often."""
    return layout.tp, layout.cp, layout.pp, layout.vpp > 1, layout.shard


def _counts(rng: random.Random, layers: int, chunks: int, uneven: bool) -> list[int]:
    counts = [layers // chunks + (index < layers % chunks) for index in range(chunks)]
    if uneven and chunks > 1:
        giver, taker = rng.sample(range(chunks), 2)
        moved = rng.randrange(counts[giver])
        counts[giver], counts[taker] = counts[giver] - moved, counts[taker] + moved
    return counts


def random_plans(
    count: int,
    names: Sequence[str],
    problems: Problems | None,
    *,
    uneven: bool = False,
    partial: bool = False,
    precisions: Sequence[str] = ("bf16",),
    seed: int = 12,
) -> Iterator[Plan]:
    """Yield ``count`` plans, the same ones at every call with a ``seed``.

    ``uneven``: stages of any layers; ``partial``: the first layers of each stage recomputed.
    """
    rng = random.Random(seed)
    for _ in range(count):
        name, nodes, batch = rng.choice(names), rng.choice([1, 2, 4]), rng.choice([32, 96])
        found = _space(name, nodes, batch, problems)
        kinds = {kind(one) for one in found}
        chosen = rng.choice(sorted(kinds, key=str))
        layout = rng.choice([one for one in found if kind(one) == chosen])
        model = MODELS[name]
        again = rng.choice([0, model.layers, *([rng.randrange(1, 4)] if partial else [])])
        counts = _counts(rng, model.layers, layout.pp * layout.vpp, uneven)
        every = again >= max(counts)
        work = job(batch, precision=rng.choice(precisions))
        plan = build_plan(model, job_spec=work, cluster_spec=cluster("dgx-h100", nodes))
        yield plan.model_copy(update={
            "layout": record(layout, Recompute.FULL if every else Recompute.NONE),
            "stages": stage_table(counts, again), "rank_map": tuple(range(layout.gpus)),
        })  # fmt: skip
