"""What a user does first, in an environment that holds nothing but `pip install .`.

`python .ci/bare.py`, with the Python of that environment, runs the README's first command and the main job of every
other command, looks at what they print, and shows how long each stage of a start took.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import distribution
from pathlib import Path

SOPHSERVE = Path(sys.executable).with_name("sophserve")
QUESTION = "What is sophserve?"


def run(*arguments: object, stdin: str = "") -> str:
    """What a command prints; it must succeed."""
    done = subprocess.run(
        [str(SOPHSERVE), *map(str, arguments)], input=stdin, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


def post(url: str, body: dict) -> bytes:
    """The answer to a JSON body."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{url} {body}: {error} {error.read().decode()}") from None


@contextmanager
def serving(*arguments: object):
    """The address of a server that is ready, and its log so far. It must end well."""
    command = [str(SOPHSERVE), "--port", "0", *map(str, arguments)]
    log: list[str] = []
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)
        reader.start()
        try:
            end = time.monotonic() + 120
            while not (ready := re.search(r"ready: (http://\S+)/v1", "".join(log))):
                assert process.poll() is None and time.monotonic() < end, "".join(log)
                time.sleep(0.05)
            yield ready[1], log
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
            reader.join()
    assert process.returncode == 0 and "Traceback" not in "".join(log), "".join(log)


def ask(url: str) -> str:
    """The answer to a question, the same whether it is streamed or not."""
    body = {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 40}
    whole = json.loads(post(f"{url}/v1/chat/completions", body))["choices"][0]["message"]["content"]
    lines = post(f"{url}/v1/chat/completions", body | {"stream": True}).decode().split("\n\n")
    assert lines[-2] == "data: [DONE]", lines
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
    streamed = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])
    assert whole and streamed == whole, (whole, streamed)
    return whole


def start_and_talk() -> list[str]:
    """The server of the quick start, and the commands that talk to one. Returns its log."""
    with serving("--model", "demo") as (url, log):
        assert "sophserve" in ask(url)
        with urllib.request.urlopen(f"{url}/") as page:
            assert b"<html" in page.read()
        assert run("chat", "--url", url, stdin=f"{QUESTION}\n").strip()
        post(f"{url}/start_profile", {"mode": 1})
        printed = run("load", "--url", url, "--num-requests", 4, "--input-length", 16, "--output-length", 8)
        assert "TTFT" in printed, printed
        post(f"{url}/stop_profile", {})
    run("profile", ".", "drawn")
    assert Path("drawn/profile.html").stat().st_size > 10_000
    return log


def quantized() -> None:
    """A quantized model's first start and the one after it; quantizing; the cache."""
    import sophserve

    shutil.copytree(Path(sophserve.__file__).with_name("shipped") / "demo-gptq", "model")
    for expected in ("packed weights are kept in", "packed weights come from"):
        with serving("--model", "model") as (url, log):
            ask(url)
        assert expected in "".join(log), "".join(log)
    assert "MiB" in run("cache", "list", "--model", "model")
    assert "removed" in run("cache", "clear", "--model", "model")
    for method in ("gptq", "fp8"):
        assert "MiB of weights" in run("quantize", "demo", method, "--method", method)
    with serving("--model", "fp8") as (url, _):
        ask(url)


def others() -> None:
    """The commands that need no server, and the embedded engine."""
    sizes = ("--batch", 1, "--input-length", 16, "--max-new-tokens", 8)
    assert "TPS" in run("bench", "--model-id", "demo", *sizes)
    assert "weights" in run("plan", "demo")
    assert "cmodel" in run("plugins") and "cmodel" in run("devices")
    code = (
        f"from sophserve import LLM\nwith LLM(model='demo') as llm:\n    print(llm.generate({QUESTION!r})[0].outputs)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0 and "CompletionOutput" in done.stdout, done.stderr


def show_stages(log: list[str]) -> None:
    """How long each stage of a start took, by the server's log."""
    stages = re.findall(r"^(\S+ \S+) INFO (listening|loading: [^\n]+|ready)", "".join(log), re.M)
    times = [datetime.strptime(when, "%Y-%m-%d %H:%M:%S,%f") for when, _ in stages]
    print("start of the demo model, seconds by stage:")
    for (_, stage), begun, ended in zip(stages, times, times[1:], strict=False):
        print(f"  {(ended - begun).total_seconds():6.2f}  {stage}")
    (total,) = re.findall(r"in ([\d.]+) s", log[-1] if "ready" in log[-1] else "".join(log))[:1]
    print(f"  {total:>6}  from the command to ready")


def installed_files() -> None:
    """What the wheel brings: the native library, the chip's kernels and the page, no other sources and no tests."""
    names = [str(file) for file in distribution("sophserve").files or []]
    kernels = ("device/tpuv7/kernels/program.c", "device/tpuv7/kernels/core.h")
    pages = ("sophserve/api/playground/index.html", "sophserve/bench/profile.html")
    for name in ("device/cmodel/libcmodel.so", *kernels, *pages):
        assert name in names, f"the wheel lacks {name}"
    unwanted = [name for name in names if name.endswith((".cpp", "CMakeLists.txt")) or name.startswith("tests/")]
    unwanted += [name for name in names if name.endswith(".h") and not name.startswith("device/tpuv7/kernels/")]
    assert not unwanted, unwanted


def main() -> None:
    """Run all in a temporary folder."""
    present = [name for name in ("numpy", "transformers", "pytest", "openai") if importlib.util.find_spec(name)]
    assert not present, f"this environment holds more than the package: {present}"
    installed_files()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        begun = time.monotonic()
        log = start_and_talk()
        quantized()
        others()
        os.chdir("/")
    show_stages(log)
    print(f"everything works in a bare environment ({time.monotonic() - begun:.0f} s)")


if __name__ == "__main__":
    main()
