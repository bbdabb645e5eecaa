"""Packed weights that are kept: used when they fit, made anew when not, and never in the way."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from device.cmodel.device import CmodelDevice
from sophserve.reorder_cache import Blob, CacheReader, CacheWriter, Packed
from tests.oracle.test_quantization import FORMATS, PROMPT, SHAPE, logprobs_of_ranks, quantize


@pytest.fixture(params=["gptq act order, asymmetric, groups of 32", "fp8 blocks"])
def checkpoint(request, make_checkpoint, tmp_path):
    overrides = {"attention_bias": True, "mlp_bias": True}
    quantize(make_checkpoint("llama", **SHAPE, **overrides), tmp_path, *FORMATS[request.param])
    return tmp_path / "quantized"


@pytest.fixture
def load(open_model):
    return lambda directory: open_model(directory).logprobs(PROMPT, 40)


def kept(checkpoint: Path) -> list[Path]:
    return sorted((checkpoint.parent / ".reorder_cache" / checkpoint.name).glob("*.packed*"))


def test_the_second_start_maps_what_the_first_packed(checkpoint, load, monkeypatch):
    first = load(checkpoint)
    (path,) = kept(checkpoint)
    packed = CmodelDevice.pack

    def pack_dense(self, weight, role="other"):
        assert type(weight).__name__ == "DenseWeight", "a quantized weight was packed again"
        return packed(self, weight, role)

    monkeypatch.setattr(CmodelDevice, "pack", pack_dense)
    assert torch.equal(load(checkpoint), first)
    assert kept(checkpoint) == [path]


def test_each_kind_of_activations_has_its_own(checkpoint, load, open_model):
    def load_rounded():
        return open_model(checkpoint, activation_bits=8).logprobs(PROMPT, 40)

    exact, rounded = load(checkpoint), load_rounded()
    assert len(kept(checkpoint)) == 2
    assert torch.equal(load(checkpoint), exact) and torch.equal(load_rounded(), rounded)
    assert torch.equal(exact, rounded) == ("fp8" in (checkpoint / "config.json").read_text())


def test_each_rank_keeps_its_own(checkpoint, open_model):
    for _ in range(2):
        logprobs = logprobs_of_ranks(open_model, checkpoint, torch.float32, 2)
    names = [path.name.rpartition("-")[0] for path in kept(checkpoint)]
    assert names == ["cmodel-stored-0of2", "cmodel-stored-1of2"]
    torch.testing.assert_close(logprobs, open_model(checkpoint).logprobs(PROMPT, 40), atol=1e-3, rtol=0)
    assert len(kept(checkpoint)) == 3


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


TEARS = {
    "cut short": lambda path: os.truncate(path, path.stat().st_size - 5000),
    "cut to nothing": lambda path: os.truncate(path, 3),
    "a wrong bit in a weight": lambda path: flip(path, 1000),
    "a wrong bit in the index": lambda path: flip(path, path.stat().st_size - 100),
    "a wrong mark": lambda path: flip(path, path.stat().st_size - 1),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_file_is_made_anew(checkpoint, load, tear, caplog):
    first = load(checkpoint)
    (path,) = kept(checkpoint)
    whole = path.read_bytes()
    TEARS[tear](path)
    assert torch.equal(load(checkpoint), first)
    assert "is not used" in caplog.text
    assert [path.read_bytes()] == [whole] and kept(checkpoint) == [path]


def test_a_changed_checkpoint(checkpoint, load):
    first = load(checkpoint)
    (old,) = kept(checkpoint)
    tensors = load_file(checkpoint / "model.safetensors")
    for name, value in tensors.items():
        if "scale" in name:
            tensors[name] = value * 1.5
    save_file(tensors, checkpoint / "model.safetensors")
    assert not torch.equal(load(checkpoint), first)
    (new,) = kept(checkpoint)
    assert new != old


def test_another_checkpoint_of_the_same_size_and_time(checkpoint, load):
    """Images that are made reproducibly keep both."""
    first, (path,) = load(checkpoint), kept(checkpoint)
    file = checkpoint / "model.safetensors"
    status, tensors = file.stat(), load_file(file)
    save_file({name: value / 2 if "scale" in name else value for name, value in tensors.items()}, file)
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (file.stat().st_size, file.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    assert not torch.equal(load(checkpoint), first)
    assert kept(checkpoint) != [path]


def test_a_new_layout(checkpoint, load, monkeypatch):
    first = load(checkpoint)
    (old,) = kept(checkpoint)
    monkeypatch.setattr("device.cmodel.device.LAYOUT", "panels of another kind")
    assert torch.equal(load(checkpoint), first)
    (new,) = kept(checkpoint)
    assert new != old


def test_a_writer_that_died_half_way(checkpoint, load, monkeypatch):
    def die(self, name, packed):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CacheWriter, "add", die)
        with pytest.raises(KeyboardInterrupt):
            load(checkpoint)
    assert kept(checkpoint) == []
    # Killed, it could not even remove its file.
    first = load(checkpoint)
    (path,) = kept(checkpoint)
    path.rename(path.with_name("cmodel-stored-0of1-0123456789abcdef.packed.partial"))
    assert torch.equal(load(checkpoint), first)
    assert kept(checkpoint) == [path]


def test_a_full_disk(checkpoint, load, caplog):
    """A limit on the size of files makes writing fail as a full disk does."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        first = load(checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "packed weights are not kept" in caplog.text
    assert kept(checkpoint) == []
    assert torch.equal(load(checkpoint), first)
    assert len(kept(checkpoint)) == 1


