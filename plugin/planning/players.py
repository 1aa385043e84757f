"""
Who plays the roles of a replay: recordings as lists, which are quick to read, and what is drawn from them costs.

Knows questions, samples and prices; knows no draw, no strategy and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache, partial

from langchain_pareto.backends.base import ModelSpec
from langchain_pareto.backends.cost import forward_flops
from langchain_pareto.backends.recorded_samples import length_of, likelihood, order, prompt_of
from langchain_pareto.budget import Budget, Cost
from langchain_pareto.errors import BudgetError, ContextLengthError, SettingError
from langchain_pareto.planning.allowance import Charge
from langchain_pareto.planning.pool import Pool
from langchain_pareto.planning.recording import Recording, Timing, listed
from langchain_pareto.planning.scorer_cost import ScorerCost
from langchain_pareto.strategies.thoughts import POLICY


class Player:
    """One role's recording, as quick to read as lists are; its rows are those of the policy's questions."""

    def __init__(self, role: str, recording: Recording, questions: Sequence[str]) -> None:
        pool, spec = _in_order(role, recording.pool, questions), recording.spec
        self.role = role
        self.recording = recording
        self.samples = pool.samples
        self.answers: list[list[int]] = pool.answers.tolist()
        self.lengths = [[length_of(n) for n in row] for row in pool.tokens.tolist()]
        self.prompts = [prompt_of(n) for n in pool.prompts.tolist()]
        self.right: list[list[bool]] | None = None if pool.right is None else pool.right.tolist()
        means = listed(pool.logprobs)
        self.logprobs = None if means is None else [list(map(likelihood, row)) for row in means]
        self.kv = 0 if spec is None else spec.kv_bytes_per_token
        self.state = 0 if spec is None else spec.state_bytes_per_sequence
        self._longest = max(map(max, self.lengths))
        # FLOPs from a first position to a last one, so many of which give a token
        self.flops = lru_cache(maxsize=1 << 16)(partial(_flops, spec))
        self.nanodollars = lru_cache(maxsize=1 << 16)(
            partial(_nanodollars, recording.usd_per_token)
        )
        self.prompt_seconds = lru_cache(maxsize=1 << 12)(partial(_prompt_seconds, recording.timing))
        self.said = lru_cache(maxsize=1 << 12)(_said)

    def score_charge(self, texts: int, tokens: int) -> Charge:
        """What an asking for so many texts of so many tokens is charged."""
        scoring = self.recording.scoring or ScorerCost()
        drawn, flops = (round(work.of(texts, tokens)) for work in (scoring.drawn, scoring.flops))
        return drawn, flops, self.nanodollars(drawn), 0

    def room(self, row: int) -> int:
        """Tokens of the context that a question leaves; raises ContextLengthError where it leaves none."""
        spec, prompt = self.recording.spec, self.prompts[row]
        if spec is None:
            return self._longest
        if prompt >= (limit := spec.context_length):
            msg = f"a prompt of {prompt} tokens leaves no room in the context of {spec.name} ({limit})"
            raise ContextLengthError(msg, length=prompt + 1, limit=limit)
        return limit - prompt


class Cast:
    """The players of all roles, who know the same questions."""

    def __init__(self, recordings: Mapping[str, Recording]) -> None:
        if POLICY not in recordings:
            msg = f"nothing is recorded of the role {POLICY!r}, only of {sorted(recordings)}"
            raise SettingError(msg, hint=f"Give {{{POLICY!r}: Recording(...)}}.")
        self.questions = recordings[POLICY].pool.questions
        if len(set(self.questions)) < len(self.questions):
            msg = f"the pool of {recordings[POLICY].pool.model} names a question twice"
            raise SettingError(msg, hint="Join its samples in one row.")
        self.players = {
            role: Player(role, recording, self.questions) for role, recording in recordings.items()
        }
        # samples in the order in which they are met, by question, seed and how many there are
        self.order = lru_cache(maxsize=1 << 15)(order)

    def check(self, budget: Budget) -> None:
        """Raises BudgetError for a limit on what is not known of every recording."""
        every = [player.recording for player in self.players.values()]
        unknown = {
            "seconds": any(r.timing is None for r in every) and "timing=",
            "flops": any(r.spec is None for r in every) and "spec=",
            "memory": any(r.spec is None for r in every) and "spec=",
            "usd": any(r.usd_per_token is None for r in every) and "usd_per_token=, or seconds",
            "joules": "seconds instead",
        }
        for resource, missing in unknown.items():
            if missing and getattr(budget, resource) is not None:
                msg = f"a limit on {resource} is not kept: the recordings do not say what it takes"
                raise BudgetError(msg, hint=f"Give {missing}.")


def _prompt_seconds(timing: Timing | None, prompt: int) -> float:
    return 0.0 if timing is None else timing.batch_seconds((0,), prompt)


def _flops(spec: ModelSpec | None, start: int, stop: int, rows: int) -> int:
    return 0 if spec is None else forward_flops(spec, start, stop, rows)


def _nanodollars(usd_per_token: float | None, tokens: int) -> int:
    return Cost.of(usd=usd_per_token * tokens).nanodollars if usd_per_token else 0


def _said(answer: int) -> str | None:
    """What is read in the text of a sample."""
    return str(answer) if answer >= 0 else None


def _in_order(role: str, pool: Pool, questions: Sequence[str]) -> Pool:
    """A pool with the rows of these questions; raises SettingError where it has not just these."""
    if pool.questions == tuple(questions):
        return pool
    rows = {question: row for row, question in enumerate(pool.questions)}
    missing = [question for question in questions if question not in rows]
    if missing:
        msg = f"the pool of {pool.model}, which plays {role!r}, lacks {len(missing)} questions, such as {missing[0]!r:.80}"
        raise SettingError(msg, hint="Record the same questions with every model.")
    return pool.part([rows[question] for question in questions])
