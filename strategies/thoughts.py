"""
Thoughts: what draws leave behind, and how they compare.

Knows texts, answers and scores; knows neither how a thought is drawn nor what that costs.
"""

from __future__ import annotations

import math
from asyncio import Future
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Literal

from langchain_pareto.backends.base import Branch, Finish, Usage
from langchain_pareto.ledger import Account
from langchain_pareto.strategies.answers import group, shape_of

_ROUNDING = 0.05  # nats: by more than that no two rows differ for one text, in any precision
POLICY = "policy"  # the role of the model that answers


@dataclass(frozen=True, slots=True)
class Reading:
    """How far another model has read: its own branch, the tokens of it that are paid for, and what it says of the last thought's steps."""

    branch: Branch
    account: Account  # that paid for it: another run's than the thought's, where both drew the same
    paid: int = 0
    scores: tuple[float, ...] = ()
    memory: int = 0  # bytes of cache on the account


@dataclass(eq=False, repr=False, slots=True)
class Thought:
    """A node of the tree: what one draw added to its parent.

    `mean_logprob` is of the raw model, in nats per token. Only a thought at which the whole text ends (`finished`) can have an answer.
    `step_scores` are a process reward's, of the steps that this thought added; `score` is what a run goes by, and `scorer` gave it.
    """

    question: str
    parent: Thought | None = None
    text: str = ""
    tokens: Sequence[int] = ()
    finish: Finish | None = None
    mean_logprob: float | None = None
    answer: str | None = None
    score: float | None = None
    scorer: object = None
    step_scores: tuple[float, ...] = ()
    whole: bool = False  # not cut off: it came to the end of what was asked for, a text, a step or some tokens
    role: str = POLICY  # the model that it was drawn from
    aside: bool = False  # a judgement, a plan, a critique: never the answer
    given: bool = False  # written by the host: nobody sampled its tokens
    mark: str | None = None  # before which it ends, of those that it was drawn up to
    logprobs: Sequence[float] = ()  # of its tokens, raw, in nats
    top_logprobs: Sequence[float] = ()  # mean over the most probable tokens at each place, in nats
    entropies: Sequence[float] = ()  # nats
    usage: Usage = field(default_factory=Usage)
    number: int = 0  # in order of drawing; the root is 0
    branch: Branch | None = None  # the backend's handle, while the run lasts
    computed: bool = False  # whether all but the branch's last token has been paid for
    known: int = 0  # tokens of the branch that are paid for in any case, as its parent's
    memory: int = 0  # bytes of cache on the account
    readings: dict[object, Future[Reading | None]] = field(default_factory=dict)  # by other models
    below: dict[tuple[int, ...], Thought] = field(default_factory=dict)  # the first to draw each
    first: Thought | None = None  # to say the same from the root on, if that is another one

    def __repr__(self) -> str:
        """One line: with all fields it would be the whole tree, once at each node, and asyncio looks at what a task returned."""
        told = ((name, getattr(self, name)) for name in ("finish", "answer", "score"))
        facts = "".join(f", {name}={value!r:.60}" for name, value in told if value is not None)
        return f"Thought({self.number}, {self.text!r:.60}{facts})"

    @property
    def finished(self) -> bool:
        """Whether the text is at its end: the model's own, or a stop."""
        return self.finish in ("eos", "stop")

    @property
    def paid(self) -> int:
        """Tokens of its branch that are paid for."""
        assert self.branch is not None
        return len(self.branch.tokens) - 1 if self.computed else self.known

    @property
    def path(self) -> list[Thought]:
        """From the root's child down to this thought."""
        out, node = list[Thought](), self
        while node.parent is not None:
            out.append(node)
            node = node.parent
        return out[::-1]

    @property
    def length(self) -> int:
        """Tokens drawn from the root to here."""
        return sum(len(thought.tokens) for thought in self.path if not thought.given)

    @property
    def whole_text(self) -> str:
        """Everything drawn from the root to here."""
        return "".join(thought.text for thought in self.path)

    @property
    def confidences(self) -> list[float]:
        """Minus the mean log-probability of the most probable tokens at each place, in nats, from the root to here."""
        return [-logprob for thought in self.path for logprob in thought.top_logprobs]

    @property
    def path_scores(self) -> list[float]:
        """A process reward's scores of all steps from the root to here."""
        return [score for thought in self.path for score in thought.step_scores]

    @property
    def origin(self) -> Thought:
        """The first thought that said the same from the root on."""
        return self if self.first is None else self.first

    def find_origin(self) -> None:
        """Takes over how likely its tokens are from the first that drew the same: in another row of a batch they are rounded otherwise."""
        assert self.parent is not None
        origin = self.parent.origin.below.setdefault(tuple(self.tokens), self)
        pairs = zip(origin.logprobs, self.logprobs, strict=True)
        if origin is not self and all(abs(a - b) < _ROUNDING for a, b in pairs):
            self.first = origin
            self.logprobs, self.entropies = origin.logprobs, origin.entropies
            self.top_logprobs = origin.top_logprobs

    def free(self) -> int:
        """Frees its branch; the bytes of cache that it held."""
        if self.branch is not None:
            self.branch.free()
            self.branch = None
        memory, self.memory = self.memory, 0
        return memory

    def forget(self) -> list[Reading]:
        """Frees the branches of other models that have read it, and says which readings they were."""
        forgotten = list[Reading]()
        for key, reading in list(self.readings.items()):
            if not reading.done() or reading.cancelled() or reading.exception() is not None:
                continue
            del self.readings[key]
            if (read := reading.result()) is not None:
                read.branch.free()
                forgotten.append(read)
        return forgotten


