"""
`pareto`: questions from the shell, answered within a budget.

Knows terminals, files of questions and exit codes; knows no token and no strategy. `pareto --help` imports no model library: whatever
is heavy loads with the first question.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO, TypedDict, cast

import typer
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from langchain_pareto.errors import (
    BudgetError,
    CapabilityError,
    ModelLoadError,
    ParetoError,
    SettingError,
)

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage
    from langchain_core.messages.ai import UsageMetadata

    from langchain_pareto.budget import Budget
    from langchain_pareto.chat_model import ChatPareto

_USAGE = (BudgetError, SettingError, ModelLoadError, CapabilityError)  # what a user can put right
_AT_ONCE = 64  # questions in the engine; more would wait there, with their clocks running
_PATIENCE = 2.0  # seconds before a progress bar appears
_NODES = 16  # thoughts that a tree shows
_ENDS = {"eos": "ended", "stop": "ended", "length": "cut off", "deadline": "out of time"}
_UNITS = {
    "flops": "FLOP",
    "memory": "B",
    "seconds": "s",
    "device_seconds": "s",
    "joules": "J",
    "usd": "$",
}
_COLUMNS = "question answer text strategy stopped_by budget spent samples usage error".split()

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def main() -> None:
    """The command line."""
    app(prog_name="pareto")


def _version(wanted: bool) -> None:
    if wanted:
        try:
            print(f"pareto {version('langchain-pareto')}")
        except PackageNotFoundError:  # run from a source tree
            print("pareto, not installed")
        raise typer.Exit


@app.callback()
def _pareto(
    *,
    _: Annotated[
        bool,
        typer.Option(
            "--version", callback=_version, is_eager=True, help="Say which version this is."
        ),
    ] = False,
) -> None:
    """The best answer your compute budget can buy, from models on this machine."""


@app.command()
def ask(
    question: Annotated[
        str | None,
        typer.Argument(help='What to ask; "-", or a pipe, is read from stdin.', show_default=False),
    ] = None,
    *,
    budget: Annotated[
        str | None,
        typer.Option(
            help='Hard limits of each question, e.g. "200 tokens, 2s"; a bare number is tokens.'
        ),
    ] = None,
    strategy: Annotated[
        str, typer.Option(help="auto, single, vote, best_of_n, or a strategy's JSON.")
    ] = "auto",
    model: Annotated[
        str | None,
        typer.Option(help="A folder or a Hugging Face id; without it, the bundled nano model."),
    ] = None,
    backend: Annotated[str, typer.Option(help="What runs the model: torch.")] = "torch",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; by default CUDA where there is one.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="Of the draws; 0 is greedy. By default the model's own."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the draws reproducible.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most tokens of each sample.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(
            help='Questions as JSON lines, each with a "question"; they run side by side.'
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON line a question, nothing else.")
    ] = False,
) -> None:
    """Answers a question, or a file of them, and says what that took.

    Exit codes: 0 all answered, 1 a question failed, 2 a setting is wrong.
    """
    with _told():
        questions = _read(question, file)
        llm = _model(
            budget=budget,
            strategy=strategy,
            model=model,
            backend=backend,
            device=device,
            dtype=dtype,
            draws={"temperature": temperature, "seed": seed, "max_tokens": max_tokens},
        )
        show = _show_json if as_json else _show if len(questions) == 1 else _show_titled
        try:
            failed = asyncio.run(_answer_all(llm, questions, show))
        finally:
            llm.backend.close()
        if failed and not as_json and file is None:
            raise failed[0]
    if failed:
        raise typer.Exit(1)


# --- questions


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked, and what else stood on its line."""

    text: str
    extra: Mapping[str, object] = field(default_factory=dict)


def _read(question: str | None, file: Path | None) -> list[_Question]:
    """The questions from wherever they come; raises SettingError before anything runs."""
    if file is not None and question is not None:
        msg = "a question and --file were given"
        raise SettingError(msg, hint="Leave one of them out.")
    if file is not None:
        return _read_file(file)
    if question is None or question == "-":
        question = _read_stdin(question)
    if not question.strip():
        msg = "the question is empty"
        raise SettingError(
            msg, hint='Try: pareto ask "Use 11 7 3 to make 74." --budget "300 tokens"'
        )
    return [_Question(question)]


