"""Entry of a SkyPilot node: `python -m orchestrator.cloud.skypilot.node`, on every node of a gang.

Reads what the task's environment says and runs the agent; its exit status is the agent's. SkyPilot
itself is neither needed nor imported here.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from orchestrator.agent.__main__ import exit_as, run_agent
from orchestrator.agent.config import AgentConfig
from orchestrator.cloud.skypilot.environment import LAUNCH, OFFER, OWNER, RANKS, RUN_FOLDER
from orchestrator.ledger.facts import QuotedOffer


def main() -> int:
    """Run this node's part of the attempt and return the agent's exit status."""
    return run_agent(read_environment(os.environ))


def read_environment(variables: Mapping[str, str]) -> AgentConfig:
    """Return what our plugin and SkyPilot say of this node."""
    launch = variables.get(LAUNCH) or secrets.token_hex(4)
    return AgentConfig(
        store=variables[RUN_FOLDER],
        launch=launch,
        offer=QuotedOffer.model_validate_json(variables[OFFER]),
        ranks=int(variables.get(RANKS) or variables["SKYPILOT_NUM_GPUS_PER_NODE"]),
        scratch=_empty_scratch(launch),
        owner=variables.get(OWNER) or None,
    )


def _empty_scratch(launch: str) -> Path:
    """Return this launch's folder; what earlier ones left on the disk is deleted."""
    folder = Path.home() / "orchestrate-scratch"
    shutil.rmtree(folder, ignore_errors=True)
    scratch = folder / launch
    scratch.mkdir(parents=True)
    return scratch


if __name__ == "__main__":
    exit_as(main)
