"""Ask a model each request once: replies are kept under what was asked.

So an evaluation that is interrupted goes on where it was, and one that is repeated costs nothing.
"""

from __future__ import annotations

import json
import logging
from datetime import datetime
from hashlib import sha256

from pydantic import ValidationError

from checkpoints.errors import ObjectExists, ObjectMissing
from checkpoints.store import ObjectStore
from orchestrator.evaluation.endpoint import Answered, Endpoint, Reply, Request

REPLIES = "evaluations/replies/"

_log = logging.getLogger(__name__)


class Asker:
    """A model with what it has replied so far; `ask` may be called by several threads."""

    def __init__(
        self, endpoint: Endpoint, identity: str, store: ObjectStore, *, is_fresh: bool = False
    ) -> None:
        """Ask `endpoint` what the store does not know.

        `identity` tells the model from every other one, wherever it runs. With `is_fresh` only
        what this asker itself was replied is known.
        """
        self.endpoint, self._identity, self._store = endpoint, identity, store
        self._is_fresh = is_fresh
        self._replied: set[str] = set()
        self.known_since: datetime | None = None
        """When the oldest reply was made that was known from before; None if none was."""

    def known(self, request: Request) -> Reply | None:
        """Return the reply to a request that was made before."""
        key = self.key_of(request)
        if self._is_fresh and key not in self._replied:
            return None
        try:
            reply = Reply.model_validate_json(self._store.get(key).data)
        except ObjectMissing:
            return None
        except ValidationError:
            _log.warning("%s is damaged and asked again", key)
            self._store.delete([key])
            return None
        if key not in self._replied:
            self.known_since = min(self.known_since or reply.at, reply.at)
        return reply

    def ask(self, request: Request) -> Answered:
        """Return the reply, from before if there is one; raises what Endpoint.reply raises."""
        found = self.known(request)
        if found is not None:
            return found
        reply = self.endpoint.reply(request)
        if isinstance(reply, Reply):
            key, data = self.key_of(request), reply.model_dump_json().encode()
            if self._is_fresh:
                self._store.put(key, data)
            else:
                try:
                    self._store.create(key, data)
                except ObjectExists:  # another process asked the same at the same time
                    return self.known(request) or reply
            self._replied.add(key)
        return reply

    def key_of(self, request: Request) -> str:
        """Return the key under which the reply is kept."""
        asked = [self._identity, request.model_dump(mode="json")]
        digest = sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return f"{REPLIES}{digest[:2]}/{digest}.json"
