"""What accelerate refuses, asked of the accelerate 1.15.0 wheel or read in 16cb6eb."""

from planner.layout.rule import Facts, Rule, divisor

_PARALLEL = "accelerate/parallelism_config.py"
_SEEN = "accelerate 1.10 to 1.15"


def _product(f: Facts) -> bool:
    stated = int(str(f.options.get("stated_dp") or 0))
    return f.world % (f.tp * f.cp * f.pp) > 0 or (stated > 0 and stated != f.dp)


def _product_said(f: Facts) -> str:
    stated = int(str(f.options.get("stated_dp") or f.dp))
    product = f.tp * f.cp * stated
    return f"dp_replicate*dp_shard*cp*sp*tp={product} is not the {f.world} processes; try {product}"


def _hybrid_without_shards(f: Facts) -> bool:
    return f.tp * f.cp > 1 and f.dp > 1 and f.zero == 0 and f.on("parallelism")


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
)  # fmt: skip