def _read_stdin(asked_for: str | None) -> str:
    if asked_for is None and (sys.stdin is None or sys.stdin.isatty()):
        msg = "there is no question"
        raise SettingError(msg, hint='Give one, "-" to type it in, or --file questions.jsonl.')
    try:
        return sys.stdin.read().rstrip("\r\n")
    except UnicodeDecodeError as error:
        msg = f"what was piped in is not text: {error}"
        raise SettingError(msg) from error


def _read_file(path: Path) -> list[_Question]:
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read {path}: {getattr(error, 'strerror', None) or error}"
        raise SettingError(msg) from error
    questions = [_parse(path, i, line) for i, line in enumerate(lines, start=1) if line.strip()]
    if not questions:
        msg = f"{path} has no line with a question"
        raise SettingError(msg, hint='Write one JSON object a line: {"question": "..."}')
    return questions


def _parse(path: Path, number: int, line: str) -> _Question:
    hint = 'Write one JSON object a line: {"question": "..."}'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        msg = f"{path}, line {number}: not JSON: {error}"
        raise SettingError(msg, hint=hint) from None
    if not isinstance(row, dict) or not isinstance(row.get("question"), str):
        msg = f'{path}, line {number}: no JSON object with a text as its "question"'
        raise SettingError(msg, hint=hint)
    if not row["question"].strip():
        msg = f"{path}, line {number}: the question is empty"
        raise SettingError(msg)
    return _Question(row["question"], {k: v for k, v in row.items() if k not in _COLUMNS})


# --- answers


def _model(
    *,
    budget: str | None,
    strategy: str,
    model: str | None,
    backend: str,
    device: str | None,
    dtype: str | None,
    draws: Mapping[str, object],
) -> ChatPareto:
    """The model, read once; whatever can be refused without its weights is refused first."""
    from langchain_pareto.budget import Budget

    limits = None if budget is None else Budget.parse(budget)
    if backend != "torch":
        msg = f"there is no backend {backend!r}; known backends: torch"
        raise SettingError(msg)
    err = _stderr()
    with err.status(f"Loading {model or 'nano'}"):
        from langchain_pareto.strategies import parse_strategy

        chosen = parse_strategy(strategy)
        from langchain_pareto.call import Draws
        from langchain_pareto.chat_model import ChatPareto

        asked = Draws.read(draws).model_dump(exclude_none=True)
        from langchain_pareto.backends import loading

        loaded = loading.load(model, device=device, dtype=dtype)
    name = model or "nano (bundled: word problems and Countdown puzzles only; yours: --model)"
    err.print(
        Text(f"{name} on {loaded.spec.device}, {loaded.spec.dtype}", style="dim"), soft_wrap=True
    )
    return ChatPareto(backend=loaded, strategy=chosen, budget=limits, **asked)


