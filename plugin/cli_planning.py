"""
`pareto plan`, `pareto calibrate` and `pareto bench`: what a call would run and why, and the measurements that this is known by.

Knows commands; what they do is the planning room's and the calibration's.
"""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

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
)
from langchain_pareto.errors import SettingError
from langchain_pareto.exits import told
from langchain_pareto.questions import Question, read_questions

if TYPE_CHECKING:
    from langchain_pareto.chat_model import ChatPareto
    from langchain_pareto.planning.calibrate import Asked
    from langchain_pareto.planning.profile import Profile

_TASK = typer.Option(help="The name that the profile has, or its file.")

_bench = typer.Typer(no_args_is_help=True, help="Measures the planner itself.")
_calibrate = typer.Typer(no_args_is_help=True, help="Measures a device, or how good plans are.")


def add_planning(app: typer.Typer) -> None:
    """Adds the commands to a command line."""
    app.command()(plan)
    app.add_typer(_calibrate, name="calibrate")
    app.add_typer(_bench, name="bench")


def plan(
    question: Annotated[
        str | None,
        typer.Argument(
            help='What would be asked; "-", or a pipe, is read from stdin.', show_default=False
        ),
    ] = None,
    *,
    budget: Annotated[
        str | None, typer.Option(help='Hard limits of the call, e.g. "200 tokens, 2s".')
    ] = None,
    task: Annotated[str | None, _TASK] = None,
    model: Annotated[list[str] | None, MODELS] = None,
    scorer: Annotated[str | None, typer.Option(help="As of `pareto ask`.")] = None,
    role: Annotated[list[str] | None, ROLES] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="As it was calibrated.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="As it was calibrated.")] = None,
    need: Annotated[float | None, NEED] = None,
    guarantee: Annotated[str | None, GUARANTEE] = None,
    watts: Annotated[float | None, WATTS] = None,
    usd_per_hour: Annotated[float | None, USD_PER_HOUR] = None,
    usd_per_million_tokens: Annotated[float | None, USD_PER_TOKENS] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, nothing else.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="Draws the profile's plans by cost and quality into this file (.png, .svg, .pdf)."
        ),
    ] = None,
) -> None:
    """Says which strategy, model and decoder a call would take within a budget, and why; runs nothing."""
    with told():
        from langchain_pareto.budget import Budget
        from langchain_pareto.planning.certificates import Guarantee

        read_questions(question, None)  # a call needs one; which one it is makes no difference yet
        limits = None if budget is None else Budget.parse(budget)
        wanted = None if guarantee is None else Guarantee.parse(guarantee)
        check_task(task)
        if plot is not None:
            _check_plot(plot, task)
        llm = Named(models=model or (), roles=role or ()).chat(
            scorer=scorer,
            task=task,
            temperature=temperature,
            max_tokens=max_tokens,
            watts=watts,
            usd_per_hour=usd_per_hour,
            usd_per_million_tokens=usd_per_million_tokens,
        )
        chosen = llm.plans().plan(limits, need=need, guarantee=wanted)
        if plot is not None:
            _draw(llm, plot)
        if as_json:
            print(json.dumps(chosen.as_dict(), allow_nan=False))
        else:
            console.stdout().print(Text(chosen.explain()), soft_wrap=True)


@_calibrate.command("quality")
def quality(
    questions: Annotated[
        Path,
        typer.Argument(help='JSON lines, each with a "question", and an "answer" if it is known.'),
    ],
    *,
    task: Annotated[str, _TASK],
    model: Annotated[list[str] | None, MODELS] = None,
    scorer: Annotated[str | None, typer.Option(help="As of `pareto ask`.")] = None,
    role: Annotated[list[str] | None, ROLES] = None,
    limit: Annotated[
        int, typer.Option("--questions", min=1, help="How many of the questions.")
    ] = 100,
    samples: Annotated[int, typer.Option(min=2, help="Samples of each question.")] = 16,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="Of the samples; by default the model's own.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="The most tokens of each sample.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="Limits of the whole calibration; the same command goes on later."),
    ] = None,
) -> None:
    """Samples questions of one kind, and measures every plan on them: `--task` then plans by what was found."""
    with told():
        from langchain_pareto.calibration import calibrate_quality
        from langchain_pareto.planning.store import profile_path, samples_path

        check_task(task, writing=True)  # before anything is drawn
        path = profile_path(task)
        asked = [_asked(one) for one in read_questions(None, questions)][:limit]
        llm = Named(models=model or (), roles=role or ()).chat(
            scorer=scorer, temperature=temperature, max_tokens=max_tokens
        )
        rows = len(asked) * len(llm.plans().models)
        err = console.stderr()

        async def calibrate() -> Profile:
            with console.progress_bar(rows) as bar:
                return await calibrate_quality(
                    llm,
                    asked,
                    task=task,
                    samples=samples,
                    budget=budget,
                    on_row=lambda: bar.advance(bar.task_ids[0]),
                )

        try:
            found = asyncio.run(calibrate())
        except KeyboardInterrupt:
            if (kept := samples_path(task)).exists():
                resumed = f"Interrupted; what was drawn is kept in {kept}. The same command goes on from there."
                err.print(Text(resumed), soft_wrap=True)
            raise
        finally:
            llm.close()
        told_labels = (
            "their answers were known"
            if found.labelled
            else "no answers were known: plans are ranked, and no accuracy is told"
        )
        err.print(
            Text(
                f"{found.questions} of {len(asked)} questions, {told_labels}; kept in {samples_path(task)}",
                style="dim",
            ),
            soft_wrap=True,
        )
        console.stdout().print(Text(str(path)), soft_wrap=True)


