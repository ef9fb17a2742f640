"""`orchestrate eval`: have a judge compare what was trained with what it began as."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestrator.cli.common import (
    MOST_SECONDS,
    MOST_TOKENS,
    MOST_USD,
    Amount,
    check_page,
    examples,
    json_option,
    plain,
    print_json,
    say,
    store_option,
    write_page,
    yes_option,
)
from orchestrator.cli.completion import complete_model
from orchestrator.errors import GaveUp

if TYPE_CHECKING:
    from orchestrator.evaluation.questions import Question
    from orchestrator.evaluation.report import Report


@click.command(
    epilog=examples(
        "orchestrate eval vicuna-7b --baseline base=models/llama-7b --page vicuna.html",
        "orchestrate eval vicuna-7b --judge https://api.openai.com/v1#gpt-4.1",
    )
)
@click.argument("model", required=False, shell_complete=complete_model)
@click.option(
    "--baseline",
    metavar="MODEL",
    shell_complete=complete_model,
    help="Compare with it, each pair in both orders.",
)
@click.option(
    "--judge",
    metavar="MODEL",
    help="Who scores and compares; without one answers are only collected.",
)
@click.option(
    "--questions",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Ask these, JSON lines as FastChat has them; default: 80 that come along.",
)
@click.option("--category", "categories", multiple=True, metavar="NAME", help="Only these.")
@click.option(
    "--first", type=click.IntRange(1, 1_000_000), metavar="N", help="Only N per category."
)
@click.option(
    "--max-tokens",
    type=click.IntRange(1, MOST_TOKENS),
    default=1024,
    show_default=True,
    metavar="N",
    help="Length of an answer.",
)
@click.option(
    "--parallel",
    type=click.IntRange(min=1, max=256),
    default=8,
    show_default=True,
    metavar="N",
    help="Requests at once.",
)
@click.option(
    "--timeout",
    type=Amount(MOST_SECONDS, is_above=True),
    metavar="SECONDS",
    help="How long a reply may take; default: 120, an hour of a model served here.",
)
@click.option(
    "--usd-per-million-tokens",
    "price",
    type=(Amount(MOST_USD), Amount(MOST_USD)),
    metavar="IN OUT",
    help="The judge's prices of what it reads and writes.",
)
@click.option(
    "--budget-usd",
    type=Amount(MOST_USD, is_above=True),
    metavar="X",
    help="Judge for no more than this; needs the prices.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Keep replies and results here; default: the run's folder, else evaluations/.",
)
@click.option(
    "--page",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write a page: scores, categories, answers side by side.",
)
@click.option("--fresh", is_flag=True, help="Ask everything anew, also what is known.")
@click.option(
    "--reviews",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Ask nobody: add up a file of reviews as Vicuna's of 2023.",
)
@store_option
@yes_option
@json_option
def eval(  # the command's name; the builtin is not used here
    model: str | None,
    baseline: str | None,
    judge: str | None,
    questions: Path | None,
    categories: tuple[str, ...],
    first: int | None,
    price: tuple[float, float] | None,
    budget_usd: float | None,
    output: Path | None,
    page: Path | None,
    reviews: Path | None,
    store: str | None,
    *,
    max_tokens: int,
    parallel: int,
    timeout: float | None,
    fresh: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Have a judge score MODEL's answers, and compare them with a baseline's.

    A MODEL is a run (RUN, or RUN@STEP; the last checkpoint, also of a run that goes on), a model
    folder, an OpenAI-compatible address as URL#NAME, or a file of answers (FILE.jsonl); NAME=MODEL
    gives it another name. Keys come from ORCHESTRATE_MODEL_API_KEY, ORCHESTRATE_BASELINE_API_KEY
    and ORCHESTRATE_JUDGE_API_KEY. The same command again goes on where it was, and pays nothing
    twice.
    """
    if reviews is not None:
        if model is not None or judge is not None or baseline is not None:
            raise click.UsageError("--reviews asks nobody: it takes no MODEL.")
        _add_up(reviews, questions, as_json=as_json)
        return
    if model is None:
        raise click.UsageError("An evaluation needs a MODEL, and --judge MODEL for verdicts.")
    if budget_usd is not None and price is None:
        raise click.UsageError("--budget-usd needs --usd-per-million-tokens.")
    # 0.3 s of numpy and pydantic, which --help does not pay.
    from orchestrator.cli.evaluating import Options, evaluate, find_sides
    from orchestrator.evaluation.meter import Price
    from orchestrator.evaluation.questions import read_questions

    if page is not None:
        check_page(page)
    asked = _choose(read_questions(questions), categories, first)
    prices = None
    if price is not None:
        prices = Price(prompt_usd=Decimal(str(price[0])), completion_usd=Decimal(str(price[1])))
    options = Options(
        max_tokens=max_tokens,
        parallel=parallel,
        timeout_s=timeout,
        price=prices,
        budget_usd=None if budget_usd is None else Decimal(str(budget_usd)),
        is_agreed=yes,
        is_fresh=fresh,
        output=output,
        store=store,
    )
    source = "those that come along" if questions is None else f"of {questions.name}"
    sides = find_sides(model, baseline, judge, options)
    report, endpoint = evaluate(sides, asked, source, options)
    _show(report, page, as_json=as_json)
    # Only now: what there is, is kept and shown.
    if endpoint is not None:
        endpoint.check_up()
    _check_verdicts(report)


def _check_verdicts(report: Report) -> None:
    """Raise GaveUp where the judge has said nothing, or the budget has ended it."""
    from orchestrator.evaluation.report import has_verdicts  # as above
    from orchestrator.evaluation.verdicts import NoVerdict

    if NoVerdict.BUDGET in report.no_verdicts:
        raise GaveUp(
            "The budget is used up.",
            "Go on with more: the same command with a higher --budget-usd.",
        )
    if report.judge is not None and not has_verdicts(report):
        raise GaveUp(
            f"{report.judge.name} gave no verdict at all.",
            "Look at what it replies: --page FILE says why; or choose another --judge.",
        )


def _add_up(reviews: Path, questions: Path | None, *, as_json: bool) -> None:
    from orchestrator.evaluation.questions import read_questions  # as above
    from orchestrator.evaluation.reviews import read_reviews
    from orchestrator.evaluation.wording import render_reviews, review_document

    known = None if questions is None else read_questions(questions)
    document = review_document(read_reviews(reviews), known)
    if as_json:
        print_json(document)
    else:
        print(plain(render_reviews(document)))


def _show(report: Report, page: Path | None, *, as_json: bool) -> None:
    from orchestrator.evaluation.wording import render  # as above

    if as_json:
        print_json(report.model_dump(mode="json"))
    else:
        print(plain(render(report)))
    if page is not None:
        from orchestrator.dashboard.page import render_evaluation  # jinja2: 70 ms

        write_page(page, render_evaluation(report))
        say(f"Wrote {page}.")


def _choose(
    questions: Sequence[Question], categories: Sequence[str], first: int | None
) -> tuple[Question, ...]:
    known = list(dict.fromkeys(question.category for question in questions))
    unknown = [name for name in categories if name not in known]
    if unknown:
        raise click.UsageError(f"No category {unknown[0]!r}: there are {', '.join(known)}.")
    chosen = [one for one in questions if not categories or one.category in categories]
    if first is None:
        return tuple(chosen)
    by_name = {name: [one for one in chosen if one.category == name][:first] for name in known}
    return tuple(one for name in known for one in by_name[name])
