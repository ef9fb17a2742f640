"""Draw an evaluation in W&B, in a process that can be given up: `python -m ... CONFIG`.

It is a run of its own (job type `evaluation`, grouped with the training): the training's W&B run
has one writer, which may be at work.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from orchestrator.agent.tracking import Mode
from orchestrator.agent.tracking_process import choose_mode, open_run
from orchestrator.dashboard.page import render_evaluation
from orchestrator.evaluation.report import Report
from orchestrator.openai_api import what_it_said


class WandbConfig(BaseModel):
    """What the process is told."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    project: str
    entity: str | None
    run: str
    run_id: str
    directory: Path
    report: Report


def draw(config: WandbConfig) -> str:
    """Draw the report; return where it can be seen."""
    mode, report = choose_mode(), config.report
    if mode is not Mode.ONLINE:
        return f"W&B has no key here or is {mode.value}: the evaluation is not drawn there."
    run = open_run(
        config.directory,
        mode,
        project=config.project,
        entity=config.entity,
        id=f"{config.run_id}-{report.evaluation.rpartition('-')[2]}",
        name=report.evaluation,
        group=config.run,
        job_type="evaluation",
        config=report.model_dump(mode="json", exclude={"items", "categories"}),
    )
    run.log({**numbers(report), "judge/page": _page(report)})
    run.finish()
    return f"Drawn in W&B: {run.url}"


def numbers(report: Report) -> dict[str, float]:
    """Return the series of an evaluation; each is in the summary, so runs can be sorted by it."""
    found: dict[str, float] = {"train/step": float(report.model.step or 0)}
    for name, score in report.model_scores.items():
        found |= {} if score is None else {f"judge/score_{name}": score.mean}
    preference = report.preference
    if preference is not None:
        found |= {f"judge/{name}": getattr(preference, name) for name in ("wins", "ties", "losses")}
        rate = preference.win_rate
        if rate is not None:
            found |= {"judge/win_rate": rate.mean}
            found |= {"judge/win_rate_low": rate.low, "judge/win_rate_high": rate.high}
    found["judge/no_verdicts"] = float(sum(report.no_verdicts.values()))
    if report.judging is not None and report.judging.usd is not None:
        found["judge/usd"] = float(report.judging.usd)
    return found


def _page(report: Report) -> Any:  # noqa: ANN401  # wandb.Html
    # A media file. A wandb.Table is an artifact, and where a key may not make one the whole row is
    # lost (wandb 0.26.1).
    import wandb  # 1 s of CPU

    return wandb.Html(render_evaluation(report), inject=False)


def main() -> None:
    """Draw, and exit at once: W&B's exit handlers may wait for ever on a dead host."""
    logging.basicConfig(level=logging.WARNING)
    status = 1
    try:
        print(draw(WandbConfig.model_validate_json(Path(sys.argv[1]).read_bytes())))  # noqa: T201
        status = 0
    except Exception as error:  # noqa: BLE001  # W&B may raise anything; the report is kept
        print(f"W&B does not have it: {what_it_said(error)}", file=sys.stderr)  # noqa: T201
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