async def _answer_all(
    llm: ChatPareto,
    questions: Sequence[_Question],
    show: Callable[[_Question, AIMessage | Exception], None],
) -> list[Exception]:
    """Answers all questions side by side, shows each in its turn, and returns what went wrong."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def answer(question: _Question) -> AIMessage | Exception:
        async with gate:
            try:
                return await llm.ainvoke(question.text)
            except Exception as error:  # noqa: BLE001 - the others are answered all the same
                return error

    failed = list[Exception]()
    with _progress(len(questions)) as progress:
        tasks = [asyncio.create_task(answer(question)) for question in questions]
        for task in tasks:
            task.add_done_callback(lambda _: progress.advance(progress.task_ids[0]))
        for question, task in zip(questions, tasks, strict=True):
            result = await task
            if isinstance(result, Exception):
                failed.append(result)
            with _hidden(progress):
                show(question, result)
    return failed


@contextmanager
def _progress(total: int) -> Iterator[Progress]:
    """A bar on stderr, if somebody looks and it takes long enough."""
    err = _stderr()
    columns = [TextColumn("Answering"), BarColumn(), TimeElapsedColumn()]
    if total > 1:
        columns.insert(2, MofNCompleteColumn())
    progress = Progress(
        *columns, console=err, transient=True, redirect_stdout=False, disable=not err.is_terminal
    )
    progress.add_task("", total=total if total > 1 else None)
    later = asyncio.get_running_loop().call_later(_PATIENCE, progress.start)
    try:
        yield progress
    finally:
        later.cancel()
        progress.stop()


@contextmanager
def _hidden(progress: Progress) -> Iterator[None]:
    """Takes the bar away while something is printed: both may be on one terminal."""
    shown = progress.live.is_started
    if shown:
        progress.stop()
    yield
    if shown and not progress.finished:
        progress.start()


# --- JSON


class _Node(TypedDict):
    """One thought of `response_metadata["pareto"]["tree"]`."""

    id: int
    parent: int
    text: str
    tokens: int
    finish: str
    answer: str | None
    score: float | None
    mean_logprob: float | None
    chosen: bool


class _Report(TypedDict):
    """`response_metadata["pareto"]`, as far as it is shown."""

    strategy: dict[str, object]
    budget: str | None
    spent: dict[str, float]
    stopped_by: str
    samples: int
    answer: str | None
    share: float | None
    seed: int
    tree: list[_Node]


def _report(message: AIMessage) -> _Report:
    return cast("_Report", message.response_metadata["pareto"])


def _show_json(question: _Question, result: AIMessage | Exception) -> None:
    row = _error_row(question, result) if isinstance(result, Exception) else _row(question, result)
    ascii_only = not (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps({**row, **question.extra}, ensure_ascii=ascii_only), flush=True)


def _row(question: _Question, message: AIMessage) -> dict[str, object]:
    report = _report(message)
    return {
        "question": question.text,
        "answer": report["answer"],
        "text": str(message.text),
        "strategy": report["strategy"],
        "stopped_by": report["stopped_by"],
        "budget": report["budget"],
        "spent": report["spent"],
        "samples": report["samples"],
        "usage": message.usage_metadata,
    }


def _error_row(question: _Question, error: Exception) -> dict[str, object]:
    hint = getattr(error, "hint", None)
    told = str(error) or repr(error)
    return {"question": question.text, "error": f"{told.rstrip('.')}. {hint}" if hint else told}


# --- what people read


def _show(question: _Question, result: AIMessage | Exception, *, title: str | None = None) -> None:
    """The answer, what it took, and the tree; a single question's error is left to its caller."""
    out = Console(highlight=False)
    if isinstance(result, Exception):
        if title is not None:
            out.print(
                Panel(Text(_clean(str(result)), "red"), title=Text(title), title_align="left")
            )
        return
    report = _report(result)
    out.print(_answer(str(result.text), report, title or "Answer", out))
    out.print(_spending(report, result.usage_metadata, out))
    out.print(show_tree(report["tree"], question.text, out))


def _show_titled(question: _Question, result: AIMessage | Exception) -> None:
    _show(question, result, title=_short(question.text, 60))
    print()


def _answer(text: str, report: _Report, title: str, out: Console) -> RenderableType:
    found = report["answer"]
    told = "no answer found in it" if found is None else _short(found, 60)
    if report["share"] is not None:
        told += f"{_sign(out, ' · ', ', ')}{report['share']:.0%} of the votes"
    return Panel(
        Text(_clean(text)),
        title=Text(title),
        subtitle=Text(told, "bold green" if found is not None else "yellow"),
        title_align="left",
        subtitle_align="right",
        border_style="green" if found is not None else "yellow",
    )


def _spending(report: _Report, usage: UsageMetadata | None, out: Console) -> RenderableType:
    """What was spent of what, and why it ended."""
    from langchain_pareto.budget import Budget

    budget = Budget() if report["budget"] is None else Budget.parse(report["budget"])
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 1), header_style="dim")
    table.add_column("resource")
    table.add_column("spent", justify="right")
    table.add_column("limit", justify="right")
    for resource, amount in report["spent"].items():
        limit = _limit(budget, resource)
        reached = resource == report["stopped_by"]
        table.add_row(
            "on the device" if resource == "device_seconds" else resource,
            Text(_amount(amount, resource), "yellow" if reached else ""),
            _sign(out, "–", "-") if limit is None else _amount(limit, resource),
        )
    ended = {"done": "ended by itself", "length": "cut off"}
    stopped_by = report["stopped_by"]
    samples = report["samples"]
    notes = [
        str(report["strategy"]["kind"]),
        f"{samples} sample{'s' if samples != 1 else ''}",
        ended.get(stopped_by, f"stopped by its {stopped_by}"),
        f"prompt {usage['input_tokens']} tokens" if usage is not None else "",
        f"seed {report['seed']}",
    ]
    line = _sign(out, " · ", ", ").join(note for note in notes if note)
    return Group("", table, Text(f" {line}", "dim"), "")


