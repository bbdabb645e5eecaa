"""What every folder of tests shares: tiny random checkpoints in the real on-disk format, and the real command."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import OpenAI

# arcee comes from the package of docs/writing-a-model-plugin.md.
ARCHITECTURES = {
    "arcee": "Arcee",
    "deepseek_v2": "DeepseekV2",
    "deepseek_v3": "DeepseekV3",
    "llama": "Llama",
    "mistral": "Mistral",
    "qwen2": "Qwen2",
    "qwen2_5_vl": "Qwen2_5_VL",
    "qwen2_moe": "Qwen2Moe",
    "qwen3": "Qwen3",
    "qwen3_moe": "Qwen3Moe",
}

SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    # Far above the usual 0.02: the most probable token then wins by more than rounding errors.
    "initializer_range": 0.2,
}

QWEN_EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 32}

# Of the two ways that something can be, the less usual one: a dense layer first, groups of experts, scaled weights.
DEEPSEEK = {
    "num_key_value_heads": 4,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
}

SHAPES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {**QWEN_EXPERTS, "shared_expert_intermediate_size": 48, "num_hidden_layers": 2},
    "qwen3_moe": {**QWEN_EXPERTS, "head_dim": 16, "norm_topk_prob": True, "num_hidden_layers": 2},
    "deepseek_v2": {
        **DEEPSEEK,
        "n_shared_experts": 2,
        "topk_method": "group_limited_greedy",
        "routed_scaling_factor": 1.5,
    },
    "deepseek_v3": {
        **DEEPSEEK,
        "n_shared_experts": 1,
        "routed_scaling_factor": 2.5,
        "num_nextn_predict_layers": 0,  # transformers says 1, and writes none
    },
    "qwen2_5_vl": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}},
}
"""What some kinds have beyond SHAPE."""

TOWERS = {
    # Windows of four squares, which borders of images cut, and one layer without.
    "qwen2_5_vl": {
        "depth": 3,
        "hidden_size": 64,
        "intermediate_size": 72,
        "num_heads": 4,
        "window_size": 56,
        "fullatt_block_indexes": [1],
        "initializer_range": 0.2,
    },
}
"""The vision_config of kinds that see. SHAPES has what their text has beyond SHAPE."""

IMAGE_TOKENS = {
    "qwen2_5_vl": {
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
    },
}
"""Tokens that their tokenizers have behind SPECIAL_TOKENS, by the keys of config.json for them."""

IMAGE_PROCESSORS = {"qwen2_5_vl": "Qwen2VLImageProcessorPil"}
"""By whose class transformers processes their images."""

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

CHAT_TEMPLATE = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

QWEN_IMAGES = """\
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' }}
{%- if message['content'] is string %}{{- message['content'] }}
{%- else %}
{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}
{%- else %}{{- part['text'] }}{%- endif %}
{%- endfor %}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

IMAGE_TEMPLATES = {"qwen2_5_vl": QWEN_IMAGES}
"""The chat templates of kinds that see."""

TEXTS = [
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "A server takes requests, puts them into batches, and gives back one token after the other.",
    "def add(left, right):\n    return left + right\n\n\nprint(add(2, 3))\n",
    "人工智能正在改变世界。今天天气很好，我们去公园散步吧。",
    "Numbers: 0, 1, 2, 3, 10, 42, 100, 1024, 65536; and signs: !?.,:;()[]{}<>",
    "Où est la bibliothèque ? Straße, naïve, façade, señor. 🙂🚀👩‍💻",
] * 4


gc.disable()  # until all is imported: collections of modules find nothing

