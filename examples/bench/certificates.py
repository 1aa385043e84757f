"""
Certificates over many calibrations: `python examples/bench/certificates.py [POOLS]`.

Each row calibrates 300 times and says how often the chosen plan's true risk is above the allowed one (a violation), with the
certificate ("certified") and with the cheapest plan whose observed risk is small enough ("plug-in"). A certificate may fail in a share delta of the
calibrations; `bound` adds two standard errors of 300 to it. `refused` is the share that certifies nothing and stays with the reference plan.

Without POOLS: families of plans whose risks are known because they were made so. With POOLS, a folder of recorded answers
`<dataset>.<model>.jsonl.gz` (one line a question, class 0 right, -1 no answer), also families of real plans:

* votes of one model, 24 down to 1 samples, against its vote of 32;
* cascades: 8 samples of a small model, and unless enough of them agree, 8 of a large one, which then decides alone, against the large
  one's vote of 8. Files number the wrong answers of each model on its own, so two models' wrong answers count as different: what is
  certified as "agree" is more than agreement.

Votes are over samples drawn from a question's recorded ones, the same for all plans of a family. "drawn" calibrates on 100 questions drawn with
replacement, so that the whole pool has the true risk: there the guarantee must hold. "held out" calibrates on one half of the questions and
finds the risk on the other, whose own luck comes on top. `cost` is over the reference's: of cascades in
FLOPs, from the parameters that a token uses (models without a figure in ACTIVE make no cascade), of votes in samples.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import numpy.typing as npt

from langchain_pareto.errors import CertificateRefused
from langchain_pareto.planning.certificates import Kind, certify, losses_of
from langchain_pareto.planning.pool import NO_ANSWER, Pool, read_pool

SPLITS = 300
DRAWS = 300  # orders of the samples that stand for all
DELTA = 0.10
BOUND = DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / SPLITS)
RISKS = (0.05, 0.10)
CALIBRATION = 100  # questions
VOTES, MOST_VOTES = (24, 16, 12, 8, 6, 4, 3, 1), 32
SIDE = 8  # samples of either model in a cascade
WORTH = 0.5  # a cascade whose small model costs more of the large one's is none

# Billions of parameters that a token uses, about.
ACTIVE = {
    "EXAONE-Deep-32B": 32.0,
    "NVIDIA-Nemotron-Nano-9B-v2": 8.9,
    "Phi-4-reasoning": 14.7,
    "Qwen3-14B": 14.8,
    "gpt-oss-20b": 3.6,
}

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Family:
    """Plans from the safest to the cheapest: where each fails in each draw, and what it costs over the reference."""

    name: str
    losses: Bools  # (plans, draws, questions)
    costs: Floats  # (plans,)


@dataclass(slots=True)
class Tally:
    """What one way of choosing did over the calibrations."""

    violations: int = 0
    refused: int = 0
    cost: float = 0.0

    def add(self, plan: int | None, truth: Floats, costs: Floats, risk: float) -> None:
        """One choice; None is the reference plan."""
        self.violations += plan is not None and bool(truth[plan] > risk)
        self.refused += plan is None
        self.cost += 1.0 if plan is None else float(costs[plan])

    def row(self, name: str) -> dict[str, float]:
        """Its shares and its mean cost."""
        return {
            f"{name} violations": round(self.violations / SPLITS, 3),
            f"{name} refused": round(self.refused / SPLITS, 3),
            f"{name} cost": round(self.cost / SPLITS, 3),
        }


Split = tuple[
    Bools, Floats
]  # losses of a calibration (plans, questions), and the true risks (plans,)


def compare(splits: Iterator[Split], costs: Floats, risk: float) -> dict[str, float]:
    """Both ways of choosing, over all calibrations."""
    plug_in, certified = Tally(), Tally()
    for losses, truth in splits:
        fine = np.flatnonzero(losses.mean(1) <= risk)
        plug_in.add(int(fine[-1]) if fine.size else None, truth, costs, risk)
        certified.add(_certified(losses, risk), truth, costs, risk)
    return plug_in.row("plug-in") | certified.row("certified")


def _certified(losses: Bools, risk: float) -> int | None:
    try:
        return certify(losses, risk=risk, delta=DELTA).plan
    except CertificateRefused:
        return None


def made(risks: Sequence[float], questions: int, *, independent: bool) -> Iterator[Split]:
    """Calibrations of plans whose risks are these: they fail on the same hard questions, or each on its own."""
    rng = np.random.default_rng(0)
    truth = np.array(risks)
    for _ in range(SPLITS):
        hardness = rng.random((len(risks) if independent else 1, questions))
        yield hardness < truth[:, None], truth


def drawn(family: Family) -> Iterator[Split]:
    """Questions with replacement: the risks over the whole pool are the true ones."""
    rng = np.random.default_rng(0)
    _, draws, questions = family.losses.shape
    truth = family.losses.mean((1, 2))
    for _ in range(SPLITS):
        rows = rng.integers(questions, size=CALIBRATION)
        yield family.losses[:, rng.integers(draws, size=CALIBRATION), rows], truth


def held_out(family: Family) -> Iterator[Split]:
    """One half of the questions to calibrate on, and the risks over the other."""
    rng = np.random.default_rng(0)
    _, draws, questions = family.losses.shape
    for _ in range(SPLITS):
        order = rng.permutation(questions)
        ours, rest = order[: questions // 2], order[questions // 2 :]
        losses = family.losses[:, rng.integers(draws, size=len(ours)), ours]
        yield losses, family.losses[:, :, rest].mean((1, 2))


def sample(pool: Pool, n: int, seed: int) -> Iterator[Ints]:
    """The numbers of `n` samples of each question, (questions, n), once a draw."""
    rng = np.random.default_rng(seed)
    for _ in range(DRAWS):
        yield np.argsort(rng.random(pool.answers.shape), axis=1)[:, :n]


def leader(answers: Ints) -> tuple[Ints, Ints]:
    """The answer with most votes and how many it has, (questions,); the first of equals, NO_ANSWER where nobody votes."""
    votes = ((answers[:, :, None] == answers[:, None, :]) & (answers >= 0)[:, None, :]).sum(2)
    first = votes.argmax(1)
    rows = np.arange(len(answers))
    return np.where(votes[rows, first] > 0, answers[rows, first], NO_ANSWER), votes[rows, first]


def _failed(kind: Kind, answers: Ints, reference: Ints) -> Bools:
    return losses_of(
        kind,
        answers=answers,
        reference=reference,
        right=answers == 0,
        reference_right=reference == 0,
    )


def votes(name: str, pool: Pool, kind: Kind) -> Family:
    """Ever smaller votes of one model; all see the same samples in the same order."""
    losses = []
    for chosen in sample(pool, MOST_VOTES, 0):
        answers = np.take_along_axis(pool.answers, chosen, axis=1)
        fewer = np.array([leader(answers[:, :n])[0] for n in VOTES])
        losses.append(_failed(kind, fewer, leader(answers)[0]))
    return Family(f"{name}, {kind}", np.stack(losses, axis=1), np.array(VOTES) / MOST_VOTES)


def cascades(name: str, small: Pool, large: Pool, ratio: float, kind: Kind) -> Family:
    """Ever lower agreements of the small model at which the large one is not asked; `ratio` is what a token of it costs of the large one's."""
    losses, costs = [], []
    levels = np.arange(SIDE, 1, -1)[:, None]  # (plans, 1): votes of the leader that are enough
    foreign = int(small.answers.max(initial=0)) + 1
    apart = np.where(large.answers > 0, large.answers + foreign, large.answers)
    for mine, theirs in zip(sample(small, SIDE, 1), sample(large, SIDE, 2), strict=True):
        answer, support = leader(np.take_along_axis(small.answers, mine, axis=1))
        reference, _ = leader(np.take_along_axis(apart, theirs, axis=1))
        escalated = support < levels  # (plans, questions)
        losses.append(_failed(kind, np.where(escalated, reference, answer), reference))
        cheap = ratio * np.take_along_axis(small.tokens, mine, axis=1).sum(1)
        dear = np.take_along_axis(large.tokens, theirs, axis=1).sum(1)
        costs.append((cheap + escalated * dear).sum(1) / dear.sum())
    return Family(f"{name}, {kind}", np.stack(losses, axis=1), np.mean(costs, axis=0))


