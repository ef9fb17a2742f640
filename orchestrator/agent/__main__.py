"""Entry of the node: `python -m orchestrator.agent CONFIG.json`; its exit status tells the end."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from checkpoints.store import open_store
from orchestrator.agent.agent import Agent
from orchestrator.agent.config import AgentConfig
from orchestrator.clock import SystemClock
from orchestrator.errors import UnknownRun
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.record import read_record


def main(config_file: Path) -> int:
    """Run the attempt that the file describes and return the agent's exit status."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    config = AgentConfig.model_validate_json(config_file.read_bytes())
    store = open_store(config.store)
    record = read_record(store)
    if record is None:
        raise UnknownRun(f"{config.store} holds no run.", "Start it with orchestrate launch.")
    spec = fold(record, LedgerReader(store).read()).spec
    return Agent(config, store, record, spec, SystemClock()).run()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
