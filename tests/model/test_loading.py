"""What can be wrong with a checkpoint is said in one sentence; what is right is read shard by shard."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from device.cmodel.device import CmodelDevice
from device.collectives.interface import SingleRank
from device.interface import CacheSpec
from model_plugins.architectures.llama import LlamaForCausalLM
from model_plugins.architectures.qwen2 import Qwen2ForCausalLM
from sophserve.errors import CheckpointError, ConfigError
from sophserve.model import loading
from sophserve.model.context import ModelContext
from sophserve.model.kv_memory import token_bytes
from sophserve.model.layers import CachedModule, Linear, PackedModule
from sophserve.model.loading import find_architecture, load_model
from sophserve.model.quantization import WeightPart
from sophserve.plugins import Registered

ROOT = Path(__file__).parents[2]
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"


@pytest.fixture
def copy_checkpoint(make_checkpoint, tmp_path):
    """A copy that a test may damage: `copy_checkpoint("llama", config_changes, tensor_changes)`."""

    def copy(kind, config=None, tensors=None, **overrides):
        source = make_checkpoint(kind, **overrides)
        for file in source.iterdir():
            (tmp_path / file.name).write_bytes(file.read_bytes())
        if config:
            changed = json.loads((source / "config.json").read_text()) | config
            (tmp_path / "config.json").write_text(json.dumps(changed))
        if tensors:
            changed = load_file(source / "model.safetensors") | tensors
            kept = {name: tensor for name, tensor in changed.items() if tensor is not None}
            save_file(kept, tmp_path / "model.safetensors")
        return tmp_path

    return copy


@pytest.fixture
def load(make_context):
    def load_(directory, model_class=LlamaForCausalLM, **options):
        return load_model(directory, make_context(**options), model_class=model_class)

    return load_


def test_progress_counts_every_byte(make_checkpoint, make_context):
    directory = make_checkpoint("llama")
    seen = []
    load_model(directory, make_context(), lambda *bytes_: seen.append(bytes_), model_class=LlamaForCausalLM)
    total = sum(tensor.nbytes for tensor in load_file(directory / "model.safetensors").values())
    assert seen[-1] == (total, total)
    assert seen == sorted(seen) and len(seen) > 10


def test_a_tied_head_that_is_stored_as_well_is_used_where_it_differs(copy_checkpoint, load, caplog):
    directory = copy_checkpoint("llama", {"tie_word_embeddings": True})
    stored = load_file(directory / "model.safetensors")
    assert torch.equal(load(directory).head.weight.values, stored["lm_head.weight"])
    assert "the files hold another head, which is used" in caplog.text
    caplog.clear()
    same = {"lm_head.weight": stored["model.embed_tokens.weight"].clone()}
    model = load(copy_checkpoint("llama", {"tie_word_embeddings": True}, tensors=same))
    assert model.tied and not caplog.text


def test_a_tied_weight_is_held_once(copy_checkpoint, load):
    directory = copy_checkpoint("llama", {"tie_word_embeddings": True}, tensors={"lm_head.weight": None})
    tied, plain = load(directory), load(copy_checkpoint("llama"))
    assert plain.nbytes - tied.nbytes == plain.embedding.weight.nbytes


def test_a_tied_weight_that_is_missing_is_named_as_in_the_file(copy_checkpoint, load):
    names = {"lm_head.weight": None, "model.embed_tokens.weight": None}
    with pytest.raises(CheckpointError, match=r"it lacks model\.embed_tokens\.weight$"):
        load(copy_checkpoint("llama", {"tie_word_embeddings": True}, tensors=names))


def test_tables_of_old_checkpoints_are_ignored(copy_checkpoint, load):
    extra = {"model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(8), "model.rotary_emb.inv_freq": torch.ones(8)}
    assert load(copy_checkpoint("llama", tensors=extra)).vocab_size == 512


def test_missing_and_unexpected_tensors_are_listed(copy_checkpoint, load):
    stray = torch.ones(2)
    directory = copy_checkpoint("llama", tensors={Q_PROJ: None, "model.norm.weight": None, "model.norm.extra": stray})
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    assert str(caught.value) == (
        f"{directory} does not fit LlamaForCausalLM: it lacks {Q_PROJ}, model.norm.weight; "
        "it has model.norm.extra, which the model does not know"
    )


def test_long_lists_are_cut(copy_checkpoint, load):
    directory = copy_checkpoint("llama", {"num_hidden_layers": 5})
    with pytest.raises(CheckpointError, match=r"model.layers.3.input_layernorm.weight.* and 8 more$"):
        load(directory)


def test_layers_beyond_the_config_are_unexpected(copy_checkpoint, load):
    with pytest.raises(CheckpointError, match=r"it has model.layers.2.input_layernorm.weight"):
        load(copy_checkpoint("llama", {"num_hidden_layers": 2}))


def test_biases_that_the_config_denies_are_unexpected(copy_checkpoint, load):
    directory = copy_checkpoint("llama", {"attention_bias": False}, attention_bias=True)
    with pytest.raises(CheckpointError, match=r"it has model.layers.0.self_attn.k_proj.bias"):
        load(directory)


def test_wrong_shape_names_both(copy_checkpoint, load):
    directory = copy_checkpoint("llama", {"intermediate_size": 97})
    with pytest.raises(CheckpointError, match=r"gate_proj.weight in .* shape \[96, 64\], but .* \[97, 64\]"):
        load(directory)


def test_quantized_tensor_is_refused(copy_checkpoint, load):
    directory = copy_checkpoint("llama", tensors={Q_PROJ: torch.zeros(64, 64, dtype=torch.int8)})
    with pytest.raises(CheckpointError, match=f"{Q_PROJ} in .* is stored as I8"):
        load(directory)


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, -1])
def test_truncated_file(copy_checkpoint, load, keep):
    directory = copy_checkpoint("llama")
    file = directory / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(CheckpointError, match=r"model.safetensors is truncated or not a safetensors file"):
        load(directory)


def test_file_of_noise(copy_checkpoint, load):
    directory = copy_checkpoint("llama")
    (directory / "model.safetensors").write_bytes(bytes(range(256)) * 10)
    with pytest.raises(CheckpointError, match="truncated or not a safetensors file"):
        load(directory)


def test_index_naming_a_missing_file(copy_checkpoint, load):
    directory = copy_checkpoint("llama", max_shard_size="100KB")
    (directory / "model-00002-of-00006.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks model-00002-of-00006.safetensors, which model.safetensors.index"):
        load(directory)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}'])
def test_broken_index(copy_checkpoint, load, content):
    directory = copy_checkpoint("llama", max_shard_size="100KB")
    (directory / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"model.safetensors.index.json"):
        load(directory)


def test_shards_without_an_index(copy_checkpoint, load, make_checkpoint):
    directory = copy_checkpoint("llama", max_shard_size="100KB")
    (directory / "model.safetensors.index.json").unlink()
    (directory / "consolidated.safetensors").write_bytes(b"the same in another format")
    for ours, theirs in zip(load(directory).modules(), load(make_checkpoint("llama")).modules(), strict=True):
        if isinstance(ours, Linear):
            assert torch.equal(ours.weight.values, theirs.weight.values)


def test_tensor_in_two_shards(copy_checkpoint, load):
    directory = copy_checkpoint("llama", max_shard_size="100KB")
    (directory / "model.safetensors.index.json").unlink()
    first = directory / "model-00001-of-00006.safetensors"
    (directory / "model-00009-of-00006.safetensors").write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="is in both"):
        load(directory)


def test_unknown_keys_are_named_in_one_warning(copy_checkpoint, load, caplog):
    with caplog.at_level(logging.WARNING):
        load(copy_checkpoint("llama", {"zebra": 1}))
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["config.json has keys that are not known here and are ignored: zebra"]


def test_device_without_an_operator(make_checkpoint, make_context):
    context = make_context()
    context.device.operators = frozenset({"embedding", "linear", "rms_norm", "sample", "gated_mlp"})
    with pytest.raises(ConfigError, match="LlamaForCausalLM needs paged_attention, which device cmodel does not have"):
        load_model(make_checkpoint("llama"), context, model_class=LlamaForCausalLM)


def test_architecture_is_found_by_name_or_the_supported_are_listed(monkeypatch):
    known = {"Qwen2ForCausalLM": Registered("Qwen2ForCausalLM", Qwen2ForCausalLM, "sophserve")}
    monkeypatch.setattr(loading, "architectures", lambda: known)
    assert find_architecture({"architectures": ["Qwen2ForCausalLM"]}) is Qwen2ForCausalLM
    with pytest.raises(CheckpointError, match=r"GPT2LMHeadModel is not .*; supported: Qwen2ForCausalLM"):
        find_architecture({"architectures": ["GPT2LMHeadModel"]})
    for config in ({}, {"architectures": []}, {"architectures": None}):
        with pytest.raises(CheckpointError, match="has no architectures"):
            find_architecture(config)


class Rank(SingleRank):
    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size


@pytest.mark.parametrize(
    ("ranks", "message"),
    [
        (3, "4 attention heads of 16 channels cannot be split between 3 ranks"),
        (8, "4 attention heads of 16 channels cannot be split between 8 ranks"),
    ],
)
def test_ranks_that_do_not_divide_are_refused_with_those_that_do(make_checkpoint, make_context, ranks, message):
    context = make_context(Rank(0, ranks))
    with pytest.raises(ConfigError, match=f"{message}; --tensor-parallel-size can be 1, 2, 4 for this model"):
        load_model(make_checkpoint("llama"), context, model_class=LlamaForCausalLM)


class Experts(PackedModule):
    """Stands for what an architecture brings of its own."""


class OwnAttention(CachedModule):
    cache = CacheSpec(1, (12, 4), torch.float32, replicated=True)


class OwnParts(LlamaForCausalLM):
    def make_layer(self, index):
        layer, config = super().make_layer(index), self.config
        whole = slice(0, config.hidden_size), slice(0, config.intermediate_size)
        part = WeightPart((config.hidden_size, config.intermediate_size), *whole)
        layer.mlp.down = Experts(self.context, {"": part}, "down")
        layer.attention.attention = OwnAttention()
        return layer


def test_what_an_architecture_brings_is_packed_and_cached_like_all_else(make_checkpoint, tmp_path):
    context = ModelContext(CmodelDevice(), SingleRank(), torch.float32, max_positions=128)
    directory = make_checkpoint("llama")
    own, plain = (
        load_model(directory, context, model_class=each, quantization="gptq", cache_dir=str(tmp_path / each.__name__))
        for each in (OwnParts, LlamaForCausalLM)
    )
    assert own.nbytes == plain.nbytes and own.token_flops == plain.token_flops
    assert token_bytes(own) == len(own.layers) * 16 * 4


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_hold_the_parts_of_the_whole(make_checkpoint, make_context, load, ranks):
    """4 heads, 2 kv heads: two ranks split both, four ranks share a kv head by twos. 511 tokens do not divide."""
    directory = make_checkpoint("llama", attention_bias=True, mlp_bias=True, vocab_size=511)
    whole = load(directory)
    parts = [load(directory, communicator=Rank(rank, ranks)) for rank in range(ranks)]
    layers = [part.layers[1] for part in parts]
    layer = whole.layers[1]
    q, k, v = layer.attention.qkv.weight.values.split([64, 32, 32])
    split = [part.attention.qkv.weight.values.split(part.attention.qkv.part_sizes) for part in layers]
    assert torch.equal(torch.cat([part[0] for part in split]), q)
    each = 4 // ranks
    for own, full in ((1, k), (2, v)):
        for rank, part in enumerate(split):
            first = rank * 2 // ranks * 16
            assert torch.equal(part[own], full[first : first + 16 * max(each // 2, 1)])
    caches = [part.attention.attention.cache for part in layers]
    assert {cache.heads for cache in caches} == {max(2 // ranks, 1)}
    assert {cache.replicated for cache in caches} == {ranks > 2}
    assert {cache.token_bytes for cache in caches} == {max(2 // ranks, 1) * 2 * 16 * 4}
    assert {part.attention.attention.pair_flops for part in layers} == {4 // ranks * 4 * 16}
    outputs = torch.cat([part.attention.output.weight.values for part in layers], dim=1)
    assert torch.equal(outputs, layer.attention.output.weight.values)
    assert torch.equal(layers[0].attention.output.bias, layer.attention.output.bias)
    assert all(part.attention.output.bias is None for part in layers[1:])
    gates, ups = zip(*(part.mlp.gate_up.weight.values.chunk(2) for part in layers), strict=True)
    assert torch.equal(torch.cat(gates + ups), layer.mlp.gate_up.weight.values)
    assert torch.equal(torch.cat([part.embedding.weight.values for part in parts]), whole.embedding.weight.values)
    heads = torch.cat([part.head.weight.values for part in parts])
    assert torch.equal(heads[:511], whole.head.weight.values) and not heads[511:].any()


MEASURE = """
import sys
from pathlib import Path
import torch
from device.cmodel.device import CmodelDevice
from device.collectives.interface import SingleRank
from sophserve.checkpoint import read_config
from sophserve.model.context import ModelContext
from sophserve.model.loading import find_architecture, load_model

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

