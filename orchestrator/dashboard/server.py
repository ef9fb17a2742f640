"""The dashboard as a server: read-only pages of runs for browsers, CSV and JSON for programs.

What it refuses: other methods than GET, names of hosts that it was not told of (DNS rebinding),
requests that a page of another site makes, and without its token anyone beyond this machine.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import secrets
from collections.abc import Awaitable, Callable, Sequence
from importlib import resources
from typing import Annotated, Any
from urllib.parse import urlencode, urlsplit

from fastapi import FastAPI, Query, Request
from fastapi.responses import (
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    RedirectResponse,
    Response,
    StreamingResponse,
)
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from checkpoints.errors import CheckpointError, StoreUnreachable
from orchestrator.clock import Clock
from orchestrator.dashboard.board import Board, Seen
from orchestrator.dashboard.content import build_table
from orchestrator.dashboard.kept import KeptPages
from orchestrator.dashboard.logs import last_lines, whole_log
from orchestrator.dashboard.overview import Overview, Rows, comparison_table, runs_table
from orchestrator.dashboard.page import Served, render, render_evaluation, render_page
from orchestrator.dashboard.tables import Table
from orchestrator.errors import OrchestratorError, UnknownRun, UsageError
from orchestrator.evaluation.report import read_report
from orchestrator.report import SCHEMA_VERSION, cost_document, status_document
from orchestrator.standing import RunStateName
from orchestrator.view import RunView

_FEWEST_COMPARED = 2
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_STATUSES: dict[type[Exception], int] = {UnknownRun: 404, UsageError: 400}
# With one of these at its beginning, a spreadsheet takes a text for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def make_app(
    board: Board, clock: Clock, *, hosts: Sequence[str] = LOOPBACK, token: str | None = None
) -> FastAPI:
    """Return the server; `hosts` are the names it answers to, `token` what it asks for, if any."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, title="orchestrate dashboard")
    _guard(app, frozenset(name.lower() for name in hosts), token)
    rows = Rows()
    _add_lists(app, board, lambda: rows.overview(board.every(), clock.now(), board.problem))
    _add_comparison(app, board)
    _add_runs(app, board)
    _add_logs(app, board)
    _add_evaluations(app, board)
    static = str(resources.files("orchestrator.dashboard") / "static")
    app.mount("/static", StaticFiles(directory=static))
    return app


def _guard(app: FastAPI, hosts: frozenset[str], token: str | None) -> None:
    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = _foreign(request, hosts) or _unknown(request, token) or await answer(request)
        response.headers.update(_HEADERS)
        return response

    for kind in (OrchestratorError, CheckpointError, HTTPException, Exception):
        app.add_exception_handler(kind, _show_problem)


def _foreign(request: Request, hosts: frozenset[str]) -> Response | None:
    """Return the answer to what comes under another name or from another site's page."""
    host = request.headers.get("host", "")
    if _name_in(host) not in hosts:
        text = f"{host!r} is no name of this dashboard: start it with --name HOST.\n"
        return PlainTextResponse(text, 400)
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    is_embedded = site == "cross-site" and request.headers.get("sec-fetch-mode") != "navigate"
    if is_embedded or (origin is not None and origin.partition("://")[2] != host):
        return PlainTextResponse("Pages of other sites may not read this one.\n", 403)
    return None


def _name_in(host: str) -> str | None:
    if "@" in host:
        return None
    try:
        return urlsplit(f"//{host}").hostname
    except ValueError:
        return None


def _unknown(request: Request, token: str | None) -> Response | None:
    """Return the answer to who does not show the token."""
    if token is None:
        return None
    # Cookies go to every port of a name: others get a digest, and servers keep out of each other's.
    digest = hashlib.sha256(token.encode()).hexdigest()
    cookie = f"orchestrate-{digest[:8]}"
    if _is_same(request.query_params.get("token", ""), token):
        # Out of the address, which is kept in histories.
        found = RedirectResponse("/" + request.url.path.lstrip("/"), 303)
        found.set_cookie(cookie, digest, httponly=True, samesite="lax")
        return found
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and _is_same(bearer, token):
        return None
    if _is_same(request.cookies.get(cookie, ""), digest):
        return None
    text = "Open the address that orchestrate dashboard has printed; it holds the token.\n"
    return PlainTextResponse(text, 401, {"WWW-Authenticate": "Bearer"})


