"""
Recorded answers of the family to held-out puzzles, and what drawing and scoring them takes on this machine.

What S and M answered lies with the pools of examples/nano; L is sampled here on as many puzzles, and judged by the same reward model. A cost
model tells the seconds of the steps; live calls of the same session tell what comes beside them, and what scoring takes. Knows models and
files; knows no planner.
"""

import json
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from _trees import CHECKS, LIVE, POLICIES, SAMPLINGS, Live, players, puzzles
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from langchain_pareto.backends.loading import load
from langchain_pareto.budget import Budget
from langchain_pareto.planning.cost_model import CostModel
from langchain_pareto.planning.device import calibrate
from langchain_pareto.planning.fitting import fit
from langchain_pareto.planning.pool import Pool
from langchain_pareto.planning.recording import Recording
from langchain_pareto.planning.replay import Replayer
from langchain_pareto.planning.scorer_cost import ScorerCost, Work
from langchain_pareto.strategies import Single, Vote, WeightedVote
from langchain_pareto.strategies.thoughts import POLICY
from nano import growing
from nano.bands import pooled_problems
from nano.paths import SAMPLES, TOKENIZER, trained_or_shipped
from nano.reward import step_scores
from nano.sample_pools import equal_answers, pool_of
from nano.samples import ProblemRef, Samples, read, read_all, weights_of, write
from nano.tokenizer import prompt_of

N = 32  # samples of a puzzle
_L = LIVE / "samples.L.jsonl"
_SECONDS = 30.0  # of a model's calibration
_HOUR = 3600.0  # no limit, but one that makes a replay tell seconds
_ORDERS = 8  # of a puzzle's samples, which are not those that ran live


def sample() -> None:
    """Draws what L has not answered yet."""
    folder = trained_or_shipped("L")
    with load(folder, tokenizer=TOKENIZER, dtype="auto") as backend:
        write(_L, folder, backend, puzzles(), N, SAMPLINGS["L"])


def calibrate_all() -> None:
    """Measures the steps of every model in seconds of the processor, and keeps the cost models."""
    with players() as of:
        for name in POLICIES:
            found = calibrate(of.backends[name], seconds=_SECONDS, clock=time.process_time)
            (LIVE / f"device.{name}.json").write_text(found.to_json())


def sampled() -> int:
    """Puzzles that L has answered."""
    return len(read(_L))


def pools(count: int) -> dict[str, Pool]:
    """What each model answered to the first puzzles; equal answers have one class in all of them."""
    refs = puzzles()[:count]
    drawn = {name: _recorded(name, refs) for name in ("S", "M")} | {"L": read(_L)[:count]}
    scores = {name: _recorded_scores(name, refs) for name in ("S", "M")}
    scores["L"] = _scored(drawn["L"], count)
    classes = equal_answers(drawn.values())
    return {name: _pool(name, drawn[name], scores[name], classes) for name in POLICIES}


def _pool(
    name: str,
    drawn: list[Samples],
    scores: list[list[float]],
    classes: Mapping[ProblemRef, Mapping[str, int]],
) -> Pool:
    found = pool_of(drawn, scores, classes=classes)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    prompts = [len(tokenizer.encode(prompt_of(one.problem.question))) for one in drawn]
    return Pool(
        model=name,
        questions=tuple(f"{one.difficulty}/{one.index}" for one in drawn),
        answers=found.answers,
        tokens=found.tokens,
        prompts=np.array(prompts, np.int64),
        right=found.right,
        scores=found.scores,
        logprobs=found.logprobs,
    )


def _recorded(name: str, refs: Sequence[ProblemRef]) -> list[Samples]:
    every = read_all(SAMPLES / f"{name}.test.jsonl", pooled_problems(name))
    return [every[i] for i in _places(name, refs)]


def _recorded_scores(name: str, refs: Sequence[ProblemRef]) -> list[list[float]]:
    every = growing.rows(SAMPLES / f"{name}.scores.jsonl")
    return [every[i] for i in _places(name, refs)]


def _places(name: str, refs: Sequence[ProblemRef]) -> list[int]:
    places = {ref: i for i, ref in enumerate(pooled_problems(name))}
    return [places[ref] for ref in refs]


