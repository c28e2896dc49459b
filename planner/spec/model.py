"""The transformer to be trained, in the numbers its cost depends on."""

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator


class MoESpec(BaseModel):
    """The expert layers of a mixture-of-experts model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    experts: PositiveInt = Field(description="Routed experts of one layer.")
    top_k: PositiveInt = Field(description="Routed experts that see each token.")
    ffn_hidden: PositiveInt = Field(description="Inner width of one routed expert.")
    shared_ffn_hidden: NonNegativeInt = Field(0, description="Inner width of all shared experts.")
    shared_gate: bool = Field(False, description="A hidden→1 gate scales the shared experts.")
    router_bias: bool = Field(
        False, description="A trained bias on router logits; a balancing buffer is none."
    )
    expert_bias: bool = Field(False, description="Both products of an expert add a bias.")
    groups: PositiveInt = Field(1, description="Groups that a router divides the experts into.")
    top_groups: PositiveInt = Field(1, description="Groups that one token's experts are of.")
    first_layer: NonNegativeInt = Field(0, description="Dense layers before the first MoE layer.")
    every: PositiveInt = Field(1, description="One MoE layer every so many layers.")
    dense_layers: tuple[NonNegativeInt, ...] = Field(
        (), description="Layers that hold a plain MLP whatever the rule says."
    )

    @model_validator(mode="after")
    def _top_k_within_experts(self) -> "MoESpec":
        if self.top_k > self.experts:
            raise ValueError(f"top_k={self.top_k} exceeds experts={self.experts}")
        if self.top_groups > self.groups:
            raise ValueError(f"top_groups={self.top_groups} exceeds groups={self.groups}")
        return self


class MLASpec(BaseModel):
    """Multi-head latent attention (DeepSeek-V2, section 2.1)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    q_lora_rank: NonNegativeInt = Field(description="0: queries are projected directly.")
    kv_lora_rank: PositiveInt
    qk_nope_head_dim: PositiveInt
    qk_rope_head_dim: PositiveInt
    v_head_dim: PositiveInt


class ModelSpec(BaseModel):
    """A decoder-only transformer. Counts are per layer unless the name says otherwise."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    layers: PositiveInt
    hidden: PositiveInt = Field(description="Width of the residual stream.")
    heads: PositiveInt = Field(description="Query heads.")
    kv_heads: PositiveInt = Field(description="Key/value heads; fewer than heads means GQA.")
    head_dim: PositiveInt
    ffn_hidden: PositiveInt = Field(description="Inner width of a dense MLP.")
    vocab: PositiveInt
    gated_mlp: bool = Field(True, description="Three matrices (SwiGLU) instead of two.")
    tied_embeddings: bool = False
    positions: NonNegativeInt = Field(0, description="Rows of a learned position table; 0: rotary.")
    norm_bias: bool = Field(False, description="LayerNorm (weight and bias) instead of RMSNorm.")
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = Field(False, description="A norm over each head of q and k.")
    parallel_block: bool = Field(False, description="Attention and MLP read the same input (NeoX).")
    sliding_window: NonNegativeInt = Field(0, description="Attention span; 0: full causal.")
    full_attention_every: NonNegativeInt = Field(
        0, description="One layer in so many attends without the window; 0: none."
    )
    attention_sinks: bool = Field(
        False, description="A trained score per head that no key has (GPT-OSS)."
    )
    moe: MoESpec | None = None
    mla: MLASpec | None = None
    mtp_layers: NonNegativeInt = Field(
        0, description="Multi-token-prediction layers (DeepSeek-V3)."
    )

    @model_validator(mode="after")
    def _kv_heads_divide_heads(self) -> "ModelSpec":
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is not a multiple of kv_heads={self.kv_heads}")
        return self

    def __hash__(self) -> int:
        """Hash by the few fields that tell models apart: records are keys of many caches."""
        return hash((self.name, self.layers, self.hidden, self.vocab))

    def is_moe_layer(self, layer: int) -> bool:
        """Whether layer number ``layer`` (from 0) holds experts.

        Follows transformers' Qwen-MoE and DeepSeek rule: from ``first_layer`` on, the layers whose
        number plus one is a multiple of ``every``, without ``dense_layers``.
        """
        moe = self.moe
        if moe is None or layer < moe.first_layer or layer in moe.dense_layers:
            return False
        return (layer + 1) % moe.every == 0

    @property
    def moe_layers(self) -> int:
        """Number of layers that hold experts."""
        return sum(self.is_moe_layer(layer) for layer in range(self.layers))
