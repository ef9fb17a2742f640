"""`orchestrate doctor`: what would fail or cost too much, before it does."""

from __future__ import annotations

import json
from pathlib import Path

import click

from orchestrator.cli.common import json_option, print_json, say, set_option
from orchestrator.cli.failures import explain
from orchestrator.doctor import Finding, Verdict, examine, store_urls
from orchestrator.errors import UsageError
from orchestrator.iam import other_grants, s3_policy
from orchestrator.spec_file import load_spec

_MARKS = {Verdict.OK: "ok", Verdict.WARNING: "warning", Verdict.FAILED: "FAILED"}


@click.command()
@click.argument("spec", type=click.Path(path_type=Path), required=False)
@set_option
@json_option
@click.option("--iam", is_flag=True, help="Print the least that the spec's buckets have to allow.")
@click.pass_context
def doctor(
    context: click.Context,
    spec: Path | None,
    overrides: tuple[str, ...],
    *,
    as_json: bool,
    iam: bool,
) -> None:
    """Check this machine, and the stores, GPUs and prices that SPEC needs; nothing is launched.

    A few small objects are written to each store and removed again. The exit status is that of a
    launch that fails for the same reason; warnings do not count.
    """
    loaded = None if spec is None else load_spec(spec, overrides)
    if iam:
        if loaded is None:
            raise UsageError("A policy is for a spec's buckets.", "orchestrate doctor SPEC --iam")
        _print_policy(store_urls(loaded))
        return
    findings = []
    for finding in examine(loaded):
        findings.append(finding)
        if not as_json:
            _print(finding)
    if as_json:
        print_json({"schema_version": 1, "findings": [_row(finding) for finding in findings]})
    context.exit(max(_exit_code(finding) for finding in findings))


def _exit_code(finding: Finding) -> int:
    if finding.verdict is not Verdict.FAILED:
        return 0
    explained = explain(finding.error) if finding.error is not None else None
    return UsageError.exit_code if explained is None else explained.exit_code


def _print(finding: Finding) -> None:
    print(f"{_MARKS[finding.verdict]:<8} {finding.check:<9} {finding.what}")
    if finding.next_step is not None:
        print(f"{'':<18} {finding.next_step}")


def _row(finding: Finding) -> dict[str, str | None]:
    return {
        "check": finding.check,
        "verdict": finding.verdict.value,
        "what": finding.what,
        "next_step": finding.next_step,
    }


def _print_policy(urls: list[str]) -> None:
    policy, grants = s3_policy(urls), other_grants(urls)
    if policy is None and not grants:
        raise UsageError(f"{', '.join(urls)} needs no policy.", "It is no bucket of a cloud.")
    if policy is not None:
        print(json.dumps(policy, indent=1))
    for grant in grants:
        say(grant)
