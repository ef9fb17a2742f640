"""Entry of the node: `python -m orchestrator.agent CONFIG.json`; its exit status tells the end."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from checkpoints.errors import Fenced
from checkpoints.store import ObjectStore, open_store
from orchestrator.agent.agent import Agent
from orchestrator.agent.config import AgentConfig
from orchestrator.agent.health import is_trouble_of_the_node
from orchestrator.attempts import AgentExit, exit_status
from orchestrator.clock import Clock, SystemClock
from orchestrator.errors import UnknownRun
from orchestrator.ledger.fold import fold
from orchestrator.ledger.journal import LedgerReader
from orchestrator.ledger.record import RunRecord, read_record
from train.termination import watch_termination


def run_agent(config: AgentConfig, store: ObjectStore, record: RunRecord, clock: Clock) -> int:
    """Run the part in an attempt that `config` describes and return the agent's exit status."""
    state = fold(record, LedgerReader(store).read())
    return exit_status(Agent(config, store, state, clock).run())


def find_record(store: ObjectStore) -> RunRecord:
    """Return the record of the run in `store`; raise UnknownRun."""
    record = read_record(store)
    if record is None:
        raise UnknownRun(f"{store.url} holds no run.", "Start it with orchestrate launch.")
    return record


def exit_as(run: Callable[[], int]) -> NoReturn:
    """Exit at once with what `run` returns: W&B's exit handlers may wait for ever on a dead host.

    A store or a head that cannot be reached, or a disk that is full, is the node's trouble, not the
    training's: the attempt counts as preempted and the next one tries elsewhere. So is a SIGTERM,
    on which the trainer saves.
    """
    watch_termination()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # or each poll for a notice is a line
    try:
        status = run()
    except Fenced as error:
        logging.getLogger(__name__).warning("leaving: %s", error)
        status = AgentExit.FENCED
    except Exception as error:
        is_away = is_trouble_of_the_node(error)
        what = "this node cannot take part" if is_away else "the agent failed"
        logging.getLogger(__name__).exception("%s", what)
        status = AgentExit.PREEMPTED if is_away else AgentExit.FAILED
    logging.shutdown()
    os._exit(status)


def _run_file(config_file: Path) -> int:
    config = AgentConfig.model_validate_json(config_file.read_bytes())
    store = open_store(config.store)
    return run_agent(config, store, find_record(store), SystemClock())


if __name__ == "__main__":
    exit_as(lambda: _run_file(Path(sys.argv[1])))
