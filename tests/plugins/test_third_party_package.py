"""The package of docs/writing-a-model-plugin.md, which sophserve knows nothing of, adds an architecture and parsers."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]

GENERATE = """
import json, sys
from sophserve import LLM, SamplingParams

if __name__ == "__main__":
    prompts = json.loads(sys.argv[2])
    with LLM(sys.argv[1]) as llm:
        results = llm.generate(prompts, SamplingParams(temperature=0, max_tokens=32, ignore_eos=True), use_tqdm=False)
    print(json.dumps([list(result.outputs[0].token_ids) for result in results]))
"""

REGISTERED = """
import json
from sophserve.plugins import architectures

print(json.dumps({name: found.distribution for name, found in architectures().items()}))
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory, write_page):
    """Environment variables of a process that has the package installed."""
    if not (importlib.util.find_spec("pip") and importlib.util.find_spec("setuptools")):
        pytest.skip("needs pip and setuptools")
    source = tmp_path_factory.mktemp("source")
    write_page("docs/writing-a-model-plugin.md", source)
    target = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, "--target", target, source], check=True)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(target), str(ROOT), os.environ.get("PYTHONPATH", "")])}


def run(code, tmp_path, environment, *arguments):
    # A file, because worker processes import the main module again.
    script = tmp_path / "script.py"
    script.write_text(code)
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_is_registered_once_installed(environment, tmp_path):
    assert run(REGISTERED, tmp_path, environment)["ArceeForCausalLM"] == "sophserve-arcee"
    assert "ArceeForCausalLM" not in run(REGISTERED, tmp_path, os.environ | {"PYTHONPATH": str(ROOT)})


def test_it_is_served_with_its_parsers(environment, make_checkpoint, start_server, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{# <function= </thought> #}{{ messages[0].content }}")
    model = make_checkpoint("arcee", max_position_embeddings=1024)
    server = start_server(
        model, "--chat-template", str(template), environment={"PYTHONPATH": environment["PYTHONPATH"]}
    )
    client = server.client()
    assert client.get("/../server_info", cast_to=dict)["parsers"] == {
        "tool_calls": "function_tag",
        "reasoning": "thought",
    }
    parameters = {"type": "object", "properties": {"a": {"enum": ["é", 2]}}, "required": ["a"]}
    parameters["additionalProperties"] = False
    function = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    fields = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "tools": [function]}
    forced = {"type": "function", "function": {"name": "f"}}
    for seed in range(3):
        message = client.chat.completions.create(**fields, tool_choice=forced, seed=seed).choices[0].message
        [call] = message.tool_calls
        assert call.function.name == "f" and json.loads(call.function.arguments)["a"] in ("é", 2)


def test_names_that_are_not_installed(environment, make_checkpoint):
    command = [sys.executable, "-m", "sophserve", "--model", str(make_checkpoint()), "--tool-call-parser", "xml"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "function_tag, hermes" in done.stderr


def test_it_is_listed(environment):
    command = [sys.executable, "-m", "sophserve", "plugins"]
    listed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    _, parsers = listed.split("tool parsers:\n")
    assert parsers.split()[:6] == ["deepseek_v3", "from", "sophserve", "function_tag", "from", "sophserve-arcee"]
    assert parsers.split()[-3:] == ["thought", "from", "sophserve-arcee"]


@pytest.mark.parametrize("bias", [False, True])
def test_its_model_equals_transformers(environment, make_checkpoint, tmp_path, bias):
    from transformers import AutoModelForCausalLM, GenerationConfig

    directory = make_checkpoint("arcee", attention_bias=bias, mlp_bias=bias)
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(3, 512, (length,), generator=generator).tolist() for length in (1, 9, 50)]
    theirs = AutoModelForCausalLM.from_pretrained(directory)
    theirs.generation_config = GenerationConfig(max_new_tokens=32, do_sample=False, pad_token_id=0)
    expected = [theirs.generate(torch.tensor([prompt]))[0, len(prompt) :].tolist() for prompt in prompts]
    assert run(GENERATE, tmp_path, environment, str(directory), json.dumps(prompts)) == expected
