"""What nanotron refuses, read in nanotron 2411b02 (2026-04)."""

from planner.layout.rule import Facts, Rule, divisor, multiple

_PARALLEL = "parallel/context.py"
_MODEL = "models/qwen.py"
_SEEN = "nanotron of 2026-04"


def _world(f: Facts) -> bool:
    stated = int(str(f.options.get("stated_dp") or 0))
    return f.world % (f.tp * f.cp * f.pp) > 0 or (stated > 0 and stated != f.dp)


def _world_said(f: Facts) -> str:
    stated = int(str(f.options.get("stated_dp") or f.dp))
    product = f.tp * f.cp * f.pp * stated
    return f"dp*tp*pp*cp={product} is not the {f.world} GPUs; try GPUs {product}"


RULES: tuple[Rule, ...] = (
    Rule("N1", _SEEN, _PARALLEL, _world, _world_said),
    Rule("N2", _SEEN, _MODEL, lambda f: f.heads % f.tp > 0,
         lambda f: divisor("tp", f.tp, "heads", f.heads)),
    Rule("N3", _SEEN, _MODEL, lambda f: 0 < f.kv_heads < f.tp,
         lambda f: f"tp={f.tp} is more than kv_heads={f.kv_heads}; try tp {f.kv_heads}"),
    Rule("N4", _SEEN, _MODEL, lambda f: f.kv_heads >= f.tp and f.kv_heads % f.tp > 0,
         lambda f: divisor("tp", f.tp, "kv_heads", f.kv_heads)),
    Rule("N5", _SEEN, "parallel/tensor_parallel/nn.py", lambda f: f.ffn_hidden % f.tp > 0,
         lambda f: divisor("tp", f.tp, "ffn_hidden", f.ffn_hidden)),
    Rule("N6", _SEEN, "parallel/pipeline_parallel/engine.py", lambda f: f.vpp > 1,
         lambda f: f"vpp={f.vpp}: the engines are 1f1b and afab, without chunks; try vpp 1"),
    Rule("N7", _SEEN, "parallel/pipeline_parallel/block.py", lambda f: f.pp > f.layers > 0,
         lambda f: f"pp={f.pp} is more than layers={f.layers}; try pp {f.layers}"),
    Rule("N8", _SEEN, "optim/zero.py",
         lambda f: f.zero > 1,
         lambda f: f"ZeRO-{f.zero}: any stage above 0 shards the optimizer only; try 1"),
    Rule("N9", _SEEN, "config/config.py",
         lambda f: f.micro_batch > 0 and f.global_batch % (f.micro_batch * f.dp) > 0,
         lambda f: multiple("global_batch", f.global_batch, f.micro_batch * f.dp,
                            "dp*micro_batch")),
    Rule("N10", _SEEN, "parallel/tensor_parallel/functional.py",
         lambda f: f.sequence_parallel and f.seq_len // f.cp % f.tp > 0,
         lambda f: multiple("seq_len", f.seq_len, f.tp * f.cp, "cp*tp, REDUCE_SCATTER")),
    Rule("N11", _SEEN, "nn/moe.py", lambda f: f.experts % f.ep > 0,
         lambda f: divisor("ep", f.ep, "experts", f.experts)),
)  # fmt: skip
