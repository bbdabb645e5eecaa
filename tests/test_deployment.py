"""What deploys the server fits the server: the image, compose.yaml, and the files in deploy/."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from sophserve.launch import ranks_here, read_launch
from sophserve.options import parse
from sophserve.route.command import route

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile: the word and what follows it, as one line."""
    text = re.sub(r"^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.M)
    lines = text.replace("\\\n", " ").splitlines()
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines if line.strip())]


def arguments() -> dict[str, str]:
    """The defaults of the build arguments."""
    return dict(rest.split("=", 1) for word, rest in instructions() if word == "ARG")


def manifests() -> dict[str, Any]:
    return {found["kind"]: found for found in documents("kubernetes.yaml")}


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def workloads(name: str) -> dict[str, Any]:
    """What a manifest starts, by its name."""
    return {
        found["metadata"]["name"]: found["spec"] for found in documents(name) if "template" in found.get("spec", {})
    }


def services(name: str) -> dict[str, Any]:
    return {found["metadata"]["name"]: found["spec"] for found in documents(name) if found["kind"] == "Service"}


def labels(workload: Any) -> Any:
    return workload["template"]["metadata"]["labels"].items()


def pod_of(workload: Any) -> tuple[Any, Any]:
    """Its pods' spec, and their container."""
    pod = workload["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


def test_the_build_context_holds_what_the_image_copies() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = set()
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from="):
            *sources, _ = rest.split()
            copied |= {re.sub(r"\$\{(\w+)\}", lambda name: arguments()[name[1]], source) for source in sources}
    copied = {source.rstrip("/") for source in copied}
    assert copied == let_in
    assert all((ROOT / source).exists() for source in copied)


@pytest.mark.parametrize("script", [rest for word, rest in instructions() if word == "RUN"])
def test_scripts_of_the_image_are_valid(script: str) -> None:
    script = re.sub(r"^--mount=\S+\s+", "", script)
    subprocess.run(["sh", "-n", "-c", script], check=True)


def test_the_documented_build_arguments_exist() -> None:
    table = re.findall(r"^\| `([A-Z0-9_]+)` \|.*\|.*\|$", (ROOT / "docs/deployment.md").read_text(), re.M)
    assert set(table) == set(arguments())


def test_options_are_accepted() -> None:
    parse(["--config", str(DEPLOY / "sophserve.toml")])
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    parse(compose["services"]["sophserve"]["command"])
    parse(manifests()["Deployment"]["spec"]["template"]["spec"]["containers"][0]["args"])


def test_batches_outlive_container_and_service() -> None:
    [volume] = [rest for word, rest in instructions() if word == "VOLUME"]
    [environment] = [rest for word, rest in instructions() if word == "ENV"]
    assert f" XDG_STATE_HOME={volume}/" in environment
    unit = (DEPLOY / "sophserve.service").read_text()
    [folder] = re.findall(r"^StateDirectory=(.*)$", unit, re.M)
    assert f"\nEnvironment=XDG_STATE_HOME=/var/lib/{folder}/" in unit


def test_nginx_lets_files_through() -> None:
    [most] = re.findall(r"client_max_body_size (\d+)m;", (DEPLOY / "nginx.conf").read_text())
    _, default = parse(["--model", "x"])
    assert int(most) << 20 > default.file_bytes


def test_stopping_outlasts_draining() -> None:
    pod = manifests()["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    _, server = parse(container["args"])
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1])
    assert pod["terminationGracePeriodSeconds"] > pause + server.drain_timeout
    _, default = parse(["--model", "x"])
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    unit = (DEPLOY / "sophserve.service").read_text()
    pages = (ROOT / "docs/deployment.md").read_text()
    grace = [compose["services"]["sophserve"]["stop_grace_period"].rstrip("s")]
    grace += re.findall(r"TimeoutStopSec=(\d+)", unit) + re.findall(r"--stop-timeout (\d+)", pages)
    assert len(grace) > 2 and all(int(seconds) > default.drain_timeout for seconds in grace)