def _is_same(shown: str, secret: str) -> bool:
    return secrets.compare_digest(shown.encode(), secret.encode())


def _show_problem(request: Request, error: Exception) -> Response:
    """Say what is wrong in the form that was asked for."""
    what, next_step, status = "This is a bug of the dashboard.", "Its log says more.", 500
    if isinstance(error, HTTPException):
        what, next_step, status = f"{error.detail}.", "See the list of runs.", error.status_code
    elif isinstance(error, (OrchestratorError, CheckpointError)):
        what, next_step = error.what, error.next_step
        status = _STATUSES.get(type(error), 503)
    said = {"error": what, "next_step": next_step}
    if request.url.path.endswith(".json"):
        return JSONResponse(said, status, headers=_HEADERS)
    if request.url.path.endswith(".csv"):
        return PlainTextResponse(f"{what} {next_step}\n", status, headers=_HEADERS)
    page = render("problem.html.jinja", **said, served=Served("/"))
    return HTMLResponse(page, status, headers=_HEADERS)


def _add_lists(app: FastAPI, board: Board, overview: Callable[[], Overview]) -> None:
    kept_pages = KeptPages()

    def page() -> str:
        return render("runs.html.jinja", overview=overview(), served=Served("/"))

    @app.get("/", response_class=HTMLResponse)
    def runs(request: Request) -> str:
        if board.is_new() and not _waits(request):
            return render("loading.html.jinja", what="the runs", served=Served("/"))
        return kept_pages.get("/", page, waits=_waits(request))

    @app.get("/runs.json")
    def runs_json() -> JSONResponse:
        return JSONResponse(
            {"schema_version": SCHEMA_VERSION, "runs": [_document(one) for one in board.every()]}
        )

    @app.get("/runs.csv")
    def runs_csv() -> Response:
        return _csv("runs", runs_table(overview().rows))


def _add_comparison(app: FastAPI, board: Board) -> None:
    def table(keys: list[str]) -> Table:
        if len(keys) < _FEWEST_COMPARED:
            raise UsageError("A comparison takes two runs or more.", "Tick them in the list.")
        return comparison_table([_view(board, key) for key in keys])

    @app.get("/compare", response_class=HTMLResponse)
    def compare(run: Annotated[list[str], Query()] = []) -> str:  # noqa: B006  # FastAPI copies it
        address = "/compare?" + urlencode([("run", key) for key in run])
        return render("compare.html.jinja", table=table(run), keys=run, served=Served(address))

    @app.get("/compare.csv")
    def compare_csv(run: Annotated[list[str], Query()] = []) -> Response:  # noqa: B006
        return _csv("comparison", table(run))

    @app.get("/compare.json")
    def compare_json(run: Annotated[list[str], Query()] = []) -> JSONResponse:  # noqa: B006
        return _json("comparison", table(run))


def _add_logs(app: FastAPI, board: Board) -> None:
    @app.get("/runs/{key}/logs/{attempt}.txt")
    def log_text(key: str, attempt: int) -> StreamingResponse:
        text = whole_log(board.store(key), attempt)
        first = next(text, None)
        if first is None:
            raise UnknownRun(f"Attempt {attempt} has no log.", "See the run's page.")
        return StreamingResponse(itertools.chain([first], text), media_type="text/plain")

    @app.get("/runs/{key}/logs/{attempt}", response_class=HTMLResponse)
    def log(key: str, attempt: int) -> str:
        view, address = _view(board, key), f"/runs/{key}"
        return render(
            "log.html.jinja",
            run=view.record.run,
            run_address=address,
            attempt=attempt,
            logs=last_lines(board.store(key), attempt),
            served=Served(f"{address}/logs/{attempt}"),
        )


