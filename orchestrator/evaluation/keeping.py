"""Where an evaluation is kept: with the run whose model it is, or in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import datetime
from hashlib import sha256
from pathlib import Path

from checkpoints.store import ObjectStore, open_store
from orchestrator.errors import UsageError
from orchestrator.evaluation.arithmetic import Estimate
from orchestrator.evaluation.prompts import WORDING
from orchestrator.evaluation.questions import Question
from orchestrator.evaluation.report import (
    OVERALL,
    Item,
    Report,
    Spent,
    build_report,
    report_key,
)
from orchestrator.evaluation.sides import Found
from orchestrator.ledger.facts import Interval, ModelEvaluated
from orchestrator.runs import find_run


def open_folder(model: Found, output: Path | None, store: str | None) -> ObjectStore:
    """Return what holds replies and reports: `output`, the model's run, or this folder.

    Raises:
        UsageError: there can be no folder of that name.
    """
    if output is None and model.side.run is not None:
        return find_run(model.side.run, store).open()
    folder = (output or Path()).absolute()
    try:
        # Not when the first reply is kept, which somebody has paid for.
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"Cannot make {folder}: {error.strerror}.", "Change --output.") from error
    return open_store(folder.as_uri())


def name_evaluation(
    sides: tuple[Found, Found | None, Found | None], questions: Sequence[Question], max_tokens: int
) -> str:
    """Return a name that the same evaluation has again, and no other."""
    model, baseline, _ = sides
    answered = [one for one in (model, baseline) if one is not None]
    asked = [question.model_dump(mode="json") for question in questions]
    everyone = [None if one is None else one.identity for one in sides]
    about = json.dumps([everyone, asked, max_tokens, WORDING])
    digest = sha256(about.encode()).hexdigest()[:8]
    readable = "-vs-".join(_readable(one.side.name) for one in answered)
    return f"{readable}-{digest}"


def keep(
    folder: ObjectStore,
    name: str,
    items: Sequence[Item],
    *,
    sides: tuple[Found, Found | None, Found | None],
    questions: str,
    judging: Spent | None,
    at: datetime,
) -> Report:
    """Write the report and return it; one that was made again replaces the last."""
    model, baseline, judge = sides
    report = build_report(
        items,
        evaluation=name,
        at=at,
        sides=(
            model.side,
            None if baseline is None else baseline.side,
            None if judge is None else judge.side,
        ),
        questions=questions,
        judging=judging,
    )
    folder.put(report_key(name), report.model_dump_json(indent=1).encode())
    return report


def as_fact(report: Report, step: int) -> ModelEvaluated:
    """Return what a run's ledger says of a judge's evaluation of its model."""
    assert report.judge is not None, "nobody has judged"
    preference, theirs = report.preference, report.baseline_scores
    return ModelEvaluated(
        evaluation=report.evaluation,
        step=step,
        baseline=None if report.baseline is None else report.baseline.name,
        judge=report.judge.name,
        num_questions=len(report.items),
        questions=report.questions,
        score=_interval(report.model_scores[OVERALL]),
        baseline_score=None if theirs is None else _interval(theirs[OVERALL]),
        wins=0 if preference is None else preference.wins,
        ties=0 if preference is None else preference.ties,
        losses=0 if preference is None else preference.losses,
        no_verdicts=sum(report.no_verdicts.values()),
        win_rate=None if preference is None else _interval(preference.win_rate),
        usd=None if report.judging is None else report.judging.usd,
    )


def _interval(estimate: Estimate | None) -> Interval | None:
    return None if estimate is None else (estimate.mean, estimate.low, estimate.high)


def _readable(name: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:40] or "model"
