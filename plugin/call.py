"""
One call, from settings and messages to a Reply: what every face of the project shares.

Knows how settings are merged, and which strategy a call runs; knows no Runnable, and nothing of what is reported of a call.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from langchain_core.messages import BaseMessage, HumanMessage
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langchain_pareto import messages as rendering
from langchain_pareto.backends.base import Backend, Sampling
from langchain_pareto.backends.constraint import Constraint
from langchain_pareto.backends.decoders import Decoder, Plain
from langchain_pareto.backends.grammar import compile_grammar, has_grammars
from langchain_pareto.backends.thinking import THINK, may_think, opens_thinking
from langchain_pareto.budget import Budget
from langchain_pareto.errors import BudgetExceeded, SettingError
from langchain_pareto.forms.form import Form, Reader, Thinking
from langchain_pareto.forms.tool_formats import format_of
from langchain_pareto.ledger import Account, current_account
from langchain_pareto.models import model_name, warn_unused
from langchain_pareto.planning.plan import Plan
from langchain_pareto.rates import Rates
from langchain_pareto.reply import Reply
from langchain_pareto.strategies import Auto, Single, Strategy
from langchain_pareto.strategies.aggregation import Aggregation
from langchain_pareto.strategies.answers import AnswerFormat, Reads
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.scorers import MeanLogprob, RunScorer, Scorer
from langchain_pareto.strategies.settings import Role, Settings
from langchain_pareto.strategies.steps import Steps
from langchain_pareto.strategies.thoughts import POLICY, Thought

WARM = 0.8  # temperature of a strategy that needs different samples, when the call has none


class Draws(BaseModel):
    """How a call draws; None takes the model's own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    min_p: float | None = Field(default=None, ge=0, le=1)
    repetition_penalty: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    presence_penalty: float | None = Field(default=None, allow_inf_nan=False)
    frequency_penalty: float | None = Field(default=None, allow_inf_nan=False)
    seed: int | None = None
    max_tokens: int | None = Field(default=None, ge=1)

    @classmethod
    def read(cls, values: Mapping[str, object]) -> Draws:
        """Checked values; raises SettingError that names each mistake."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(
                f"{e['loc'][0]}={e['input']!r}: {e['msg']}" for e in error.errors()
            )
            msg = f"cannot draw like this: {problems}"
            raise SettingError(msg) from None

    def apply(self, sampling: Sampling) -> Sampling:
        """The model's own sampling, with what was asked for."""
        asked = self.model_dump(exclude_none=True, exclude={"seed", "max_tokens"})
        return replace(sampling, **asked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Everything that one call was asked for; None takes the model's own."""

    strategy: Strategy
    budget: Budget | None = None
    draws: Draws = field(default_factory=Draws)
    stop: tuple[str, ...] = ()
    answers: AnswerFormat = field(default_factory=AnswerFormat)
    scorer: Scorer | RunScorer = field(default_factory=MeanLogprob)
    template_kwargs: Mapping[str, object] = field(default_factory=dict)
    rates: Rates = field(default_factory=Rates)
    decoder: Decoder = field(default_factory=Plain)
    # other models that strategies and scorers name
    roles: Mapping[str, Backend] = field(default_factory=dict)
    steps: Steps = field(default_factory=Steps)
    aggregation: Aggregation = "last"
    plan: Plan | None = None  # that chose the strategy
    form: Form | None = None  # what the answer must look like, if it may not be any text

    @property
    def greedy(self) -> bool:
        """Whether the caller asked for temperature 0."""
        return self.draws.temperature == 0

    @property
    def effective(self) -> Strategy:
        """The strategy that runs: greedy `auto` is one greedy sample."""
        return Single() if self.greedy and isinstance(self.strategy, Auto) else self.strategy

    @property
    def streams(self) -> bool:
        """Whether the first sample is the answer, and may be shown as it grows."""
        return isinstance(self.effective, Single)


@dataclass(frozen=True, slots=True)
class _AfterThinking:
    """Reads texts whose think block the prompt has opened."""

    reads: Reads

    def extract(self, text: str) -> str | None:
        """The answer after the block's end."""
        return self.reads.extract(THINK + text)


def read_stops(value: object) -> tuple[str, ...]:
    """Stop strings, of which one may come bare; raises SettingError."""
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list | tuple) or not all(isinstance(s, str) and s for s in stops):
        msg = f"stop must be strings that are not empty, got {value!r:.80}"
        raise SettingError(msg)
    return tuple(stops)