def test_a_directory_that_cannot_be_written_to(checkpoint, load, caplog):
    first = load(checkpoint)
    shutil.rmtree(checkpoint.parent / ".reorder_cache")
    (checkpoint.parent / ".reorder_cache").write_text("not a directory")
    assert torch.equal(load(checkpoint), first)
    assert "packed weights are not kept" in caplog.text


def test_two_at_once(checkpoint, load, caplog):
    caplog.set_level(logging.INFO)
    directory = checkpoint.parent / ".reorder_cache" / checkpoint.name
    directory.mkdir(parents=True)
    with (directory / ".cmodel-stored-0of1-lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        partial = directory / "cmodel-stored-0of1-0123456789abcdef.packed.partial"
        partial.write_bytes(b"the other's")
        first = load(checkpoint)
        assert "another process is writing" in caplog.text
        assert kept(checkpoint) == [partial]
    assert torch.equal(load(checkpoint), first)
    assert len(kept(checkpoint)) == 1 and not partial.exists()


def test_large_blobs_are_checked_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("sophserve.reorder_cache._PIECE", 1000)
    path = tmp_path / "cmodel-stored-0of1-0.packed"
    data = bytes(range(256)) * 20
    writer = CacheWriter(path)
    writer.add(
        "a", Packed({"n": 3}, {"x": Blob("uint8", (5120,), memoryview(data)), "y": Blob("int8", (0,), memoryview(b""))})
    )
    writer.commit()
    read = CacheReader(path).get("a")
    assert read.numbers == {"n": 3} and bytes(read.blobs["x"].data) == data and read.blobs["y"].shape == (0,)
    assert CacheReader(path).get("b") is None
    flip(path, 4999)
    with pytest.raises(ValueError, match="checksum"):
        CacheReader(path)


def test_the_command_lists_and_clears(checkpoint, load):
    def run(*arguments):
        command = [sys.executable, "-m", "sophserve", "cache", *arguments, "--model", str(checkpoint)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "holds nothing" in run("list")
    load(checkpoint)
    (path,) = kept(checkpoint)
    assert str(path) in run("list") and path.exists()
    assert "removed" in run("clear")
    assert not path.exists()
