"""One conversation: what was said so far, which model answers, and the commands that change it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from orchestrator.chat.server import Answer, End, Sampling, Server
from orchestrator.errors import ServerUnusable

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletionMessageParam

HELP = """\
/clear        begin anew, without what was said
/model NAME   go on with another model; without NAME, list them
/help         show this
/exit         leave, as Ctrl-D does
Ctrl-C stops an answer, and leaves if pressed again. Pasted lines are one question."""
_COMMAND = re.compile(r"/(\w+)(?:\s+(.*))?")


class Leave(Exception):  # not an error
    """The user wants to leave."""


@dataclass(slots=True)
class Conversation:
    """What was said, and to whom; a question without a whole answer is not part of it."""

    server: Server
    model: str
    system: str | None
    sampling: Sampling
    turns: list[ChatCompletionMessageParam] = field(default_factory=list)

    def ask(self, question: str, show: Callable[[str], None]) -> Answer:
        """Ask with all that was said before; raise ServerUnusable where no answer began.

        What the user stopped is remembered as far as it was shown, what was cut is not.
        """
        asked: ChatCompletionMessageParam = {"role": "user", "content": question}
        opening: list[ChatCompletionMessageParam] = (
            [] if self.system is None else [{"role": "system", "content": self.system}]
        )
        messages = [*opening, *self.turns, asked]
        answer = self.server.answer(self.model, messages, self.sampling, show)
        if answer.text and answer.end is not End.CUT:
            self.turns += [asked, {"role": "assistant", "content": answer.text}]
        return answer

    def obey(self, line: str) -> str | None:
        """Carry out a command and return what to say; None if the line is a question.

        Raises Leave, ServerUnusable.
        """
        match = _COMMAND.fullmatch(line.strip())
        if match is None:
            return None
        name, argument = match[1], (match[2] or "").strip()
        if name in ("exit", "quit"):
            raise Leave
        if name == "clear":
            self.turns.clear()
            return "Begun anew."
        if name == "model":
            return self._choose(argument)
        if name == "help":
            return HELP
        return f"There is no /{name}.\n{HELP}"

    def _choose(self, name: str) -> str:
        names = self.server.models()
        if name in names:
            self.model = name
            return f"{name} answers from now on; it is told what was said before."
        if name:
            raise ServerUnusable(
                f"The server has no model {name!r}.", f"It has: {', '.join(names)}"
            )
        marks = (f"{'*' if one == self.model else ' '} {one}" for one in names)
        return "\n".join(marks)
