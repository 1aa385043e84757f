"""
The adaptive vote against its_hub's two, on recorded answers: `python examples/bench/adaptive.py POOLS`.

POOLS is a folder of `*.jsonl.gz`, one line a question: `{"question": id, "answer": [class, ...], "tokens": [length, ...]}`, class 0
right, -1 no answer. Our `Vote` runs as it is, over samples in a drawn order; its_hub's rules are written out below (version 1.2.0, Apache 2.0:
its ideas, not its code). AdaptiveSelfConsistency draws 2 samples and doubles them until 75 % agree. BetaSelfConsistency asks for all
at once and cancels what is under way once P(leader's share > 1/2) >= 0.95: what was cancelled has cost tokens, as many as the last
sample that counted; `kind` leaves those out, as if its samples came one by one, and no server could do better. `both at once` is our
vote as it runs under a deadline, with what it cancels counted alike.

For each rival and pool: the fewest tokens of ours, over the thresholds, whose accuracy is not lower by more than 0.5 points (the
lower end of the paired 95 % interval over questions), and the ratio of its tokens to ours. Every figure is a mean over orders of the samples.
"""

import asyncio
import gzip
import json
import sys
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import numpy.typing as npt

from langchain_pareto.strategies import Strategy, Vote
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Answer, Thought
from langchain_pareto.strategies.vote import lead_probability

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano.measures import bootstrap

BUDGET = 32  # samples
ORDERS = 100
THRESHOLDS = (0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.99)
AT_ONCE = (0.75, 0.95)  # theirs, of a vote that allows a fifth of the doubt, and the default
MARGIN = 0.005


class Sample(NamedTuple):
    """One recorded answer."""

    answer: int
    tokens: int


class Spent(NamedTuple):
    """What a rule took of one question's samples, and whether its answer is right."""

    right: bool
    tokens: int
    steps: int = 0  # one after the other, of what runs side by side


class Recorded:
    """As much of a Search as a vote needs, over recorded samples; under a deadline they come in the order in which they end."""

    root = Thought("")

    def __init__(self, samples: Sequence[Sample], *, has_deadline: bool = False) -> None:
        self._samples, self.drawn, self.has_deadline = samples, 0, has_deadline

    def at_temperature(self, _: float | None) -> "Recorded":
        """The samples are what they are."""
        return self

    def offer(self, _: Answer) -> None:
        """Nobody waits for one."""

    def turn(self, _: float) -> nullcontext[None]:
        """Nobody else draws."""
        return nullcontext()

    async def run(self, _: Strategy, n: int) -> list[Thought]:
        """The next `n`."""
        return [one async for group in self.groups(self.root, n) for one in group]

    async def groups(self, _: Thought, n: int) -> AsyncGenerator[list[Thought], None]:
        """The next `n`, one by one."""
        for sample in self._samples[self.drawn : self.drawn + n]:
            self.drawn += 1
            answer = None if sample.answer < 0 else str(sample.answer)
            yield [Thought("", answer=answer, finish="eos", number=self.drawn)]


def ours(samples: Sequence[Sample], threshold: float) -> Spent:
    """The vote of this library, in waves."""
    right, drawn = _vote(Recorded(samples), threshold)
    return Spent(right, _tokens(samples[:drawn]))


def ours_at_once(samples: Sequence[Sample], threshold: float) -> Spent:
    """The same under a deadline: all at once, until it is decided."""
    ended = by_length(samples)
    right, drawn = _vote(Recorded(ended, has_deadline=True), threshold)
    return Spent(right, _tokens_at_once(ended, drawn), ended[drawn - 1].tokens)


def everything(samples: Sequence[Sample]) -> Spent:
    """A vote that waits for all."""
    return Spent(_right(samples), _tokens(samples), max(s.tokens for s in samples))


def _vote(recorded: Recorded, threshold: float) -> tuple[bool, int]:
    """Whether the answer is right, and how many voted."""
    vote = Vote(n=BUDGET, threshold=threshold)
    answer = asyncio.run(vote.run(cast("Search", recorded)))
    return answer.thought.answer == "0", recorded.drawn


def doubling(samples: Sequence[Sample]) -> Spent:
    """its_hub's AdaptiveSelfConsistency, threshold 0.75."""
    n = 2
    while n < BUDGET:
        votes = _votes(samples[:n])
        if votes and votes[0][1] / sum(count for _, count in votes) >= 0.75:
            break
        n = min(2 * n, BUDGET)
    return Spent(_right(samples[:n]), _tokens(samples[:n]))


def beta(samples: Sequence[Sample], *, kind: bool) -> Spent:
    """its_hub's BetaSelfConsistency, threshold 0.95: all run side by side at the same speed; `kind` counts only those that came to their end."""
    ended = samples if kind else by_length(samples)
    n = next((n for n in range(2, BUDGET) if _sure(ended[:n])), BUDGET)
    tokens = _tokens(ended[:n]) if kind else _tokens_at_once(ended, n)
    return Spent(_right(ended[:n]), tokens)


