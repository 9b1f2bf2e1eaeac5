"""docs/kubernetes.yaml against this version: its flags, its paths, its times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from octavo.cli.flags import parse_serve
from octavo.config import EngineOptions, ServerOptions

FILE = Path(__file__).parents[3] / "docs" / "kubernetes.yaml"
OBJECTS: list[dict[str, Any]] = list(yaml.safe_load_all(FILE.read_text()))
SETS = [made for made in OBJECTS if made["kind"] in ("Deployment", "StatefulSet")]
SERVICES = [made for made in OBJECTS if made["kind"] == "Service"]
every_set = pytest.mark.parametrize("made", SETS, ids=lambda made: str(made["kind"]))


def container(made: dict[str, Any]) -> dict[str, Any]:
    (found,) = made["spec"]["template"]["spec"]["containers"]
    return dict(found)


def options(made: dict[str, Any], number: int) -> tuple[EngineOptions, ServerOptions]:
    program, command, *flags = container(made)["command"]
    assert (program, command) == ("octavo", "serve")
    return parse_serve([flag.replace("$(POD_INDEX)", str(number)) for flag in flags])


@every_set
def test_pods_are_chosen_by_the_labels_that_they_have(made: dict[str, Any]) -> None:
    labels = made["spec"]["template"]["metadata"]["labels"]
    assert made["spec"]["selector"]["matchLabels"] == labels
    own = [service for service in SERVICES if service["spec"]["selector"].items() >= labels.items()]
    assert own
    for service in own:
        assert service["spec"]["selector"].keys() <= labels.keys() | {"apps.kubernetes.io/pod-index"}


@every_set
def test_each_pod_starts_with_flags_that_are_there(made: dict[str, Any]) -> None:
    count = made["spec"]["replicas"] if made["kind"] == "StatefulSet" else 1
    for number in range(count):
        engine, server = options(made, number)
        assert (engine.hosts.nnodes, engine.hosts.node_rank) == (count, number)
        assert server.host == "0.0.0.0"
        assert [port["containerPort"] for port in container(made)["ports"]] == [server.port]
        assert made["spec"]["template"]["metadata"]["annotations"]["prometheus.io/port"] == str(server.port)


def test_hosts_find_the_first_one_by_a_name_that_is_there_before_it_is_ready() -> None:
    (made,) = (each for each in SETS if each["kind"] == "StatefulSet")
    (named,) = (service for service in SERVICES if service["metadata"]["name"] == made["spec"]["serviceName"])
    assert named["spec"]["clusterIP"] == "None" and named["spec"]["publishNotReadyAddresses"]
    assert options(made, 1)[0].hosts.master_addr == f"{made['metadata']['name']}-0.{named['metadata']['name']}"
    assert made["spec"]["podManagementPolicy"] == "Parallel", "one at a time would wait for the first, which waits for the others"


@every_set
def test_a_pod_has_the_time_to_drain(made: dict[str, Any]) -> None:
    (program, seconds) = container(made)["lifecycle"]["preStop"]["exec"]["command"]
    assert program == "sleep"
    _, server = options(made, 0)
    after_server = 5
    assert made["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] >= int(seconds) + server.shutdown_timeout + after_server


@every_set
def test_probes_ask_for_health_and_for_life(made: dict[str, Any]) -> None:
    def path(probe: dict[str, Any]) -> str:
        return str(probe["httpGet"]["path"] if "httpGet" in probe else probe["exec"]["command"][-1])

    found = container(made)
    assert [path(found[f"{what}Probe"]) for what in ("startup", "readiness", "liveness")] == ["/ping", "/health", "/ping"]
    for probe in ("startupProbe", "readinessProbe"):
        if "exec" in found[probe]:
            compile(found[probe]["exec"]["command"][2], probe, "exec")
