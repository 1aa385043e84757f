"""Which problems the report is about: bands of difficulty, and the numbers of their problems. Knows no model."""

from collections.abc import Iterator, Sequence

from nano.samples import ProblemRef
from nano.tasks import Split, Task, numbers

BANDS: dict[str, tuple[Task, tuple[int, ...]]] = {
    "word problems, 1-3 facts": ("word_problem", (1, 2, 3)),
    "word problems, 4-6 facts": ("word_problem", (4, 5, 6)),
    "word problems, 7-8 facts": ("word_problem", (7, 8)),
    "Countdown, 3 numbers": ("countdown", (3,)),
    "Countdown, 4 numbers": ("countdown", (4,)),
}
EACH = {
    "S": 1000,
    "M": 1000,
    "L": 100,
}  # problems of a band, by model: of M the pools are measured on
# Of a band of a task, where the pools have more: of few questions, the plan that did best is the luckiest one.
POOLED = {"L": {"word_problem": 300}}


def problems_of(band: str, split: Split = "test", each: int = EACH["M"]) -> list[ProblemRef]:
    """Different problems of a band, equally many of each difficulty."""
    task, levels = BANDS[band]
    shares = [each // len(levels) + (i < each % len(levels)) for i in range(len(levels))]
    return [
        ProblemRef(task, level, split, i)
        for level, share in zip(levels, shares, strict=True)
        for i in numbers(task, share, split=split, difficulty=level)
    ]


def all_problems(name: str = "M") -> list[ProblemRef]:
    """The problems that the report on a model is about; of those of another model, some or all."""
    return [ref for band in BANDS for ref in problems_of(band, each=EACH[name])]


def pooled_problems(name: str) -> list[ProblemRef]:
    """The problems of a model's pools: those that the report is about, and maybe more of their bands."""
    more = POOLED.get(name, {})
    return [
        ref
        for band, (task, _) in BANDS.items()
        for ref in problems_of(band, each=more.get(task, EACH[name]))
    ]


def by_band(problems: Sequence[ProblemRef]) -> Iterator[tuple[str, list[int]]]:
    """The positions of every band's problems."""
    for band, (task, levels) in BANDS.items():
        yield (
            band,
            [i for i, p in enumerate(problems) if p.task == task and p.difficulty in levels],
        )
