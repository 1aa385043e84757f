"""
`make demo`: what more compute buys, and what it does not, shown with the bundled models.

20 word problems and 20 Countdown puzzles that no model was trained on, under three budgets, by four strategies. The questions of a row
share one engine. Answers are judged from outside, exactly; no strategy sees the checker, except in the rows that say so. Every seed is
fixed.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import HORIZONTALS
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from langchain_pareto import ChatPareto, Report, Verifier, Vote
from nano.tasks import Problem, Task, draw, is_right

SEED = 2026
EACH = 20  # problems of each task
LEVELS: dict[Task, int] = {"word_problem": 6, "countdown": 4}  # hard enough for samples to differ
BUDGETS = ("100 tokens", "300 tokens", "800 tokens")  # for each question
STRATEGIES = {
    "single, greedy": {"strategy": "single", "temperature": 0.0},
    "vote": {"strategy": "vote"},
    "best_of_n by log-prob.": {"strategy": "best_of_n"},
    "auto": {"strategy": "auto"},
}
READING = """\
How to read it: a sample has 60 to 130 tokens, so 100 pay for one and cut long ones off, 300 for two to five, 800 for \
six or more. One greedy sample costs least and leaves the rest of a budget unspent. A vote helps where right answers \
agree more often than wrong ones do; best_of_n here goes by mean log-probability, a weak judge. Checking is the best \
use of samples where answers can be checked, but the rows below the rule use the very checker that judges: a bound, \
no achievement.

The model is tiny and knows these two tasks only, and with 20 problems a figure has a standard error of about 2. This \
shows how the machinery behaves, not how good your own model will be. What is known of the bundled models is told beside \
their weights, in backends/nano."""


@dataclass(frozen=True)
class Row:
    """What one strategy did with one budget."""

    right: dict[str, int]  # by task
    tokens: float  # a question
    seconds: float  # for all questions together

    @property
    def costs(self) -> tuple[str, str]:
        """The last two columns."""
        return f"{self.tokens:.0f}", f"{self.seconds:.1f}"


def solves(question: str, answer: str) -> float:
    """The exact checker, as a verifier: it runs in a process of its own."""
    return float(is_right(Problem(question, (), "", "countdown"), answer))


async def ask(llm: ChatPareto, problems: Sequence[Problem], budget: str, **how: object) -> Row:
    """Asks all at once, and judges the answers."""
    began = time.perf_counter()
    messages = await llm.abatch([p.question for p in problems], budget=budget, **how)
    seconds = time.perf_counter() - began
    reports = [message.response_metadata["pareto"] for message in messages]
    right = dict.fromkeys((p.task for p in problems), 0)
    for problem, report in zip(problems, reports, strict=True):
        right[problem.task] += is_right(problem, report["answer"])
    return Row(right, sum(r["spent"]["tokens"] for r in reports) / len(problems), seconds)


async def fill(
    table: Table, apart: Table, llm: ChatPareto, problems: Sequence[Problem], progress: Progress
) -> None:
    """Every budget by every strategy; then, apart, Countdown by a strategy that may look at the checker."""
    task = progress.add_task("", total=len(BUDGETS) * (len(STRATEGIES) + 1))
    for budget in BUDGETS:
        for name, how in STRATEGIES.items():
            row = await ask(llm, problems, budget, **how)
            numbers = f"{row.right['word_problem']}", f"{row.right['countdown']}", *row.costs
            table.add_row(budget, name, *numbers, end_section=name == [*STRATEGIES][-1])
            progress.advance(task)
    puzzles = [p for p in problems if p.task == "countdown"]
    verifier = Verifier(solves)
    knowing = llm.model_copy(update={"scorer": verifier})
    for budget in BUDGETS:
        row = await ask(knowing, puzzles, budget, strategy="best_of_n")
        apart.add_row(
            budget, "best_of_n, with verifier", "", f"{row.right['countdown']}", *row.costs
        )
        progress.advance(task)
    verifier.close()


def empty_table(title: str | None = None) -> Table:
    """The columns of both tables; without a title, of the one that goes on below the rule."""
    table = Table(title=title, title_justify="left", title_style="bold", box=HORIZONTALS)
    table.show_header = title is not None
    table.add_column("budget", min_width=10)
    table.add_column("strategy", min_width=24)
    table.add_column("word\nproblems", justify="right", min_width=8)
    table.add_column("Count-\ndown", justify="right", min_width=6)
    table.add_column("tokens a\nquestion", justify="right", min_width=8)
    table.add_column("seconds\nfor all", justify="right", min_width=7)
    return table


def explain(llm: ChatPareto, puzzle: Problem, out: Console) -> None:
    """One vote over eight samples, in full."""
    message = llm.invoke(puzzle.question, strategy=Vote(n=8, adaptive=False))
    report = message.response_metadata["pareto"]
    right = [str(t["id"]) for t in report["tree"] if is_right(puzzle, t["answer"])]
    verdict = "right" if is_right(puzzle, report["answer"]) else "wrong"
    out.print(
        "\nOne search in full: the first of the puzzles, a vote over 8 samples\n", style="bold"
    )
    out.print(Report.of(message, question=puzzle.question))
    out.print(
        f"\nThe prompt of {message.usage_metadata['input_tokens']} tokens was computed once, and 8 branches share it. Answers of "
        f"equal value vote together; the largest class has {report['share'] or 0:.0%} of the votes, and its likeliest "
        f"sample is the answer. The checker, asked afterwards: {verdict}; right samples: {', '.join(right) or 'none'}.\n"
    )


def main() -> None:
    """Prints the table, one tree, and how to read them."""
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # more threads cost models this small twice the time
    began = time.perf_counter()
    out, err = Console(highlight=False), Console(stderr=True)
    problems = [
        draw(task, i, split="test", difficulty=level)
        for task, level in LEVELS.items()
        for i in range(EACH)
    ]
    llm = ChatPareto(seed=SEED)
    llm.get_num_tokens("")  # loads the model: the seconds of the first row are its own
    table = empty_table(f"Right answers of {EACH} word problems and {EACH} Countdown puzzles")
    apart = empty_table()
    columns = TextColumn("Asking"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        asyncio.run(fill(table, apart, llm, problems, progress))
    out.print(table)
    out.print("\nApart: with verifier. The strategy itself sees the exact checker.", style="bold")
    out.print(apart)
    explain(llm, next(p for p in problems if p.task == "countdown"), out)
    out.print(Text(READING))
    out.print(Text(f"\n{time.perf_counter() - began:.0f} seconds in all.", style="dim"))


if __name__ == "__main__":
    main()