async def respond(
    call: Call,
    backend: Backend,
    messages: Sequence[BaseMessage],
    *,
    prompt: str | None = None,
    on_text: Callable[[str], None] | None = None,
    on_thought: Callable[[Thought], None] | None = None,
) -> Reply:
    """Answers `messages`, rendered as `prompt` if they are already, within the call's budget and within the run budget around it."""
    if not messages:
        msg = "there is no message to answer"
        raise SettingError(msg, hint="Give at least one message.")
    if prompt is None:
        prompt = rendering.prompt_text(backend.tokenizer, messages, call.template_kwargs, call.form)
    thinking = opens_thinking(prompt)
    reader = _reader(call, backend)
    reads: Reads = call.answers if reader is None else reader
    policy = _role(backend, messages, call)
    if call.form is not None:  # the first grammar for a vocabulary takes a second to compile
        compiled = await asyncio.to_thread(_grammar, call, backend, thinking=thinking)
        policy = replace(policy, grammar=compiled)
    others = {name: _role(player, messages, call) for name, player in call.roles.items()}
    strategy = call.effective
    warn_unused(call.roles, strategy, call.scorer)
    settings = Settings(
        sampling=_sampling(call, strategy, backend),
        max_tokens=call.draws.max_tokens,
        # what must have a form ends where that ends: a stop string within it would cut it off
        stop=() if call.form is not None and call.form.forced else call.stop,
        answers=_AfterThinking(reads) if thinking else reads,
        grammar=policy.grammar,
        scorer=call.scorer,
        steps=call.steps,
        aggregation=call.aggregation,
        roles={POLICY: policy, **others},
        usd_per_token=call.rates.usd_per_token,
        on_text=on_text if call.streams else None,
    )
    seed = random.SystemRandom().getrandbits(32) if call.draws.seed is None else call.draws.seed
    account = Account(call.budget, parent=current_account())
    async with call.rates.device_time(account) as (within, used):
        outcome = await run(
            strategy,
            backend,
            rendering.prompt_tokens(backend.tokenizer, prompt),
            question=rendering.last_question(messages),
            account=within,
            settings=settings,
            seed=seed,
            on_thought=on_thought,
        )
        used(outcome.usage.device_seconds)
    if outcome.answer is None:
        account.raise_if_exhausted(outcome.refused)
        msg = f"the budget ({call.budget or account.budget}) ended before the first token"
        raise BudgetExceeded(
            msg, resource=outcome.stopped_by, spent=0, limit=0, hint="Ask for more."
        )
    return Reply(call, outcome, model_name(backend), seed, thinking, reader)


def _role(backend: Backend, messages: Sequence[BaseMessage], call: Call) -> Role:
    """A model as strategies name it, which reads this call's messages, or one of a user, by its own template."""
    tokenizer = backend.tokenizer

    def written(asked: Sequence[BaseMessage], form: Form | None = None) -> str:
        return rendering.prompt_text(tokenizer, asked, call.template_kwargs, form)

    def render(asked: Sequence[BaseMessage], form: Form | None = None) -> Sequence[int]:
        return rendering.prompt_tokens(tokenizer, written(asked, form))

    def constraint() -> Constraint | None:
        opened = opens_thinking(written(messages, call.form))
        start = _grammar(call, backend, thinking=opened)
        return None if start is None else start()

    return Role(
        backend=backend,
        sampling=_sampling(call, call.effective, backend),
        prompt=lambda: render(messages, call.form),
        render=lambda text: render([HumanMessage(text)]),
        # on first use: a model that only judges needs none
        grammar=None if call.form is None else constraint,
    )


def _reader(call: Call, backend: Backend) -> Reader | None:
    """What reads an answer of the form that was asked for, whichever model of the call writes it."""
    if call.form is None:
        return None
    players = (backend, *call.roles.values())
    formats = tuple(format_of(one.tokenizer.template, one.tokenizer) for one in players)
    return Reader(call.form, formats, call.answers)


def _grammar(call: Call, backend: Backend, *, thinking: bool) -> Callable[[], Constraint] | None:
    """What holds an answer to the form that was asked for, None where nothing does.

    A backend that is not decoded here token by token is left to itself; so are, without the library that compiles grammars, tools that
    need not be called. What comes is checked in any case.
    """
    assert call.form is not None
    if not backend.capabilities.step or not (call.form.forced or has_grammars()):
        return None
    template = backend.tokenizer.template
    block: Thinking = "may" if may_think(template) else "never"
    written_as = format_of(template, backend.tokenizer)
    grammar = call.form.grammar(written_as, "open" if thinking else block)
    return None if grammar is None else compile_grammar(backend.tokenizer, grammar)


def _sampling(call: Call, strategy: Strategy, backend: Backend) -> Sampling:
    sampling = call.draws.apply(backend.sampling)
    if sampling.temperature == 0 and strategy.varied:
        return replace(sampling, temperature=WARM)
    return sampling
