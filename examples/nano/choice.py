"""How a model is to be sampled: the temperature and the top-p that do best on validation problems."""

from pathlib import Path

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.local import LocalBackend
from nano import measures
from nano.bands import problems_of
from nano.paths import SAMPLES
from nano.sample_pools import pool_of
from nano.samples import ProblemRef, read_all, write

GRID = [Sampling(temperature=t, top_p=p) for t in (0.6, 0.8, 1.0) for p in (1.0, 0.95)]
BANDS = ("word problems, 4-6 facts", "Countdown, 4 numbers")  # where samples matter most
EACH = 100  # problems of a band
N = 16  # samples of a problem
_AS = {
    "L": "M"
}  # whose setting a model takes: to sample the grid with L would take longer than the rest of its report


def sample_grid(name: str, folder: Path, backend: LocalBackend) -> None:
    """Samples validation problems with every setting of the grid; nothing for a model that takes another's."""
    if name in _AS:
        return
    for i, sampling in enumerate(GRID):
        write(_path(name, i), folder, backend, _problems(), N, sampling)


def chosen(name: str) -> Sampling:
    """The setting that did best."""
    return max(zip(GRID, reached(_AS.get(name, name)), strict=True), key=lambda pair: pair[1])[0]


def reached(name: str) -> list[float]:
    """What every setting comes to: the mean of maj@16 on word problems and pass@16 on Countdown."""
    values = []
    for i in range(len(GRID)):
        samples = read_all(_path(name, i), _problems())
        words = pool_of([s for s in samples if s.task == "word_problem"])
        puzzles = pool_of([s for s in samples if s.task == "countdown"])
        votes = measures.vote(words.right, words.answers, N).mean()
        solved = measures.pass_at(puzzles.right, N).mean()
        values.append(float(votes + solved) / 2)
    return values


def _problems() -> list[ProblemRef]:
    return [ref for band in BANDS for ref in problems_of(band, "validation", EACH)]


def _path(name: str, i: int) -> Path:
    return SAMPLES / f"{name}.choice{i}.jsonl"
