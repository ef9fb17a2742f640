"""The chat template that a model's tokenizer brings, as pieces with a loss mask.

The template is rendered once per shape of conversation, with a name in place of every text; what it
writes around them is the skeleton. So no text is ever taken for the template's own, and special
tokens are those of the skeleton alone. What is trained is what the template marks by
{% generation %}; without such marks, all that follows the generation prompt, up to the first
special token after the answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from train.data.conversations import Pair
from train.data.template import ControlToken, Piece, TemplateRefused
from train.errors import DataInvalid

_BEGIN, _END = "\ue0f0", "\ue0f1"
_NAME = re.compile("\ue0f2(\\d+)\ue0f2")
_Message = dict[str, str]
# Unicode's; Python also counts four separators of tables among it, which tokenizers do not.
_WHITE_SPACE = "".join(
    chr(code) for code in range(0x3001) if chr(code).isspace() and code not in range(0x1C, 0x20)
)


class ModelTemplate:
    """A template in transformers' dialect of Jinja.

    Raises DataInvalid when it cannot be read or does not write an answer after its prompt.
    """

    def __init__(
        self,
        source: str,
        controls: Mapping[str, ControlToken],
        settings: Mapping[str, Any],
        now: datetime | None = None,
    ) -> None:
        now = now or datetime.now(timezone.utc)
        self._given = (source, controls, settings, now)
        self._tokens = {
            name: _spelling(value) for name, value in settings.items() if name.endswith("_token")
        }
        self._controls = controls
        self._skeletons: dict[tuple[bool, int], list[tuple[str, bool]]] = {}
        try:
            self._template = _environment(_Generation, now).from_string(source)
            self._marking = _environment(_MarkedGeneration, now).from_string(source)
            names = sorted(controls, key=len, reverse=True)
            self._split_controls = re.compile(f"({'|'.join(map(re.escape, names)) or '(?!)'})")
            self._strips = {
                role: self._does_strip(role) for role in ("system", "user", "assistant")
            }
        except (TemplateError, TemplateRefused) as error:
            raise DataInvalid(
                f"The model's chat template cannot be used: {error}.",
                "Set data.template: vicuna.",
            ) from error

    def __reduce__(self) -> tuple[type[ModelTemplate], tuple[object, ...]]:
        """Be made anew in another process: compiled templates cannot travel."""
        return ModelTemplate, self._given

    def pieces(self, system: str | None, pairs: Sequence[Pair]) -> list[Piece]:
        """Return the pieces of a conversation.

        Raises TemplateRefused where the template would write other texts than these.
        """
        messages = _messages(system, pairs)
        texts = [
            one["content"].strip() if self._strips[one["role"]] else one["content"]
            for one in messages
        ]
        shape = (system is not None, len(pairs))
        if shape not in self._skeletons:
            self._skeletons[shape] = self._skeleton(messages)
        skeleton = self._skeletons[shape]
        filled = "".join(
            _NAME.sub(lambda match: texts[int(match[1])], part) for part, _ in skeleton
        )
        if filled != self._render(self._template, messages):
            raise TemplateRefused("the model's chat template changes its texts")
        return list(self._fill(skeleton, texts, has_system=system is not None))

    def _fill(
        self, skeleton: Sequence[tuple[str, bool]], texts: Sequence[str], *, has_system: bool
    ) -> Iterator[Piece]:
        """Join what is tokenized together: all between two control tokens of one mask."""
        pair = -1
        pieces = []
        for part, is_trained in skeleton:
            # Texts, and between them control tokens.
            for number, spelled in enumerate(self._split_controls.split(part)):
                names = [int(found) for found in _NAME.findall(spelled)]
                if names:
                    pair = (names[-1] - has_system) // 2
                text = _NAME.sub(lambda match: texts[int(match[1])], spelled)
                token = self._controls[spelled].id if number % 2 else None
                if text:
                    pieces.append(Piece(text=text, is_trained=is_trained, pair=pair, token=token))
        _take_white_space(pieces, {one.id: one for one in self._controls.values()})
        return (piece for piece in pieces if piece.text)

    def _skeleton(self, messages: Sequence[_Message]) -> list[tuple[str, bool]]:
        """Return adjacent parts of the prompt, texts by name, and whether each is trained."""
        named = [{**one, "content": f"\ue0f2{n}\ue0f2"} for n, one in enumerate(messages)]
        rendered = self._render(self._marking, named)
        found = sorted(int(name) for name in _NAME.findall(rendered))
        if found != list(range(len(named))):
            raise TemplateRefused("the model's chat template leaves out or repeats texts")
        if _BEGIN in rendered:
            return _marked(rendered)
        return self._by_prompts(named, rendered)

    def _by_prompts(self, named: Sequence[_Message], rendered: str) -> list[tuple[str, bool]]:
        parts = []
        start = 0
        for number, message in enumerate(named):
            if message["role"] != "assistant":
                continue
            prompt = self._render(self._template, named[:number], add_generation_prompt=True)
            if not rendered.startswith(prompt):
                raise TemplateRefused("an answer does not follow the template's prompt for it")
            answer_end = rendered.index(message["content"]) + len(message["content"])
            next_text = _NAME.search(rendered, answer_end)
            end = next_text.start() if next_text else len(rendered)
            # Whatever ends a turn is what a model has to say to stop; often it is not EOS.
            turn_end = self._split_controls.search(rendered, answer_end, end)
            stop = turn_end.end() if turn_end else answer_end
            parts += [(rendered[start : len(prompt)], False), (rendered[len(prompt) : stop], True)]
            start = stop
        return [*parts, (rendered[start:], False)]

    def _does_strip(self, role: str) -> bool:
        texts = {"system": "s", "user": "u", "assistant": "a"}
        spaced = {**texts, role: f"\t\v{texts[role]}\v\t"}
        messages = _messages(
            spaced["system"], [Pair(user=spaced["user"], assistant=spaced["assistant"])]
        )
        if role == "system":
            try:
                return spaced[role] not in self._render(self._template, messages)
            except TemplateRefused:
                return False  # it takes no system prompt at all
        return spaced[role] not in self._render(self._template, messages[1:])

    def _render(
        self,
        template: Template,
        messages: Sequence[_Message],
        *,
        add_generation_prompt: bool = False,
    ) -> str:
        try:
            return template.render(
                tools=None,
                documents=None,
                messages=list(messages),
                add_generation_prompt=add_generation_prompt,
                **self._tokens,
            )
        # Templates raise what they like: their own words, or those of the operators they use.
        except (TemplateError, TypeError, ValueError) as error:
            raise TemplateRefused(f"the model's chat template refuses it: {error}") from error


def _messages(system: str | None, pairs: Sequence[Pair]) -> list[_Message]:
    messages = [] if system is None else [{"role": "system", "content": system}]
    for pair in pairs:
        messages.append({"role": "user", "content": pair.user})
        messages.append({"role": "assistant", "content": pair.assistant})
    return messages


def _take_white_space(pieces: list[Piece], controls: Mapping[int, ControlToken]) -> None:
    """Move the white space that a control token takes for its own into its piece."""
    for place, piece in enumerate(pieces):
        if piece.token is None:
            continue
        taken = {-1: controls[piece.token].strips_left, 1: controls[piece.token].strips_right}
        for step in (step for step, is_taken in taken.items() if is_taken):
            beside = place + step
            while 0 <= beside < len(pieces) and pieces[beside].token is None:
                text = pieces[beside].text
                kept = text.rstrip(_WHITE_SPACE) if step < 0 else text.lstrip(_WHITE_SPACE)
                space = text[len(kept) :] if step < 0 else text[: len(text) - len(kept)]
                own = pieces[place].text
                pieces[beside] = replace(pieces[beside], text=kept)
                pieces[place] = replace(
                    pieces[place], text=space + own if step < 0 else own + space
                )
                if kept:
                    break
                beside += step


def _marked(rendered: str) -> list[tuple[str, bool]]:
    parts = []
    for number, part in enumerate(re.split(f"{_BEGIN}|{_END}", rendered)):
        parts.append((part, number % 2 == 1))
    return parts


def _spelling(token: object) -> str:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


class _Generation(Extension):
    """{% generation %}...{% endgeneration %} is its body."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_write"), [], [], body).set_lineno(line)

    def _write(self, caller: Any) -> str:  # noqa: ANN401  # Jinja's macro
        return str(caller())


class _MarkedGeneration(_Generation):
    """The same with marks around it."""

    def _write(self, caller: Any) -> str:  # noqa: ANN401  # Jinja's macro
        return f"{_BEGIN}{caller()}{_END}"


def _environment(generation: type[_Generation], now: datetime) -> ImmutableSandboxedEnvironment:
    """Return what transformers renders templates in (utils/chat_template_utils.py)."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals["raise_exception"] = _raise
    # One instant for all conversations, whichever process writes them.
    environment.globals["strftime_now"] = now.strftime
    return environment


def _raise(message: str) -> None:
    raise TemplateError(message)
