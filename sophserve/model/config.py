"""config.json as an architecture's dataclass.

What would change the mathematics is obeyed or refused, never ignored.
"""

from __future__ import annotations

import reprlib
from dataclasses import MISSING, fields
from typing import Any, TypeVar, get_args, get_type_hints

import msgspec
import torch

from sophserve.config_rules import check_sizes
from sophserve.errors import CheckpointError
from sophserve.fit import dtype_name
from sophserve.model.rope import RopeParameters

C = TypeVar("C")

# Keys that change what some model of the ecosystem computes, unless they are null, false, zero or empty.
# fmt: off
_SWITCHES = frozenset({
    "activation_sparsity_pattern", "alibi", "altup_num_inputs", "apply_residual_connection_post_layernorm",
    "attention_chunk_size", "attention_multiplier", "attention_sink", "attn_logit_softcapping", "attn_output_gate",
    "attn_temperature_tuning", "block_sparse", "clip_qkv", "cross_attention_layers", "final_logit_softcapping",
    "index_topk", "interleaved_sliding_window", "kv_lora_rank", "mlp_only_layers", "n_routed_experts",
    "n_shared_experts", "no_rope_layer_interval", "no_rope_layers", "num_experts", "num_experts_per_tok",
    "num_kv_shared_layers", "num_local_experts", "parallel_attn", "parallel_residual", "post_norm", "q_lora_rank",
    "qk_layernorm", "qk_norm", "query_pre_attn_scalar", "rope_interleave", "rope_interleaved", "rope_local_base_freq",
    "rotary_emb_base", "scale_attn_by_inverse_layer_idx", "scale_depth", "scale_embedding",
    "shared_expert_intermediate_size", "sliding_window", "sliding_window_pattern", "text_config", "use_alibi",
    "use_cla", "use_mrope", "use_parallel_residual", "use_qk_norm", "use_sliding_window", "vision_config",
})
# Factors that do so unless they are null or 1.
_FACTORS = frozenset({
    "cla_share_factor", "embedding_multiplier", "embedding_scale", "lm_head_multiplier", "logit_scale",
    "logits_scaling", "n_group", "residual_multiplier", "rotary_pct", "routed_scaling_factor", "scale_emb",
    "topk_group",
})
# Keys that say nothing about the forward pass, or whose effect shows in the names of the tensors (biases).
_BOOKKEEPING = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_bias",
    "attention_dropout", "attn_implementation", "auto_map", "aux_loss_alpha", "bos_token_id",
    "chunk_size_feed_forward", "compression_config", "dtype", "embd_pdrop", "eos_token_id", "ep_size",
    "freeze_mm_mlp_adapter", "freeze_mm_vision_resampler", "hidden_dropout", "hidden_dropout_prob", "id2label",
    "ignore_index", "image_crop_resolution", "image_seq_length", "image_split_resolution", "image_token_id",
    "image_token_index", "initializer_range", "is_decoder", "is_encoder_decoder", "label2id", "layer_types",
    "max_length", "max_window_layers", "mlp_bias", "mm_projector_lr", "mm_use_im_patch_token", "mm_vision_tower_lr",
    "model_type", "name", "no_bias", "num_labels", "num_nextn_predict_layers", "num_return_sequences",
    "original_max_position_embeddings", "output_attentions", "output_hidden_states", "output_router_logits",
    "pad_token_id", "partial_rotary_factor", "pretraining_tp", "problem_type", "qk_head_dim", "qkv_bias",
    "quantization_config", "resid_pdrop", "return_dict", "rope_parameters", "rope_scaling", "rope_theta",
    "router_aux_loss_coef", "sep_token_id", "seq_aux", "task_specific_params", "tie_word_embeddings",
    "tokenizer_class", "tokenizer_model_max_length", "tokenizer_padding_side", "torch_dtype",
    "transformers_version", "tune_mm_mlp_adapter", "tune_mm_vision_resampler", "unfreeze_mm_vision_tower",
    "unk_token_id", "use_bfloat16", "use_bias", "use_cache", "use_flash_attention", "use_flash_attn", "use_mm_proj",
    "video_token_id", "vision_end_token_id", "vision_start_token_id", "vision_token_id",
})
# fmt: on


