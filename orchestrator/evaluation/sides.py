"""Who answers and who judges: an address, a file of answers, or a model served meanwhile."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.store import ObjectStore
from orchestrator.errors import UsageError
from orchestrator.evaluation.answers import Answering, answer, read_answers
from orchestrator.evaluation.asking import Asker
from orchestrator.evaluation.endpoint import RETRIES, Endpoint, list_models
from orchestrator.evaluation.report import Side
from orchestrator.openai_api import OPENAI_KEY, is_loopback, is_openai, open_client, resolve_url
from orchestrator.serving.models import ServedModel, find_model
from orchestrator.serving.worker import running_worker

if TYPE_CHECKING:
    from openai import OpenAI

# A model that is served here has nobody else to answer, and on processors takes its time; a request
# that is given up goes on in the server, and would be asked for again beside itself.
_REMOTE_TIMEOUT_S, _SERVED_TIMEOUT_S = 120.0, 3600.0
# What tells models apart; of weights a sixteenth, for all of 7B would take half a minute. Training
# leaves no stretch of them alone.
_WEIGHTS, _MODEL_FILES = (".safetensors", ".bin"), ("config.json", "chat_template.jinja")
_SAMPLE_BYTES, _SAMPLE_EVERY = 1 << 16, 1 << 20
_NAMED = re.compile(r"([\w.@-]+)=(.+)", re.DOTALL)


class Role(str, Enum):
    """What a model does in an evaluation."""

    MODEL = "model"
    BASELINE = "baseline"
    JUDGE = "judge"

    @property
    def key_variable(self) -> str:
        """Where its API key is read from; one role's key is sent to no other's address."""
        return f"ORCHESTRATE_{self.name}_API_KEY"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A model as the user named it, and how to reach it."""

    side: Side
    identity: str
    """What tells it from every other model, on whatever machine."""
    role: Role
    address: str | None = None
    model: str = ""
    """Its name at the address."""
    file: Path | None = None
    served: ServedModel | None = None

    @property
    def costs(self) -> bool:
        """Say whether asking it may cost something: it is not on this machine."""
        return self.address is not None and not is_loopback(self.address)

    def key(self) -> str | None:
        """Return its API key, from the environment only: flags are seen by every process."""
        key = os.environ.get(self.role.key_variable)
        if key is None and self.address is not None and is_openai(self.address):
            key = os.environ.get(OPENAI_KEY)
        return key


def find_side(text: str, role: Role, store: str | None, timeout_s: float | None) -> Found:
    """Return the model that a user means: URL[#NAME], FILE.jsonl, or what `find_model` knows.

    Raises:
        UsageError: it is none of these, or an address with several models.
        CloudRefused: the address refuses the key.
    """
    named = _NAMED.fullmatch(text)
    where = named[2] if named else text
    if where.startswith(("http://", "https://")):
        return _at_address(where, named[1] if named else None, role, timeout_s)
    if where.endswith(".jsonl"):
        return _in_file(Path(where), named[1] if named else None, role)
    return _on_this_machine(find_model(text, store), role)


@contextmanager
def asking(
    found: Found,
    store: ObjectStore,
    timeout_s: float | None,
    say: Callable[[str], None],
    *,
    is_fresh: bool = False,
) -> Iterator[Asker]:
    """Yield what asks the model; it is served from the first request that is not answered yet.

    `say` is told before that, for loading takes seconds to minutes.
    """
    with ExitStack() as stack:

        def connect() -> OpenAI:
            address, usual_s = found.address, _REMOTE_TIMEOUT_S
            if found.served is not None:
                say(f"Serving {found.side.name} ({found.side.source}) here ...")
                scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestrate-"))
                address = stack.enter_context(running_worker(found.served, folder=Path(scratch)))
                usual_s = _SERVED_TIMEOUT_S
            assert address is not None, "answers from a file are not asked for"
            client = open_client(
                address, found.key(), timeout_s=timeout_s or usual_s, retries=RETRIES
            )
            stack.callback(client.close)
            return client

        model = found.served.name if found.served is not None else found.model
        endpoint = Endpoint(model, connect)
        asker = Asker(endpoint, found.identity, store, is_fresh=is_fresh)
        yield asker
        if asker.known_since is not None and found.address is not None:
            # Another model may stand behind it since then.
            since = f"{asker.known_since:%Y-%m-%d %H:%M} UTC"
            say(f"Replies of {found.side.name} were known, from {since} on; --fresh asks anew.")


@contextmanager
def answering(
    found: Found,
    store: ObjectStore,
    *,
    max_tokens: int,
    timeout_s: float | None,
    say: Callable[[str], None],
    is_fresh: bool = False,
) -> Iterator[Answering]:
    """Yield what returns the model's answers.

    Raises:
        GaveUp: at the end, where the model has not answered for a while.
    """
    if found.file is not None:
        yield read_answers(found.file)
        return
    with asking(found, store, timeout_s, say, is_fresh=is_fresh) as asker:
        try:
            yield lambda question: answer(asker, question, max_tokens)
        finally:
            if (why := asker.endpoint.why_refused) is not None:
                say(f"{found.side.name} did not take a request: {why}")
        asker.endpoint.check_up()


def _on_this_machine(served: ServedModel, role: Role) -> Found:
    export = served.export
    if export is not None:
        source = f"run {export.run}, step {export.step}"
        side = Side(name=served.name, source=source, run=export.run, step=export.step)
        identity = f"{export.run_id}/{export.step}/{export.attempt}"
    else:
        side = Side(name=served.name, source=served.folder.name)
        identity = f"folder:{_fingerprint(served.folder)}"
    return Found(side=side, identity=identity, role=role, served=served)


def _fingerprint(folder: Path) -> str:
    """Tell a model from any other by what it computes with, wherever it lies."""
    digest = sha256()
    for path in sorted(folder.iterdir()):
        if (
            path.suffix in _WEIGHTS
            or path.name in _MODEL_FILES
            or path.name.startswith("tokenizer")
        ):
            digest.update(f"{path.name} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                for start in range(0, path.stat().st_size, _SAMPLE_EVERY):
                    file.seek(start)
                    digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _at_address(where: str, name: str | None, role: Role, timeout_s: float | None) -> Found:
    url, _, model = where.partition("#")
    if "@" in url.partition("://")[2].partition("/")[0]:
        raise UsageError(
            "An address with a password in it would be kept with the results.",
            f"Put the key into {role.key_variable}.",
        )
    url = resolve_url(url)
    found = Found(side=Side(name="", source=url), identity="", role=role, address=url)
    if not model:
        models = list_models(url, found.key(), timeout_s or _REMOTE_TIMEOUT_S)
        if len(models) != 1:
            listed = ", ".join(models[:10]) or "none"
            raise UsageError(f"{url} has {len(models)} models: {listed}.", f"Name one: {url}#NAME")
        model = models[0]
    return Found(
        side=Side(name=name or model, source=url),
        identity=f"{url}#{model}",
        role=role,
        address=url,
        model=model,
    )


def _in_file(path: Path, name: str | None, role: Role) -> Found:
    if role is Role.JUDGE:
        raise UsageError(f"{path} cannot judge: it is a file.", "Give an address or a model.")
    read_answers(path)  # what is wrong with it is said before anything is asked
    return Found(
        side=Side(name=name or path.stem, source=path.name),
        identity=f"sha256:{sha256(path.read_bytes()).hexdigest()}",
        role=role,
        file=path,
    )
