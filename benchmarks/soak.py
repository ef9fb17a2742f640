"""Train on and on while nodes are killed at random, and look for whatever leaks.

Run: python -m benchmarks.soak --minutes 60 [--seed 0] [--json]

Nodes are taken at random (seeded), every 20 s of their life on average, half of them with a notice.
Exits 1 if something leaks, a replayed step differs, or the bill does not add up.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path

from benchmarks.machine import describe_machine
from benchmarks.soaking.samples import Sample, slope, take
from benchmarks.soaking.site import RUN, Site

MEAN_LIFE_S = 20.0
NOTICE_S = 5.0
SAMPLE_S = 5.0
KEEP_LAST = 3
# The last one from before the batches that a roll-back reaches, and the one after it.
KEPT_FOR_ROLL_BACKS = 2
# Supervisor and agent hold the run's facts, to fold them: so much per object of events/ is no leak.
FACT_BYTES = 64 << 10
# Agents upload every two seconds, if there is something; claims and ends come on top.
OBJECTS_PER_S, OBJECTS_PER_ATTEMPT = 0.5, 4
# From a node's end to the fact that says so.
SEEN_WITHIN_S = 3.0
# Supervisor, agent, torchrun, two ranks, uploader, W&B with its service, a command line, and the
# children of a moment.
MOST_PROCESSES = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the table."""

    what: str
    found: str
    bound: str
    holds: bool


