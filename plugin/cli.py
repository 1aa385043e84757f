"""
`pareto`: questions from the shell, answered within a budget.

Knows commands, settings and exit codes; knows no token and no strategy. `pareto --help` imports no model library: whatever is heavy
loads with the first question.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from langchain_pareto import console
from langchain_pareto.cli_models import (
    GUARANTEE,
    MODELS,
    NEED,
    ROLES,
    USD_PER_HOUR,
    USD_PER_TOKENS,
    WATTS,
    Named,
    close,
)
from langchain_pareto.cli_planning import add_planning, check_task
from langchain_pareto.cli_report import add_report
from langchain_pareto.errors import SettingError
from langchain_pareto.exits import code_of, told
from langchain_pareto.questions import Question, read_questions

if TYPE_CHECKING:
    from langchain_core.messages import AIMessage

    from langchain_pareto.chat_model import ChatPareto

_AT_ONCE = 64  # questions in the engine; more would wait there, with their clocks running
_THOUGHTS = 16  # that are shown of each answer

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


add_planning(app)
add_report(app)


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
        str,
        typer.Option(
            help="auto, single, vote, best_of_n, weighted_vote, rebase and others, or a strategy's JSON."
        ),
    ] = "auto",
    scorer: Annotated[
        str | None,
        typer.Option(
            help="What searches go by: mean_logprob, process_reward, judge_score and others, or a scorer's JSON."
        ),
    ] = None,
    role: Annotated[list[str] | None, ROLES] = None,
    model: Annotated[list[str] | None, MODELS] = None,
    backend: Annotated[
        str, typer.Option(help="What runs the model: torch, llama-cpp, or auto, by its files.")
    ] = "auto",
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1; by default CUDA where there is one.")
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16, float16 or auto.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, help="Of the draws; 0 is greedy. By default the model's own."),
    ] = None,
    draft: Annotated[
        str | None,
        typer.Option(help="A small model that guesses ahead: a folder, a GGUF file or an id."),
    ] = None,
    decoder: Annotated[
        str | None,
        typer.Option(
            help="plain, auto, speculative, lookup, rounds, big_little, or a decoder's JSON; by default auto with --draft, else plain."
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Makes the draws reproducible.")] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most tokens of each sample.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What was measured of such questions, by `pareto calibrate quality`: the strategy and the model are chosen by it."
        ),
    ] = None,
    need: Annotated[float | None, NEED] = None,
    guarantee: Annotated[str | None, GUARANTEE] = None,
    watts: Annotated[float | None, WATTS] = None,
    usd_per_hour: Annotated[float | None, USD_PER_HOUR] = None,
    usd_per_million_tokens: Annotated[float | None, USD_PER_TOKENS] = None,
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

    Exit codes: 0 all answered, 1 a question failed, 2 a setting is wrong, and nothing was answered.
    """
    with told():
        from langchain_pareto.budget import Budget
        from langchain_pareto.strategies import Auto, parse_strategy

        if sys.stdout is None:
            msg = "there is nowhere to write the answer: stdout is closed"
            raise SettingError(msg)
        questions = read_questions(question, file)
        check_task(task)
        limits = None if budget is None else Budget.parse(budget)
        prices = {
            "watts": watts,
            "usd_per_hour": usd_per_hour,
            "usd_per_million_tokens": usd_per_million_tokens,
        }
        draws = {"temperature": temperature, "seed": seed, "max_tokens": max_tokens}
        named = Named(
            models=model or (),
            roles=role or (),
            draft=draft,
            decoder=decoder,
            backend=backend,
            device=device,
            dtype=dtype,
        )
        if task is None and (need is not None or guarantee is not None):
            msg = "a wanted accuracy is planned for by what was measured"
            raise SettingError(msg, hint="Name a profile with --task.")
        if task is None and len(named.models) < 2:
            llm = named.loaded(
                strategy=strategy, scorer=scorer, draws=draws, budget=limits, **prices
            )
        else:
            if not isinstance(parse_strategy(strategy), Auto):
                msg = f"a plan chooses the strategy, and --strategy names {strategy}"
                raise SettingError(msg, hint="Leave it out; or name one --model, and no --task.")
            planned = {"task": task, "need": need, "guarantee": guarantee}
            llm = named.chat(scorer=scorer, budget=limits, **prices, **planned, **draws)
        show = _show_json if as_json else _show if file is None else _show_each
        try:
            failed = asyncio.run(_answer_all(llm, questions, show))
        finally:
            close(llm)
        if failed and not as_json and file is None:
            raise failed[0]
    if failed:
        # a setting that is wrong for all is found by the first question, where a model loads with it
        raise typer.Exit(min(map(code_of, failed)) if len(failed) == len(questions) else 1)


# --- answers


async def _answer_all(
    llm: ChatPareto,
    questions: Sequence[Question],
    show: Callable[[Question, AIMessage | Exception], None],
) -> list[Exception]:
    """Answers all questions side by side, shows each in its turn, and returns what went wrong."""
    gate = asyncio.Semaphore(_AT_ONCE)

    async def answer(question: Question) -> AIMessage | Exception:
        async with gate:
            try:
                return await llm.ainvoke(question.text)
            except Exception as error:  # noqa: BLE001 - the others are answered all the same
                return error

    failed = list[Exception]()
    with console.progress_bar(len(questions)) as progress:
        tasks = [asyncio.create_task(answer(question)) for question in questions]
        for task in tasks:
            task.add_done_callback(lambda _: progress.advance(progress.task_ids[0]))
        for question, task in zip(questions, tasks, strict=True):
            result = await task
            if isinstance(result, Exception):
                failed.append(result)
            with console.hidden(progress):
                show(question, result)
    return failed


# --- what is shown


def _show_json(question: Question, result: AIMessage | Exception) -> None:
    row = _error_row(question, result) if isinstance(result, Exception) else _row(question, result)
    ascii_only = not console.is_utf8(sys.stdout)
    print(json.dumps({**row, **question.extra}, ensure_ascii=ascii_only), flush=True)


def _row(question: Question, message: AIMessage) -> dict[str, object]:
    report = message.response_metadata["pareto"]
    return {
        "question": question.text,
        "answer": report["answer"],
        "text": str(message.text),
        "strategy": report["strategy"],
        **({"plan": report["plan"]} if "plan" in report else {}),
        "stopped_by": report["stopped_by"],
        "budget": report["budget"],
        "spent": report["spent"],
        "samples": report["samples"],
        "usage": message.usage_metadata,
    }


def _error_row(question: Question, error: Exception) -> dict[str, object]:
    hint = getattr(error, "hint", None)
    told = str(error) or repr(error)
    return {"question": question.text, "error": f"{told.rstrip('.')}. {hint}" if hint else told}


def _show(question: Question, result: AIMessage | Exception) -> None:
    """A question asked alone; its error is left to the caller."""
    if not isinstance(result, Exception):
        from langchain_pareto.reports.report import Report

        report = Report.of(result, question=question.text)
        console.stdout().print(report.renderable(thoughts=_THOUGHTS))


def _show_each(question: Question, result: AIMessage | Exception) -> None:
    """One of several questions."""
    if isinstance(result, Exception):
        from langchain_pareto.reports.words import one_line

        console.show_failure(result, one_line(question.text, 60))
    else:
        _show(question, result)
    print()


if __name__ == "__main__":
    main()
