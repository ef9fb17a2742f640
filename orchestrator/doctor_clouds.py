"""What a launch on clouds needs beyond this machine: SkyPilot and its server, the plugin, quotas.

Every check stands alone, and says what to do next; a server or a cloud that does not answer is
given up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.aws import ask_quotas, is_elsewhere
from orchestrator.catalog import num_vcpus, quota_codes
from orchestrator.cloud.skypilot import checks
from orchestrator.cloud.skypilot.environment import STRATEGY
from orchestrator.cloud.skypilot.plugin_files import plan_changes
from orchestrator.errors import CloudRefused, OrchestratorError
from orchestrator.finding import Finding, failed, ok, warning
from orchestrator.offers import Market, Offer
from orchestrator.readiness import HOW_TO_SIGN_IN, has_credentials, skypilot_version
from orchestrator.spec import RunSpec
from orchestrator.strays import end_of_run, find_strays

# What the plugin is written against; pyproject.toml says the same.
_OLDEST, _BELOW = (0, 14, 1), (0, 15)
_SKYPILOT_RANGE = "skypilot>=0.14.1,<0.15"


def examine_clouds(
    spec: RunSpec, offers: Sequence[Offer], store_urls: Sequence[str], *, offline: bool
) -> Iterator[Finding]:
    """Yield a finding after each check of what `spec` needs on its clouds."""
    has_skypilot = skypilot_version() is not None  # else that was said, and nobody is there to ask
    inquiry = checks.Inquiry() if has_skypilot and not offline else None
    for cloud in spec.clouds or ():
        yield _credentials(cloud)
    yield _regions(offers)
    if not offline:
        yield from quota_findings(spec, offers)
    yield _plugin_files()
    if has_skypilot:
        yield _version()
    if inquiry is not None:
        yield from server_findings(spec.clouds or (), store_urls, inquiry.answers())


def server_findings(
    clouds: Sequence[str], store_urls: Sequence[str], answers: checks.Answers
) -> Iterator[Finding]:
    """Yield what the API server's answers mean for a spec on these clouds."""
    if answers.server is None:
        what = f"SkyPilot's API server was not found: {answers.errors['server']}."
        yield failed("server", CloudRefused(what, "sky api info; sky api logs"))
        return
    yield _server(answers.server)
    if answers.server.status != "healthy":
        return
    if answers.enabled is not None:
        yield from _enabled(clouds, answers.enabled)
    if answers.plugins is not None:
        yield _loaded(answers.plugins)
    if answers.jobs is not None and answers.clusters is not None:
        yield from _strays(answers.jobs, answers.clusters, store_urls)
    for question, why in answers.errors.items():
        yield warning("server", f"{question}: {why}", "sky api logs")


def _version() -> Finding:
    found = skypilot_version() or ""
    numbers = tuple(int(part) for part in found.split(".")[:3] if part.isdigit())
    if _OLDEST <= numbers < _BELOW:
        return ok("skypilot", f"skypilot {found} is a version that the plugin knows")
    return warning(
        "skypilot",
        f"skypilot {found} is not one that the plugin is written for",
        f"pip install '{_SKYPILOT_RANGE}'",
    )


def _server(server: checks.Server) -> Finding:
    match server.status:
        case "healthy":
            what = f"SkyPilot's API server {server.version} answers at {server.url}"
            return ok("server", what)
        case "version_mismatch":
            error = " ".join((server.error or "its version does not fit").split())
            step = "sky api stop; sky api start" if server.is_local else _SKYPILOT_RANGE
            return failed("server", CloudRefused(f"{server.url}: {error}", step))
        case "needs_auth":
            what = f"{server.url} asks who you are."
            return failed("server", CloudRefused(what, f"sky api login -e {server.url}"))
        case _ if server.is_local:
            what = (
                f"no API server runs at {server.url}, and doctor starts none: the rest is unknown"
            )
            return warning("server", what, "sky api start (a launch does it, too)")
        case _:
            what = f"SkyPilot's API server {server.url} cannot be reached."
            return failed("server", CloudRefused(what, "sky api info; sky api login"))


