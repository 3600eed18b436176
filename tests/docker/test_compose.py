"""Files of `docker compose` and of the dashboard, as far as they can be read without running."""

import json
import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

DOCKER = Path(__file__).parents[2] / "docker"
SUFFIXES = ("_total", "_sum", "_count", "_bucket")


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    return loaded


def test_what_is_mounted_and_built_is_there(compose: dict[str, Any]) -> None:
    mounted = 0
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DOCKER / source).exists(), source
                mounted += 1
            else:
                assert source in compose["volumes"]
    assert mounted == 3
    build = compose["services"]["server"]["build"]
    assert (DOCKER / build["context"] / build["dockerfile"]).is_file()


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if name != "server":
            assert re.search(r":v?\d+\.\d+\.\d+$", service["image"]), service["image"]


def test_prometheus_asks_the_server(compose: dict[str, Any]) -> None:
    config = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    host, port = job["static_configs"][0]["targets"][0].split(":")
    assert f"{port}:{port}" in compose["services"][host]["ports"]


def test_every_metric_of_the_dashboard_exists() -> None:
    """Ours and vLLM's, by the sources that define them."""
    folder = DOCKER / "grafana/provisioning"
    source = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())
    board = json.loads((DOCKER / "grafana/dashboards/fastgen.json").read_text())
    used = set()
    for panel in board["panels"]:
        assert panel["datasource"]["uid"] == source["datasources"][0]["uid"]
        for target in panel["targets"]:
            used |= set(re.findall(r"\b(?:vllm:|fastgen_)\w+", target["expr"]))
    assert len(used) > 10
    vllm = find_spec("vllm")
    assert vllm is not None and vllm.origin is not None
    theirs = (Path(vllm.origin).parent / "v1/metrics/loggers.py").read_text()
    ours = (DOCKER.parent / "fastgen_vllm/integration/metrics.py").read_text()
    for name in used:
        base = next((name.removesuffix(s) for s in SUFFIXES if name.endswith(s)), name)
        assert f'"{base}"' in (ours if name.startswith("fastgen_") else theirs), name
