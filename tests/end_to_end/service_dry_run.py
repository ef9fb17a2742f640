"""Have SkyPilot's server check a service and dry-run one replica of it; prints what it chose.

`sky serve up` has no --dryrun (0.14.1): what it checks before it asks a cloud for anything is its
validation, on the client and on the server, and for each replica what a launch does.
"""

from __future__ import annotations

import json
import sys

import sky
from sky.optimizer import Optimizer
from sky.serve import validate_service_task

from orchestrator.cloud.skypilot.service import build_service, enabled_clouds, list_services
from orchestrator.offers import MarketPreference
from orchestrator.serving.plan import Replicas, plan_service
from tests.orchestrator.serving.services import WHEEL, make_service


def main() -> None:
    replicas = Replicas(
        least=2, most=3, requests_per_s=2, market=MarketPreference.SPOT_WITH_FALLBACK
    )
    plan = plan_service("chat", "A100:8", enabled_clouds(), replicas, offline=True)
    task = build_service(make_service(), WHEEL, plan, api_key="sekrit")
    validate_service_task(task, pool=False)
    with sky.Dag() as dag:
        dag.add(task)
    Optimizer.optimize(dag, quiet=True)
    chosen = task.best_resources
    sky.get(sky.launch(task, cluster_name="chat-1", dryrun=True))
    found = {
        "clouds": sorted({offer.cloud for offer in plan.offers}),
        "chosen": f"{chosen.cloud} {chosen.region} {chosen.instance_type}",
        "is_spot": chosen.use_spot,
        "services": len(list_services()),
    }
    sys.stdout.write("\n" + json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
