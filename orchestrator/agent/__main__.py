"""Entry of the node: `python -m orchestrator.agent CONFIG.json`; its exit status tells the end."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from checkpoints.errors import StoreUnreachable
from checkpoints.store import open_store
from orchestrator.agent.agent import Agent
from orchestrator.agent.config import AgentConfig
from orchestrator.attempts import AgentExit
from orchestrator.clock import SystemClock
from orchestrator.errors import UnknownRun
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.record import read_record


def main(config_file: Path) -> int:
    """Run the attempt that the file describes and return the agent's exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # or each poll for a notice is a line
    config = AgentConfig.model_validate_json(config_file.read_bytes())
    store = open_store(config.store)
    record = read_record(store)
    if record is None:
        raise UnknownRun(f"{config.store} holds no run.", "Start it with orchestrate launch.")
    state = fold(record, LedgerReader(store).read())
    return Agent(config, store, state, SystemClock()).run()


def _run_and_exit(config_file: Path) -> None:
    """Exit at once with the agent's status: W&B's exit handlers may wait for ever on a dead host.

    A store that cannot be reached is the node's trouble, not the training's: the attempt counts as
    preempted and the next one tries elsewhere.
    """
    try:
        status = main(config_file)
    except StoreUnreachable:
        logging.getLogger(__name__).exception("the store cannot be reached")
        status = AgentExit.PREEMPTED
    except Exception:
        logging.getLogger(__name__).exception("the agent failed")
        status = AgentExit.FAILED
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    _run_and_exit(Path(sys.argv[1]))
