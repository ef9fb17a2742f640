"""`orchestrate launch`, `plan` and `resume`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from checkpoints.store import ObjectStore
from orchestrator.cli.common import (
    confirm,
    examples,
    json_option,
    plain,
    print_json,
    say,
    set_option,
    store_option,
    yes_option,
)
from orchestrator.cli.completion import complete_run
from orchestrator.cli.plan import plan_document, render_plan
from orchestrator.cli.simulated_market import (
    inverted_option,
    on_demand_price_option,
    read_recorded,
    spot_price_option,
    traces_option,
)
from orchestrator.cli.watch import watch
from orchestrator.clock import SystemClock
from orchestrator.cost import bill
from orchestrator.errors import SpecError, UnknownRun
from orchestrator.launch import Launched, current_state, relaunch
from orchestrator.launch import launch as launch_run
from orchestrator.ledger.record import RunRecord, read_record
from orchestrator.notify.readiness import what_is_missing
from orchestrator.plan import build_plan
from orchestrator.runs import find_run
from orchestrator.spec import AMENDABLE, RunSpec
from orchestrator.spec_file import apply_overrides, load_spec


@click.command(
    epilog=examples(
        "orchestrate launch examples/quickstart.yaml",
        "orchestrate launch run.yaml --yes --detach --set name=second --set limits.budget_usd=80",
    )
)
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@yes_option
@click.option("--detach", is_flag=True, help="Return when the run is under way.")
def launch(spec: Path, overrides: tuple[str, ...], *, yes: bool, detach: bool) -> None:
    """Train what SPEC describes. The same command again picks the run up.

    Shows offers, prices and the most that it may cost, and asks before anything is started. Then
    it only watches: Ctrl-C ends the watching, not the run, and says how to go on or to stop it.
    Keys of SPEC: docs/reference.md.
    """
    clock = SystemClock()
    plan = build_plan(load_spec(spec, overrides), prepare=True)
    say(render_plan(plan))
    confirm("Launch?", yes=yes)
    launched = launch_run(plan, clock, say)
    _follow(launched, clock, detach=detach)


@click.command(
    epilog=examples(
        "orchestrate plan examples/vicuna-7b.yaml",
        "orchestrate plan run.yaml --offline --set nodes.accelerators=H100:8",
    )
)
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@json_option
@click.option("--offline", is_flag=True, help="Ask no cloud for its prices.")
@traces_option
@inverted_option
@spot_price_option
@on_demand_price_option
def plan(
    spec: Path,
    overrides: tuple[str, ...],
    traces: Path | None,
    *,
    as_json: bool,
    offline: bool,
    **texts: Any,  # noqa: ANN401  # as click parsed them
) -> None:
    """Show what launching SPEC would do and cost; nothing is started.

    The forecast replays the run on futures of recorded --traces, or on made-up ones.
    """
    run = load_spec(spec, overrides)
    recorded = read_recorded(traces, texts, run.nodes.count)
    built = build_plan(run, offline=offline, traces=recorded)
    if as_json:
        print_json(plan_document(built))
    else:
        print(plain(render_plan(built)))
        options = "".join(f" --set {shlex.quote(override)}" for override in overrides)
        print(f"\nLaunch it: orchestrate launch {spec}{options}")


@click.command(
    epilog=examples(
        "orchestrate resume vicuna-7b", "orchestrate resume vicuna-7b --set limits.budget_usd=80"
    )
)
@click.argument("run", shell_complete=complete_run)
@store_option
@set_option
@yes_option
@click.option("--detach", is_flag=True, help="Return when the run is under way.")
def resume(
    run: str, store: str | None, overrides: tuple[str, ...], *, yes: bool, detach: bool
) -> None:
    """Go on with RUN from its run folder; --set may change limits, infra, checkpoints, tracking."""
    clock = SystemClock()
    folder = find_run(run, store).open()
    record = read_record(folder)
    if record is None:
        raise UnknownRun(f"{folder.url} holds no run.", "See what is known: orchestrate status.")
    spec = _amended_spec(folder, record, overrides)
    spent = bill(current_state(folder, record), clock.now()).total
    simulated = " (simulated)" if record.simulated else ""
    say(f"{run}: ${spent:.2f} spent of ${spec.limits.budget_usd}{simulated}.")
    unheard = what_is_missing(spec)
    if unheard is not None:
        say(f"Warning: {unheard}")
    confirm("Go on?", yes=yes)
    _follow(relaunch(folder, record, spec, clock, say), clock, detach=detach)


def _follow(launched: Launched, clock: SystemClock, *, detach: bool) -> None:
    name = launched.record.run
    if launched.is_over:
        say(f"{name} has finished already. See orchestrate cost {name}")
        return
    if detach:
        say(f"{name} is under way. Watch it: orchestrate status {name}")
        return
    watch(launched, clock)


def _amended_spec(store: ObjectStore, record: RunRecord, overrides: Sequence[str]) -> RunSpec:
    for override in overrides:
        section = override.partition("=")[0].partition(".")[0]
        if section not in AMENDABLE:
            raise SpecError(
                f"--set {override}: {section} decides what the run is and cannot change.",
                f"Change {', '.join(sorted(AMENDABLE))}, or launch under another name.",
            )
    return apply_overrides(current_state(store, record).spec, overrides)
