import json
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest

from sophserve.checkpoint import (
    end_token_ids,
    read_config,
    read_generation_config,
    read_pooling,
    read_preprocessor_config,
    resolve_model,
)
from sophserve.errors import CheckpointError

ROOT = Path(__file__).parents[2]
FILES = ("config.json", "model.safetensors", "tokenizer.json")


@pytest.fixture
def directory(tmp_path):
    def make(*names):
        for name in names:
            (tmp_path / name).write_text("{}")
        return tmp_path

    return make


@pytest.mark.parametrize(
    "files",
    [
        FILES,
        ("config.json", "model.safetensors.index.json", "tokenizer.model"),
        ("config.json", "model-00001-of-00001.safetensors", "tokenizer.json", "tokenizer.model"),
    ],
)
def test_directory_with_a_checkpoint(directory, files):
    path = directory(*files)
    assert resolve_model(str(path)) == path


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "has no config.json"),
        (("model.safetensors", "tokenizer.json"), "has no config.json"),
        (
            ("config.json", "tokenizer.json"),
            r"has no \*.safetensors file \(see \S+#no-safetensors\)$",
        ),
        (("config.json", "tokenizer.json", "pytorch_model.bin"), r"its \*.bin files cannot be served"),
        (("config.json", "tokenizer.json", "model.Q4_0.gguf"), r"its \*.gguf files cannot be served"),
        (("config.json", "model.safetensors"), "has no tokenizer.json, no tokenizer.model and no vocab.json"),
    ],
)
def test_missing_file_is_named(directory, files, message):
    with pytest.raises(CheckpointError, match=message):
        resolve_model(str(directory(*files)))


def test_home_directory_is_expanded(directory, monkeypatch):
    path = directory(*FILES)
    monkeypatch.setenv("HOME", str(path.parent))
    assert resolve_model(f"~/{path.name}") == path


def test_file_instead_of_a_directory(directory):
    with pytest.raises(CheckpointError, match="is a file; give the directory that holds it"):
        resolve_model(str(directory("model.gguf") / "model.gguf"))


@pytest.mark.parametrize("model", ["/no/such/place", "nowhere", "a/b/c", "../x", ""])
def test_nothing_there_is_not_looked_up_on_the_hub(model, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the Hub"))
    monkeypatch.chdir(ROOT)
    with pytest.raises(CheckpointError, match=r"there is no directory|is not a checkpoint"):
        resolve_model(model)


def test_hub_id_is_downloaded_without_what_is_not_needed(directory, monkeypatch):
    path = directory(*FILES)
    asked = {}

    def download(repo_id, **options):
        asked.update(options, repo_id=repo_id)
        return str(path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve_model("org/tiny-model_1.0") == path
    assert asked["repo_id"] == "org/tiny-model_1.0"
    wanted = huggingface_hub.utils.filter_repo_objects(
        [
            "config.json",
            "model-00001-of-00002.safetensors",
            "model.safetensors.index.json",
            "tokenizer.model",
            "chat_template.jinja",
            "consolidated.safetensors",
            "original/params.json",
            "onnx/model.safetensors",
            "1_Pooling/config.json",
            "1_Pooling/model.safetensors",
            "1B/model.safetensors",
            "2_Dense/config.json",
            "pytorch_model.bin",
            "README.md",
        ],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(wanted) == [
        "config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "tokenizer.model",
        "chat_template.jinja",
        "1_Pooling/config.json",
    ]


def test_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    """The real client, in a process of its own, because it reads its settings when it is imported."""
    code = (
        "from sophserve.checkpoint import resolve_model\n"
        "from sophserve.errors import CheckpointError\n"
        "try: resolve_model('org/no-such-model')\n"
        "except CheckpointError as error: print(error)\n"
    )
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("there is no directory org/no-such-model, and the model cannot be downloaded")
    assert len(done.stdout.splitlines()) == 1


def test_other_failures_of_the_hub_are_one_sentence(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("strange\nthings\nhappened")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError) as caught:
        resolve_model("org/model")
    assert str(caught.value) == "cannot download org/model from the Hub: RuntimeError: strange"


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff"])
def test_broken_config(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config.json (is not valid JSON|must hold a JSON object)"):
        read_config(tmp_path)


def test_config_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read .*config.json: No such file"):
        read_config(tmp_path)


def test_generation_config(tmp_path):
    assert read_generation_config(tmp_path) == {}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    assert read_generation_config(tmp_path) == {"eos_token_id": [1, 2]}


def test_torch_is_not_imported():
    code = "import sophserve.checkpoint, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_pooling(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == "last"
    path = tmp_path / "1_Pooling" / "config.json"
    path.parent.mkdir()
    for config, pooling in (
        ({"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": False}, "last"),
        ({"pooling_mode_mean_tokens": True, "word_embedding_dimension": 64}, "mean"),
        ({"word_embedding_dimension": 64}, "last"),
    ):
        path.write_text(json.dumps(config))
        assert read_pooling(tmp_path) == pooling
    for config in (
        {"pooling_mode_cls_token": True},
        {"pooling_mode_lasttoken": True, "pooling_mode_mean_tokens": True},
    ):
        path.write_text(json.dumps(config))
        with pytest.raises(CheckpointError, match="--pooling last or mean"):
            read_pooling(tmp_path)


def test_how_images_are_processed_is_found_where_transformers_finds_it(tmp_path):
    """transformers 4 writes a file of its own; 5 writes the processor's, whose part goes before it."""
    assert read_preprocessor_config(tmp_path) == {}
    (tmp_path / "preprocessor_config.json").write_text('{"patch_size": 14}')
    assert read_preprocessor_config(tmp_path) == {"patch_size": 14}
    processor = tmp_path / "processor_config.json"
    processor.write_text('{"processor_class": "LlavaNextProcessor", "patch_size": 16}')
    assert read_preprocessor_config(tmp_path) == {"patch_size": 14}
    processor.write_text('{"image_processor": {"patch_size": 15}}')
    assert read_preprocessor_config(tmp_path) == {"patch_size": 15}
    processor.write_text('{"image_processor": 3}')
    with pytest.raises(CheckpointError, match="image_processor must be an object, got 3"):
        read_preprocessor_config(tmp_path)


def test_a_decoder_within_a_model_is_read_like_any_other(tmp_path):
    """text_config has the decoder's keys; what is said of the whole model stands above it."""

    def read(**config):
        (tmp_path / "config.json").write_text(json.dumps(config))
        return read_config(tmp_path)

    text = {"hidden_size": 64, "model_type": "llama", "dtype": "float32", "tie_word_embeddings": True}
    config = read(architectures=["A"], model_type="b", torch_dtype="float16", hidden_size=1, text_config=text)
    assert config["text_config"] == text
    assert (config["hidden_size"], config["model_type"], config["tie_word_embeddings"]) == (64, "b", True)
    assert config["torch_dtype"] == "float16" and "dtype" not in config
    assert read(tie_word_embeddings=False, text_config=text)["tie_word_embeddings"] is False
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": None, "text_config": {"eos_token_id": [3, 4]}}))
    assert end_token_ids(tmp_path, None) == [3, 4]
    assert read(text_config=3) == {"text_config": 3}
