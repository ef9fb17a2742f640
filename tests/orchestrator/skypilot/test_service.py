"""sky/serve.yaml and what is filled in, by the real SkyPilot's own checks.

In a process of its own whose home holds a few rows of catalog: SkyPilot must fetch none.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cloud.skypilot.environment import API_KEY, SERVICE_FOLDER
from orchestrator.cloud.skypilot.task import read_task
from orchestrator.serving.service import PORT
from tests.cell.catalogs import write_catalogs

SCHEMA = """
import sys, yaml
from sky import check, global_user_state
from sky.clouds import CloudCapability
from sky.serve import SkyServiceSpec
from sky.utils import common_utils, schemas

global_user_state.set_enabled_clouds(["AWS", "GCP"], CloudCapability.COMPUTE, "default")
allowed = check._get_workspace_allowed_clouds("default")
global_user_state.set_allowed_clouds(allowed, "default")
config = yaml.safe_load(open(sys.argv[1]))
common_utils.validate_schema(config["service"], schemas.get_service_schema(), "")
spec = SkyServiceSpec.from_yaml_config(config["service"])
given = [(name, "x") for name, value in config["envs"].items() if value is None]
secret = [(name, "x") for name in config["secrets"]]
task = sky.Task.from_yaml_config(config, env_overrides=given, secrets_overrides=secret)
task.validate()
validate_service_task(task, pool=False)
print(json.dumps({
    "path": spec.readiness_path,
    "balancing": spec.load_balancing_policy,
    "ports": spec.ports,
    "secrets": sorted(task.secrets),
}))
"""
FILLED = """
from sky.serve.autoscalers import Autoscaler
from sky.serve.spot_placer import SpotPlacer
from orchestrator.cloud.skypilot.service import build_service
from orchestrator.offers import MarketPreference
from orchestrator.serving.plan import Replicas, plan_service
from tests.orchestrator.serving.services import WHEEL, make_service

def filled(market):
    replicas = Replicas(least=2, most=4, requests_per_s=1.5, market=market)
    plan = plan_service("chat", "A100:8", ["aws", "gcp"], replicas, offline=True)
    task = build_service(make_service(), WHEEL, plan, api_key="sekrit")
    task.validate()
    validate_service_task(task, pool=False)
    again = sky.Task.from_yaml_config(task.to_yaml_config())
    placer = SpotPlacer.from_task(task.service, task)
    return {
        "policy": task.service.to_yaml_config()["replica_policy"],
        "places": sorted({f"{str(one.cloud).lower()}/{one.region}" for one in again.resources}),
        "spot": sorted({one.use_spot for one in task.resources}),
        "labels": next(iter(task.resources)).labels,
        "zones": sorted({str(one.zone) for one in placer.location2status} if placer else ()),
        "first": None if placer is None else str(placer.select_next_location([]).zone),
        "autoscaler": type(Autoscaler.from_spec("chat", task.service)).__name__,
        "envs": task.envs,
        "secrets": sorted(task.secrets),
        "shown": task.to_yaml_config(use_user_specified_yaml=True),
    }

print(json.dumps({market.value: filled(market) for market in MarketPreference}))
"""
_BEFORE = """
import json, warnings
warnings.simplefilter("ignore")
import sky
from sky.serve import validate_service_task
"""


def beside_skypilot(home: Path, script: str, *arguments: object) -> dict[str, Any]:
    """Run a script beside the real SkyPilot, and return what it prints."""
    write_catalogs(home)
    environment = {
        **os.environ,
        "HOME": str(home),
        "SKY_RUNTIME_DIR": str(home),
        "SKYPILOT_DISABLE_USAGE_COLLECTION": "1",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, "-c", _BEFORE + script, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Return what is filled in for each kind of market; SkyPilot takes 3 s to import."""
    return beside_skypilot(tmp_path_factory.mktemp("skypilot"), FILLED)


def test_the_task_file_passes_skyserves_schema_and_validation_as_it_is(tmp_path):
    path = Path(__file__).parents[3] / "sky" / "serve.yaml"
    found = beside_skypilot(tmp_path, SCHEMA, path)
    assert found == {
        "path": "/readiness",
        "balancing": "round_robin",
        "ports": str(PORT),
        "secrets": [API_KEY],
    }


def test_its_script_fetches_the_wheel_as_that_of_training_does():
    train, serve = (read_task(f"{name}.yaml")["setup"] for name in ("train", "serve"))
    since, until = 'export PATH="$HOME', 'install --no-deps --reinstall "$wheel"'
    _, fetches, rest = train.replace("ORCHESTRATE_RUN_FOLDER", SERVICE_FOLDER).partition(since)
    fetches += rest.partition(until)[0] + until
    assert serve.startswith(f"set -e\n{fetches}")
    for script in (serve, read_task("serve.yaml")["run"]):
        subprocess.run(["bash", "-n", "-c", script], check=True)


def test_the_filled_in_task_goes_to_every_cloud_on_spot_with_on_demand_behind_it(filled):
    found = filled["spot_with_fallback"]
    assert {place.partition("/")[0] for place in found["places"]} == {"aws", "gcp"}
    assert found["spot"] == [True]
    assert found["autoscaler"] == "FallbackRequestRateAutoscaler"
    assert found["policy"]["dynamic_ondemand_fallback"] is True
    assert (found["policy"]["min_replicas"], found["policy"]["max_replicas"]) == (2, 4)
    # SkyServe's placer takes tasks whose resources differ in nothing but the place.
    assert {"us-east-1a", "us-central1-a"} <= set(found["zones"])
    assert found["first"] == "us-east-1a"  # the cheapest
    assert found["labels"] == {"orchestrate-service": "chat-1a2b3c4d"}


def test_the_key_is_a_secret_and_nowhere_in_what_is_shown(filled):
    found = filled["spot"]
    assert API_KEY in found["secrets"]
    assert "sekrit" not in json.dumps(found)
    assert found["policy"]["dynamic_ondemand_fallback"] is False


def test_on_demand_alone_has_no_spot_and_nothing_that_needs_it(filled):
    found = filled["on_demand"]
    assert found["spot"] == [False]
    assert found["zones"] == []
    assert "spot_placer" not in found["policy"]
    assert found["autoscaler"] == "RequestRateAutoscaler"
