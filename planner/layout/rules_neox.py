"""What GPT-NeoX refuses, read in gpt-neox ea7aefd (2025) and the DeepSpeed under it."""

from planner.layout.rule import Facts, Rule, divisor, multiple
from planner.layout.rules_deepspeed import RULES as DEEPSPEED

_ARGUMENTS = "megatron/neox_arguments/arguments.py"
_SEEN = "gpt-neox 2.0"
_BELOW = {"D1", "D2", "D3", "D4", "D5"}  # batch, stage and offload are DeepSpeed's own


def _stated(f: Facts, name: str) -> int:
    return int(str(f.options.get(name) or 0))


RULES: tuple[Rule, ...] = (
    Rule("X1", _SEEN, _ARGUMENTS, lambda f: f.world % (f.tp * f.cp * f.pp) > 0,
         lambda f: multiple("GPUs", f.world, f.tp * f.cp * f.pp, "model_parallel_size*"
                            "context_parallel_size*pipe_parallel_size")),
    Rule("X2", _SEEN, _ARGUMENTS,
         lambda f: f.heads > 0 and f.hidden % f.heads > 0,
         lambda f: divisor("num_attention_heads", f.heads, "hidden_size", f.hidden)),
    Rule("X3", _SEEN, "megatron/mpu/utils.py", lambda f: f.heads % f.tp > 0,
         lambda f: divisor("tp", f.tp, "heads", f.heads)),
    Rule("X4", _SEEN, "megatron/mpu/utils.py", lambda f: f.ffn_hidden % f.tp > 0,
         lambda f: divisor("tp", f.tp, "ffn_hidden", f.ffn_hidden)),
    Rule("X5", _SEEN, _ARGUMENTS, lambda f: 0 < _stated(f, "positions") < f.seq_len,
         lambda f: f"seq_length={f.seq_len} is more than max_position_embeddings="
         f"{_stated(f, 'positions')}; try {_stated(f, 'positions')}"),
    Rule("X6", _SEEN, "deepspeed/runtime/pipe/module.py", lambda f: f.pp > f.layers > 0,
         lambda f: f"pp={f.pp} is more than layers={f.layers}; try pp {f.layers}"),
    *(rule for rule in DEEPSPEED if rule.id in _BELOW),
)  # fmt: skip