def _scored(samples: list[Samples], count: int) -> list[list[float]]:
    """The reward model's score of every outcome of L's, kept in a file that resumes."""
    path, folder = LIVE / "scores.L.jsonl", trained_or_shipped("PRM")
    header = {"prm": weights_of(folder), "samples": growing.header(_L)}
    done = growing.resume(path, header)
    if done < count:
        prm = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
        with path.open("a") as file:
            for one in samples[done:]:
                question = one.problem.question
                written = list(zip(one.texts, one.ended, strict=True))
                once = list(dict.fromkeys(written))
                steps = step_scores(prm, tokenizer, [(question, text, end) for text, end in once])
                of = {w: round(s[-1], 4) if s else 0.0 for w, s in zip(once, steps, strict=True)}
                file.write(json.dumps([of[w] for w in written]) + "\n")
    rows: list[list[float]] = growing.rows(path)
    return rows[:count]


# --- seconds


@dataclass(frozen=True, slots=True)
class Timed:
    """A cost model as live calls have shown it: `steps` times its seconds, and `draw` more for each draw."""

    model: CostModel
    steps: float
    draw: float

    def batch_seconds(self, lengths: Sequence[int], prompt: int) -> float:
        """Until the last has ended."""
        drawn = len(lengths) - list(lengths).count(0)
        return self.steps * self.model.batch_seconds(lengths, prompt) + self.draw * drawn

    def drawn_by(self, lengths: Sequence[int], prompt: int, seconds: float) -> list[int]:
        """How many tokens each has after so many seconds."""
        left = seconds - self.draw * len(lengths)
        return self.model.drawn_by(lengths, prompt, left / self.steps)


def recordings(of: Mapping[str, Pool], lives: Sequence[Live]) -> dict[str, Recording]:
    """The pools with the seconds of this session."""
    by: dict[str, list[Live]] = defaultdict(list)
    for one in lives:
        if one.seconds is not None:
            by[one.plan].append(one)
    timings = {name: _timed(name, pool, by) for name, pool in of.items()}
    scoring = _scoring(of, timings, by)
    return {
        name: Recording(pool, timing=timings[name], scoring=scoring) for name, pool in of.items()
    }


def _timed(name: str, pool: Pool, by: Mapping[str, list[Live]]) -> Timed:
    model = CostModel.from_json((LIVE / f"device.{name}.json").read_bytes())
    features, seconds = list[tuple[float, float]](), list[float]()
    for option in CHECKS:
        if option.model == name and isinstance(option.strategy, Single | Vote):
            for one in by[str(option)]:
                known = model.batch_seconds(*_drawn(one, pool))
                features.append((known, one.samples))
                seconds.append(one.seconds or 0.0)
    steps, draw = fit(features, seconds)
    told = sum(steps * known + draw * drawn for known, drawn in features)
    right = sum(seconds) / told  # errors were relative to what was measured, which draws a fit down
    return Timed(model, right * steps, right * draw)


def _scoring(
    of: Mapping[str, Pool], timings: Mapping[str, Timed], by: Mapping[str, list[Live]]
) -> ScorerCost:
    """By what weighted votes took beyond their draws, each plan once; of all models, for one scorer reads what any of them wrote."""
    features, seconds = list[tuple[float, float]](), list[float]()
    for option in CHECKS:
        if isinstance(option.strategy, WeightedVote):
            timing, pool = timings[option.model], of[option.model]
            beyond = [
                (one.seconds or 0.0) - timing.batch_seconds(*_drawn(one, pool))
                for one in by[str(option)]
            ]
            features.append((1.0, option.strategy.n))
            seconds.append(max(1e-4, float(np.mean(beyond))))
    return ScorerCost(Work(*fit(features, seconds)))


def _drawn(one: Live, pool: Pool) -> tuple[list[int], int]:
    """The lengths of a live call's samples, which hardly differ, and of its prompt."""
    return [round(one.tokens / one.samples)] * one.samples, int(pool.prompts[one.puzzle])


def off(of: Mapping[str, Recording], lives: Sequence[Live]) -> dict[str, list[float]]:
    """Measured and replayed seconds of each plan that ran live and is replayed, means over the same puzzles."""
    found = dict[str, list[float]]()
    for option in CHECKS:
        recording = of[option.model]
        count = len(recording.pool.questions)
        runs = [one for one in lives if one.plan == str(option) and one.puzzle < count]
        replayer = Replayer({POLICY: recording})
        told = [
            replayer.play(option.strategy, one.puzzle, Budget(seconds=_HOUR), seed=order).seconds
            or 0
            for one in runs
            for order in range(_ORDERS)
        ]
        measured = float(np.mean([one.seconds or 0.0 for one in runs]))
        found[str(option)] = [round(measured, 4), round(float(np.mean(told)), 4)]
    return found