LONG_FILES = ("test_commands.py", "test_readme_commands.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that no process is left with one at the end. Those come last that load
    the chip's emulator, for it keeps a core busy from then on."""
    items.sort(key=lambda item: (item.path.parent.name == "tpuv7", item.path.name not in LONG_FILES))


def pytest_collection_finish() -> None:
    """Each full collection would walk through all that the tests have imported, a third of a second long."""
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Servers and chats of tests keep nothing among what the user keeps, and find nothing there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session")
def make_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`make_checkpoint("qwen2", **config overrides)`: a directory with random float32 weights and a tokenizer.

    Also takes dtype="bfloat16" and max_shard_size="50KB". Equal calls in one session give the same directory, which
    tests must not change. Of kinds that see, overrides are the text's but for vision_config and tie_word_embeddings.
    """
    made: dict[str, Path] = {}

    def make(kind: str = "qwen2", *, dtype: str = "float32", max_shard_size: str = "1GB", **overrides: Any) -> Path:
        key = json.dumps([kind, dtype, max_shard_size, overrides], sort_keys=True)
        if key not in made:
            directory = tmp_path_factory.mktemp(kind)
            save_tokenizer(directory, list(IMAGE_TOKENS.get(kind, {}).values()), IMAGE_TEMPLATES.get(kind))
            _save_model(directory, kind, dtype, max_shard_size, overrides)
            made[key] = directory
        return made[key]

    return make


def _save_model(directory: Path, kind: str, dtype: str, max_shard_size: str, overrides: dict[str, Any]) -> None:
    import torch
    import transformers

    name = ARCHITECTURES[kind]
    ids = {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 0}
    settings = {"vocab_size": 512, **SHAPE, **SHAPES.get(kind, {}), **ids, **overrides}
    if kind in TOWERS:
        vision, tied = settings.pop("vision_config", {}), settings.pop("tie_word_embeddings", False)
        tokens = {key: len(SPECIAL_TOKENS) + place for place, key in enumerate(IMAGE_TOKENS[kind])}
        vision = TOWERS[kind] | {"out_hidden_size": settings["hidden_size"]} | vision
        settings = {"text_config": settings, "vision_config": vision, "tie_word_embeddings": tied, **ids, **tokens}
    config = getattr(transformers, f"{name}Config")(**settings)
    torch.manual_seed(0)
    head = "ForConditionalGeneration" if kind in TOWERS else "ForCausalLM"
    model = getattr(transformers, f"{name}{head}")(config)
    for part, tensor in model.state_dict().items():
        if tensor.ndim == 1:
            # Norms are made as ones and biases as zeros, which would hide a mistake with them.
            tensor += 0.2 * torch.randn_like(tensor)
        elif part.endswith(".gate.weight"):
            # Experts whose probabilities are far apart, for whom rounding errors change no choice.
            tensor *= 2
    model.to(getattr(torch, dtype)).save_pretrained(directory, max_shard_size=max_shard_size)
    if kind in IMAGE_PROCESSORS:
        getattr(transformers, IMAGE_PROCESSORS[kind])().save_pretrained(directory)
    generation = {"eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": True, "temperature": 0.7, "top_p": 0.8}
    (directory / "generation_config.json").write_text(json.dumps(generation))
    gc.freeze()  # what was imported here, too


def save_tokenizer(directory: Path, special: list[str] | None = None, template: str | None = None) -> None:
    """tokenizer.json and tokenizer_config.json, with further special tokens and another chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=SPECIAL_TOKENS + (special or []), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "model_max_length": 256,
        "clean_up_tokenization_spaces": False,
        "chat_template": template or CHAT_TEMPLATE,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def make_seeing_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`make_seeing_checkpoint("qwen2_5_vl")`: as make_checkpoint, of a model that sees; also "llava_next"."""
    from tests.seeing import save_seeing_checkpoint

    @cache
    def make(kind: str) -> Path:
        directory = tmp_path_factory.mktemp(kind)
        save_seeing_checkpoint(directory, kind)
        return directory

    return make


@pytest.fixture(scope="session")
def write_page() -> Callable[[str, Path], None]:
    """`write_page("docs/x.md", directory)` writes the files that a page shows, in fences such as ```python name.py. The
    pieces of a file are put together in the order of the page."""

    def write(page: str, directory: Path) -> None:
        files: dict[str, list[str]] = {}
        for name, code in re.findall(r"^```\w+ (\S+)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S):
            files.setdefault(name, []).append(code)
        assert files, f"{page} shows no files"
        for name, pieces in files.items():
            (directory / name).write_text("\n\n".join(pieces))

    return write


class Server:
    """`sophserve` in a process of its own, on a free port. Its log goes to `log`."""

    def __init__(self, *options: str, environment: dict[str, str] | None = None, cwd: Path | None = None) -> None:
        self.log: list[str] = []
        self._address = threading.Event()
        self._ready = threading.Event()
        self.url = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sophserve", "--port", "0", "--served-model-name", "tiny", *options],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | (environment or {}),
            cwd=cwd,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if match := re.search(r"http://localhost:\d+", line):
                self.url = match.group()
                self._address.set()
            if "ready: " in line:
                self._ready.set()
        self._address.set()
        self._ready.set()

    def wait_until_listening(self) -> None:
        assert self._address.wait(20) and self.url, "".join(self.log)

    def wait_until_ready(self) -> None:
        assert self._ready.wait(60) and self.process.poll() is None, "".join(self.log)

    @property
    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def stop(self, with_signal: int = signal.SIGTERM, timeout: float = 20) -> int:
        if self.process.poll() is None:
            self.process.send_signal(with_signal)
        status = self.process.wait(timeout)
        self._reader.join(5)
        return status


@pytest.fixture(scope="session")
def server_class() -> type[Server]:
    """For servers that several tests share; their fixture stops them."""
    return Server


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """`start_server(directory, *options)`: a server that is ready, stopped after the test."""
    servers = []

    def start(directory: Path, *options: str, ready: bool = True, **more: Any) -> Server:
        server = Server("--model", str(directory), *options, **more)
        servers.append(server)
        if ready:
            server.wait_until_ready()
        return server

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()
