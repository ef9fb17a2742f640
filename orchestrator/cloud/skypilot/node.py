"""Entry of a SkyPilot node: `python -m orchestrator.cloud.skypilot.node`, on every node of a here.

Reads what the task's environment says and runs the agent; its exit status is the agent's: 0 done,
75 preempted, drained or unfit, 76 fenced, 77 stopped, 78 hung, 1 failed. Without our plugin 76 and
77 become 0, or SkyPilot would start it again. SkyPilot itself is neither needed nor imported here.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from checkpoints.store import ObjectStore, open_store
from orchestrator.agent.__main__ import exit_as, find_record, run_agent
from orchestrator.agent.config import AgentConfig
from orchestrator.attempts import AgentExit
from orchestrator.clock import SystemClock
from orchestrator.cloud.skypilot.autodown import end_soon
from orchestrator.cloud.skypilot.environment import (
    AGENT,
    LAUNCH,
    OFFER,
    OWNER,
    RANKS,
    RUN_FOLDER,
)
from orchestrator.cloud.skypilot.solo import new_launch, run_alone
from orchestrator.cloud.skypilot.staying import stay_while_free
from orchestrator.cloud.skypilot.this_node import offer_of_this_node
from orchestrator.ledger.facts import QuotedOffer
from orchestrator.ledger.record import RunRecord
from orchestrator.notify.addresses import take_addresses

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """What SkyPilot says of this node and the others of its launch."""

    node: int
    addresses: tuple[str, ...]
    num_gpus: int

    @classmethod
    def read(cls, variables: Mapping[str, str]) -> Placement:
        """Read SkyPilot's variables; a node that it does not know of is alone."""
        addresses = tuple(variables.get("SKYPILOT_NODE_IPS", "").split()) or ("127.0.0.1",)
        num_nodes = int(variables.get("SKYPILOT_NUM_NODES", "1"))
        if len(addresses) != num_nodes:
            raise ValueError(f"SKYPILOT_NODE_IPS has {len(addresses)} of {num_nodes} addresses")
        return cls(
            node=int(variables.get("SKYPILOT_NODE_RANK", "0")),
            addresses=addresses,
            num_gpus=int(variables.get("SKYPILOT_NUM_GPUS_PER_NODE") or "0"),
        )


def main() -> int:
    """Run this node's part of the attempt and return the agent's exit status.

    Unless the run is done, nobody needs the node any more: our plugin has it terminated before it
    asks for another, and SkyPilot is asked to end it soon if nobody does.
    """
    status = None
    try:
        status = _take_part()
    finally:
        # SkyPilot's own recovery may go on with the same node.
        if status != AgentExit.DONE and os.environ.get(LAUNCH):
            end_soon()
    return status


def _take_part() -> int:
    variables, clock = os.environ, SystemClock()
    notify = take_addresses(_log)  # no process of the training is to have them
    store = open_store(variables[RUN_FOLDER])
    record = find_record(store)
    config = read_environment(variables, store, record)
    if not variables.get(LAUNCH):
        return run_alone(config, store, record, clock, notify)
    status = run_agent(config, store, record, clock)
    if status == AgentExit.PREEMPTED:
        stay_while_free(store, record, config.launch, clock)
    return status


def read_environment(
    variables: Mapping[str, str], store: ObjectStore, record: RunRecord
) -> AgentConfig:
    """Return what our plugin and SkyPilot say of this node, and what it finds out itself."""
    here = Placement.read(variables)
    given_ranks = variables.get(RANKS)
    launch = variables.get(LAUNCH) or (new_launch(record) if here.node == 0 else "")
    told = variables.get(OFFER)
    config = AgentConfig(
        store=store.url,
        launch=launch,
        offer=QuotedOffer.model_validate_json(told)
        if told
        else offer_of_this_node(record.offers, variables),
        ranks=_num_ranks(given_ranks, here),
        node=here.node,
        num_nodes=len(here.addresses),
        head=here.addresses[0],
        address=here.addresses[here.node],
        scratch=_empty_scratch(launch),
        checks_node=True,
        num_gpus=None if given_ranks else here.num_gpus,
        owner=variables.get(OWNER) or None,
    )
    changes = json.loads(variables.get(AGENT) or "{}")
    return AgentConfig.model_validate({**dict(config), **changes})


def _num_ranks(given: str | None, here: Placement) -> int:
    found = int(given or here.num_gpus)
    if found < 1:
        raise ValueError(f"a node without GPUs needs {RANKS}")
    return found


def _empty_scratch(launch: str) -> Path:
    """Return this launch's folder; what earlier ones left on the disk is deleted."""
    folder = Path.home() / "orchestrate-scratch"
    shutil.rmtree(folder, ignore_errors=True)
    scratch = folder / (launch or "joined")
    scratch.mkdir(parents=True)
    return scratch


if __name__ == "__main__":
    exit_as(main)
