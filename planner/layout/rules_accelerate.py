"""What accelerate refuses, asked of the accelerate 1.15.0 wheel or read in 16cb6eb."""

from math import prod

from planner.layout.rule import Facts, Rule, divisor

_PARALLEL = "accelerate/parallelism_config.py"
_SEEN = "accelerate 1.10 to 1.15"


def _sizes(f: Facts) -> tuple[int, int, int, int, int]:
    """Return dp_replicate, dp_shard, tp, cp and sp as parallelism_config states them."""
    found = f.options.get("sizes")
    return found if isinstance(found, tuple) else (1, 1, f.tp, f.cp, 1)


def _mesh(f: Facts) -> bool:
    """Whether there is a parallelism_config that accelerate itself lays over the processes."""
    return f.on("parallelism") and prod(_sizes(f)) > 1 and _sizes(f)[4] == 1


def _product(f: Facts) -> bool:
    if f.on("parallelism"):
        return _mesh(f) and prod(_sizes(f)) != f.world
    return f.world % (f.tp * f.cp * f.pp) > 0


def _product_said(f: Facts) -> str:
    product = prod(_sizes(f)) if f.on("parallelism") else f.tp * f.cp * f.pp
    return f"dp_replicate*dp_shard*cp*sp*tp={product} is not the {f.world} processes; try {product}"


def _hybrid_without_shards(f: Facts) -> bool:
    copies, shard, tp, cp, _ = _sizes(f)
    return f.on("parallelism") and copies > 1 and shard == 1 and (tp > 1 or cp > 1)


def _nothing_to_shard(f: Facts) -> bool:
    _, shard, _, cp, _ = _sizes(f)
    fsdp = f.options.get("kind") == "FSDP" and f.options.get("fsdp_version") == 2
    return f.on("parallelism") and fsdp and shard == cp == 1 and prod(_sizes(f)) > 1


STRATEGIES = ("FULL_SHARD", "SHARD_GRAD_OP", "NO_SHARD", "HYBRID_SHARD", "HYBRID_SHARD_ZERO2")
_WRAPS = ("TRANSFORMER_BASED_WRAP", "SIZE_BASED_WRAP", "NO_WRAP")


def _other(f: Facts, name: str, legal: tuple[str, ...]) -> bool:
    """Whether a file names something that is none of ``legal``; FSDP also takes its number."""
    value = f.options.get(name)
    return isinstance(value, str) and value.upper() not in legal


def _strategy(f: Facts) -> bool:
    numbers = tuple(str(index + 1) for index in range(len(STRATEGIES)))
    return f.options.get("fsdp_version") == 1 and _other(f, "strategy", STRATEGIES + numbers)


RULES: tuple[Rule, ...] = (
    Rule("A1", _SEEN, _PARALLEL, _product, _product_said),
    Rule("A2", _SEEN, _PARALLEL, lambda f: f.on("cp_size") and f.on("sp_size"),
         lambda f: "cp_size and sp_size exclude each other; set one of them to 1"),
    Rule("A3", _SEEN, _PARALLEL, _hybrid_without_shards,
         lambda f: "tp or cp with dp_replicate > 1 needs dp_shard > 1; move ranks to dp_shard"),
    Rule("A4", _SEEN, "accelerate/utils/dataclasses.py",
         lambda f: f.options.get("fsdp_version") == 2
         and isinstance(f.options.get("reshard"), str)
         and str(f.options["reshard"]).lower() not in ("true", "false", "1", "0"),
         lambda f: f"fsdp_reshard_after_forward is {f.options.get('reshard')!r}, FSDP2 takes true "
         "or false; try true"),
    Rule("A5", _SEEN, "transformers/integrations/tensor_parallel.py", lambda f: f.heads % f.tp > 0,
         lambda f: divisor("tp", f.tp, "heads", f.heads)),
    Rule("A6", _SEEN, "transformers/integrations/tensor_parallel.py",
         lambda f: f.kv_heads % f.tp > 0,
         lambda f: divisor("tp", f.tp, "kv_heads", f.kv_heads)),
    Rule("A7", _SEEN, "accelerate/accelerator.py",
         lambda f: f.cp > 1 and f.on("cp_size") and f.options.get("fsdp_version") == 1,
         lambda f: f"cp={f.cp} needs fsdp_version 2, it is 1"),
    Rule("A8", _SEEN, "accelerate/accelerator.py",
         lambda f: f.cp > 1 and f.seq_len % (2 * f.cp) > 0,
         lambda f: divisor("2*cp", 2 * f.cp, "seq_len", f.seq_len)),
    Rule("A9", _SEEN, _PARALLEL, _nothing_to_shard,
         lambda f: "FSDP 2 has no ranks to shard over, dp_shard and cp are 1; try dp_shard "
         f"{max(2, f.world // f.tp)} or distributed_type MULTI_GPU"),
    Rule("A10", _SEEN, _PARALLEL,
         lambda f: f.on("parallelism") and prod(_sizes(f)) > 1 and f.options.get("kind") == "FSDP"
         and f.options.get("fsdp_version") == 1,
         lambda f: "parallelism_config needs fsdp_version 2, it is 1"),
    Rule("A11", _SEEN, _PARALLEL, lambda f: f.on("parallelism") and min(_sizes(f)) < 1,
         lambda f: f"a size of parallelism_config is {min(_sizes(f))}; 1 is the least"),
    Rule("A12", _SEEN, "accelerate/utils/dataclasses.py",
         lambda f: f.on("offload_activations")
         and (not f.on("recompute") or f.options.get("fsdp_version") == 1),
         lambda f: "fsdp_activation_checkpointing_offload needs fsdp_activation_checkpointing and "
         "fsdp_version 2"),
    Rule("A13", _SEEN, "accelerate/utils/dataclasses.py", _strategy,
         lambda f: f"fsdp_sharding_strategy {f.options.get('strategy')!r}; use one of "
         f"{', '.join(STRATEGIES)}"),
    Rule("A14", _SEEN, "accelerate/utils/dataclasses.py", lambda f: _other(f, "wrap", _WRAPS),
         lambda f: f"fsdp_auto_wrap_policy {f.options.get('wrap')!r}; use one of "
         f"{', '.join(_WRAPS)}"),
)  # fmt: skip