def parse_part(config_class: type[C], config: dict[str, Any], key: str) -> C:
    """As parse_config, of an object in config.json, such as its vision_config."""
    part = config.get(key)
    if not isinstance(part, dict):
        raise CheckpointError(f"config.json's {key} must be an object, got {reprlib.repr(part)}")
    try:
        return parse_config(config_class, {**part, "architectures": config.get("architectures")})
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("config.json", f"config.json's {key}", 1)) from None


def parse_config(config_class: type[C], config: dict[str, Any]) -> C:
    """The dataclass with the values of config.json, its fields named as the file's keys.

    A field `rope_parameters` receives either spelling of the file, or plain RoPE where it has none. Raises
    CheckpointError for a missing key, a value of the wrong type, and a key that changes the mathematics but is no
    field of the class.
    """
    known = {field.name: field for field in fields(config_class)}  # type: ignore[arg-type]
    check_sizes(config, known)
    _refuse_unknown(set(known), config)
    missing = [
        name
        for name, field in known.items()
        if name != "rope_parameters"
        and field.default is MISSING
        and field.default_factory is MISSING
        and config.get(name) is None
    ]
    if missing:
        raise CheckpointError(f"config.json has no {', '.join(missing)}, which {_architecture(config)} needs")
    optional = {name for name, hint in get_type_hints(config_class).items() if type(None) in get_args(hint)}
    values = {name: config[name] for name in known if name in config and (config[name] is not None or name in optional)}
    if "rope_parameters" in known:
        longest = values.get("max_position_embeddings", known["max_position_embeddings"].default)
        values["rope_parameters"] = _rope_parameters(config, longest)
    try:
        return msgspec.convert(values, config_class)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"config.json cannot be used: {error}") from None


def unknown_keys(config_class: type, config: dict[str, Any]) -> list[str]:
    """Keys of config.json of which nothing is known here, and which are ignored."""
    known = {field.name for field in fields(config_class)} | _SWITCHES | _FACTORS | _BOOKKEEPING
    return sorted(set(config) - known)


def resolve_dtype(config: dict[str, Any], dtype: str) -> torch.dtype:
    """The dtype of the option; with "auto" that of config.json, or float32 where it names none."""
    resolved: torch.dtype = getattr(torch, dtype_name(config, dtype))
    return resolved


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures") or ["this architecture"]
    return str(names[0])


def _refuse_unknown(known: set[str], config: dict[str, Any]) -> None:
    for key, value in config.items():
        if key in known or (key == "sliding_window" and config.get("use_sliding_window") is False):
            continue
        if (
            (key in _SWITCHES and value)
            or (key in _FACTORS and value not in (None, 1))
            or (key == "layer_types" and value and set(value) != {"full_attention"})
        ):
            raise CheckpointError(
                f"config.json sets {key} to {reprlib.repr(value)}, which sophserve's {_architecture(config)} does not "
                "implement",
                help="config-json",
            )


# Keys of rope parameters that repeat others or, with these values, change nothing.
_ROPE_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attn_factor": (1,),
    "extrapolation_factor": (1,),
    "finetuned": (True, False),
}


def _rope_parameters(config: dict[str, Any], longest: Any) -> dict[str, Any]:
    """One spelling for that of transformers 5 (rope_parameters) and of 4 (rope_theta, rope_scaling). longest: the
    max_position_embeddings."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"config.json's rope_scaling must be an object or null, got {given!r}")
    parameters = {key: value for key, value in given.items() if value is not None}
    old_type = parameters.pop("type", "default")
    parameters.setdefault("rope_type", old_type)
    for key in ("rope_theta", "partial_rotary_factor"):
        if config.get(key) is not None:
            parameters.setdefault(key, config[key])
    trained = longest
    if parameters["rope_type"] in ("yarn", "llama3"):
        # Some files have the key beside rope_scaling; transformers lets that one win.
        trained = config.get("original_max_position_embeddings") or parameters.get(
            "original_max_position_embeddings", longest
        )
    parameters["original_max_position_embeddings"] = trained
    if parameters["rope_type"] == "yarn" and isinstance(trained, int) and isinstance(longest, int) and trained > 0:
        parameters.setdefault("factor", longest / trained)
    names = {field.name for field in fields(RopeParameters)}
    for key in set(parameters) - names:
        if parameters.pop(key) not in _ROPE_NEUTRAL.get(key, ()):
            raise CheckpointError(
                f"config.json's rope parameters have {key}, which sophserve does not implement "
                f"(rope_type {parameters['rope_type']!r})"
            )
    return parameters