@dataclass(frozen=True, slots=True)
class Answer:
    """What a strategy returns: one thought that was really drawn; `share` is its part of the votes, if there was a vote.

    `figures` are the strategy's own, for the report.
    """

    thought: Thought
    share: float | None = None
    figures: Mapping[str, float] = field(default_factory=dict, compare=False)


class NothingDrawn(Exception):
    """There is no thought to choose from: a strategy could not pay for a single draw. Not an error of the user's."""


def promise(thought: Thought) -> tuple[float, float, int]:
    """Orders thoughts, finished or not: by score, then mean log-probability, then first drawn."""
    score = -math.inf if thought.score is None else thought.score
    logprob = -math.inf if thought.mean_logprob is None else thought.mean_logprob
    return score, round(logprob, 4), -thought.number  # a tie is one also after float noise


def preference(thought: Thought) -> tuple[bool, float, float, int]:
    """Orders answers: finished ones first, then as `promise` does."""
    return thought.finished, *promise(thought)


def good_enough(thoughts: Sequence[Thought], score: float | None) -> bool:
    """Whether one of them has at least that score; None is never."""
    return score is not None and any(t.score is not None and t.score >= score for t in thoughts)


def best_of(thoughts: Sequence[Thought]) -> Thought:
    """The preferred one; raises NothingDrawn where there is none."""
    if not thoughts:
        raise NothingDrawn
    return max(thoughts, key=preference)


def ballot(thoughts: Sequence[Thought]) -> list[list[Thought]]:
    """Thoughts with equivalent answers, the largest class first; ties by the best member. What was cut off does not vote.

    Of exact answers, those of the shape come first that most have.
    """
    classes = [[thoughts[i] for i in members] for members in group([t.answer for t in thoughts])]
    shapes = Counter(shape_of(t.answer) for members in classes for t in members)

    def votes(members: Sequence[Thought]) -> tuple[int, int]:
        return shapes[shape_of(members[0].answer)], len(members)

    ranked = list[list[Thought]]()
    for _, run in groupby(sorted(classes, key=votes, reverse=True), key=votes):
        tied = list(run)
        if len(tied) > 1:
            tied.sort(key=lambda members: max(map(preference, members)), reverse=True)
        ranked += tied
    return ranked


def leader(thoughts: Sequence[Thought]) -> Answer:
    """The best sample of the largest class; without any vote, the best sample."""
    classes = ballot(thoughts)
    if not classes:
        return Answer(best_of(thoughts))
    return Answer(best_of(classes[0]), len(classes[0]) / sum(map(len, classes)))


def weighted_leader(thoughts: Sequence[Thought]) -> Answer:
    """The best sample of the class whose scores sum to most; ties by the best member. `share` is the class's part of the sum.

    Of exact answers, the shape is chosen first, by the sum of its scores.

    Where one is below zero they are logarithms, and all count as their exponentials. Where nothing has a score, each sample is one vote.
    """
    classes = ballot(thoughts)
    weights = _weights([thought for members in classes for thought in members])
    sums = [math.fsum(weights[thought] for thought in members) for members in classes]
    total = math.fsum(sums)
    if not classes or total <= 0:
        return leader(thoughts)
    shapes = [shape_of(members[0].answer) for members in classes]
    of_shape = {
        shape: math.fsum(s for s, own in zip(sums, shapes, strict=True) if own == shape)
        for shape in set(shapes)
    }
    best = max(
        range(len(classes)),
        key=lambda i: (of_shape[shapes[i]], sums[i], preference(best_of(classes[i]))),
    )
    return Answer(best_of(classes[best]), sums[best] / total)


def _weights(voters: Sequence[Thought]) -> dict[Thought, float]:
    """What each vote counts, up to a factor."""
    scores = {t: -math.inf if t.score is None else t.score for t in voters}
    top = max(scores.values(), default=0.0)
    if top == math.inf:
        return {thought: float(score == top) for thought, score in scores.items()}
    if any(-math.inf < score < 0 for score in scores.values()):
        return {thought: math.exp(score - top) for thought, score in scores.items()}
    return {t: score / top if top > 0 < score else 0.0 for t, score in scores.items()}


Choice = Literal["best", "majority", "weighted"]
"""How one answer is chosen among many: by score, by a vote, or by a vote weighted by score."""


def chosen(thoughts: Sequence[Thought], how: Choice) -> Answer:
    """One of the thoughts; raises NothingDrawn where there is none."""
    if how == "best":
        return Answer(best_of(thoughts))
    return leader(thoughts) if how == "majority" else weighted_leader(thoughts)
