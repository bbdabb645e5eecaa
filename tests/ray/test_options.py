"""What is said of replicas on Ray, on the command line and in a configuration file; without Ray."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sophserve import ray
from sophserve.errors import ConfigError
from sophserve.ray import application
from sophserve.ray.command import ray as command
from sophserve.ray.options import RayConfig, read_args, read_command

DEPLOY = Path(__file__).parents[2] / "deploy"


def test_the_servers_options_are_passed_on_as_they_are() -> None:
    argv = ["--replicas", "2", "demo", "--max_num_seqs=8", "--port", "9000", "--api-key", "a", "b"]
    config, server, rest, alone = read_command(argv)
    assert config == RayConfig(replicas=2)
    assert rest == ["demo", "--max_num_seqs=8", "--api-key", "a", "b"] and server.api_key == ["a", "b"]
    assert alone == {"port": 9000}


def test_a_file_says_the_same_as_the_command_line() -> None:
    args = {
        "model": "demo",
        "num-cpus": 0.5,
        "max_num_seqs": 8,
        "seed": 1,
        "enable-prefix-caching": False,
        "served-model-name": ["a", "b"],
        "limit-mm-per-prompt": {"image": 2},
        "kv-cache-memory": "64MiB",
    }
    config, server, argv = read_args(args)
    options = ["--max-num-seqs=8", "--seed=1", "--enable-prefix-caching=false", "--served-model-name", "a", "b"]
    assert argv == ["--model=demo", *options, '--limit-mm-per-prompt={"image": 2}', "--kv-cache-memory=64MiB"]
    assert (config, server, argv) == read_command(["--num-cpus", "0.5", *argv])[:3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--model is required"),
        (["--model", "demo", "--replicas", "0"], "--replicas must be at least 1, got 0"),
        (["--model", "demo", "--replicas", "3", "--max-replicas", "2"], "--max-replicas must be at least --replicas 3"),
        (["--model", "demo", "--requests-per-replica", "0"], "--requests-per-replica must be above 0"),
        (["--model", "demo", "--num-cpus", "-1"], "--num-cpus must be above 0"),
        (["--model", "demo", "--uds", "x"], "--uds does not go with Ray"),
        (["--model", "demo", "--ssl-certfile=x"], "--ssl-certfile does not go with Ray"),
        (["--model", "demo", "--drain-timeout", "-1"], "--drain-timeout must be 0 or more"),
    ],
)
def test_what_cannot_work_is_said(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        command(options)


@pytest.mark.parametrize("options", [["--model", "demo", "--max-num-seq", "3"], ["--replicas", "x"]])
def test_what_is_no_option_is_said(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command(options)
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "--model is required"),
        ({"model": "demo", "replicas": 0}, "--replicas must be at least 1"),
        ({"model": "demo", "replicas": "three"}, "--replicas: expected `int`"),
        ({"model": "demo", "port": 1}, "port cannot be given to the application; Ray's proxy has http_options"),
    ],
)
def test_what_cannot_work_in_a_file_is_said(args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ray.app(args)


def test_ray_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"Ray Serve is not there .*; pip install 'sophserve\[ray\]'"):
        command(["--model", "demo"])
    with pytest.raises(ConfigError, match=r"pip install 'sophserve\[ray\]'"):
        ray.app({"model": "demo"})


def test_the_file_in_deploy_can_be_read() -> None:
    [found] = yaml.safe_load((DEPLOY / "ray.yaml").read_text())["applications"]
    module, _, name = found["import_path"].partition(":")
    assert sys.modules[module] is ray and callable(getattr(ray, name))
    assert found["name"] == application.NAME and found["route_prefix"] == "/"
    config, _, argv = read_args(found["args"])
    assert config.replicas == 3 and config.max_replicas == 8
    assert argv[0] == f"--model={found['args']['model']}"
