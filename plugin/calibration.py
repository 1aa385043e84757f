"""
Calibrates a chat model: samples its models on questions, measures every plan over what was drawn, and keeps the profile.

Knows chat models and accounts; what is drawn, measured and kept is the planning room's.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from langchain_core.messages import HumanMessage

from langchain_pareto.backends.base import Backend
from langchain_pareto.budget import BudgetLike
from langchain_pareto.chat_model import ChatPareto
from langchain_pareto.errors import BudgetExceeded, SettingError
from langchain_pareto.ledger import run_budget
from langchain_pareto.planning import calibrate, device, measure
from langchain_pareto.planning.calibrate import Asked, Drawn, Samples
from langchain_pareto.planning.catalogue import options_for
from langchain_pareto.planning.cost_model import CostModel
from langchain_pareto.planning.files import write
from langchain_pareto.planning.identity import key_of
from langchain_pareto.planning.pool import Pool
from langchain_pareto.planning.profile import Profile
from langchain_pareto.planning.profile_file import check_place
from langchain_pareto.planning.recording import Recording
from langchain_pareto.planning.scorer_cost import ScorerCost
from langchain_pareto.planning.store import device_path, is_path, profile_path, samples_path
from langchain_pareto.scorer_timing import scorer_cost, takes_time
from langchain_pareto.strategies import Vote, WeightedVote
from langchain_pareto.strategies.scorers import MeanLogprob

_T = TypeVar("_T")
_ANEW = "Delete the file: it is measured again."


async def calibrate_quality(
    llm: ChatPareto,
    questions: Sequence[Asked],
    *,
    task: str | Path,
    samples: int = calibrate.SAMPLES,
    budget: BudgetLike | None = None,
    is_right: Callable[[str, str], bool] | None = None,
    on_row: Callable[[], None] = lambda: None,
    on_option: Callable[[], None] = lambda: None,
) -> Profile:
    """The profile of a kind of questions for the models of `llm`, saved under the name `task`.

    `is_right(question, answer)` judges; without it answers are compared with labels, and without labels the answer of most samples
    stands in. Nothing but `budget`, and what is around, limits the samples: a budget, timeout, need or guarantee of `llm` is for its
    calls. The same call again goes on where one was interrupted, or where its `budget` ended. Raises SettingError where nothing was
    drawn, where labels are missing or contradict each other, and where another calibration of the same name is running.
    """
    if not isinstance(samples, int) or samples < 2:
        msg = f"a profile needs at least 2 samples of each question, got {samples!r}"
        raise SettingError(
            msg, hint="16 are enough, and many questions tell more than many samples."
        )
    questions = calibrate.checked(questions, judged=is_right is not None)
    _check_place(task)
    llm = _unlimited(llm)
    plans = llm.plans()
    kept = Samples(samples_path(task), plans.keys, samples)
    kept.lines()  # samples of other models are refused before any model is loaded
    for model in plans.models.values():
        known_cost(await backend_of(llm, model))  # and a damaged file before anything is drawn
    with run_budget(budget) if budget is not None else contextlib.nullcontext():
        await kept.draw(questions, _drawing(llm, plans.models), on_row)
        scoring = await _scoring(llm, [question.text for question in questions])
    lines = calibrate.labelled_as(kept.lines(), questions)
    pools = calibrate.pools_of(lines, list(plans.models), is_right)
    name = profile_path(task).stem
    profile = await measured(llm, name, pools, scoring, on_option=_ended_by_cancelling(on_option))
    profile.save(profile_path(task))
    return profile


def _check_place(task: str | Path) -> None:
    """Raises SettingError where something else would be replaced; what is called by a name is a profile."""
    if is_path(task):
        check_place(profile_path(task))


async def measured(
    llm: ChatPareto,
    name: str,
    pools: Mapping[str, Pool],
    scoring: Mapping[str, ScorerCost],
    *,
    on_option: Callable[[], None],
) -> Profile:
    """Every plan for the models of `llm`, measured over what they drew; `scoring` is what their answers' scores take, by model."""
    plans = llm.plans()
    labelled = all(pool.right is not None for pool in pools.values())
    judged = dict(pools) if labelled else calibrate.pseudo_labelled(pools)
    if takes_time(llm.scorer) and not judged.keys() <= scoring.keys():
        judged = {model: replace(pool, scores=None) for model, pool in judged.items()}
        msg = "what the scorer takes could not be measured, so plans with scores are left out"
        warnings.warn(
            f"{msg}: give the calibration a larger budget, or go on with it", stacklevel=2
        )
    options = options_for(judged)
    backends = {model: await backend_of(llm, plans.models[model]) for model in judged}
    costs = {model: known_cost(backend) for model, backend in backends.items()}
    recordings = {
        model: Recording(pool, backends[model].spec, costs[model], scoring=scoring.get(model))
        for model, pool in judged.items()
    }
    runs = measure.measure(options, recordings, measure.budgets(judged), on_option=on_option)
    cells = {"tokens": runs.cells()}
    if None not in costs.values():
        seconds = measure.seconds_grid(recordings)
        cells["seconds"] = measure.measure(
            options, recordings, seconds, resource="seconds", on_option=on_option
        ).cells()
    return Profile(
        name=name,
        options=options,
        cells=cells,
        keys=dict(plans.keys),
        devices={model: cost.key.device for model, cost in costs.items() if cost is not None},
        labelled=labelled,
        made=datetime.now(UTC).date().isoformat(),
        prompt=float(next(iter(pools.values())).prompts.mean()),
        family=measure.family(options, runs, list(pools), labelled=labelled),
    )


