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
    json_option,
    print_json,
    say,
    set_option,
    show_duration,
    store_option,
    yes_option,
)
from orchestrator.cli.watch import watch
from orchestrator.clock import SystemClock
from orchestrator.cost import bill
from orchestrator.errors import SpecError, UnknownRun
from orchestrator.launch import Launched, current_state, relaunch
from orchestrator.launch import launch as launch_run
from orchestrator.ledger.record import RunRecord, read_record
from orchestrator.plan import LaunchPlan, build_plan
from orchestrator.runs import find_run
from orchestrator.spec import AMENDABLE, RunSpec
from orchestrator.spec_file import apply_overrides, load_spec

_SHOWN_OFFERS = 6


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@yes_option
@click.option("--detach", is_flag=True, help="Return when the run is under way.")
def launch(spec: Path, overrides: tuple[str, ...], *, yes: bool, detach: bool) -> None:
    """Train what SPEC describes. The same command again picks the run up."""
    clock = SystemClock()
    plan = build_plan(load_spec(spec, overrides))
    say(render_plan(plan))
    confirm("Launch?", yes=yes)
    launched = launch_run(plan, clock)
    _follow(launched, clock, detach=detach)


@click.command()
@click.argument("spec", type=click.Path(path_type=Path))
@set_option
@json_option
def plan(spec: Path, overrides: tuple[str, ...], *, as_json: bool) -> None:
    """Show what launching SPEC would do and cost; nothing is started."""
    built = build_plan(load_spec(spec, overrides))
    if as_json:
        print_json(plan_document(built))
    else:
        print(render_plan(built))
        if built.spec.is_local:
            options = "".join(f" --set {shlex.quote(override)}" for override in overrides)
            print(f"\nLaunch it: orchestrate launch {spec}{options}")
        else:
            print("\nLaunching on clouds comes with the SkyPilot backend; this is its price.")


@click.command()
@click.argument("run")
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
    confirm("Go on?", yes=yes)
    _follow(relaunch(folder, record, spec, clock), clock, detach=detach)


def plan_document(plan: LaunchPlan) -> dict[str, Any]:
    """Return the document of `plan --json`."""
    estimate = plan.estimate
    return {
        "schema_version": 1,
        "run": plan.spec.name,
        "num_steps": plan.num_steps,
        "offers": [
            {
                "cloud": offer.cloud,
                "region": offer.region,
                "zone": offer.zone,
                "instance_type": offer.instance_type,
                "market": offer.market.value,
                "usd_per_hour": float(offer.usd_per_hour),
                "on_demand_usd_per_hour": float(offer.on_demand_usd_per_hour),
            }
            for offer in plan.offers
        ],
        "usd_per_hour": float(plan.usd_per_hour),
        "worst_case_usd": float(plan.worst_case_usd),
        "estimate": None
        if estimate is None
        else {
            "productive_hours": round(estimate.productive.total_seconds() / 3600, 3),
            "usd_cheapest": float(estimate.usd_cheapest),
            "assumption": estimate.assumption,
        },
        "data": None if plan.inputs is None else plan.inputs.summary.model_dump(mode="json"),
        "simulated": plan.spec.is_local,
        "spec": plan.spec.model_dump(mode="json"),
    }


def render_plan(plan: LaunchPlan) -> str:
    """Return the plan as people read it."""
    return "\n".join([*_what(plan), "", *_where(plan), "", *_how_much(plan)])


def _what(plan: LaunchPlan) -> list[str]:
    spec = plan.spec
    lines = [f"Run {spec.name} in {spec.store}/{spec.name}"]
    if plan.inputs is not None:
        summary = plan.inputs.summary
        lines.append(
            f"Data: {summary.num_conversations} conversations, {summary.num_samples} samples, "
            f"{summary.num_tokens:,} tokens ({summary.num_trained_tokens:,} trained on)"
            + (f", {len(summary.dropped)} dropped or cut" if summary.dropped else "")
        )
    if plan.num_steps is not None:
        lines.append(f"Training: {plan.num_steps} steps of {spec.train.global_batch} sequences")
    return lines


def _where(plan: LaunchPlan) -> list[str]:
    kind = " (simulated)" if plan.spec.is_local else ""
    lines = [f"Offers for {plan.spec.nodes.accelerators}{kind}, cheapest first:"]
    for number, offer in enumerate(plan.offers[:_SHOWN_OFFERS], start=1):
        lines.append(
            f"  {number}. {offer.cloud:<7}{offer.region:<17}{offer.zone:<19}"
            f"{offer.market.value:<10} ${offer.usd_per_hour:>8}/h"
            f"   on demand ${offer.on_demand_usd_per_hour}/h"
        )
    hidden = len(plan.offers) - _SHOWN_OFFERS
    return lines + ([f"  and {hidden} more"] if hidden > 0 else [])


def _how_much(plan: LaunchPlan) -> list[str]:
    limits, spec = plan.spec.limits, plan.spec
    lines = []
    if plan.estimate is not None:
        hours = plan.estimate.productive.total_seconds() / 3600
        lines.append(
            f"Estimate: {hours:.1f} h and ${plan.estimate.usd_cheapest} on the first offer "
            f"({plan.estimate.assumption})"
        )
    if spec.is_local:
        lines.append(f"Time: 1 wall second counts as {spec.time_scale:g} market seconds")
    deadline = "none" if limits.deadline is None else show_duration(limits.deadline)
    lines.append(
        f"Price{' (simulated)' if spec.is_local else ''}: ${plan.usd_per_hour}/h, "
        f"at most ${plan.worst_case_usd} (the budget); deadline {deadline}"
    )
    return lines


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
