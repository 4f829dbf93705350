"""What deploy/ promises, read from its files: they agree with the command, with each other and with the docs."""

import re
import shlex
import shutil
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT

from sumix_stream.cli import serve
from sumix_stream.serve.metrics import Metrics

DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def options(arguments: list[str], monkeypatch) -> object:
    """As the command reads them; an unknown one ends the test."""
    monkeypatch.setattr(sys, "argv", ["serve", *arguments])
    return serve.arguments()


def kubernetes() -> dict[str, dict]:
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / "kubernetes" / "sumix.yaml").read_text())}


def exec_form(instruction: str) -> list[str]:
    return yaml.safe_load(re.search(rf"^{instruction} (\[.*\])$", DOCKERFILE, re.M)[1])


def test_the_image_is_light_and_runs_as_nobody(monkeypatch):
    lines = re.sub(r"\\\n", " ", DOCKERFILE).splitlines()
    instructions = [line.split(maxsplit=1) for line in lines if line and not line.startswith("#")]
    names = [name for name, _ in instructions]
    assert set(names) <= {"FROM", "WORKDIR", "RUN", "COPY", "ENV", "USER", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK",
                          "ENTRYPOINT", "CMD"}  # fmt: skip
    stages = [index for index, name in enumerate(names) if name == "FROM"]
    last = dict(instructions[stages[-1] :])
    assert len(stages) == 2 and last["USER"].isdigit() and int(last["USER"]) > 0
    assert "/live" in last["HEALTHCHECK"]
    install = [text for name, text in instructions if name == "RUN" and "pip install" in text]
    assert len(install) == 1 and install[0].endswith("-c constraints.txt ."), "no extras: no torch"
    for name, text in instructions:
        if name == "COPY" and not text.startswith("--from"):
            for source in text.split()[:-1]:
                assert (ROOT / source).exists(), source
    ignored = (ROOT / ".dockerignore").read_text().split()
    copied = {source for name, text in instructions if name == "COPY" and "--from" not in text
              for source in text.split()[:-1]}  # fmt: skip
    assert ignored[0] == "*" and {line[1:] for line in ignored if line[0] == "!"} == copied
    program, command, *rest = exec_form("ENTRYPOINT") + exec_form("CMD")
    assert (program, command) == ("sumix", "serve")
    assert options(rest, monkeypatch).host == "0.0.0.0"


def test_compose(monkeypatch):
    content = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    servers = [service for name, service in content["services"].items() if name != "nginx"]
    upstreams = re.findall(r"server (\w+):6006", (DEPLOY / "nginx.conf").read_text())
    assert upstreams == [name for name in content["services"] if name != "nginx"]
    for service in servers:
        args = options(service["command"], monkeypatch)
        assert int(service["stop_grace_period"].rstrip("s")) > args.drain_seconds
        assert service["cap_drop"] == ["ALL"] and service["read_only"] and service["restart"] == "unless-stopped"
        assert service["ulimits"]["nofile"] > args.max_streams
        assert "SUMIX_SERVE_TOKEN" in service["environment"], "never open by accident"
    for volume in content["services"]["nginx"]["volumes"]:
        assert (DEPLOY / volume.split(":")[0]).is_file()
    assert all(port.startswith("127.0.0.1:") for port in content["services"]["nginx"]["ports"])


def test_kubernetes(monkeypatch):
    found = kubernetes()
    assert found.keys() == {"Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler"}
    deployment = found["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    args = options([part for text in container["args"] for part in text.split("=", 1)], monkeypatch)
    pre_stop = container["lifecycle"]["preStop"]["exec"]["command"]
    assert pre_stop[0] == "sleep"
    assert pod["terminationGracePeriodSeconds"] > int(pre_stop[1]) + args.drain_seconds
    probes = {name: container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")}
    assert probes == {"startup": "/live", "readiness": "/health", "liveness": "/live"}
    assert pod["securityContext"]["runAsNonRoot"] and container["securityContext"]["readOnlyRootFilesystem"]
    assert str(pod["securityContext"]["runAsUser"]) == re.search(r"^USER (\d+)$", DOCKERFILE, re.M)[1]
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}
    assert re.search(r"NUMBA_CACHE_DIR=(\S+)", DOCKERFILE)[1] in {m["mountPath"] for m in container["volumeMounts"]}
    labels = deployment["template"]["metadata"]["labels"]
    for selector in (deployment["selector"]["matchLabels"], found["Service"]["spec"]["selector"],
                     found["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]):  # fmt: skip
        assert selector.items() <= labels.items()
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert found["Service"]["spec"]["ports"][0]["targetPort"] in ports
    assert f"EXPOSE {ports['http']}" in DOCKERFILE
    scaler = found["HorizontalPodAutoscaler"]["spec"]
    assert scaler["scaleTargetRef"]["name"] == found["Deployment"]["metadata"]["name"]
    (metric,) = scaler["metrics"]
    assert f"\n{metric['pods']['metric']['name']} " in Metrics().text()
    assert int(metric["pods"]["target"]["averageValue"]) < args.max_streams


def test_systemd(monkeypatch, tmp_path):
    text = (DEPLOY / "sumix.service").read_text()
    unit = dict(line.split("=", 1) for line in text.splitlines() if "=" in line and line[0] not in "#[")
    program, command, *rest = shlex.split(unit["ExecStart"])
    args = options(rest, monkeypatch)
    assert (command, unit["Restart"], unit["KillMode"]) == ("serve", "on-failure", "mixed")
    assert int(unit["TimeoutStopSec"]) > args.drain_seconds and int(unit["LimitNOFILE"]) > args.max_streams
    assert "MemoryDenyWriteExecute" not in text, "compiled steps are written and executed"
    if (analyze := shutil.which("systemd-analyze")) is None:
        pytest.skip("systemd-analyze is not installed: read by us alone")
    path = tmp_path / "sumix.service"
    path.write_text(text.replace(program, sys.executable))
    done = subprocess.run([analyze, "verify", "--man=no", path], capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "sumix.service" in line]
    assert not said, said
