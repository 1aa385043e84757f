"""
Calls read out of a text by a response template.

Knows what the template's parser gives; knows no format by itself. What the template cannot read, and what it finds no call in, is read by
marks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence

from langchain_pareto.forms.response_template import CALLS, CONTENT, Event, ResponseTemplate, flat
from langchain_pareto.forms.tool_arguments import read_json
from langchain_pareto.forms.tool_calls import CallMaker, Written, as_written, fresh_id
from langchain_pareto.forms.tool_format import as_json
from langchain_pareto.forms.tool_reader import Around, Begun, CallReader, Ended
from langchain_pareto.forms.tool_shapes import Marks
from langchain_pareto.forms.tools import Tools

_REASONING = ("reasoning_content", "thinking", "reasoning")  # which templates do not name alike
_CUT = "the call was cut off"


class TemplateReader:
    """Reads a text whole, at its end; before that it gives the words that stand before all else.

    Those are what template and marks both take for words, so that they are the beginning of the content whichever reads the text.
    """

    def __init__(self, template: ResponseTemplate, marks: Marks, tools: Tools) -> None:
        self.reasoning: str | None = None
        self._template, self._marks, self._tools = template, marks, tools
        self._text = ""
        self._told = 0  # characters of it
        self._words = _Words(template, CallReader(marks, tools))

    def feed(self, piece: str) -> Iterator[str | Begun | Ended]:
        """Words that are certain."""
        self._text += piece
        certain = self._words.feed(piece)
        if said := self._text[self._told : certain].rstrip():
            yield said
            self._told += len(said)

    def flush(self) -> Iterator[str | Begun | Ended]:
        """The rest of the words, and each call in one piece."""
        content, ended = self._read()
        yield content[self._told :]
        yield from ended

    def _read(self) -> tuple[str, list[Ended]]:
        try:
            events, message = self._template.parsed(self._text)
            written = list(self._written(events, message))
        except Exception as error:  # noqa: BLE001 - whatever a template does not expect in a text
            return self._unread(error)
        content = self._content(events)
        if not written:
            content, ended = _by_marks(self._marks, self._tools, content)
        else:
            maker = CallMaker(self._tools)
            ended = [Ended(i, maker.make(w, fresh_id()), False) for i, w in enumerate(written)]
        thoughts = (message.get(name) for name in _REASONING)
        self.reasoning = next((text for text in thoughts if isinstance(text, str)), None)
        return content, ended

    def _unread(self, error: Exception) -> tuple[str, list[Ended]]:
        """By marks; where they find no call either, all but the words at the beginning is one, and invalid."""
        content, ended = _by_marks(self._marks, self._tools, self._text)
        if ended:
            return content, ended
        content = self._text[: _words_before(self._template, self._text)].rstrip()
        raw = self._text[len(content) :].strip()
        written = Written(None, None, raw, f"the response template cannot read it: {error}")
        return content, [Ended(0, CallMaker(self._tools).make(written, fresh_id()), False)]

    def _content(self, events: Sequence[Event]) -> str:
        around, said = Around(self._marks.between), list[str]()
        for event in events:
            if event["type"] == "region_chunk" and event["field"] == CONTENT:
                said.append(around.words(event["text"]))
            elif event["type"] == "region_open" and event["field"] == CALLS:
                around.call()
        return "".join([*said, around.end()])

    def _written(self, events: Sequence[Event], message: Mapping[str, object]) -> Iterator[Written]:
        values = [*flat(message)]
        closed = (event["field"] for event in reversed(events) if event["type"] == "region_close")
        cut = bool(values) and next(closed, None) == CALLS and self._template.is_cut(self._text)
        for i, value in enumerate(values):
            written = _checked(value)
            if cut and i == len(values) - 1:
                yield Written(written.name, None, written.raw, _CUT)
            else:
                yield written


class _Words:
    """How many characters at the beginning of a text are words for certain, by a template and by marks."""

    def __init__(self, template: ResponseTemplate, plain: CallReader) -> None:
        self._parser = template.parser() if template.has_bare_words else None
        self._plain: CallReader | None = plain
        self._templated = self._marked = 0

    def feed(self, piece: str) -> int:
        if self._parser is not None:
            try:
                events = self._parser.feed(piece)
            except Exception:  # noqa: BLE001 - the whole text is read at its end
                self._parser = None
            else:
                said, more = _leading(events)
                self._templated += said
                self._parser = self._parser if more else None
        for part in () if self._plain is None else self._plain.feed(piece):
            if not isinstance(part, str):
                self._plain = None
                break
            self._marked += len(part)
        return min(self._templated, self._marked)


def _checked(value: object) -> Written:
    """A call of what the parser made of it, which may hold what JSON has no words for."""
    written = as_written(value, as_json(value))
    try:
        made = read_json(json.dumps(value, default=str))
    except ValueError as error:
        return Written(written.name, None, written.raw, f"the call is not JSON: {error}")
    return as_written(made, written.raw)


def _by_marks(marks: Marks, tools: Tools, text: str) -> tuple[str, list[Ended]]:
    reader = CallReader(marks, tools)
    parts = [*reader.feed(text), *reader.flush()]
    content = "".join(part for part in parts if isinstance(part, str))
    ended = [part for part in parts if isinstance(part, Ended)]
    return content, [Ended(one.index, one.call, False) for one in ended]


def _words_before(template: ResponseTemplate, text: str) -> int:
    """Characters before all else, and before what cannot be read; one at a time, since an error takes what came with it."""
    parser, words, more = template.parser(), 0, template.has_bare_words
    for sign in text if more else "":
        try:
            said, more = _leading(parser.feed(sign))
        except Exception:  # noqa: BLE001 - as above
            break
        words += said
        if not more:
            break
    return words


def _leading(events: Sequence[Event]) -> tuple[int, bool]:
    """Characters of content before anything else, and whether more may follow."""
    words = 0
    for event in events:
        if event["field"] != CONTENT or event["type"] == "region_close":
            return words, False
        words += len(event.get("text", ""))
    return words, True