def families(pools: dict[tuple[str, str], Pool]) -> Iterator[Family]:
    """All votes, and the cascades from a cheap model to one that is dearer and better."""
    kinds: tuple[Kind, Kind] = ("agree", "error")
    for (dataset, model), pool in pools.items():
        for kind in kinds:
            yield votes(f"{dataset}: votes of {model}", pool, kind)
    for (dataset, small), (other, large) in permutations(pools, 2):
        if dataset != other or not {small, large} <= set(ACTIVE):
            continue
        one, two = _shared(pools[dataset, small], pools[dataset, large])
        ratio = ACTIVE[small] / ACTIVE[large]
        dear = ratio * float(one.tokens.mean() / two.tokens.mean())
        if dear <= WORTH and (two.answers == 0).mean() > (one.answers == 0).mean():
            for kind in kinds:
                yield cascades(f"{dataset}: {small} -> {large}", one, two, ratio, kind)


def _shared(one: Pool, two: Pool) -> tuple[Pool, Pool]:
    """The questions that both have, in one order."""
    both = sorted(set(one.questions) & set(two.questions))
    return one.part([*map(one.questions.index, both)]), two.part([*map(two.questions.index, both)])


def read(folder: Path) -> dict[tuple[str, str], Pool]:
    """The pools of a folder by dataset and model."""
    pools = {}
    for path in sorted(folder.glob("*.*.jsonl.gz")):
        dataset, model = path.name.removesuffix(".jsonl.gz").split(".", 1)
        pools[dataset, model] = read_pool(path, model=model, right_class=0)
    return pools


