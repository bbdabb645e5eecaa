"""The command: its options, what it refuses, and where it listens."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, UnixConnector

from sophserve.api.http.tls import renew, ssl_context
from sophserve.cli import main
from sophserve.config import EngineConfig, ServerConfig, option, parse_size
from sophserve.errors import ConfigError
from sophserve.options import engine_config, parse
from sophserve.other_servers import ANSWERS, NEEDLESS, SAME


def run(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and standard error of `sophserve`."""
    done = subprocess.run(
        [sys.executable, "-m", "sophserve", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | environment,
    )
    return done.returncode, done.stderr


def assert_refused(outcome: tuple[int, str], *words: str) -> None:
    """One line at the end says what is wrong."""
    code, stderr = outcome
    assert code == 1, stderr
    assert "Traceback" not in stderr
    line = stderr.strip().splitlines()[-1]
    assert line.startswith("sophserve: error: ")
    for word in words:
        assert word in line


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """main changes what Ctrl-C does to the process."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


# --- options ---


def test_defaults_and_names() -> None:
    engine, server = parse(["--model", "x"])
    assert (engine.model, engine.max_num_seqs, engine.enable_prefix_caching) == ("x", 256, True)
    assert (server.host, server.port, server.max_queued_requests) == ("localhost", 8000, 1024)
    line = "--model x --served-model-name a b --served-model-name c --max-model-len 99 --dtype float32 --port 0"
    engine, server = parse(shlex.split(line))
    assert server.served_model_name == ["a", "b", "c"]
    assert (engine.max_model_len, engine.dtype, server.port) == (99, "float32", 0)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        ("", True),
        ("--enable-prefix-caching", True),
        ("--no-enable-prefix-caching", False),
        ("--enable-prefix-caching true", True),
        ("--enable-prefix-caching False", False),
        ("--enable-prefix-caching=false", False),
        ("--no-enable-prefix-caching --enable-prefix-caching", True),
    ],
)
def test_switches(arguments: str, value: bool) -> None:
    assert parse([*arguments.split(), "--model", "x"])[0].enable_prefix_caching is value


@pytest.mark.parametrize(
    ("line", "fields"),
    [
        ("x", {}),
        ("serve x --port 0", {}),
        ("-m x", {}),
        ("x -tp 2 -q gptq -np 8", {"tensor_parallel_size": 2, "quantization": "gptq", "max_num_seqs": 8}),
        ("x -tp=2", {"tensor_parallel_size": 2}),
        ("x --max_model_len=64 --max_num_seqs 3", {"max_model_len": 64, "max_num_seqs": 3}),
        ("x --trust-remote-code --disable-log-requests --jinja", {}),
        ("x --kv-cache-memory-bytes 2G", {"kv_cache_memory": "2G", "kv_cache_bytes": 2 << 30}),
        (
            "x --max-model-len 100k --max-num-batched-tokens 8K",
            {"max_model_len": 100_000, "max_num_batched_tokens": 8192},
        ),
        ("x --max-model-len 25.6k --max-num-seqs 1_0", {"max_model_len": 25_600, "max_num_seqs": 10}),
        ("x --max-model-len 2M", {"max_model_len": 2 << 20}),
        ("x --dtype half", {"dtype": "float16"}),
        ("x --dtype float", {"dtype": "float32"}),
    ],
)
def test_others_spellings(line: str, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr("sophserve.cli.parse", lambda argv: seen.append(parse(argv)) or sys.exit(0))
    with pytest.raises(SystemExit):
        main(shlex.split(line))
    engine = seen[0][0]
    assert engine.model == "x"
    assert {name: getattr(engine, name) for name in fields} == fields


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("2GiB", 2 << 30),
        ("2gib", 2 << 30),
        ("2Gi", 2 << 30),
        ("2G", 2 << 30),
        ("2g", 2 * 10**9),
        ("2GB", 2 * 10**9),
        ("1.5 MiB", 3 << 19),
        ("512k", 512_000),
        ("512K", 512 << 10),
        ("7B", 7),
        ("1_000", 1000),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


def options_of(*servers: str) -> list[str]:
    """The options that the servers' own help names."""
    listed = json.loads(Path(__file__).with_name("other_servers.json").read_text())
    return [name for server in servers for name in listed[server]]


@pytest.mark.parametrize("name", options_of("vllm", "llama.cpp"))
def test_options_of_other_servers(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is taken, or answered by its name with what to do instead; none with another that looks alike."""
    try:
        parse(["--model", "x", name])
    except (SystemExit, ConfigError) as error:
        said = capsys.readouterr().err + str(error)
        assert name in said or SAME.get(name, name) in said
        assert "unknown option" not in said and "did you mean" not in said


def test_what_is_said_of_other_servers_options_holds() -> None:
    """Options that an answer names are there, and no name is in two tables."""
    own = {option(name) for config in (EngineConfig, ServerConfig) for name in config.__struct_fields__}
    own |= {"--no-" + name[2:] for name in own} | {"--version", "--dataset"}
    for text in (*ANSWERS.values(), *NEEDLESS.values(), *SAME.values()):
        assert set(re.findall(r"--[a-z-]+", text)) <= own, text
    assert not own & (ANSWERS.keys() | NEEDLESS.keys() | SAME.keys())
    assert not ANSWERS.keys() & NEEDLESS.keys() and not SAME.keys() & (ANSWERS.keys() | NEEDLESS.keys())


def test_the_cache_is_sized_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--model", "x", "--gpu-memory-utilization", "0.9"])
    assert "--gpu-memory-utilization here: the cache is sized by --kv-cache-memory" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="the cache is sized by --kv-cache-memory"):
        engine_config({"model": "x", "gpu_memory_utilization": 0.9})


def test_the_seed_system_s_command_line() -> None:
    line = (
        "--model x --enforce-eager --tensor-parallel-size 1 --enable-prefix-caching --enable-chunked-prefill true "
        "--max-num-batched-tokens 2048 --max-num-seqs 256 --host 0.0.0.0 --port 8000 --served-model-name y"
    )
    engine, _ = parse(shlex.split(line))
    assert engine.enforce_eager and engine.enable_chunked_prefill


def test_config_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('model = "m"\nport = 9\nmax-num-seqs = 3\nserved_model_name = ["a"]\ndrain-timeout = 2\n')
    engine, server = parse(["--config", str(file), "--port", "10"])
    assert (engine.model, engine.max_num_seqs) == ("m", 3)
    assert (server.port, server.served_model_name, server.drain_timeout) == (10, ["a"], 2)
    for text, words in (
        ("prot = 1", "unknown option 'prot'; did you mean port?"),
        ("port = 'a'", "port: expected `int`, got `str`"),
        ("port =", "not a TOML file"),
        ("dtype = 'int4'\nmodel = 'x'", "dtype: invalid enum value"),
        ("gpu-memory-utilization = 0.9", "the cache is sized by --kv-cache-memory"),
        ("max-model-len = 'long'", "'long' is no whole number"),
    ):
        file.write_text(text)
        with pytest.raises(ConfigError, match=words):
            parse(["--config", str(file), "--model", "x"])
    with pytest.raises(ConfigError, match="No such file"):
        parse(["--config", str(tmp_path / "absent"), "--model", "x"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "--model is required"),
        ("--port 70000", "--port must be between 0 and 65535"),
        ("--max-num-seqs 0", "--max-num-seqs must be at least 1"),
        ("--kv-cache-memory lots", "cannot read the size 'lots'"),
        ("--kv-cache-memory=-1GiB", "cannot read the size"),
        ("--kv-cache-memory inf", "cannot read the size"),
        ("--drain-timeout nan", "--drain-timeout must be 0 or more"),
        ("--api-key=", "--api-key is empty"),
        ("--ssl-keyfile k", "--ssl-keyfile needs --ssl-certfile"),
        ("--api-key k --max-tokens-per-minute-per-key 0", "--max-tokens-per-minute-per-key must be at least 1"),
        ("--max-concurrent-requests-per-key 3", "needs --api-key or --api-key-file"),
        ("--api-key-file /absent.toml", "cannot read --api-key-file /absent.toml"),
        ("--root-path llm", "--root-path must look like /llm"),
        ("--root-path /llm/", "--root-path must look like /llm"),
        ("--sse-keep-alive-interval=-1", "--sse-keep-alive-interval must be 0 or more"),
    ],
)
def test_values_that_cannot_work(arguments: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse([*arguments.split(), *(["--model", "x"] if arguments else [])])
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--modle x", "unknown option --modle; did you mean --model?"),
        ("--max-num-seq=3", "unknown option --max-num-seq; did you mean --max-num-seqs?"),
        ("--xyzzy", "unknown option --xyzzy; see sophserve --help"),
        ("--port many", "--port"),
        ("--dtype int3", "float16"),
        ("--enable-prefix-caching maybe", "expected true or false"),
        ("plugin", "did you mean plugins?"),
        ("/data/model another", "a model is given as --model X"),
        ("/data/model --model another", "the model is given twice: /data/model and --model another"),
        ("--max-model-len 25.6K", "write it like 4096, 32k (32,000) or 32K (32,768)"),
        ("--max-model-len many", "write it like 4096"),
        ("-tq 2", "unknown option -tq; see sophserve --help"),
        ("run demo", "sophserve chat --model MODEL"),
        ("pull qwen3:8b", "sophserve --model ORG/NAME"),
        ("list", "there is no command list here: models lie in directories"),
    ],
)
def test_usage_errors(arguments: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments.split())
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("sophserve: error: ") and captured.err.count("\n") == 1
    assert words in captured.err


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOPHSERVE_API_KEY", "from-environment")
    monkeypatch.setenv("DEVICE", "GPU")
    engine, server = parse(["--model", "x"])
    assert (engine.device, server.api_key) == ("gpu", ["from-environment"])
    engine, server = parse(["--model", "x", "--device", "cmodel", "--api-key", "k"])
    assert (engine.device, server.api_key) == ("cmodel", ["k"])
    monkeypatch.setenv("DEVICE", "SOPHTPU")
    assert parse(["--model", "x"])[0].device == "tpuv7"
    monkeypatch.setenv("DEVICE", "")
    assert parse(["--model", "x"])[0].device == "auto"
    monkeypatch.setenv("DEVICE", "NPU")
    with pytest.raises(ConfigError, match="DEVICE is 'NPU'; set it to SOPHTPU or GPU"):
        parse(["--model", "x"])


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    for argument, words in (("--help", "--max-num-batched-tokens"), ("--version", "sophserve 0.")):
        with pytest.raises(SystemExit) as caught:
            main([argument])
        assert caught.value.code == 0
        assert words in capsys.readouterr().out


def test_plugins(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plugins"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["Qwen2ForCausalLM", "from", "sophserve"] in lines and ["cmodel", "from", "sophserve"] in lines


# --- what cannot be served ---


@pytest.fixture
def checkpoint(make_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(make_checkpoint("qwen2"), tmp_path / "model"))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_wrong_paths(checkpoint: Path) -> None:
    assert_refused(run("--model", "/no/such/model"), "/no/such/model", "(see docs/troubleshooting.md#no-directory)")
    assert_refused(run("--model", str(checkpoint / "config.json")), "is a file")
    (checkpoint / "config.json").write_text("{")
    assert_refused(run("--model", str(checkpoint)), "config.json", "JSON")
    (checkpoint / "config.json").unlink()
    assert_refused(run("--model", str(checkpoint)), "config.json")


def test_damaged_checkpoints(checkpoint: Path) -> None:
    config = checkpoint / "config.json"
    good = config.read_text()
    change(config, architectures=["NoSuchForCausalLM"])
    assert_refused(run("--model", str(checkpoint), "--port", "0"), "NoSuchForCausalLM", "Qwen2ForCausalLM")
    config.write_text(good)
    change(config, hidden_size=None)
    assert_refused(run("--model", str(checkpoint), "--port", "0"), "hidden_size")
    config.write_text(good)
    change(checkpoint / "generation_config.json", top_p=7)
    assert_refused(run("--model", str(checkpoint), "--port", "0"), "generation_config.json", "top_p")
    change(checkpoint / "generation_config.json", top_p=0.5)
    weights = next(checkpoint.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_refused(run("--model", str(checkpoint), "--port", "0"), weights.name)


def test_too_little_memory(checkpoint: Path) -> None:
    model = ("--model", str(checkpoint), "--port", "0")
    assert_refused(run(*model, "--kv-cache-memory", "24KiB"), "lower --max-model-len to at most 32 or raise --kv-cache")
    assert_refused(run(*model, "--kv-cache-memory", "1KiB"), "1024 bytes, less than one block of 12.00 KiB", "raise it")


def test_addresses_that_cannot_be_used(checkpoint: Path, tmp_path: Path) -> None:
    model = ("--model", str(checkpoint))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert_refused(
            run(*model, "--host", "127.0.0.1", "--port", port),
            f"port {port} is in use",
            "--port (see docs/troubleshooting.md#port)",
        )
    assert_refused(run(*model, "--host", "no.such.host.invalid"), "no.such.host.invalid", "--host")
    assert_refused(run(*model, "--host", "192.0.2.1"), "192.0.2.1", "--host")
    assert_refused(run(*model, "--uds", str(tmp_path / "absent" / "socket")), "--uds")
    precious = tmp_path / "file"
    precious.write_text("precious")
    assert_refused(run(*model, "--uds", str(precious)), str(precious))
    assert precious.read_text() == "precious"
    assert_refused(run(*model, "--uds", "/tmp/" + "x" * 200), "--uds")
    assert_refused(run(*model, "--ssl-certfile", str(tmp_path / "absent.pem")), "--ssl-certfile")
    assert_refused(run(*model, "--port", "0", "--chat-template", "/absent.jinja"), "--chat-template")


# --- where it listens ---


class Command:
    """A server in a process of its own."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sophserve", *arguments], stderr=subprocess.PIPE, text=True
        )
        self.log = ""

    def wait_for(self, words: str) -> str:
        """The log line with these words."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log += line
            if words in line:
                return line
        raise AssertionError(self.log)

    def stop(self, with_signal: int = signal.SIGINT) -> int:
        """The exit code."""
        self.process.send_signal(with_signal)
        return self.process.wait(20)


def test_unix_socket(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = tmp_path / "socket"
    server = Command("--model", str(make_checkpoint("qwen2")), "--uds", str(path))
    assert f"ready: unix:{path}" in server.wait_for("ready: ")

    async def ask() -> Any:
        async with (
            ClientSession("http://localhost", connector=UnixConnector(str(path))) as session,
            session.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 1}) as response,
        ):
            return await response.json()

    assert asyncio.run(ask())["usage"]["completion_tokens"] == 1
    assert server.stop() == 0
    assert not path.exists()


def self_signed(directory: Path) -> str:
    """A new certificate in cert.pem and its key in key.pem; returns both."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    try:
        command = [*make.split(), "-keyout", str(key), "-out", str(certificate)]
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl")
    return certificate.read_text() + key.read_text()