torch.ones(100, 100).bfloat16() @ torch.ones(100, 100).bfloat16()
layers = range(*map(int, sys.argv[3:])) if sys.argv[3:] else None
context = ModelContext(CmodelDevice(), SingleRank(), getattr(torch, sys.argv[2]), 128, layers=layers)
model_class = find_architecture(read_config(Path(sys.argv[1])))
before = status("VmRSS")
model = load_model(Path(sys.argv[1]), context, model_class=model_class)
print(model.nbytes, status("VmHWM") - before)
"""


BIG = {"hidden_size": 512, "intermediate_size": 4096, "num_hidden_layers": 8, "vocab_size": 16384}
MANY = {"hidden_size": 256, "moe_intermediate_size": 512, "num_experts": 32, "num_hidden_layers": 5}


# Elements of the largest leaf.
LARGEST = {"qwen2": 2 * 4096 * 512, "qwen3_moe": 3 * 32 * 256 * 512}


@pytest.mark.parametrize(
    ("kind", "shape", "stored"),
    [
        ("qwen2", BIG, "bfloat16"),
        ("qwen3_moe", MANY, "float32"),
        pytest.param("qwen2", BIG, "float32", marks=pytest.mark.slow),
        pytest.param("qwen3_moe", MANY, "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_peak_memory_is_the_model_and_one_leaf(make_checkpoint, kind, shape, stored):
    """A leaf, such as all experts of a layer, is read at once; of the numbers that it is packed of, only a few."""
    directory = make_checkpoint(kind, dtype=stored, max_shard_size="40MB", **shape)
    command = [sys.executable, "-c", MEASURE, str(directory), "bfloat16"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    size, peak = map(int, done.stdout.split())
    assert size > 100 * 2**20
    assert peak < size + LARGEST[kind] * getattr(torch, stored).itemsize + 8 * 2**20


def test_a_stage_reads_its_layers_alone(make_checkpoint):
    directory = make_checkpoint("qwen2", dtype="float32", max_shard_size="40MB", **BIG)
    command = [sys.executable, "-c", MEASURE, str(directory), "bfloat16", "2", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    size, peak = map(int, done.stdout.split())
    assert 20 * 2**20 < size < 40 * 2**20
    assert peak < size + 4 * LARGEST["qwen2"] + 8 * 2**20
