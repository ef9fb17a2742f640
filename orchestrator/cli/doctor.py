"""`orchestrate doctor`: what would fail or cost too much, before it does."""

from __future__ import annotations

import json
from pathlib import Path
from socket import gethostname

import click

from orchestrator.cli.common import (
    confirm,
    examples,
    json_option,
    plain,
    print_json,
    say,
    set_option,
    yes_option,
)
from orchestrator.cli.failures import explain
from orchestrator.doctor import examine, store_urls
from orchestrator.errors import CloudRefused, UsageError
from orchestrator.finding import Finding, Verdict
from orchestrator.iam import aws_policy, bill_grant, other_grants, role_grant
from orchestrator.news import Level
from orchestrator.notify.addresses import how_to_set
from orchestrator.notify.readiness import known_addresses
from orchestrator.spec import RunSpec
from orchestrator.spec_file import load_spec

_MARKS = {Verdict.OK: "ok", Verdict.WARNING: "warning", Verdict.FAILED: "FAILED"}


@click.command(epilog=examples("orchestrate doctor", "orchestrate doctor run.yaml --fix"))
@click.argument("spec", type=click.Path(path_type=Path), required=False)
@set_option
@json_option
@click.option("--offline", is_flag=True, help="Ask no cloud, and no API server of SkyPilot.")
@click.option("--iam", is_flag=True, help="Print the least that the spec's buckets have to allow.")
@click.option("--this-run", is_flag=True, help="With --iam: no folder but the run's, for nodes.")
@click.option(
    "--role", is_flag=True, help="With --iam: also what a role of AWS nodes needs to end them."
)
@click.option("--fix", is_flag=True, help="Make SkyPilot's API server on this machine load us.")
@click.option("--notify", is_flag=True, help="Send a test message to each address, and no more.")
@yes_option
@click.pass_context
def doctor(
    context: click.Context,
    spec: Path | None,
    overrides: tuple[str, ...],
    *,
    as_json: bool,
    offline: bool,
    iam: bool,
    this_run: bool,
    role: bool,
    fix: bool,
    notify: bool,
    yes: bool,
) -> None:
    """Check this machine, and the stores, GPUs and prices that SPEC needs; nothing is launched.

    A few small objects are written to each store and removed again. The exit status is that of a
    launch that fails for the same reason; warnings do not count.

    --notify sends a test message to each address in ORCHESTRATE_NOTIFY, or in the file notify of
    this machine's state folder; what goes wrong is said without the address.

    --fix adds our plugin to ~/.sky/plugins.yaml and ~/.sky/remote_plugins.yaml and shows the
    changes first. To undo it, put back the .bak files beside them, or delete what had none.
    """
    if (this_run or role) and not iam:
        raise UsageError("--this-run and --role are about a policy.", "Add --iam.")
    if fix:
        _fix(yes=yes)
        return
    if notify:
        _send_test()
        return
    loaded = None if spec is None else load_spec(spec, overrides)
    if iam:
        if loaded is None:
            raise UsageError("A policy is for a spec's buckets.", "orchestrate doctor SPEC --iam")
        _print_policy(loaded, this_run=this_run, role=role)
        return
    findings = []
    for finding in examine(loaded, offline=offline):
        findings.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        print_json({"schema_version": 1, "findings": [_row(finding) for finding in findings]})
    context.exit(max(_exit_code(finding) for finding in findings))


def _fix(*, yes: bool) -> None:
    """Show what is to change, ask, and change it."""
    # YAML, which takes 30 ms.
    from orchestrator.cloud.skypilot.plugin_files import apply, plan_changes, require_local_server

    require_local_server()
    changes = plan_changes()
    if not changes:
        say("SkyPilot's API server here has the plugin in its files already; nothing to change.")
        return
    for change in changes:
        print(change.diff(), end="")
    confirm("Change these files?", yes=yes)
    for path in apply(changes):
        say(f"written: {path}")
    say("Have a running API server load it: sky api stop; sky api start")


def _send_test() -> None:
    """Send a message to every address of this machine.

    Raises:
        UsageError: there is none.
        CloudRefused: one does not take it.
    """
    addresses = known_addresses()
    if not addresses:
        raise UsageError("No address for notifications is known.", how_to_set())
    title, text = "orchestrate: a test", f"So look messages of runs launched on {gethostname()}."
    refused = []
    for address in addresses:
        say(f"Sending to {address.name} ...")
        if not address.send(title, text, Level.INFO):
            refused.append(address.name)
    if refused:
        raise CloudRefused(
            f"Not taken by {', '.join(refused)}.",
            f"Check the address and the network. {how_to_set()}",
        )
    say("Taken by all of them. Whether it has arrived is for you to see.")


def _exit_code(finding: Finding) -> int:
    if finding.verdict is not Verdict.FAILED:
        return 0
    explained = explain(finding.error) if finding.error is not None else None
    return UsageError.exit_code if explained is None else explained.exit_code


def _print(finding: Finding) -> None:
    print(f"{_MARKS[finding.verdict]:<8} {finding.check:<9} {plain(finding.what)}")
    if finding.next_step is not None:
        print(f"{'':<18} {finding.next_step}")


def _row(finding: Finding) -> dict[str, str | None]:
    return {
        "check": finding.check,
        "verdict": finding.verdict.value,
        "what": finding.what,
        "next_step": finding.next_step,
    }


def _print_policy(spec: RunSpec, *, this_run: bool, role: bool) -> None:
    """Print what people need, who list a store's runs, or what nodes of this run do."""
    urls = [f"{url}/{spec.name}" if this_run else url for url in store_urls(spec)]
    policy, grants = aws_policy(urls, ends_nodes=role), other_grants(urls)
    if policy is None and not grants:
        raise UsageError(f"{', '.join(urls)} needs no policy.", "It is no bucket of a cloud.")
    if policy is not None:
        print(json.dumps(policy, indent=1))
    besides = (None if role else role_grant(spec.clouds), bill_grant(spec.clouds))
    for grant in [*grants, *filter(None, besides)]:
        say(grant)
