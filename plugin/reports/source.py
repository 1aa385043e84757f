"""
Where a report comes from: an answer, a reply, or either of them as JSON, in a text or a file.

Knows the shapes that LangChain and `pareto ask --json` give an answer; knows nothing of how a report looks.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from langchain_pareto.errors import SettingError
from langchain_pareto.reports.run import Run

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage

    from langchain_pareto.reply import Reply

    Source = AIMessage | Reply | Mapping[str, object] | Path | str

_HINT = (
    "Give an answer of ChatPareto or StrategyRunnable, its JSON, or a line of `pareto ask --json`."
)


def read_run(source: Source, *, question: str | None = None) -> Run:
    """The search that `source` tells of; a text is JSON when it begins with a brace, else the name of a file.

    An answer does not hold its question: `question` adds it. Raises SettingError for what tells of no search.
    """
    if isinstance(source, str) and not source.lstrip().startswith("{"):
        source = Path(source)
    if isinstance(source, Path):
        source = one_of(read_rows(text_of(source), str(source)), str(source))
    elif isinstance(source, str):
        source = one_of(read_rows(source, "the text"), "the text")
    values = _of_mapping(source) if isinstance(source, Mapping) else _of_object(source)
    if question is not None:
        values["question"] = question
    return Run.read(values)


def read_rows(text: str, name: str) -> list[Mapping[str, object]]:
    """The JSON objects of a text: it is one, or has one a line; raises SettingError."""
    try:
        whole = [_parse(text)]
    except (ValueError, RecursionError) as error:
        lines = [line for line in text.split("\n") if line.strip()]
        if len(lines) < 2:
            msg = f"{name} is not JSON: {error}"
            raise SettingError(msg, hint=_HINT) from None
        whole = _lines(text, name)
    rows = [row for row in whole if isinstance(row, Mapping)]
    if len(rows) < len(whole):
        msg = f"{name} holds JSON that is not an object"
        raise SettingError(msg, hint=_HINT)
    return rows


def _lines(text: str, name: str) -> list[object]:
    out = list[object]()
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                out.append(_parse(line))
            except (ValueError, RecursionError) as error:
                msg = f"{name}, line {number}: not JSON: {error}"
                raise SettingError(msg, hint=_HINT) from None
    return out


def _parse(text: str) -> object:
    found: object = json.loads(text)
    return found


def one_of(
    rows: Sequence[Mapping[str, object]], name: str, *, line: int | None = None
) -> Mapping[str, object]:
    """The only one of some answers, or the one at `line`, counted from 1; raises SettingError."""
    hint = f"Name one with `pareto report FILE --line N`, from 1 to {len(rows)}, or give its line."
    if line is None and len(rows) > 1:
        msg = f"{name} holds {len(rows)} answers, and a report is of one"
        raise SettingError(msg, hint=hint)
    if line is not None and line > len(rows):
        msg = f"line {line} is beyond the last answer of {name}, which holds {len(rows)}"
        raise SettingError(msg, hint=hint)
    return rows[0 if line is None else line - 1]


def text_of(path: Path) -> str:
    """What a file holds; raises SettingError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        msg = f"cannot read {str(path)!r:.200}: {getattr(error, 'strerror', None) or error}"
        raise SettingError(msg, hint=_HINT) from None


def _of_object(source: object) -> dict[str, object]:
    from langchain_core.messages import BaseMessage

    if isinstance(source, BaseMessage):
        return _of_mapping(source.model_dump()) | {"text": str(source.text)}
    from langchain_pareto.reply import Reply

    if isinstance(source, Reply):
        return _of_reply(source)
    msg = f"a report is made of an answer, not of {type(source).__name__}"
    raise SettingError(msg, hint=_HINT)


def _of_reply(reply: Reply) -> dict[str, object]:
    """As its message, and what only the search itself knows: the question, and the time of each draw."""
    out, report = reply.outcome, reply.report()
    tree = report["tree"]
    assert isinstance(tree, list)
    timed = [
        {"seconds": t.usage.wall_seconds or None, **node}
        for node, t in zip(tree, out.thoughts, strict=True)
    ]
    return report | {
        "tree": timed,
        "text": reply.texts()[1],
        "question": reply.thought.question,
        "model": reply.model,
        "prompt_tokens": out.prompt_tokens,
    }


def _of_mapping(data: Mapping[str, object]) -> dict[str, object]:
    """One answer as JSON: a message in each of its forms, its metadata, their "pareto", or a row of `pareto ask --json`."""
    if isinstance(error := data.get("error"), str):
        msg = f"this question was not answered: {error:.300}"
        raise SettingError(msg, hint="Choose a line that has an answer.")
    for inner in ("kwargs", "data"):  # dumps() and message_to_dict()
        data = _inside(data, inner)
    metadata = _inside(data, "response_metadata")
    report = _inside(metadata, "pareto")
    if "strategy" not in report or "spent" not in report:
        msg = "this answer does not hold a report of a search"
        raise SettingError(msg, hint=_HINT)
    usage = _inside(_inside(data, "usage_metadata"), "usage")
    around = {
        "question": data.get("question"),
        "text": _text(data.get("content", data.get("text"))),
        "model": metadata.get("model_name"),
        "prompt_tokens": usage.get("input_tokens"),
    }
    return {k: v for k, v in around.items() if v is not None} | dict(report)


def _inside(data: Mapping[str, object], name: str) -> Mapping[str, object]:
    inner = data.get(name)
    return inner if isinstance(inner, Mapping) else data


def _text(content: object) -> str | None:
    """The text of a message's content, which may come in blocks."""
    if isinstance(content, list):
        blocks = [block for block in content if isinstance(block, Mapping)]
        return "".join(str(b.get("text", "")) for b in blocks if b.get("type") == "text")
    return content if isinstance(content, str) else None