def _add_evaluations(app: FastAPI, board: Board) -> None:
    @app.get("/runs/{key}/evaluations/{name}.json")
    def evaluation_json(key: str, name: str) -> Response:
        report = read_report(board.store(key), name)
        return Response(report.model_dump_json(indent=1), media_type="application/json")

    @app.get("/runs/{key}/evaluations/{name}", response_class=HTMLResponse)
    def evaluation(key: str, name: str) -> str:
        report, address = read_report(board.store(key), name), f"/runs/{key}"
        served = Served(f"{address}/evaluations/{name}")
        return render_evaluation(report, served, run_address=address)


def _add_runs(app: FastAPI, board: Board) -> None:
    # The last page of each run, good for as long as its view: long runs take a second to lay out.
    pages: dict[str, tuple[RunView, str | None, str]] = {}
    kept_pages = KeptPages()

    def page_of(key: str) -> str:
        try:
            seen = board.one(key)
        except UnknownRun:
            pages.pop(key, None)
            kept_pages.forget(key)
            raise
        view = _view_of(seen)
        kept = pages.get(key)
        if kept is None or kept[0] is not view or kept[1] != seen.error:
            page = render_page(view, Served(f"/runs/{key}", problem=seen.error))
            kept = pages[key] = (view, seen.error, page)
        return kept[2]

    @app.get("/runs/{key}", response_class=HTMLResponse)
    def run(key: str, request: Request) -> str:
        if board.is_new(key) and not _waits(request):
            what = key.rpartition("-")[0] or "the run"
            return render("loading.html.jinja", what=what, served=Served(f"/runs/{key}"))
        return kept_pages.get(key, lambda: page_of(key), waits=_waits(request))

    @app.get("/runs/{key}/status.json")
    def status(key: str) -> JSONResponse:
        return JSONResponse(status_document(_view(board, key)))

    @app.get("/runs/{key}/cost.json")
    def cost(key: str) -> JSONResponse:
        return JSONResponse(cost_document(_view(board, key)))

    @app.get("/runs/{key}/tables/{name}.csv")
    def table_csv(key: str, name: str) -> Response:
        return _csv(name, _table(board, key, name))

    @app.get("/runs/{key}/tables/{name}.json")
    def table_json(key: str, name: str) -> JSONResponse:
        return _json(name, _table(board, key, name))


def _waits(request: Request) -> bool:
    """Say whether somebody already sees that this takes a while: the script, or one without it."""
    return "hx-request" in request.headers or "wait" in request.query_params


def _document(seen: Seen) -> dict[str, Any]:
    if seen.view is not None:
        return status_document(seen.view)
    return {"run": seen.known.run, "state": RunStateName.UNKNOWN.value, "why": seen.error}


def _view(board: Board, key: str) -> RunView:
    return _view_of(board.one(key))


def _view_of(seen: Seen) -> RunView:
    if seen.view is None:
        raise StoreUnreachable(
            f"{seen.known.run} cannot be read: {seen.error}", "It is tried again every 10 s."
        )
    return seen.view


def _table(board: Board, key: str, name: str) -> Table:
    found = build_table(_view(board, key), name)
    if found is None:
        raise UnknownRun(f"A run has no table {name!r}.", "See the links below its tables.")
    return found


def _json(name: str, table: Table) -> JSONResponse:
    names = [column.name for column in table.columns]
    rows = [dict(zip(names, row, strict=True)) for row in table.rows]
    return JSONResponse({"schema_version": SCHEMA_VERSION, "table": name, "rows": rows})


def _csv(name: str, table: Table) -> Response:
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow([column.name for column in table.columns])
    writer.writerows([[_harmless(cell) for cell in row] for row in table.rows])
    headers = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(out.getvalue(), media_type="text/csv; charset=utf-8", headers=headers)


def _harmless(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula (OWASP, CSV injection)."""
    is_number = cell[1:].replace(".", "", 1).isdigit()
    return f"'{cell}" if cell.startswith(_FORMULA) and not is_number else cell
