"""The cell's command line: `python -m tests.cell up BASE`; see README.md."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tests.cell.cell import Cell
from tests.cell.image import ImageError
from tests.cell.namespace import CellError
from tests.cell.wire import Failed


def main(words: list[str]) -> int:
    """Do what the words say and return the exit status."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asked = _parser().parse_args(words)
    try:
        return int(asked.act(Cell(asked.base), asked) or 0)
    except (CellError, ImageError, Failed) as error:
        sys.stderr.write(f"{error}\n")
        return 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.cell", description=__doc__)
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, act: object, text: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text, description=text)
        one.add_argument("base", type=Path, metavar="BASE", help="the cell's folder")
        one.set_defaults(act=act)
        return one

    up = verb("up", _up, "start the cell at BASE, unless it runs")
    up.add_argument("--fresh", action="store_true", help="forget all that BASE holds")
    restart = verb("restart-server", _restart, "restart SkyPilot's server and controllers")
    for one in (up, restart):
        one.add_argument("--plugin", action="append", metavar="CLASS", help="load it; '' for none")
    up.add_argument("--poll", type=float, default=3.0, metavar="SECONDS", help="between looks")
    verb("down", lambda cell, _: cell.down(), "end the cell")
    verb("state", _state, "print the instances and the jobs, one a line")
    verb("kill-controller", lambda cell, _: cell.kill_controller() and None, "kill controllers")
    run = verb("run", _run, "run a command in the cell")
    run.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    preempt = verb("preempt", _preempt, "take back an instance or a cluster")
    preempt.add_argument("target")
    preempt.add_argument("--notice", type=float, metavar="SECONDS")
    preempt.add_argument("--capacity", action="append", default=[], metavar="KEY=NUMBER")
    warn = verb("warn", lambda cell, asked: cell.warn(asked.target) and None, "announce a risk")
    warn.add_argument("target")
    market = verb("market", _market, "set the market; what is not given is unlimited")
    market.add_argument("capacity", nargs="*", metavar="KEY=NUMBER", help="aws/us-east-1/spot=0")
    market.add_argument("--boot-seconds", type=float, default=0)
    market.add_argument("--no-capacity-seconds", type=float, default=0)
    return parser


def _up(cell: Cell, asked: argparse.Namespace) -> None:
    cell.up(plugins=_plugins(asked), poll_seconds=asked.poll, fresh=asked.fresh)


def _restart(cell: Cell, asked: argparse.Namespace) -> None:
    cell.restart_server(plugins=_plugins(asked))


def _plugins(asked: argparse.Namespace) -> list[str] | None:
    return None if asked.plugin is None else [name for name in asked.plugin if name]


def _run(cell: Cell, asked: argparse.Namespace) -> int:
    command = asked.command[1:] if asked.command[:1] == ["--"] else asked.command
    return cell.start(command, stdin=None).wait()


def _state(cell: Cell, _: argparse.Namespace) -> None:
    for one in cell.instances():
        market = "spot" if one.spot else "on-demand"
        role = "head" if one.head else "worker"
        why = f" {one.reason.value}" if one.reason else ""
        where = f"{one.cloud} {one.zone} {one.instance_type} {market} {role} {one.ip}"
        sys.stdout.write(f"{one.id} {one.state.value}{why} {one.cluster} {where}\n")
    for job in cell.jobs():
        about = f"{job.status} recoveries={job.recoveries} {job.zone or ''}"
        sys.stdout.write(f"job {job.id} {job.name} {about}\n")


def _preempt(cell: Cell, asked: argparse.Namespace) -> None:
    cell.preempt(asked.target, asked.notice, capacity=_capacity(asked.capacity))


def _market(cell: Cell, asked: argparse.Namespace) -> None:
    cell.set_market(
        capacity=_capacity(asked.capacity),
        boot_seconds=asked.boot_seconds,
        no_capacity_seconds=asked.no_capacity_seconds,
    )


def _capacity(words: list[str]) -> dict[str, int]:
    return {key: int(number) for key, _, number in (word.partition("=") for word in words)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