def show(row: str, **values: object) -> None:
    """One line of JSON."""
    print(json.dumps({"bench": "certificates", "row": row, **values}), flush=True)


def synthetic() -> None:
    """The table of known risks."""
    above = 0.05 + 1e-6
    costs = np.linspace(0.9, 0.2, 8)
    shapes = {
        "far below": np.linspace(0.001, 0.01, 8),
        "slope": np.array((0.005, 0.01, 0.02, 0.04, 0.055, 0.08, 0.16, 0.32)),
        "cliff": np.array((0.001, 0.002, 0.004, *[above] * 5)),
        "all just above": np.full(8, above),
    }
    worst = 0.0
    for name, risks in shapes.items():
        for questions in (45, 100, 184, 500):  # at 45 and 184 the test uses all of delta
            for independent in (False, True):
                splits = made(risks.tolist(), questions, independent=independent)
                row = compare(splits, costs, 0.05)
                worst = max(worst, row["certified violations"])
                how = "independent" if independent else "nested"
                show(f"made: {name}, {how}", risk=0.05, questions=questions, bound=round(BOUND, 3), **row)  # fmt: skip
    show("made: worst certified violations", value=worst, bound=round(BOUND, 3))


def real(folder: Path) -> None:
    """The table of recorded pools."""
    ways: dict[str, Callable[[Family], Iterator[Split]]] = {"drawn": drawn, "held out": held_out}
    rates: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for family in families(read(folder)):
        questions = family.losses.shape[2]
        for risk in RISKS:
            for way, splits in ways.items():
                row = compare(splits(family), family.costs, risk)
                rates[way].append((row["plug-in violations"], row["certified violations"]))
                size = CALIBRATION if way == "drawn" else questions // 2
                show(f"{family.name}, {way}", risk=risk, questions=size, bound=round(BOUND, 3), **row)  # fmt: skip
    for way, found in rates.items():
        for name, column in zip(("plug-in", "certified"), np.array(found).reshape(-1, 2).T, strict=True):  # fmt: skip
            show(f"{way}: {name}", families=len(column), worst=float(column.max(initial=0)), over=int((column > BOUND).sum()), bound=round(BOUND, 3))  # fmt: skip


def main() -> None:
    """Reads the command line of the module's docstring."""
    if len(sys.argv) > 2:
        sys.exit("usage: python examples/bench/certificates.py [POOLS]")
    synthetic()
    if len(sys.argv) == 2:
        folder = Path(sys.argv[1])
        if not any(folder.glob("*.*.jsonl.gz")):
            sys.exit(f"no <dataset>.<model>.jsonl.gz in {folder}")
        real(folder)


if __name__ == "__main__":
    main()
