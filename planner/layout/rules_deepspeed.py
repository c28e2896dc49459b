"""What DeepSpeed refuses or ignores: one record per rule.

Asked of the DeepSpeed 0.19.8 wheel (``DeepSpeedConfig``) where its source is ``runtime/config.py``
or ``runtime/zero/config.py``, read in DeepSpeed edaa722 (0.19.6) otherwise.
"""

from planner.layout.rule import Facts, Rule, divisor, multiple, near

_CONFIG = "runtime/config.py"
_ZERO = "runtime/zero/config.py"
_SEEN = "DeepSpeed 0.19"


def _option(f: Facts, name: str) -> int:
    return int(str(f.options.get(name) or 0))


def _triangle(f: Facts) -> bool:
    """D1: three given batch sizes must agree."""
    steps, batch = _option(f, "accumulation"), _option(f, "stated_batch")
    return bool(batch and steps and f.micro_batch) and batch != f.micro_batch * steps * f.dp


def _triangle_said(f: Facts) -> str:
    steps, batch = _option(f, "accumulation"), _option(f, "stated_batch")
    right = f.micro_batch * steps * f.dp
    return (
        f"train_batch_size={batch} is not micro_batch={f.micro_batch} times "
        f"gradient_accumulation_steps={steps} times dp={f.dp}; try train_batch_size {right}"
    )


def _offload_parameters(f: Facts) -> bool:
    stated = str(f.options.get("offload_parameters") or "none") != "none"
    return (stated or (f.offload_weights and _shared(f))) and f.zero != 3


def _shared(f: Facts) -> bool:
    """Whether a layout has ranks to share with: of one rank all stages are the same layout."""
    return f.dp * f.cp > 1


def _share(f: Facts) -> bool:
    """D5: a part of the state stays on the GPU with stage 3 only."""
    stated = float(str(f.options.get("offload_ratio") or 1)) < 1
    return (stated or (0 < f.offload_optimizer < 1 and _shared(f))) and f.zero != 3


def _hpz(f: Facts) -> bool:
    return _option(f, "hpz") > 1 and f.world % _option(f, "hpz") > 0


RULES: tuple[Rule, ...] = (
    Rule("D1", _SEEN, _CONFIG, _triangle, _triangle_said),
    Rule("D2", _SEEN, _ZERO, lambda f: not 0 <= f.zero <= 3,
         lambda f: f"zero_optimization.stage={f.zero} is none of 0, 1, 2, 3"),
    Rule("D3", _SEEN, "runtime/pipe/engine.py", lambda f: f.pp > 1 and f.zero > 1,
         lambda f: f"ZeRO-{f.zero} excludes a pipeline (pp={f.pp}); try stage 1 or pp 1"),
    Rule("D4", _SEEN, _ZERO, _offload_parameters,
         lambda f: f"offload_param needs stage 3, the stage is {f.zero}; try stage 3"),
    Rule("D5", _SEEN, _ZERO, _share,
         lambda f: f"offload_optimizer.ratio below 1 needs stage 3, the stage is {f.zero}"),
    Rule("D6", _SEEN, "utils/groups.py", _hpz,
         lambda f: divisor("zero_hpz_partition_size", _option(f, "hpz"), "GPUs", f.world)),
    Rule("D7", _SEEN, _CONFIG, lambda f: f.on("fp16") and f.on("bf16"),
         lambda f: "fp16.enabled and bf16.enabled exclude each other; keep one"),
    Rule("D8", _SEEN, _CONFIG, lambda f: f.world % (f.tp * f.cp * f.pp) > 0,
         lambda f: multiple("GPUs", f.world, f.tp * f.cp * f.pp, "tp*sp*pp")),
    Rule("D9", _SEEN, "module_inject/auto_tp.py", lambda f: f.heads % f.tp > 0,
         lambda f: divisor("tp", f.tp, "heads", f.heads)),
    Rule("D10", _SEEN, "sequence/layer.py", lambda f: f.cp > 1 and f.heads % f.cp > 0,
         lambda f: divisor("sequence_parallel_size", f.cp, "heads", f.heads)),
    Rule("D11", _SEEN, "moe/layer.py", lambda f: f.experts % f.ep > 0,
         lambda f: divisor("autoep_size", f.ep, "experts", f.experts)),
    Rule("D12", _SEEN, "moe/layer.py", lambda f: f.world // f.pp % f.ep > 0,
         lambda f: f"autoep_size={f.ep} does not divide the {f.world // f.pp} ranks of a stage; "
         f"try {near(f.ep, lambda n: f.world // f.pp % n == 0, f.world)}"),
    Rule("D13", _SEEN, "moe/layer.py", lambda f: f.ep > 1 and f.tp > 1,
         lambda f: "AutoEP and AutoTP cannot be combined; set one of them to 1"),
    Rule("D14", _SEEN, _CONFIG,
         lambda f: f.micro_batch > 0 and f.global_batch % (f.micro_batch * f.dp) > 0,
         lambda f: multiple("train_batch_size", f.global_batch, f.micro_batch * f.dp,
                            "dp*micro_batch")),
    Rule("D15", "DeepSpeed 0.19.8", _CONFIG, lambda f: _option(f, "mics") > 1,
         lambda f: f"mics_shard_size={_option(f, 'mics')}: MiCS was removed; shard over all ranks"),
    Rule("D16", _SEEN, _ZERO, 
         lambda f: f.offload_optimizer > 0 and _shared(f) and f.zero == 0,
         lambda f: f"offload_optimizer needs stage 1 or more, the stage is {f.zero}; try stage 2"),
)  # fmt: skip