def test_https(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    self_signed(tmp_path)
    server = Command(
        *("--model", str(make_checkpoint("qwen2")), "--host", "127.0.0.1", "--port", "0"),
        *("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key)),
    )
    url = server.wait_for("listening on").split()[-1]
    assert url.startswith("https://127.0.0.1:")

    async def ask() -> int:
        connector = TCPConnector(ssl=ssl.create_default_context(cafile=str(certificate)))
        async with ClientSession(connector=connector) as session, session.get(f"{url}/health") as response:
            return response.status

    assert asyncio.run(ask()) in (200, 503)
    assert server.stop() == 0


async def test_a_renewed_certificate_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("sophserve.api.http.tls.RENEWAL_PERIOD", 0.01)
    caplog.set_level("INFO")
    certificate = tmp_path / "both.pem"
    certificate.write_text(self_signed(tmp_path))
    config = ServerConfig(ssl_certfile=str(certificate), ssl_ca_certs=str(certificate))
    context = ssl_context(config)
    assert context is not None and context.verify_mode == ssl.CERT_REQUIRED
    renewing = asyncio.create_task(renew(context, config))
    await asyncio.sleep(0)  # it looks at the files as they are
    for text, words in (("half", "cannot be used yet"), (self_signed(tmp_path), "took the new certificate")):
        certificate.write_text(text)
        async with asyncio.timeout(5):
            while words not in caplog.text:
                await asyncio.sleep(0.01)
    renewing.cancel()


def test_a_second_signal_ends_at_once(make_checkpoint: Callable[..., Path]) -> None:
    server = Command("--model", str(make_checkpoint("qwen2")), "--host", "127.0.0.1", "--port", "0")
    port = int(server.wait_for("listening on").rpartition(":")[2])
    server.wait_for("ready: ")
    body = json.dumps({"prompt": "Hi", "ignore_eos": True, "max_tokens": 250}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head + body)
        time.sleep(0.1)
        server.process.send_signal(signal.SIGTERM)
        server.wait_for("stopping")
        assert server.stop(signal.SIGTERM) == 130
    assert "Traceback" not in server.log


def test_drain_timeout(make_checkpoint: Callable[..., Path]) -> None:
    server = Command(
        *("--model", str(make_checkpoint("qwen2")), "--host", "127.0.0.1", "--port", "0", "--drain-timeout", "0")
    )
    port = int(server.wait_for("listening on").rpartition(":")[2])
    server.wait_for("ready: ")
    body = json.dumps({"prompt": "Hi", "ignore_eos": True, "max_tokens": 250, "stream": True}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head + body)
        received = client.recv(100)
        assert server.stop() == 0
        while part := client.recv(65536):
            received += part
    assert b'data: {"error":{"message":"the server stops before this request is done"' in received
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
