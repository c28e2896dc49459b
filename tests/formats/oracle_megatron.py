"""Asks megatron-core's own configuration class; run where that package is installed.

Reads JSON on stdin: a list of argument lists. Prints for each the error it raises, or the layers of
each stage that its own layout parser counts. Fields of a configuration instead of arguments are
given to the class as they are.
"""

import contextlib
import dataclasses
import io
import json
import sys
from typing import Any

import torch
from megatron.core.transformer.pipeline_parallel_layer_layout import PipelineParallelLayerLayout
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig

NAMES = {
    "num_query_groups": "num_query_groups",
    "swiglu": "gated_linear_unit",
    "fp8_format": "fp8",
    "fp4_format": "fp4",
    "tensor_model_parallel_size": "tensor_model_parallel_size",
    "num_experts": "num_moe_experts",
    "group_query_attention": "",
}


def fields_of(words: list[str]) -> dict[str, Any]:
    """Return the configuration fields that arguments stand for."""
    found: dict[str, Any] = {}
    known = {field.name: field for field in dataclasses.fields(MLATransformerConfig)}
    at = 0
    while at < len(words):
        name = words[at][2:].replace("-", "_")
        value: Any = True
        if at + 1 < len(words) and not words[at + 1].startswith("--"):
            value, at = words[at + 1], at + 1
        at += 1
        name = NAMES.get(name, name)
        if name not in known or name == "pipeline_model_parallel_layout":
            continue
        for kind in (int, float):
            with contextlib.suppress(ValueError, TypeError):
                if value is not True:
                    value = kind(value)
                    break
        found[name] = value
    return found


# what Megatron-Bridge's GPTModelProvider adds (models/gpt_provider.py)
PROVIDER = {
    "seq_length", "vocab_size", "position_embedding_type", "share_embeddings_and_output_weights",
    "max_position_embeddings",
}  # fmt: skip


def built(fields: dict[str, Any]) -> dict[str, Any]:
    """Return what megatron-core says of fields of its configuration class."""
    kind = MLATransformerConfig if fields.get("multi_latent_attention") else TransformerConfig
    kept = {name: value for name, value in fields.items() if name not in PROVIDER}
    kept["activation_func"] = getattr(
        torch.nn.functional, kept["activation_func"]["_target_"].rsplit(".", 1)[1]
    )
    try:
        kind(**kept, bf16=True, pipeline_dtype=torch.bfloat16)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": ""}


def asked(words: list[str] | dict[str, Any]) -> dict[str, Any]:
    """Return what megatron-core says of one list of arguments, or of fields."""
    if isinstance(words, dict):
        return built(words)
    fields = fields_of(words) | {"bf16": "--bf16" in words, "fp16": "--fp16" in words}
    fields["pipeline_dtype"] = torch.bfloat16
    fields["add_bias_linear"] = "--disable-bias-linear" not in words
    if "recompute_modules" in fields:
        fields["recompute_modules"] = fields["recompute_modules"].split()
    if "moe_layer_freq" in fields:
        fields["moe_layer_freq"] = eval(str(fields["moe_layer_freq"]))  # as arguments.py does
    if "window_size" in fields:
        fields["window_size"] = tuple(map(int, fields["window_size"].split(",")))
    chunks = fields.pop("num_virtual_stages_per_pipeline_rank", None)
    if chunks:
        fields["virtual_pipeline_model_parallel_size"] = chunks
    kind = MLATransformerConfig if fields.get("multi_latent_attention") else TransformerConfig
    kept = {field.name for field in dataclasses.fields(kind)}
    layout = words[words.index("--pipeline-model-parallel-layout") + 1] if (
        "--pipeline-model-parallel-layout" in words) else None  # fmt: skip
    try:
        if layout is not None:
            fields["pipeline_model_parallel_layout"] = layout
        config = kind(**{name: value for name, value in fields.items() if name in kept})
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    if layout is None:
        return {"error": ""}
    parsed = PipelineParallelLayerLayout(layout, config.pipeline_model_parallel_size)
    parsed.validate_layer_layout(config.num_layers, config.mtp_num_layers)
    chunks = parsed.virtual_pipeline_model_parallel_size
    counts = [[sum(kind.name == "decoder" for kind in parsed.layout[rank][chunk])
               for rank in range(parsed.pipeline_model_parallel_size)]
              for chunk in range(chunks)]  # fmt: skip
    return {"error": "", "stages": [count for chunk in counts for count in chunk]}


if __name__ == "__main__":
    with contextlib.redirect_stdout(io.StringIO()):
        answers = [asked(words) for words in json.load(sys.stdin)]
    json.dump(answers, sys.stdout)