def show_tree(nodes: Sequence[_Node], question: str, out: Console) -> Tree:
    """The thoughts of `response_metadata["pareto"]["tree"]`, the chosen ones marked, for `out` to print."""
    tree = Tree(Text(f" {_short(question, out.width - 2)}", "bold"), guide_style="dim")
    places = {0: tree}
    for node in _shown(nodes):
        under = places.get(node["parent"], tree)
        places[node["id"]] = under.add(_thought(node, out))
    hidden = len(nodes) - len(places) + 1
    if hidden:
        tree.add(Text(f"{_sign(out, '…', '...')} {hidden} more", "dim"))
    return tree


def _shown(nodes: Sequence[_Node]) -> list[_Node]:
    """The first ones and the chosen ones, in order, parents before their children."""
    chosen = [node["id"] for node in nodes if node["chosen"]]
    rest = [node["id"] for node in nodes if not node["chosen"]]
    ids = {*chosen, *rest[: max(0, _NODES - len(chosen))]}
    return sorted((node for node in nodes if node["id"] in ids), key=lambda node: node["id"])


def _thought(node: _Node, out: Console) -> Text:
    """One thought: a line about it, and a line of it."""
    mark = _sign(out, "✓ ", "* ") if node["chosen"] else ""
    told = "no answer" if node["answer"] is None else _short(node["answer"], 36)
    facts = [f"{node['tokens']} tokens"]
    if node["score"] is not None:
        facts.append(f"score {node['score']:.3g}")
    if node["mean_logprob"] is not None:
        facts.append(f"mean logprob {node['mean_logprob']:.2f}")
    facts.append(_ENDS.get(node["finish"], node["finish"]))
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{mark}{node['id']}  {told}", "bold green" if node["chosen"] else "")
    line.append("  " + _sign(out, " · ", ", ").join(facts) + "\n", "dim")
    line.append(_short(node["text"], out.width - 10, _sign(out, " ⏎ ", " / ")), "dim italic")
    return line


def _amount(value: float, resource: str) -> str:
    """An amount with its unit, to three or four digits; counts in full."""
    unit = _UNITS.get(resource)
    if unit is None:
        return f"{value:,.0f}"
    if unit == "$":
        return f"${value:.4g}"
    if unit == "s":
        return f"{value:.3g} s" if value < 100 else f"{value:.0f} s"
    for prefix in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} E{unit}"


def _limit(budget: Budget, resource: str) -> float | None:
    limit = getattr(budget, resource, None)
    return None if limit is None else float(limit)


# --- the terminal


def _stderr() -> Console:
    return Console(stderr=True, highlight=False)


@contextmanager
def _told() -> Iterator[None]:
    """Errors of ours in red on stderr, warnings in yellow; signs that a terminal cannot show become `?`."""
    for stream in (sys.stdout, sys.stderr):
        if callable(reconfigure := getattr(stream, "reconfigure", None)):
            reconfigure(errors="backslashreplace" if _is_utf8(stream) else "replace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            yield
    except ParetoError as error:
        if os.environ.get("PARETO_TRACEBACK") == "1":
            raise
        err = _stderr()
        err.print(Text(f"error: {_clean(str(error))}", "red"), soft_wrap=True)
        if error.hint:
            err.print(Text(_clean(error.hint)), soft_wrap=True)
        raise typer.Exit(2 if isinstance(error, _USAGE) else 1) from None


def _warn(
    message: Warning | str,
    category: type[Warning],  # noqa: ARG001 - as the warnings module calls it
    filename: str,  # noqa: ARG001
    lineno: int,  # noqa: ARG001
    file: TextIO | None = None,  # noqa: ARG001
    line: str | None = None,  # noqa: ARG001
) -> None:
    _stderr().print(Text(f"note: {_clean(str(message))}", "yellow"), soft_wrap=True)


def _is_utf8(stream: TextIO) -> bool:
    return (stream.encoding or "").lower().startswith("utf")


def _sign(out: Console, nice: str, plain: str) -> str:
    return plain if out.options.ascii_only else nice


def _clean(text: str) -> str:
    """Text without what steers a terminal."""
    return "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)


def _short(text: str, most: int, newline: str = " ") -> str:
    """One line of at most `most` characters."""
    line = _clean(newline.join(part for part in text.strip().split("\n") if part))
    return line if len(line) <= most else f"{line[: max(0, most - 3)]}..."


if __name__ == "__main__":
    main()