async def calibrate_device(
    llm: ChatPareto,
    *,
    seconds: float = 60.0,
    on_progress: Callable[[float, str], None] = lambda _done, _what: None,
) -> dict[str, CostModel]:
    """What the models of `llm` take on this device, measured and kept; `seconds` is for each model.

    Nothing else should run meanwhile. Raises what `device.calibrate` raises.
    """
    found = dict[str, CostModel]()
    ended = threading.Event()

    def progress(done: float, what: str) -> None:
        if ended.is_set():  # whoever waited has gone, and a thread is ended by nobody but itself
            raise CancelledError
        on_progress(done, what)

    for name, model in llm.plans().models.items():
        backend = await backend_of(llm, model)
        try:
            cost = await asyncio.to_thread(
                device.calibrate, backend, seconds=seconds, progress=progress
            )
        except asyncio.CancelledError:
            ended.set()
            raise
        write(device_path(key_of(cost.key)), cost.to_json())
        found[name] = cost
    return found


def _ended_by_cancelling(on_option: Callable[[], None]) -> Callable[[], None]:
    """The same, where a task that was cancelled meanwhile ends: measuring awaits nothing, and would go on for minutes."""

    def told() -> None:
        on_option()
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError

    return told


def _unlimited(llm: ChatPareto) -> ChatPareto:
    """The same chat model, with the same loaded models, whose calls neither have limits of their own nor ask for a certain plan."""
    limits = dict.fromkeys(("budget", "timeout", "need", "guarantee"))
    free = llm.model_copy(update=limits)
    free._models, free._beside = llm._models, llm._beside  # noqa: SLF001 - of one house
    return free


async def _scoring(llm: ChatPareto, questions: Sequence[str]) -> dict[str, ScorerCost]:
    """What the scorer takes for the answers of each model on this device: as it was measured, or it is measured now, and kept."""
    found = dict[str, ScorerCost]()
    if not takes_time(llm.scorer):
        return found
    plans = llm.plans()
    for name, model in plans.models.items():
        backend = await backend_of(llm, model)
        path = device_path(key_of(device.key_of(backend), plans.keys[name], "scorer"))
        cost = _kept(path, ScorerCost.from_json, "cost of a scorer", _ANEW)
        if cost is None and (cost := await scorer_cost(llm, _other(llm, model), questions)):
            write(path, cost.to_json())
        if cost is not None:
            found[name] = cost
    return found


def known_cost(backend: Backend) -> CostModel | None:
    """What was measured of a model on this device, None where nothing was; SettingError where the file of it is damaged."""
    key = device.key_of(backend)
    path = device_path(key_of(key))
    again = "Measure the device again with `pareto calibrate device`, or delete the file."
    found = _kept(path, CostModel.from_json, "cost model", again)
    if found is None:
        return None
    if found.key != key:
        msg = f"{path} is the cost model of {found.key.model} on {found.key.device}, not of {key.model} on {key.device}"
        raise SettingError(msg, hint=again)
    return found


def _kept(path: Path, read: Callable[[bytes], _T], what: str, again: str) -> _T | None:
    """What was measured and kept in a file, None where nothing was; SettingError, with what to do, for a file that is damaged."""
    try:
        return read(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        msg = f"cannot read the {what} {path}: {error.strerror or error}"
        raise SettingError(msg, hint=again) from None
    except SettingError as error:
        raise SettingError(f"{path}: {error}", hint=again) from None


async def backend_of(llm: ChatPareto, model: object) -> Backend:
    """The loaded model of one of its names."""
    return await llm._abackend(_other(llm, model), None)  # noqa: SLF001 - of one house


def _other(llm: ChatPareto, model: object) -> object:
    """A model as a call names it: not at all where it is the backend that was handed in."""
    return None if model is llm.backend else model


def _drawing(llm: ChatPareto, models: Mapping[str, object]) -> calibrate.Draw:
    """Draws whole answers by the chat model's own settings."""
    scored = not isinstance(llm.scorer, MeanLogprob)

    async def draw(name: str, question: Asked, n: int) -> Drawn | None:
        strategy = WeightedVote(n=n) if scored else Vote(n=n, adaptive=False)
        try:
            reply = await llm.reply(
                [HumanMessage(question.text)], model=_other(llm, models[name]), strategy=strategy
            )
        except BudgetExceeded:
            return None
        thoughts = [t for t in reply.outcome.thoughts if not t.aside and not t.given]
        scores = [thought.score for thought in thoughts]
        known = [score for score in scores if score is not None]
        if len(thoughts) < n or reply.outcome.stopped_by not in ("done", "length"):
            return None
        return Drawn(
            answers=[thought.answer for thought in thoughts],
            tokens=[thought.length for thought in thoughts],
            prompt=reply.outcome.prompt_tokens,
            scores=known if scored and len(known) == len(scores) else None,
            logprobs=[thought.mean_logprob or 0.0 for thought in thoughts],
        )

    return draw
