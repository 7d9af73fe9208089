"""Tiny random models of the families that people align, built from mlx-lm's own classes."""

from __future__ import annotations

import importlib
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from localdpo.model import lora

BASE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "rms_norm_eps": 1e-5,
    "vocab_size": 160,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
MOE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "moe_intermediate_size": 64,
    "norm_topk_prob": True,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": False},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"model": "llama"},
    "gemma2": {
        "query_pre_attn_scalar": 16.0,
        "attn_logit_softcapping": 20.0,
        "final_logit_softcapping": 2.0,
        "sliding_window": 8,
    },
    "gemma3_text": {"sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 16},
    "phi3": {"original_max_position_embeddings": 512, "rope_scaling": None, "tie_word_embeddings": False},
    "olmo2": {"attention_bias": False},
    "granite": {
        "logits_scaling": 3.0,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 2.0,
        "residual_multiplier": 0.5,
        "attention_bias": False,
        "mlp_bias": False,
    },
    "cohere2": {"logit_scale": 0.5, "sliding_window": 8, "sliding_window_pattern": 2, "layer_norm_eps": 1e-5},
    "qwen3_moe": MOE,
    "gpt_oss": {**MOE, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2},
}
HYBRID = {
    **MOE,
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4,
    "shared_expert_intermediate_size": 64,
    "partial_rotary_factor": 0.5,
    "full_attention_interval": 2,
}
# What they have that the tests of all families do not expect: a recurrent state, layers that hand on keys and
# values to later ones.
OTHERS = {
    "qwen3_next": HYBRID,
    "gemma4_text": {
        "global_head_dim": 16,
        "sliding_window": 8,
        "sliding_window_pattern": 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 160,
    },
}
# Its layers share keys and values, but without a cache each computes its own.
GEMMA3N = {
    **BASE,
    "model_type": "gemma3n_text",
    "num_kv_shared_layers": 2,
    "vocab_size_per_layer_input": 160,
    "sliding_window": 8,
    "rope_local_base_freq": 10000.0,
    "final_logit_softcapping": 30.0,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "activation_sparsity_pattern": [0.0] * 4,
    "hidden_size_per_layer_input": 8,
    "altup_num_inputs": 2,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "laurel_rank": 4,
}


# Every width above is a multiple of it, so that all layers of every family quantise as they are.
GROUP_SIZE = 32


def tiny(family: str, *, seed: int = 0, bits: int | None = None, **changes: Any) -> nn.Module:
    """A random model of the family, float32, in evaluation mode; with `bits`, quantised throughout."""
    mx.random.seed(seed)
    config = {**BASE, "model_type": family, **{**FAMILIES, **OTHERS}[family], **changes}
    module = importlib.import_module(f"mlx_lm.models.{config.pop('model', family)}")
    model = module.Model(module.ModelArgs.from_dict(config))
    if family == "gemma3_text":
        model.lm_head.weight = mx.random.normal(model.lm_head.weight.shape) * 0.1
    if bits is not None:
        nn.quantize(model, group_size=GROUP_SIZE, bits=bits)
    model.eval()
    mx.eval(model.parameters())
    return model


def with_lora(
    model: nn.Module, *, keys: list[str] | None = None, seed: int = 1, dora: bool = False
) -> nn.Module:
    """Adapters as a run has them, with lora_b away from zero, so that each weight has a gradient."""
    model.freeze()
    kind, names = "dora" if dora else "lora", None if keys is None else tuple(keys)
    lora.attach(model, lora.LoraConfig(kind, -1, rank=4, scale=4.0, keys=names), seed=seed)
    model.apply_to_modules(
        lambda _, m: m.update({"lora_b": mx.random.normal(m.lora_b.shape) * 0.05}) if "lora_b" in m else None
    )
    mx.eval(model.parameters())
    return model
