"""Train one attempt: `torchrun -m train CONFIG.json`, or `python -m train CONFIG.json` alone.

Leaves outcome-<rank>.json, which is what counts: torchrun turns every exit status into 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import signal
import sys
from datetime import datetime, timezone
from pathlib import Path

import psutil

from checkpoints.errors import CheckpointError, Fenced, StoreUnreachable
from train.config import TrainConfig, load_config
from train.errors import TrainError
from train.owner import watch_owner
from train.report import Report
from train.spool import Outcome, OutcomeKind, keep_room, outcome_path, write_outcome
from train.termination import watch_termination

log = logging.getLogger("train")


def main() -> int:
    """Run the trainer; return its exit status."""
    process_started_at = _process_start()
    is_launched = "TORCHELASTIC_RUN_ID" in os.environ
    watch_termination(os.getppid() if is_launched else None)
    # The agent asks for it before it kills a trainer that hangs.
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    rank = int(os.environ.get("RANK", "0"))
    _configure_logging(rank)
    parser = argparse.ArgumentParser(prog="python -m train", description=__doc__)
    parser.add_argument("config", type=Path, help="TrainConfig as JSON")
    try:
        config = load_config(parser.parse_args().config)
    except TrainError as error:
        _complain(error)
        return 2
    if config.owner_pid is not None:
        watch_owner(config.owner_pid)
    keep_room(outcome_path(config.spool_dir, rank))
    outcome = _run(config, Report(config, rank, process_started_at))
    write_outcome(config.spool_dir, rank, outcome)
    return 0 if outcome.is_well else 1


def _run(config: TrainConfig, report: Report) -> Outcome:
    _set_environment()
    try:
        # Garbage collection finds nothing during the imports, but takes 1.2 of their 5 s.
        gc.disable()
        # torch and transformers; by now the owner is watched and mistakes are reported.
        from train.loop import train

        # What was imported stays: no collection needs to look at it again.
        gc.freeze()
        gc.enable()
        return train(config, report)
    except Fenced as error:
        log.warning("%s", error.what)
        return Outcome(outcome=OutcomeKind.FENCED, step=report.step, error=error.what)
    except StoreUnreachable as error:
        _complain(error)
        return Outcome(outcome=OutcomeKind.CUT_OFF, step=report.step, error=error.what)
    except (TrainError, CheckpointError) as error:
        _complain(error)
        return Outcome(outcome=OutcomeKind.FAILED, step=report.step, error=error.what)
    # The process's outer edge: whatever it is, the agent has to hear of it.
    except Exception as error:
        log.exception("training failed")
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return Outcome(outcome=OutcomeKind.FAILED, step=report.step, error=line)


def _complain(error: TrainError | CheckpointError) -> None:
    log.error("%s\n%s", error.what, error.next_step)


def _set_environment() -> None:
    """Set what libraries read when they are imported or first used."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")


def _configure_logging(rank: int) -> None:
    prefix = "" if rank == 0 else f"rank {rank}: "
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if rank == 0 else logging.WARNING,
        format=f"{prefix}%(message)s",
    )


def _process_start() -> datetime:
    started_at = datetime.fromtimestamp(psutil.Process().create_time(), tz=timezone.utc)
    return min(started_at, datetime.now(timezone.utc))


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    sys.stdout.flush()
    # Not sys.exit: tearing down torch and its groups takes 0.3 s and can hang on a lost peer.
    os._exit(status)
