"""What a row of measured runs keeps off the GPU."""

import re

from planner.layout.layout import Offload
from planner.validate.cells import Skip, number

# Megatron's fine-grained modules; all of them together keep what a layer keeps.
_MODULES = {
    "attn_norm", "qkv_linear", "core_attn", "attn_proj", "mlp_norm", "expert_fc1", "moe_act",
}  # fmt: skip


def read_offload(row: dict[str, str]) -> Offload:
    """Return the activations that wait in host memory; Skip for some modules of a layer only.

    ``activations-cpu:40 layers``, ``activations-cpu:25%``, or the modules in brackets.
    """
    _, given, amount = row.get("offload", "").partition("activations-cpu")
    if not given:
        return Offload()
    if match := re.search(r"(\d+) layers", amount):
        return Offload.layers(int(match[1]), int(number(row, "n_layers") or 1))
    if match := re.search(r"([\d.]+)%", amount):
        return Offload(min(1.0, float(match[1]) / 100), "host")
    modules = set(re.findall(r"\w+", amount))
    if modules and modules != _MODULES:
        raise Skip(f"offload of {' '.join(sorted(modules))} alone cannot be expressed")
    return Offload(1.0, "host")


def read_hosted(row: dict[str, str]) -> dict[str, float | bool]:
    """Return what of the optimizer and the weights lies on the host."""
    text = row.get("offload", "")
    if "optimizer" not in text:
        return {}
    return {"offload_optimizer": 1.0, "offload_weights": "params" in text}