@_calibrate.command("device")
def device(
    *,
    model: Annotated[list[str] | None, MODELS] = None,
    seconds: Annotated[float, typer.Option(min=1, help="For each model.")] = 60.0,
) -> None:
    """Measures what each model takes on this device, so that budgets in seconds, joules and money are planned for; stop other work first."""
    with told():
        from langchain_pareto.calibration import calibrate_device
        from langchain_pareto.planning.store import device_path

        path = device_path("any")
        hint = "Name another directory by LANGCHAIN_PARETO_HOME."
        _check_writable(path, f"what is measured, to be kept in {path.parent},", hint)
        llm = Named(models=model or ()).chat()
        try:
            with console.stderr().status("Measuring") as status:
                found = asyncio.run(
                    calibrate_device(
                        llm,
                        seconds=seconds,
                        on_progress=lambda _, what: status.update(f"Measuring {what}"),
                    )
                )
        finally:
            llm.close()
        for name, cost in found.items():
            step = 1e3 * cost.decode.seconds(1, 256)
            off = (
                "not checked"
                if cost.error is None
                else f"{cost.error:.0%} off where it was checked"
            )
            if cost.rough:
                off += ": rough; stop other work and measure again"
            line = f"{name} on {cost.key.device}, {cost.key.dtype}: {step:.3g} ms a token at 256 of context, {off}"
            console.stdout().print(Text(line), soft_wrap=True)


@_bench.command("planner")
def planner(
    pools: Annotated[
        Path, typer.Argument(help="A folder of recorded answers, DATASET.MODEL.jsonl.gz.")
    ],
    *,
    calibrate: Annotated[int, typer.Option(min=2, help="Questions that a calibration sees.")] = 100,
    splits: Annotated[int, typer.Option(min=1, help="Random splits into seen and judged.")] = 100,
    orders: Annotated[int, typer.Option(min=1, help="Orders of each question's samples.")] = 4,
) -> None:
    """Calibrates on some of the questions, judges on the others: one JSON line a figure."""
    with told():
        from langchain_pareto.bench import rows, sets_of

        for dataset, found in sets_of(pools).items():
            for row in rows(dataset, found, calibrated=calibrate, splits=splits, orders=orders):
                print(json.dumps(row), flush=True)


def check_task(task: str | None, *, writing: bool = False) -> None:
    """Raises SettingError where no profile can be read from, or written to, what --task names."""
    if task is None:
        return
    from langchain_pareto.planning.store import known_tasks, profile_path

    if Path(task).is_dir() and not _is_name(task):
        msg = f"--task {task} is a folder, not a profile"
        raise SettingError(msg, hint="Give a profile's name, or the path of its .json file.")
    path = profile_path(task)
    if writing:
        hint = "Give another --task: a name, or the path of a .json file."
        _check_writable(path, f"the profile {path}", hint)
    elif not path.is_file():
        msg = f"there is no profile {task!r}: {path} is no file"
        known = known_tasks()
        hint = f"Known profiles: {', '.join(known)}. " if known else ""
        raise SettingError(msg, hint=f"{hint}Make one with `pareto calibrate quality`.")


def _is_name(task: str) -> bool:
    """Whether it is written as a name, and no path: a folder that happens to be called so is not meant."""
    return not task.endswith(".json") and Path(task).name == task and task not in {".", ".."}


def _check_writable(path: Path, what: str, hint: str) -> None:
    """Raises SettingError where a file cannot be made, with the folders above it."""
    above = next(folder for folder in path.absolute().parents if folder.exists())
    if not above.is_dir() or not os.access(above, os.W_OK) or path.is_dir():
        why = "it is a folder" if path.is_dir() else f"{above} may not be written to"
        raise SettingError(f"{what} cannot be written: {why}", hint=hint)


def _check_plot(path: Path, task: str | None) -> None:
    """Raises SettingError for a plot that cannot be drawn."""
    if task is None:
        msg = "there is nothing to plot without a profile"
        raise SettingError(msg, hint="Name one with --task.")
    from langchain_pareto.plot import check_plot

    check_plot(path)


def _draw(llm: ChatPareto, path: Path) -> None:
    from langchain_pareto.plot import draw_profile

    if (profile := llm.plans().profile()) is not None:
        draw_profile(profile, path)


def _asked(question: Question) -> Asked:
    from langchain_pareto.planning.calibrate import Asked
    from langchain_pareto.planning.identity import key_of

    return Asked(key_of(question.text), question.text, question.answer, question.place)
