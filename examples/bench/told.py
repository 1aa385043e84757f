"""
What plans tell against what calls take: `python examples/bench/told.py [--calls 400] [--questions 60] [--seconds 30]`.

Measures the bundled policy and draft on this device and on problems of both tasks, then asks other problems under budgets in seconds, one
after another, and holds each call against its plan. `ours` is the share of calls that took more seconds than 9 of 10 were said to, among
those that their limit does not end before; `theirs` what it is without the margin that calls teach. `mean` is what the plans told over what
the calls took. Seconds are those of the clock on the wall.
"""

import argparse
import asyncio
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from _measure import report

from langchain_pareto import ChatPareto
from langchain_pareto.budget import Budget
from langchain_pareto.calibration import calibrate_device, calibrate_quality
from langchain_pareto.planning.calibrate import Asked

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano.problem import Problem
from nano.tasks import TASKS, draw, is_right

SAMPLES = 16
LEAST, MOST = 0.1, 4.0  # seconds of a call; drawn evenly in logarithms


@dataclass(frozen=True, slots=True)
class Call:
    """Seconds that a plan told, what of their upper end is margin, and the seconds that its call took."""

    mean: float
    p90: float
    margin: float
    limit: float
    took: float

    @property
    def is_open(self) -> bool:
        """Whether the limit ends it only beyond the upper end."""
        return self.p90 < self.limit


def problem(i: int) -> Problem:
    """Of both tasks in turn."""
    return draw(TASKS[i % 2], i, split="validation", difficulty=4)


def calls_of(llm: ChatPareto, problems: Sequence[Problem]) -> list[Call]:
    """Calls one after another."""
    rng, found = random.Random(0), list[Call]()
    for one in problems:
        budget = Budget(seconds=LEAST * (MOST / LEAST) ** rng.random())
        plan = llm.plans().plan(budget)
        message = llm.invoke(one.question, budget=budget)
        told, spent = plan.expected["seconds"], message.response_metadata["pareto"]["spent"]
        limit, margin = float(told.limit or 0.0), plan.pace.margin
        found.append(Call(told.mean, told.p90, margin, limit, spent["seconds"]))
    return found


async def measured(llm: ChatPareto, problems: Sequence[Problem], seconds: float) -> None:
    """What both models take, and how good plans are."""
    await calibrate_device(llm, seconds=seconds)
    asked = [Asked(f"{i}", one.question) for i, one in enumerate(problems)]
    by_question = {one.question: one for one in problems}
    await calibrate_quality(
        llm,
        asked,
        task="told",
        samples=SAMPLES,
        is_right=lambda question, answer: is_right(by_question[question], answer),
    )


def main() -> None:
    """Both models together."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--calls", type=int, default=400)
    parser.add_argument("--questions", type=int, default=60)
    parser.add_argument("--seconds", type=float, default=30.0, help="of measuring a device")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LANGCHAIN_PARETO_HOME"] = folder
        llm = ChatPareto(models=["nano-draft", "nano"], device="cpu", task="told", max_tokens=256)
        asyncio.run(measured(llm, [problem(i) for i in range(asked.questions)], asked.seconds))
        others = range(asked.questions, asked.questions + asked.calls)
        calls = [one for one in calls_of(llm, [problem(i) for i in others]) if one.is_open]
    took = statistics.mean(one.took for one in calls)
    mean = statistics.mean(one.mean for one in calls) / took
    ours = statistics.mean(one.took > one.p90 for one in calls)
    theirs = statistics.mean(one.took > one.p90 / one.margin for one in calls)
    report(
        "told", "9 of 10 seconds", ours, theirs, ours / 0.1, "share of calls beyond", bar="about 0.1",
        calls=len(calls), mean=round(mean, 3), margin=round(calls[-1].margin, 3),
    )  # fmt: skip


if __name__ == "__main__":
    main()
