"""What config.json can say of a model at all: refused before anything is made as large as it says. Free of torch: the
server asks before it starts a worker, the worker asks for the keys of its architecture, and both say the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sophserve.errors import CheckpointError

UNGROUPED = ("greedy", "gready")
"""How DeepSeek's routers choose among all experts. The second is how their first files spell the first."""
TOPK_METHODS = (*UNGROUPED, "group_limited_greedy", "noaux_tc")
"""How they choose at all."""
SCORES = ("softmax", "sigmoid")
"""What their routers make of logits."""

_DECODER = ("num_hidden_layers", "vocab_size", "hidden_size", "num_attention_heads", "max_position_embeddings")
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_SPARSE = (*_EXPERTS, "num_experts_per_tok", "moe_intermediate_size", "first_k_dense_replace", "decoder_sparse_step")
_LATENT = ("kv_lora_rank", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_SIZES = (
    *_DECODER, *_SPARSE, *_LATENT, "intermediate_size", "num_key_value_heads", "head_dim", "moe_layer_freq", "n_group",
    "n_shared_experts", "shared_expert_intermediate_size", "topk_group",
)  # fmt: skip
_MAY_BE_0 = {"first_k_dense_replace", "n_shared_experts", "num_experts", "num_local_experts"}
# Several times what any model has. What is made of other sizes in vain takes no time: tensors come from the files.
_MOST = 1 << 24
_MOST_OF = dict.fromkeys(("head_dim", "qk_rope_head_dim"), 1 << 14) | dict.fromkeys(("num_hidden_layers",), 1 << 13)
_MOST_EXPERTS = 1 << 18  # of all layers


def check_sizes(config: Mapping[str, Any], keys: Iterable[str] | None = None) -> None:
    """Raise CheckpointError for a size that no model has. keys: those that the architecture obeys; by default those
    that every architecture does that has them."""
    if keys is None:
        keys = [*_DECODER, *(_SPARSE if config.get("num_experts_per_tok") else ())]
        keys += _LATENT if config.get("kv_lora_rank") else ()
    found = {}
    obeyed = set(keys).intersection(config)
    for key in filter(obeyed.__contains__, _SIZES):
        value, least, most = config[key], 0 if key in _MAY_BE_0 else 1, _MOST_OF.get(key, _MOST)
        if value is None:
            continue
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise CheckpointError(f"config.json's {key} is {value!r}; it must be a whole number from {least} to {most}")
        found[key] = value
    layers = found.get("num_hidden_layers", 1)
    for key in _EXPERTS:
        if found.get(key, 0) * layers > _MOST_EXPERTS:
            raise CheckpointError(
                f"config.json asks for {found[key]} experts ({key}) in {layers} layers; all together can be at most "
                f"{_MOST_EXPERTS}"
            )


def check_word(key: str, value: str, known: Iterable[str]) -> None:
    """Raise CheckpointError unless a key has a value that is known."""
    if value not in known:
        raise CheckpointError(f"config.json's {key} {value!r} is not supported; supported: {', '.join(known)}")


def check_dense_layers(first_dense: int, layers: int) -> None:
    """Raise CheckpointError if more layers are to come before those with experts than there are."""
    if first_dense > layers:
        raise CheckpointError(
            f"config.json's first_k_dense_replace is {first_dense}, but there are only {layers} num_hidden_layers"
        )


def check_chosen(key: str, experts: int, chosen: int, groups: int = 1, kept: int = 1) -> None:
    """Raise CheckpointError if so many experts of a token cannot be in `kept` of the groups. key: that of the count of
    all experts."""
    if experts % groups or kept > groups:
        raise CheckpointError(
            f"config.json's {experts} {key} cannot be chosen in {kept} topk_group of {groups} n_group"
        )
    most = experts // groups * kept
    if chosen > most:
        within = f" in {kept} topk_group" if kept < groups else ""
        raise CheckpointError(
            f"config.json's num_experts_per_tok is {chosen}, but there are only {most} experts{within}"
        )


def check_routing(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError for what a sparse model's config.json says of its router, as far as it says it. Sizes are
    checked before."""
    experts, chosen = config.get("n_routed_experts"), config.get("num_experts_per_tok")
    if experts and chosen:
        method = config.get("topk_method")
        for key, known in (("topk_method", TOPK_METHODS), ("scoring_func", SCORES)):
            if isinstance(config.get(key), str):
                check_word(key, config[key], known)
        groups, kept = (1, 1) if method in UNGROUPED else (config.get("n_group"), config.get("topk_group"))
        if method is not None and groups and kept:
            check_chosen("n_routed_experts", experts, chosen, groups, kept)
        check_dense_layers(config.get("first_k_dense_replace") or 0, config["num_hidden_layers"])
    counts = {config[key] for key in ("num_experts", "num_local_experts") if config.get(key)}
    if chosen and len(counts) == 1:
        check_chosen("num_experts", counts.pop(), chosen)