def main() -> None:
    """Soak, print what was found, and exit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    site = Site(folder)
    try:
        samples, num_killed, num_noticed = _soak(site, options.minutes * 60, options.seed)
        site.orchestrate("stop", RUN, "--yes")
        checks = _checks(site, samples, num_killed, num_noticed)
    finally:
        for process, _ in site.processes():
            process.kill()
    document = {
        "schema_version": 1,
        "machine": describe_machine("torch"),
        "minutes": options.minutes,
        "seed": options.seed,
        "num_nodes_killed": num_killed,
        "of_them_with_notice": num_noticed,
        "checks": [asdict(check) for check in checks],
        "samples": [asdict(sample) for sample in samples],
    }
    if options.json:
        json.dump(document, sys.stdout, indent=1)
    else:
        _print(document, checks)
    is_sound = all(check.holds for check in checks)
    if is_sound:
        shutil.rmtree(folder)
    else:
        print(f"what was left is in {folder}", file=sys.stderr)
    sys.exit(0 if is_sound else 1)


def _soak(site: Site, seconds: float, seed: int) -> tuple[list[Sample], int, int]:
    """Let the run go on for so long; return the samples, nodes killed, and those with notice."""
    dice = random.Random(seed)
    site.orchestrate("launch", str(site.write_spec(KEEP_LAST)), "--yes", "--detach")
    started_s = time.monotonic()
    samples: list[Sample] = []
    num_killed = num_noticed = 0
    node, dies_s, has_notice = None, 0.0, False
    while (now_s := time.monotonic() - started_s) < seconds:
        if now_s >= len(samples) * SAMPLE_S:
            samples.append(take(site, started_s))
        up = next((of for _, of in site.processes() if of is not None), None)
        if up is not None and up != node:
            node, dies_s = up, now_s + dice.expovariate(1 / MEAN_LIFE_S)
            has_notice = dice.random() < 0.5
        elif up is not None and now_s >= dies_s:
            if has_notice:
                site.give_notice(up, NOTICE_S)
                num_noticed += 1
                dies_s, has_notice = now_s + NOTICE_S, False
            else:
                num_killed += site.kill_node(up) > 0
                dies_s = float("inf")
        time.sleep(0.5)
    return samples, num_killed, num_noticed


def _checks(
    site: Site, samples: Sequence[Sample], num_killed: int, num_noticed: int
) -> list[Check]:
    status, cost = site.document("status", RUN), site.document("cost", RUN)
    _wait_until_quiet(site)
    return [
        Check(what="nodes killed", found=str(num_killed), bound="at least 1", holds=num_killed > 0),
        Check(what="notices given beside that", found=str(num_noticed), bound="any", holds=True),
        *_growth(samples),
        _at_most("most processes at once", max(s.num_processes for s in samples), MOST_PROCESSES),
        _at_most("processes left at the end", sum(1 for _ in site.processes()), 0),
        _at_most("scratch disks left", sum((n / "scratch").exists() for n in site.nodes()), 0),
        _at_most("temporary files left", sum(1 for _ in site.temporary.iterdir()), 0),
        _at_most(
            "checkpoints in the store",
            sum(1 for _ in (site.store / "checkpoints").iterdir()),
            KEEP_LAST + KEPT_FOR_ROLL_BACKS,
        ),
        *_grown(site, status, samples[-1].at_s),
        _replay(status),
        *_bill(cost),
        _lived(site, cost),
    ]


def _growth(samples: Sequence[Sample]) -> list[Check]:
    checks = []
    for who in ("supervisor", "agent"):
        per_fact = slope(samples, f"{who}_bytes", per="num_facts")
        last = [getattr(s, f"{who}_bytes") for s in samples if getattr(s, f"{who}_bytes")][-1]
        checks.append(
            Check(
                what=f"{who}'s memory ({last / 1e6:.0f} MB at last) grows per object of facts by",
                found=f"{per_fact / 1024:.1f} KiB",
                bound=f"at most {FACT_BYTES >> 10} KiB",
                holds=per_fact <= FACT_BYTES,
            )
        )
        per_minute = 60 * slope(samples, f"{who}_files")
        checks.append(
            Check(
                what=f"{who}'s open files grow per minute by",
                found=f"{per_minute:.2f}",
                bound="less than 0.1",
                holds=per_minute < 0.1,
            )
        )
    return checks


def _grown(site: Site, status: dict[str, object], seconds: float) -> Iterator[Check]:
    """Tell what grows by design, as long as the run goes on, and whether by more than that."""
    attempts = status["attempts"]
    assert isinstance(attempts, list)
    most = round(OBJECTS_PER_S * seconds + OBJECTS_PER_ATTEMPT * len(attempts))
    for folder in ("events", "steps", "logs"):
        num_objects = sum(path.is_file() for path in (site.store / folder).rglob("*"))
        what = f"objects in {folder}/, of {len(attempts)} attempts and {status['step']} steps"
        yield _at_most(what, num_objects, most)


def _replay(status: dict[str, object]) -> Check:
    replay = status["replay"]
    assert isinstance(replay, dict)
    return Check(
        what=f"largest difference in {replay['steps']} replayed steps",
        found=str(replay["max_abs_diff"]),
        bound="0, and at least one",
        holds=int(replay["steps"]) > 0 and float(replay["max_abs_diff"]) == 0,
    )


def _bill(cost: dict[str, object]) -> list[Check]:
    parts, seconds = cost["parts"], cost["seconds"]
    assert isinstance(parts, dict)
    assert isinstance(seconds, dict)
    checks = []
    for what, total, of in (
        ("dollars that the bill's parts leave open", cost["total_usd"], parts),
        ("wall seconds that have no use", cost["wall_seconds"], seconds),
    ):
        left = Decimal(str(total)) - sum(Decimal(str(value)) for value in of.values())
        checks.append(Check(what=f"{what}, of {total}", found=str(left), bound="0", holds=not left))
    return checks


def _lived(site: Site, cost: dict[str, object]) -> Check:
    """Compare the time that is billed with what the nodes' disks say of their lives."""
    attempts, vain = cost["attempts"], cost["vain_launches"]
    assert isinstance(attempts, list)
    assert isinstance(vain, list)
    billed_s = sum(3600 * float(one["usd"]) / float(one["usd_per_hour"]) for one in attempts + vain)
    lives_s = [site.lived_s(node) for node in site.nodes()]
    off_s = abs(billed_s - sum(lives_s))
    return Check(
        what=f"seconds that the bill is off, of {sum(lives_s):.1f} that {len(lives_s)} nodes lived",
        found=f"{off_s:.2f}",
        bound=f"at most {SEEN_WITHIN_S:g}",
        holds=off_s <= SEEN_WITHIN_S,
    )


def _at_most(what: str, found: int, bound: int) -> Check:
    return Check(what=what, found=str(found), bound=f"at most {bound}", holds=found <= bound)


def _wait_until_quiet(site: Site, seconds: float = 60) -> None:
    give_up_at = time.monotonic() + seconds
    while any(True for _ in site.processes()) and time.monotonic() < give_up_at:
        time.sleep(0.5)


def _print(document: dict[str, object], checks: Sequence[Check]) -> None:
    print(f"{document['minutes']:g} minutes, seed {document['seed']}: {document['machine']}")
    print(f"{'':6}{'what':<72}{'found':>16}  bound")
    for check in checks:
        print(
            f"{'ok' if check.holds else 'LEAK':<6}{check.what:<72}{check.found:>16}  {check.bound}"
        )


if __name__ == "__main__":
    main()
