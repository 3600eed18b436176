"""Files of `docker compose` and of the dashboard, as far as they can be read without running."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.metrics import base_of, defined_metrics, metrics_in

DOCKER = Path(__file__).parents[2] / "docker"


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
            used |= metrics_in(target["expr"])
    assert len(used) > 10
    assert {base_of(metric) for metric in used} <= defined_metrics()
