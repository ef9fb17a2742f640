"""The dashboard as a server: read-only pages of runs for browsers, CSV and JSON for programs.

What it refuses: other methods than GET, names of hosts that it was not told of (DNS rebinding),
requests that a page of another site makes, and without its token anyone beyond this machine.
"""

from __future__ import annotations

import csv
import io
import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import fields
from importlib import resources
from urllib.parse import urlsplit

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.middleware.trustedhost import TrustedHostMiddleware

from checkpoints.errors import CheckpointError
from orchestrator.clock import Clock
from orchestrator.dashboard.board import Board, Seen
from orchestrator.dashboard.content import Page, build_page
from orchestrator.dashboard.overview import Overview, Rows, RunRow
from orchestrator.dashboard.page import Served, render, render_page
from orchestrator.dashboard.tables import Column, Table
from orchestrator.errors import OrchestratorError, UnknownRun
from orchestrator.report import SCHEMA_VERSION, cost_document, status_document
from orchestrator.view import RunView

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
_COOKIE = "orchestrate_token"
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
# With one of these at its beginning, a spreadsheet takes a text for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def make_app(
    board: Board, clock: Clock, *, hosts: Sequence[str] = LOOPBACK, token: str | None = None
) -> FastAPI:
    """Return the server; `hosts` are the names it answers to, `token` what it asks for, if any."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, title="orchestrate dashboard")
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    _guard(app, token)
    rows = Rows()
    _add_lists(app, board.every, lambda: rows.overview(board.every(), clock.now()))
    _add_runs(app, board)
    static = str(resources.files("orchestrator.dashboard") / "static")
    app.mount("/static", StaticFiles(directory=static))
    return app


def _guard(app: FastAPI, token: str | None) -> None:
    @app.middleware("http")
    async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = _refusal(request, token) or await answer(request)
        response.headers.update(_HEADERS)
        return response

    def show_problem(request: Request, error: Exception) -> Response:
        assert isinstance(error, (OrchestratorError, CheckpointError))
        status = 404 if isinstance(error, UnknownRun) else 503
        page = render("problem.html.jinja", error=error, served=Served("/"))
        return HTMLResponse(page, status_code=status)

    app.add_exception_handler(OrchestratorError, show_problem)
    app.add_exception_handler(CheckpointError, show_problem)


def _refusal(request: Request, token: str | None) -> Response | None:
    """Return what is answered instead of what was asked for, None if that is in order."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        return Response("Pages of other sites may not read this one.\n", 403)
    if token is None:
        return None
    given = request.query_params.get("token")
    if given is not None and secrets.compare_digest(given.encode(), token.encode()):
        # Out of the address, which is kept in histories.
        found: Response = RedirectResponse(request.url.path, 303)
        found.set_cookie(_COOKIE, token, httponly=True, samesite="strict")
        return found
    scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
    shown = bearer if scheme.lower() == "bearer" else request.cookies.get(_COOKIE, "")
    if secrets.compare_digest(shown.encode(), token.encode()):
        return None
    text = "Open the address that orchestrate dashboard has printed; it holds the token.\n"
    return Response(text, 401, {"WWW-Authenticate": "Bearer"})


def _add_lists(
    app: FastAPI, every: Callable[[], list[Seen]], overview: Callable[[], Overview]
) -> None:
    @app.get("/", response_class=HTMLResponse)
    def runs() -> str:
        return render("runs.html.jinja", overview=overview(), served=Served("/"))

    @app.get("/runs.json")
    def runs_json() -> JSONResponse:
        documents = [status_document(one.view) for one in every() if one.view is not None]
        return JSONResponse({"schema_version": SCHEMA_VERSION, "runs": documents})

    @app.get("/runs.csv")
    def runs_csv() -> Response:
        return _csv("runs", _runs_table(overview().rows))


def _add_runs(app: FastAPI, board: Board) -> None:
    @app.get("/runs/{key}", response_class=HTMLResponse)
    def run(key: str) -> str:
        return render_page(_view(board, key), Served(f"/runs/{key}"))

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
        table = _table(board, key, name)
        names = [column.name for column in table.columns]
        rows = [dict(zip(names, row, strict=True)) for row in table.rows]
        return JSONResponse({"schema_version": SCHEMA_VERSION, "table": name, "rows": rows})


def _view(board: Board, key: str) -> RunView:
    seen = board.one(key)
    if seen.view is None:
        raise UnknownRun(f"{seen.known.run} cannot be read: {seen.error}", "It is tried again.")
    return seen.view


def _table(board: Board, key: str, name: str) -> Table:
    page = build_page(_view(board, key))
    found = getattr(page, name) if name in {one.name for one in fields(Page)} else None
    if not isinstance(found, Table):
        raise UnknownRun(f"A run has no table {name!r}.", "See the links below its tables.")
    return found


def _runs_table(rows: Sequence[RunRow]) -> Table:
    names = ("Run", "Store", "State", "Simulated", "Step", "Spent", "$ per hour", "End")
    more = ("Preemptions", "Goodput", "Saved")
    return Table(
        caption="Runs",
        columns=tuple(Column(name=name) for name in (*names, *more)),
        rows=tuple(
            (
                row.run,
                row.store,
                row.state,
                "yes" if row.is_simulated else "no",
                f"{row.progress.text} {row.progress.detail}",
                row.spent.text,
                row.burn,
                row.end,
                row.preemptions,
                row.goodput,
                row.saved,
            )
            for row in rows
        ),
        empty="No runs yet.",
    )


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
