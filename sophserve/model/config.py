"""config.json as an architecture's dataclass.

What would change the mathematics is obeyed or refused, never ignored.
"""

from __future__ import annotations

import logging
import reprlib
from dataclasses import MISSING, fields
from typing import Any, TypeVar

import msgspec
import torch

from sophserve.errors import CheckpointError
from sophserve.model.rope import RopeParameters
from sophserve.plugins import quantizations

log = logging.getLogger(__name__)

C = TypeVar("C")

# Keys that change what some model of the ecosystem computes, with the values that change nothing.
_MATHEMATICAL: dict[str, tuple[Any, ...]] = {
    "activation_sparsity_pattern": (),
    "alibi": (False,),
    "altup_num_inputs": (),
    "apply_residual_connection_post_layernorm": (False,),
    "attention_chunk_size": (),
    "attention_multiplier": (),
    "attention_sink": (False,),
    "attn_logit_softcapping": (),
    "attn_output_gate": (False,),
    "attn_temperature_tuning": (False, 0),
    "block_sparse": (False,),
    "cla_share_factor": (1,),
    "clip_qkv": (),
    "cross_attention_layers": ([],),
    "embedding_multiplier": (1,),
    "embedding_scale": (1,),
    "final_logit_softcapping": (),
    "interleaved_sliding_window": (),
    "kv_lora_rank": (),
    "lm_head_multiplier": (1,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "mlp_only_layers": ([],),
    "n_routed_experts": (0,),
    "no_rope_layer_interval": (),
    "no_rope_layers": ([],),
    "num_experts": (0,),
    "num_experts_per_tok": (0,),
    "num_kv_shared_layers": (0,),
    "num_local_experts": (0,),
    "parallel_attn": (False,),
    "parallel_residual": (False,),
    "post_norm": (False,),
    "q_lora_rank": (),
    "qk_layernorm": (False,),
    "qk_norm": (False,),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "rope_interleave": (False,),
    "rope_interleaved": (False,),
    "rope_local_base_freq": (),
    "rotary_emb_base": (),
    "rotary_pct": (1,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_depth": (),
    "scale_emb": (1,),
    "scale_embedding": (False,),
    "sliding_window": (),
    "sliding_window_pattern": (),
    "text_config": (),
    "use_alibi": (False,),
    "use_cla": (False,),
    "use_mrope": (False,),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
    "vision_config": (),
}

# Keys that say nothing about the forward pass, or whose effect shows in the names of the tensors (biases).
# fmt: off
_BOOKKEEPING = frozenset({
    "_attn_implementation", "_attn_implementation_autoset", "_name_or_path", "architectures",
    "attention_bias", "attention_dropout", "attn_implementation", "auto_map", "bos_token_id",
    "chunk_size_feed_forward", "dtype", "embd_pdrop", "eos_token_id", "hidden_dropout",
    "hidden_dropout_prob", "id2label", "initializer_range", "is_decoder", "is_encoder_decoder",
    "label2id", "max_length", "max_window_layers", "mlp_bias", "model_type", "name", "no_bias",
    "num_labels", "num_return_sequences", "original_max_position_embeddings", "output_attentions",
    "output_hidden_states", "pad_token_id", "partial_rotary_factor", "pretraining_tp", "problem_type",
    "resid_pdrop", "return_dict", "rope_parameters", "rope_scaling", "rope_theta", "sep_token_id",
    "task_specific_params", "tie_word_embeddings", "tokenizer_class", "torch_dtype",
    "transformers_version", "unk_token_id", "use_bfloat16", "use_bias", "use_cache",
    "use_flash_attention", "use_flash_attn",
})
# fmt: on

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def parse_config(config_class: type[C], config: dict[str, Any]) -> C:
    """The dataclass with the values of config.json, its fields named as the file's keys.

    A field `rope_parameters` receives either spelling of the file. Raises CheckpointError for a missing key,
    a value of the wrong type, and a key that changes the mathematics but is no field of the class.
    """
    known = {field.name: field for field in fields(config_class)}  # type: ignore[arg-type]
    _refuse_quantization(config)
    _refuse_unknown(known, config)
    missing = [
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING and config.get(name) is None
    ]
    if missing:
        raise CheckpointError(f"config.json has no {', '.join(missing)}, which {_architecture(config)} needs")
    values = {name: config[name] for name in known if name in config}
    if "rope_parameters" in known:
        values["rope_parameters"] = _rope_parameters(config)
    try:
        return msgspec.convert(values, config_class)
    except msgspec.ValidationError as error:
        raise CheckpointError(f"config.json cannot be used: {error}") from None


def resolve_dtype(config: dict[str, Any], dtype: str) -> torch.dtype:
    """The dtype to run in:

    the option's, or with "auto" that of config.json, or float32 where it names none.
    """
    name = dtype if dtype != "auto" else config.get("dtype") or config.get("torch_dtype") or "float32"
    name = str(name).removeprefix("torch.")
    if name not in _DTYPES:
        raise CheckpointError(
            f"config.json's dtype {name!r} cannot be run; choose one with --dtype: {', '.join(_DTYPES)}"
        )
    return _DTYPES[name]


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures") or ["this architecture"]
    return str(names[0])


def _refuse_quantization(config: dict[str, Any]) -> None:
    quantization = config.get("quantization_config")
    if not quantization:
        return
    method = quantization.get("quant_method", "unknown") if isinstance(quantization, dict) else quantization
    supported = ", ".join(quantizations()) or "none"
    raise CheckpointError(
        f"the checkpoint is quantized with {method!r}, which is not supported by this version; supported: {supported}"
    )


def _refuse_unknown(known: dict[str, Any], config: dict[str, Any]) -> None:
    unknown = []
    for key, value in config.items():
        if key in known or key in _BOOKKEEPING or value is None or key == "quantization_config":
            continue
        if key == "layer_types" and isinstance(value, list) and set(value) <= {"full_attention"}:
            continue
        if key == "sliding_window" and config.get("use_sliding_window") is False:
            continue
        if key == "layer_types" or (key in _MATHEMATICAL and value not in _MATHEMATICAL[key]):
            raise CheckpointError(
                f"config.json sets {key} to {reprlib.repr(value)}, which sophserve's "
                f"{_architecture(config)} does not implement"
            )
        if key not in _MATHEMATICAL:
            unknown.append(key)
    if unknown:
        log.warning("config.json has keys that are not known here and are ignored: %s", ", ".join(sorted(unknown)))


# Keys of rope parameters that repeat others or, with these values, change nothing.
_ROPE_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attn_factor": (1,),
    "extrapolation_factor": (1,),
    "finetuned": (True, False),
}


def _rope_parameters(config: dict[str, Any]) -> dict[str, Any]:
    """One spelling for that of transformers 5 (rope_parameters) and of 4 (rope_theta, rope_scaling)."""
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(given, dict):
        raise CheckpointError(f"config.json's rope_scaling must be an object or null, got {given!r}")
    parameters = {key: value for key, value in given.items() if value is not None}
    old_type = parameters.pop("type", "default")
    parameters.setdefault("rope_type", old_type)
    for key in ("rope_theta", "partial_rotary_factor"):
        if config.get(key) is not None:
            parameters.setdefault(key, config[key])
    longest = config["max_position_embeddings"]
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
