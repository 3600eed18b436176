"""The Kubernetes example, as far as it can be read without a cluster."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fastgen_vllm.api.routes import router
from fastgen_vllm.server.cli import SHUTDOWN_SECONDS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def objects() -> dict[str, Any]:
    loaded = yaml.safe_load_all((ROOT / "docker/kubernetes.yaml").read_text())
    return {each["kind"]: each for each in loaded}


@pytest.fixture
def pod(objects: dict[str, Any]) -> Any:
    return objects["Deployment"]["spec"]["template"]


def test_the_service_finds_the_server(objects: dict[str, Any], pod: Any) -> None:
    (server,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in server["ports"]}
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports["http"]) == "8000"
    (offered,) = objects["Service"]["spec"]["ports"]
    assert offered["targetPort"] in ports
    selector = objects["Service"]["spec"]["selector"]
    assert selector.items() <= pod["metadata"]["labels"].items()
    assert objects["Deployment"]["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]


def test_probes_ask_what_there_is(pod: Any) -> None:
    (server,) = pod["spec"]["containers"]
    ours = {route.path for route in router.routes}
    asked = {name: server[name]["httpGet"]["path"] for name in server if name.endswith("Probe")}
    assert asked["readinessProbe"] in ours
    assert asked["livenessProbe"] == asked["startupProbe"] == "/health"


def test_there_is_time_to_stop(pod: Any) -> None:
    (server,) = pod["spec"]["containers"]
    waits = int(server["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["spec"]["terminationGracePeriodSeconds"] >= waits + SHUTDOWN_SECONDS + 10


def test_what_is_mounted_is_there(objects: dict[str, Any], pod: Any) -> None:
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    claim = volumes["cache"]["persistentVolumeClaim"]["claimName"]
    assert claim == objects["PersistentVolumeClaim"]["metadata"]["name"]
    (server,) = pod["spec"]["containers"]
    assert {mount["name"] for mount in server["volumeMounts"]} == set(volumes)
    dockerfile = (ROOT / "docker/Dockerfile.cpu").read_text()
    paths = {mount["name"]: mount["mountPath"] for mount in server["volumeMounts"]}
    assert f"VOLUME {paths['cache']}\n" in dockerfile
    assert f"USER {pod['spec']['securityContext']['runAsUser']}\n" in dockerfile
    key = server["env"][0]["valueFrom"]["secretKeyRef"]
    assert key["name"] == objects["Secret"]["metadata"]["name"]
    assert key["key"] in objects["Secret"]["stringData"]