def _enabled(clouds: Sequence[str], enabled: Sequence[str]) -> Iterator[Finding]:
    usable = [cloud for cloud in clouds if cloud in enabled]
    if usable:
        yield ok("clouds", f"SkyPilot may use {', '.join(usable)}")
    disabled = [cloud for cloud in clouds if cloud not in enabled]
    step = f"sky check {' '.join(disabled)}"
    if disabled and usable:
        what = f"SkyPilot may not use {', '.join(disabled)}, as far as it knows"
        yield warning("clouds", what, step)
    elif disabled:
        what = f"SkyPilot may use none of {', '.join(disabled)}, as far as it knows."
        yield failed("clouds", CloudRefused(what, step))


def _loaded(plugins: Sequence[str]) -> Finding:
    if STRATEGY in plugins:
        return ok("plugin", "the API server has loaded the plugin")
    return warning(
        "plugin",
        "the API server has not loaded the plugin: runs go by SkyPilot's own recovery",
        "On its machine: orchestrate doctor --fix, then sky api stop; sky api start",
    )


def _plugin_files() -> Finding:
    try:
        changes = plan_changes()
    except OrchestratorError as error:
        return warning("plugin", error.what, error.next_step)
    if not changes:
        return ok("plugin", "this machine's files for SkyPilot name the plugin and its wheel")
    return warning(
        "plugin",
        "this machine's files for SkyPilot do not name the plugin, or hold an older wheel of it",
        "orchestrate doctor --fix shows the changes (not needed with a remote API server)",
    )


def _strays(
    jobs: Sequence[checks.Job], clusters: Sequence[str], store_urls: Sequence[str]
) -> Iterator[Finding]:
    found = list(
        find_strays(
            [(job.number, job.name) for job in jobs],
            clusters,
            lambda name, run_id: end_of_run(name, run_id, store_urls),
        )
    )
    for stray in found:
        yield warning("strays", stray.what, stray.command)
    if not found:
        yield ok("strays", "nothing runs for a run that has ended, as far as this machine knows")


def _credentials(cloud: str) -> Finding:
    if has_credentials(cloud):
        return ok("login", f"{cloud} credentials are on this machine")
    what = f"no {cloud} credentials on this machine (a remote API server may have its own)"
    return warning("login", what, HOW_TO_SIGN_IN[cloud])


def _regions(offers: Sequence[Offer]) -> Finding:
    places = sorted({"/".join(offer.place) for offer in offers})
    return ok("regions", f"{len(places)} on offer: {', '.join(places)}")


def quota_findings(spec: RunSpec, offers: Sequence[Offer]) -> Iterator[Finding]:
    """Yield whether the account may have the nodes, by kind and market; only AWS is asked."""
    others = [cloud for cloud in spec.clouds or () if cloud != "aws"]
    if others:
        yield ok("quota", f"not checked on {', '.join(others)}: a launch finds out")
    on_aws = [offer for offer in offers if offer.cloud == "aws"]
    if not on_aws:
        return
    if not has_credentials("aws") or is_elsewhere():
        yield warning("quota", "not checked on aws: no credentials", HOW_TO_SIGN_IN["aws"])
        return
    kinds = dict.fromkeys((offer.instance_type, offer.market) for offer in on_aws)
    for instance_type, market in kinds:
        regions = {
            o.region for o in on_aws if (o.instance_type, o.market) == (instance_type, market)
        }
        yield from _quota(instance_type, market, sorted(regions), spec.nodes.count)


def _quota(
    instance_type: str, market: Market, regions: Sequence[str], num_nodes: int
) -> Iterator[Finding]:
    kind = f"{num_nodes} x {instance_type} {market.value}"
    code, vcpus = quota_codes(instance_type).get(market), num_vcpus("aws", instance_type)
    if code is None or vcpus is None:
        what = f"not checked for {kind}: SkyPilot's catalog here does not say which quota it is"
        yield warning("quota", what, "sky check aws")
        return
    needed = vcpus * num_nodes
    answers, failures = ask_quotas(code, regions)
    enough = [region for region, value in answers.items() if value >= needed]
    short = [f"{region} ({value:g})" for region, value in answers.items() if value < needed]
    what = f"{kind} needs {needed:g} vCPUs of {code}"
    step = f"Ask for more: Service Quotas, EC2, {code}"
    if enough:
        yield ok("quota", f"{what}; there is that much in {', '.join(sorted(enough))}")
    if short:
        yield warning("quota", f"{what}; too little in {', '.join(sorted(short))}", step)
    if failures:
        reasons = ", ".join(f"{region} ({why})" for region, why in sorted(failures.items()))
        yield warning("quota", f"{what}; unknown in {reasons}")
