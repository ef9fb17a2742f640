"""What a tracker draws: one row per step, from the records and facts of all attempts.

A step is drawn as it was recorded first; when an attempt takes it again, it is compared, not drawn.
Alerts hang on rows, so whoever sends each row once says each thing once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import TypeAlias

from orchestrator.attempts import EndReason
from orchestrator.charges import node_rate
from orchestrator.cost import BUDGET_SHARES
from orchestrator.ledger.facts import Entry
from orchestrator.ledger.fold import fold
from orchestrator.ledger.measurements import Measured
from orchestrator.ledger.record import RunRecord
from orchestrator.replay import compare_replayed
from orchestrator.report import cost_document
from orchestrator.standing import deadline_at, spare
from orchestrator.view import RunView
from train.spool import Evaluated, LeftOut, RolledBack, Step

Values: TypeAlias = Mapping[str, float]
ReadLedger: TypeAlias = Callable[[], Sequence[Entry]]

EVAL_STEP = "eval/step"
USD_TOTAL = "cost/usd_total"
HOURS_SPARE = "deadline/hours_spare"
# Each look at the ledger is a LIST that somebody pays for: 1,440 a day are $0.0072 on S3.
LOOK_EVERY = timedelta(minutes=1)


class Level(str, Enum):
    """How loud an alert is, in W&B's words."""

    INFO = "INFO"
    WARN = "WARN"
    ERROR = "ERROR"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One thing that somebody may want to be woken by; W&B allows 63 characters of title."""

    title: str
    text: str
    level: Level


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """What belongs to one step."""

    step: int
    values: Values
    alerts: tuple[Alert, ...] = ()


@dataclass(slots=True)
class Curve:
    """Turns records into rows, in the order of attempts."""

    record: RunRecord
    read_ledger: ReadLedger
    next_step: int = 1
    """Rows before it were drawn by an earlier attempt: nothing is computed or said for them."""
    usd_told: float = 0.0
    """What the run had cost when that was drawn last; thresholds below it have been told."""
    is_late_told: bool = False
    look_every: timedelta = LOOK_EVERY
    _measured: list[Measured] = field(default_factory=list)
    _last: Measured | None = None
    """The last step that was new."""
    _looked_at: datetime | None = None
    _evaluated_steps: set[int] = field(default_factory=set)
    _waiting: dict[str, float] = field(default_factory=dict)
    """An evaluation that has no row yet."""
    _marks: dict[str, float] = field(default_factory=dict)
    """What stays the same until the next attempt."""

    def add(self, one: Measured) -> Row | None:
        """Take the next record; return its row unless the step was drawn before."""
        self._measured.append(one)
        step, last = one.record, self._last
        if isinstance(step, Evaluated):
            return self._evaluated(one.attempt, step)
        if isinstance(step, (LeftOut, RolledBack)):
            return None if last is None else self._guarded(step, _step(last).step)
        if not isinstance(step, Step) or (last is not None and step.step <= _step(last).step):
            return None
        self._last = one
        if step.step < self.next_step:
            return None
        values = _step_values(step)
        alerts: list[Alert] = []
        if not self._marks or last is None or last.attempt != one.attempt:
            recovery, alerts = self._begin(one.attempt, step, last)
            values |= recovery
        if self._looked_at is None or step.at - self._looked_at >= self.look_every:
            look, more = self._look(self._view(step.at))
            values |= look
            alerts += more
        values |= self._waiting
        self._waiting = {}
        return Row(step=step.step, values={**values, **self._marks}, alerts=tuple(alerts))

    def _evaluated(self, attempt: int, record: Evaluated) -> Row | None:
        """Return the evaluation with the last row, or keep it for the next one.

        A resumed attempt evaluates before its first step, when a tracker is past the one before.
        """
        if record.step in self._evaluated_steps:
            return None
        self._evaluated_steps.add(record.step)
        values = {EVAL_STEP: float(record.step), "eval/loss": record.loss}
        last = self._last
        if last is not None and _step(last).step >= self.next_step:
            return Row(step=_step(last).step, values=values)
        # What an earlier attempt has drawn with a row of its own is there already.
        is_new = record.step >= self.next_step - 1 and (last is None or last.attempt != attempt)
        self._waiting = values if is_new else {}
        return None

    def _guarded(self, record: LeftOut | RolledBack, step: int) -> Row | None:
        """Return what the trainer's guard did, with the last row that was drawn."""
        if step < self.next_step:
            return None
        if isinstance(record, LeftOut):
            return Row(step=step, values={"guard/left_out_batch": record.batch})
        alert = Alert(
            title=f"Rolled back to step {record.to_step}",
            text=f"Batches in a row after step {record.step} were out of all proportion. The curve "
            "keeps what was drawn of the steps between; they are trained again on later batches.",
            level=Level.WARN,
        )
        values = {"guard/rolled_back_to": record.to_step}
        return Row(step=step, values=values, alerts=(alert,))

    def close(self, attempt: int, now: datetime) -> Row | None:
        """Return what is known at the end of `attempt`, for the last row; None without any."""
        if self._last is None:
            return None
        view = self._view(now)
        values, alerts = self._look(view)
        if self._last.attempt != attempt:
            # It ended before it came to a new step: what it took again is known all the same.
            replayed, differ = self._replay(view, attempt)
            values |= replayed
            alerts += differ
        alerts += [
            Alert(
                title=f"Attempt {attempt} ended: {end.reason.value}",
                text=end.error or f"It ended after step {end.step}.",
                level=Level.ERROR,
            )
            for end in view.state.attempt_ends
            if end.attempt == attempt and end.reason in (EndReason.TRAINING_FAILED, EndReason.HANG)
        ]
        step = _step(self._last).step
        if self._waiting:  # an evaluation after the last step, made up for by this attempt
            step, values = max(step, self.next_step), {**values, **self._waiting}
        return Row(step=step, values=values, alerts=tuple(alerts))

    def _view(self, instant: datetime) -> RunView:
        """Return the run as it was at `instant`: the same rows whenever they are drawn."""
        entries = [entry for entry in self.read_ledger() if entry.at <= instant]
        measured = tuple(one for one in self._measured if one.record.at <= instant)
        state = fold(self.record, entries)
        return RunView(state=state, measured=measured, heartbeats=(), as_of=instant)

    def _begin(
        self, attempt: int, step: Step, last: Measured | None
    ) -> tuple[dict[str, float], list[Alert]]:
        """Return what is known at an attempt's first new step: all before it was taken again."""
        view = self._view(step.at)
        self._looked_at = None
        self._marks = {
            "attempt/number": attempt,
            "preemptions/count": view.state.num_preemptions,
        }
        if last is None or last.attempt == attempt:
            return {}, []
        values, alerts = self._replay(view, attempt)
        recovery, recovered = self._recovery(view, step, last)
        return {**values, **recovery}, [*recovered, *alerts]

    def _replay(self, view: RunView, attempt: int) -> tuple[dict[str, float], list[Alert]]:
        replay = view.replay
        if replay.max_abs_diff is None:
            return {}, []
        before = [one for one in view.measured if one.attempt < attempt]
        known = compare_replayed(before).differing
        fresh = sorted(set(replay.differing) - set(known))
        alerts = []
        if fresh and self.record.spec.train.deterministic:
            text = (
                f"{len(fresh)} replayed steps differ from their records, the first is step "
                f"{fresh[0]}; the largest difference so far is {replay.max_abs_diff:g}."
            )
            title = f"Attempt {attempt}: replayed steps differ"
            alerts = [Alert(title=title, text=text, level=Level.ERROR)]
        values = {"replay/steps": replay.num_steps, "replay/max_abs_diff": replay.max_abs_diff}
        return values, alerts

    def _recovery(
        self, view: RunView, step: Step, last: Measured
    ) -> tuple[dict[str, float], list[Alert]]:
        """Price the time from the furthest step before the interruption to the first one after."""
        reasons = {launch.attempt: launch.reason for launch in view.state.launches}
        reason = reasons.get(last.attempt)
        lost = (EndReason.PREEMPTED, EndReason.NODE_LOST)
        if reason is None or reason is EndReason.STOPPED:
            return {}, []  # the user's pause is not an interruption
        gone_at = last.record.at
        seconds = (step.started_at - gone_at).total_seconds()
        usd = float(self._view(step.started_at).parts.total - self._view(gone_at).parts.total)
        values = {"recovery/seconds": seconds, "recovery/usd": usd}
        if reason not in lost:
            return values, []
        text = (
            f"Step {step.step} was taken {seconds:.0f} s and ${usd:.2f} after step "
            f"{_step(last).step}, the last one before attempt {last.attempt} was lost."
        )
        number = int(self._marks["attempt/number"])
        title = f"Attempt {number} goes on after a preemption"
        return values, [Alert(title=title, text=text, level=Level.INFO)]

    def _look(self, view: RunView) -> tuple[dict[str, float], list[Alert]]:
        """Return where money and time went until the view's instant."""
        self._looked_at = view.as_of
        cost, current = cost_document(view), view.state.current_launch
        usd = cost["total_usd"]
        values = {
            USD_TOTAL: usd,
            "cost/usd_per_hour": 0.0 if current is None else float(node_rate(current)),
            **{f"cost/usd_{part}": value for part, value in cost["parts"].items()},
            **{f"cost/usd_compute_{what}": one for what, one in cost["compute_by_bucket"].items()},
            "cost/usd_on_demand": cost["on_demand_usd"],
            "goodput/goodput": cost["goodput"]["wall"],
            "goodput/billed": cost["goodput"]["billed"],
            **{f"goodput/seconds_{what}": one for what, one in cost["seconds"].items()},
        }
        for name in ("savings_fraction", "usd_per_thousand_steps", "usd_per_million_tokens"):
            if cost[name] is not None:
                values[f"cost/{name}"] = cost[name]
        late, late_alerts = self._look_at_deadline(view)
        return {**values, **late}, [*self._budget_alerts(view, usd), *late_alerts]

    def _budget_alerts(self, view: RunView, usd: float) -> list[Alert]:
        budget = float(view.state.spec.limits.budget_usd)
        told, self.usd_told = self.usd_told, max(self.usd_told, usd)
        return [
            Alert(
                title=f"{share:.0%} of the budget is used",
                text=f"The run has cost ${usd:.2f} of ${budget:.2f}.",
                level=Level.ERROR if share == 1 else Level.WARN,
            )
            for share in BUDGET_SHARES
            if told < share * budget <= usd
        ]

    def _look_at_deadline(self, view: RunView) -> tuple[dict[str, float], list[Alert]]:
        due_at, left = deadline_at(view.state), spare(view)
        if due_at is None or left is None:
            return {}, []
        hours_spare = left / timedelta(hours=1)
        values = {HOURS_SPARE: hours_spare}
        if hours_spare >= 0 or self.is_late_told:
            return values, []
        self.is_late_told = True
        text = (
            f"At this pace the run ends {-hours_spare:.1f} h after its deadline, "
            f"{due_at:%d %b %H:%M} UTC."
        )
        return values, [Alert(title="The deadline is at risk", text=text, level=Level.WARN)]


def _step(measured: Measured) -> Step:
    assert isinstance(measured.record, Step)
    return measured.record


def _step_values(step: Step) -> dict[str, float]:
    known = {
        "train/step": step.step,
        "train/loss": step.loss,
        "train/grad_norm": step.grad_norm,
        "train/learning_rate": step.learning_rate,
        "train/tokens_per_s": step.num_tokens / step.seconds if step.seconds else 0.0,
        "train/mfu": step.mfu,
        "train/peak_memory_bytes": step.peak_memory_bytes,
        "train/data_seconds": step.data_seconds,
        "train/update_seconds": step.update_seconds,
    }
    return {name: value for name, value in known.items() if value is not None}
