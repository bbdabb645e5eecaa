"""The shipped models are found by name, are whole, and small."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
import transformers
from safetensors import safe_open

from sophserve import LLM, SamplingParams
from sophserve.checkpoint import SHIPPED, resolve_model
from sophserve.reorder_cache import cache_directory

MIB = 2**20


@pytest.mark.parametrize("name", SHIPPED)
def test_found_and_whole(name: str) -> None:
    directory = resolve_model(name)
    assert directory == SHIPPED[name]
    files = {path.name for path in directory.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= files
    assert sum(path.stat().st_size for path in directory.iterdir()) < 10 * MIB
    # What another user installed must be readable to those who serve it.
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in directory.iterdir())


def test_a_directory_of_that_name_is_given_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "config.json").write_text("{}")
    (tmp_path / "demo" / "tokenizer.json").write_text("{}")
    (tmp_path / "demo" / "model.safetensors").write_text("")
    monkeypatch.chdir(tmp_path)
    assert resolve_model("demo") == SHIPPED["demo"]
    assert resolve_model("./demo").resolve() == tmp_path / "demo"


def test_packed_weights_are_kept_in_the_cache_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory(resolve_model("demo-gptq"), None) == tmp_path / "sophserve" / "demo-gptq"
    assert cache_directory(resolve_model("demo-gptq"), "/x") == Path("/x/demo-gptq")
    assert cache_directory(Path("/data/demo-gptq"), None) == Path("/data/.reorder_cache/demo-gptq")


def test_the_gptq_form_is_the_demo_model_in_four_bits() -> None:
    config = json.loads((SHIPPED["demo-gptq"] / "config.json").read_text())
    assert config["quantization_config"]["bits"] == 4
    with (
        safe_open(SHIPPED["demo"] / "model.safetensors", "pt") as plain,
        safe_open(SHIPPED["demo-gptq"] / "model.safetensors", "pt") as packed,
    ):
        for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.0.self_attn.q_proj.bias"):
            assert torch.equal(plain.get_tensor(name).float(), packed.get_tensor(name).float()), name


def test_transformers_says_the_same() -> None:
    questions = ["What is sophserve?", "What is 7 plus 5?", "Tell me a story about a cat and a boat.", "你好"]
    chats = [[{"role": "user", "content": question}] for question in questions]
    params = SamplingParams(temperature=0, max_tokens=60)
    with LLM(model="demo", dtype="float32", kv_cache_memory="64MiB") as llm:
        ours = [list(output.outputs[0].token_ids) for output in llm.chat(chats, params, use_tqdm=False)]
    directory = os.fspath(SHIPPED["demo"])
    model = transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    for chat, tokens in zip(chats, ours, strict=True):
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        answer = model.generate(**prompt, do_sample=False, max_new_tokens=60, temperature=None, top_p=None)
        theirs = answer[0, prompt["input_ids"].shape[1] :].tolist()
        end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        assert [token for token in theirs if token != end] == [token for token in tokens if token != end]