def test_compose_mounts_what_exists() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    mounts = [mount.split(":")[0] for name in ("prometheus", "grafana") for mount in services[name]["volumes"]]
    assert mounts and all((ROOT / mount).exists() for mount in mounts)
    (scrape,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert scrape["static_configs"][0]["targets"][0].split(":")[0] in services
    source = yaml.safe_load((DEPLOY / "grafana/datasource.yml").read_text())["datasources"][0]
    assert re.findall(r"http://(\w+):", source["url"])[0] in services
    dashboard = (DEPLOY / "grafana/sophserve.json").read_text()
    assert set(re.findall(r'"uid": "(prometheus)"', dashboard)) == {source["uid"]}


def test_kubernetes_names_agree() -> None:
    found = manifests()
    deployment = found["Deployment"]["spec"]
    pod = deployment["template"]
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"].items()
    assert deployment["selector"]["matchLabels"].items() <= labels
    assert found["Service"]["spec"]["selector"].items() <= labels
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports[found["Service"]["spec"]["ports"][0]["targetPort"]] == parse(container["args"])[1].port
    key = container["env"][0]["valueFrom"]["secretKeyRef"]
    assert key["name"] == found["Secret"]["metadata"]["name"] and key["key"] in found["Secret"]["stringData"]
    volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
    assert volumes == {mount["name"] for mount in container["volumeMounts"]}


@pytest.mark.parametrize("name", ["kubernetes-replicas.yaml", "kubernetes-hosts.yaml"])
def test_pods_are_selected_checked_and_given_time(name: str) -> None:
    for workload in workloads(name).values():
        pod, container = pod_of(workload)
        assert workload["selector"]["matchLabels"].items() <= labels(workload)
        drain = [int(option.partition("=")[2]) for option in container["args"] if option.startswith("--drain-timeout")]
        pause = int(container["lifecycle"]["preStop"]["exec"]["command"][-1]) if "lifecycle" in container else 0
        assert drain and pod["terminationGracePeriodSeconds"] > pause + drain[0]
        ports = {port["name"] for port in container.get("ports", [])}
        probes = [container[probe]["httpGet"] for probe in ("livenessProbe", "readinessProbe") if probe in container]
        assert {(probe["path"], probe["port"]) for probe in probes} == {
            (path, "http") for path in ("/live", "/ready") if ports
        }
    for service in services(name).values():
        chosen = [each for each in workloads(name).values() if service["selector"].items() <= labels(each)]
        chosen = chosen or [manifests()["Deployment"]["spec"]]
        assert len(chosen) == 1
        targets = {port["targetPort"] for port in service.get("ports", [])}
        assert targets <= {port["name"] for port in pod_of(chosen[0])[1]["ports"]}


def test_the_router_finds_all_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a name that has the addresses of pods, and with the port of the server in them."""
    _, container = pod_of(workloads("kubernetes-replicas.yaml")["sophserve-route"])
    command, *options = container["args"]
    assert command == "route"
    runs: list[Any] = []
    monkeypatch.setattr("sophserve.route.serving.run", lambda *given: runs.append(given))
    monkeypatch.setattr("sophserve.logs.configure", lambda *given: None)
    assert route(options) == 0
    [(urls, name, config, _)] = runs
    assert not urls and config.host == "0.0.0.0"
    assert config.port == container["ports"][0]["containerPort"]
    found = urlsplit(name)
    service = services("kubernetes-replicas.yaml")[found.hostname or ""]
    assert service["clusterIP"] == "None" and not service.get("publishNotReadyAddresses")
    replicas = manifests()["Deployment"]["spec"]
    assert service["selector"].items() <= labels(replicas)
    _, served = parse(pod_of(replicas)[1]["args"])
    assert found.port == served.port == service["ports"][0]["port"]


def test_both_hosts_are_one_group() -> None:
    name = "kubernetes-hosts.yaml"
    server, others = workloads(name)["sophserve-group"], workloads(name)["sophserve-rank"]
    assert server["replicas"] == 1 and server["strategy"] == {"type": "Recreate"}
    environments = []
    for workload in (server, others):
        _, container = pod_of(workload)
        assert container["args"] == pod_of(server)[1]["args"]
        environments.append({each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]})
    first, second = environments
    assert second["RANK"] == {"fieldRef": {"fieldPath": "metadata.labels['apps.kubernetes.io/pod-index']"}}
    assert first["SOPHSERVE_GROUP_SECRET"] == second["SOPHSERVE_GROUP_SECRET"]
    [secret] = [found for found in documents(name) if found["kind"] == "Secret"]
    for value in (first["SOPHSERVE_GROUP_SECRET"], first["SOPHSERVE_API_KEY"]):
        key = value["secretKeyRef"]
        assert key["name"] == secret["metadata"]["name"] and key["key"] in secret["stringData"]
    start = others["ordinals"]["start"]
    ranks = range(start, start + others["replicas"])
    launches = [read_launch(first | {"SOPHSERVE_GROUP_SECRET": "s"})]
    launches += [read_launch(second | {"RANK": str(rank), "SOPHSERVE_GROUP_SECRET": "s"}) for rank in ranks]
    assert [launch and launch.rank for launch in launches] == list(range(int(first["WORLD_SIZE"])))
    engine, _ = parse(pod_of(server)[1]["args"])
    assert [ranks_here(launch, engine) for launch in launches if launch] == [1] * len(launches)
    assert len({(launch.address, launch.port, launch.key, launch.size) for launch in launches if launch}) == 1
    # The name has the address of rank 0's pod from its start on, and of no other.
    service = services(name)[first["MASTER_ADDR"]]
    assert service["clusterIP"] == "None" and service["publishNotReadyAddresses"]
    assert service["selector"].items() <= labels(server) and not service["selector"].items() <= labels(others)
    # Neither machine has two of them.
    for workload in (server, others):
        [rule] = pod_of(workload)[0]["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert all(rule["labelSelector"]["matchLabels"].items() <= labels(each) for each in (server, others))


def healthy(url: str) -> bool:
    """What the image's health check says of a server."""
    (check,) = (rest for word, rest in instructions() if word == "HEALTHCHECK")
    port = url.rpartition(":")[2]
    command = json.loads(re.sub(r"^.*?CMD ", "", check).replace("8000", port))
    assert command[0] == "python" and port in command[2]
    # A proxy that answers nothing must not be asked.
    environment = os.environ | {"http_proxy": "http://127.0.0.1:9"}
    return subprocess.run([sys.executable, *command[1:]], stderr=subprocess.DEVNULL, env=environment).returncode == 0


def status(url: str) -> int:
    with urllib.request.urlopen(url) as answer:
        return answer.status


def test_checks_and_metrics(make_checkpoint: Callable[..., Path], start_server: Callable[..., Any]) -> None:
    server = start_server(make_checkpoint("qwen2"), "--api-key", "secret", ready=False)
    server.wait_until_listening()
    assert not healthy(server.url)
    server.wait_until_ready()
    assert healthy(server.url)
    (container,) = manifests()["Deployment"]["spec"]["template"]["spec"]["containers"]
    for probe in ("livenessProbe", "readinessProbe"):
        assert status(server.url + container[probe]["httpGet"]["path"]) == 200
    client = server.client().with_options(api_key="secret")
    client.completions.create(model="tiny", prompt="Hi", max_tokens=2)
    (scrape,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    request = urllib.request.Request(server.url + scrape["metrics_path"], headers={"Authorization": "Bearer secret"})
    with urllib.request.urlopen(request) as answer:
        served = set(re.findall(r"^([\w:]+)\{", answer.read().decode(), re.M))
    shown = (DEPLOY / "grafana/sophserve.json").read_text() + (ROOT / "docs/deployment.md").read_text()
    named = set(re.findall(r"\b(?:vllm|sophserve):\w+", shown))
    assert len(named) > 10 and named <= served
    assert server.stop() == 0
    assert not healthy(server.url)