def by_length(samples: Sequence[Sample]) -> list[Sample]:
    """As they end where all run side by side at the same speed."""
    return sorted(samples, key=lambda s: s.tokens)


def _tokens_at_once(ended: Sequence[Sample], n: int) -> int:
    """What is spent when the first `n` have ended, and the others are cancelled."""
    return _tokens(ended[:n]) + ended[n - 1].tokens * (len(ended) - n)


def _sure(samples: Sequence[Sample]) -> bool:
    votes = [count for _, count in _votes(samples)]
    first, second, *_ = [*votes, 0, 0]
    return sum(votes) >= 2 and lead_probability(first, second) >= 0.95


def _votes(samples: Iterable[Sample]) -> list[tuple[int, int]]:
    return Counter(s.answer for s in samples if s.answer >= 0).most_common()


def _right(samples: Sequence[Sample]) -> bool:
    votes = _votes(samples)
    return bool(votes) and votes[0][0] == 0


def _tokens(samples: Iterable[Sample]) -> int:
    return sum(s.tokens for s in samples)


Figures = npt.NDArray[np.float64]  # (questions, 3): accuracy, tokens and steps, means over orders


def replay(pool: Sequence[Sequence[Sample]], rule: Callable[[Sequence[Sample]], Spent]) -> Figures:
    """A rule over every question, each in the same orders for every rule."""
    out = []
    for number, samples in enumerate(pool):
        orders = np.random.default_rng(number)
        drawn = [
            rule([samples[i] for i in orders.permutation(len(samples))[:BUDGET]])
            for _ in range(ORDERS)
        ]
        out.append(np.mean(drawn, axis=0, dtype=np.float64))
    return np.array(out)


def read(path: Path) -> list[list[Sample]]:
    """The questions of a pool that have enough samples."""
    with gzip.open(path, "rt") as file:
        lines = [json.loads(line) for line in file]
    pool = [list(map(Sample, line["answer"], line["tokens"])) for line in lines]
    return [samples for samples in pool if len(samples) >= BUDGET]


def _lower(ours: Figures, theirs: Figures) -> float:
    """The lower end of the 95 % interval of our accuracy over theirs."""
    difference = ours[:, 0] - theirs[:, 0]
    return bootstrap(len(difference), lambda rows: float(difference[rows].mean()))[0]


def _waited_for(path: Path, ours: Figures, theirs: Figures) -> dict[str, object]:
    """The vote as it runs under a deadline, against one that waits for every sample."""
    (right, tokens, steps), (all_right, all_tokens, all_steps) = ours.mean(0), theirs.mean(0)
    return {
        "bench": "adaptive",
        "row": f"{path.name[:-9]}: the vote of all, at once",
        "accuracy": round(100 * all_right, 2),
        "our accuracy": round(100 * right, 2),
        "fewer tokens": round(all_tokens / tokens, 3),
        "fewer steps": round(all_steps / steps, 3),
    }


def main() -> None:
    """Reads the command line of the module's docstring."""
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/bench/adaptive.py POOLS")
    won: Counter[str] = Counter()
    paths = sorted(Path(sys.argv[1]).glob("*.jsonl.gz"))
    for path in paths:
        pool = read(path)
        waves, at_once = (
            {t: replay(pool, lambda samples, t=t, rule=rule: rule(samples, t)) for t in thresholds}  # type: ignore[misc]
            for rule, thresholds in ((ours, THRESHOLDS), (ours_at_once, AT_ONCE))
        )
        at_their_pace = replay(pool, lambda samples: beta(samples, kind=False))
        rivals = {
            "AdaptiveSelfConsistency": (replay(pool, doubling), waves),
            "BetaSelfConsistency": (at_their_pace, waves),
            "BetaSelfConsistency, both at once": (at_their_pace, at_once),
            "BetaSelfConsistency, kind": (
                replay(pool, lambda samples: beta(samples, kind=True)),
                waves,
            ),
        }
        for name, (theirs, votes) in rivals.items():
            fair = {t: v for t, v in votes.items() if _lower(v, theirs) >= -MARGIN}
            best = min(fair, key=lambda t: fair[t][:, 1].mean(), default=None)
            row: dict[str, object] = {"bench": "adaptive", "row": f"{path.name[:-9]}: {name}"}
            row["accuracy"] = round(100 * theirs[:, 0].mean(), 2)
            row["tokens"] = round(theirs[:, 1].mean())
            if best is not None:
                mine = fair[best]
                ratio = float(theirs[:, 1].mean() / mine[:, 1].mean())
                won[name] += int(ratio > 1)
                row |= {"threshold": best, "our accuracy": round(100 * mine[:, 0].mean(), 2)}
                row |= {"our tokens": round(mine[:, 1].mean()), "ratio": round(ratio, 3)}
            print(json.dumps(row), flush=True)
        print(json.dumps(_waited_for(path, at_once[0.95], replay(pool, everything))), flush=True)
    for name in rivals:
        print(json.dumps({"bench": "adaptive", "row": f"fewer tokens than {name}", "pools": won[name], "of": len(paths)}))  # fmt: skip


if __name__ == "__main__":
    main()
