"""
What the options of a command name, as a chat model: its models and their roles, how tokens are drawn, what they cost.

Knows options and what of them excludes the rest; runs no question. `pareto --help` imports this, so whatever is heavy is imported by
who needs it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer
from rich.text import Text

from langchain_pareto import console
from langchain_pareto.errors import SettingError

if TYPE_CHECKING:
    from langchain_pareto.backends.base import Backend
    from langchain_pareto.backends.decoders import Decoder
    from langchain_pareto.chat_model import ChatPareto

MODELS = typer.Option(
    "--model",
    help="A folder, a GGUF file or a Hugging Face id, or NAME=MODEL; may be repeated, the cheapest first. Without it, the bundled nano model.",
)
ROLES = typer.Option(
    "--role",
    help="Another model by its role, e.g. judge=./my-judge, scorer=..., large=...; may be repeated.",
)
NEED = typer.Option(help="The share of right answers that is enough, e.g. 0.8.")
GUARANTEE = typer.Option(help='"agree" or "error", with a risk if need be: "error 0.02".')
WATTS = typer.Option(min=0, help="What the device draws at most: for budgets in joules.")
USD_PER_HOUR = typer.Option(min=0, help="What the device costs: for budgets in usd.")
USD_PER_TOKENS = typer.Option(
    "--usd-per-million-tokens", min=0, help="What tokens cost, in place of the hour."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Named:
    """The models that options name, and how they run."""

    models: Sequence[str] = ()
    roles: Sequence[str] = ()
    draft: str | None = None
    decoder: str | None = None
    backend: str = "auto"
    device: str | None = None
    dtype: str | None = None

    def chat(self, **settings: object) -> ChatPareto:
        """A chat model that loads what it needs with its first question: a plan may need few of its models."""
        from langchain_pareto.chat_model import ChatPareto

        self._check_backend()
        given = {name: value for name, value in settings.items() if value is not None}
        named = models_by_name(self.models)
        how = {"draft": self.draft, "decoder": self.decoder, "device": self.device}
        given |= {name: value for name, value in how.items() if value is not None}
        if self.dtype is not None:
            given["dtype"] = self.dtype
        if self.roles:
            given["roles"] = models_of_roles(self.roles)
        if len(named) == 1:
            given["model"] = next(iter(named.values()))
        elif named:
            given["models"] = named
        with _as_options():
            return ChatPareto(backend=self.backend, **given)

    def loaded(
        self, *, strategy: str, scorer: str | None, draws: Mapping[str, object], **settings: object
    ) -> ChatPareto:
        """A chat model of one model, which is loaded now; whatever can be refused without its weights is refused first."""
        self._check_backend()
        model = next(iter(models_by_name(self.models).values()), None)
        err = console.stderr()
        with err.status(f"Loading {model or 'nano'}"):
            from langchain_pareto.strategies import parse_strategy
            from langchain_pareto.strategies.scoring import parse_scorer

            chosen, judge = parse_strategy(strategy), parse_scorer(scorer or "mean_logprob")
            from langchain_pareto.call import Draws
            from langchain_pareto.chat_model import ChatPareto
            from langchain_pareto.models import reward_role

            players = reward_role(judge, model) | models_of_roles(self.roles)
            asked = Draws.read(draws).model_dump(exclude_none=True)
            decoding, guesses = self._decoding(model)
            small = players if guesses is None else {**players, "draft": guesses}
            loaded, beside = self._load(model, small)
        name = model or "nano (bundled: word problems and Countdown puzzles only; yours: --model)"
        err.print(
            Text(f"{name} on {loaded.spec.device}, {loaded.spec.dtype}", style="dim"),
            soft_wrap=True,
        )
        with _as_options():
            return ChatPareto(
                backend=loaded,
                draft=beside.pop("draft", None),
                decoder=decoding,
                strategy=chosen,
                scorer=judge,
                roles=beside,
                **asked,
                **settings,
            )

    def _check_backend(self) -> None:
        from langchain_pareto.backends.base import BACKENDS

        if self.backend not in BACKENDS:
            msg = f"there is no backend {self.backend!r}; known backends: {', '.join(BACKENDS)}"
            raise SettingError(msg)

    def _load(
        self, model: str | None, small: Mapping[str, str]
    ) -> tuple[Backend, dict[str, Backend]]:
        """The model, and the small ones beside it: these come first, before its pool takes what memory is left."""
        from langchain_pareto.backends.loading import load, load_role
        from langchain_pareto.models import draft_settings

        backend, device, dtype = self.backend, self.device, self.dtype
        beside: dict[str, Backend] = {}
        for name, one in small.items():
            how = load if name == "draft" else load_role
            settings = draft_settings(one, backend=backend, device=device, dtype=dtype)
            beside[name] = how(one, **settings)
        return load(model, backend=backend, device=device, dtype=dtype), beside

    def _decoding(self, model: str | None) -> tuple[Decoder | str, str | None]:
        """How tokens are drawn, and the model that guesses ahead, if it takes one."""
        from langchain_pareto.backends.decoders import parse_decoder
        from langchain_pareto.models import check_draft, draft_for

        draft, decoder = self.draft, self.decoder
        if decoder is None:
            decoder = "plain" if draft is None else "auto"
        parsed = parse_decoder(decoder)
        if draft is None:
            guesses = draft_for(model)
        else:
            check_draft(draft, model)
            guesses = draft
        if parsed is None:
            return ("plain", None) if guesses is None else ("speculative", guesses)
        if draft is not None and not parsed.drafts:
            msg = f'the decoder "{parsed.kind}" takes no draft model, and --draft names {draft}'
            raise SettingError(msg, hint="Leave --draft out, or take --decoder speculative.")
        return parsed, guesses if parsed.drafts else None


@contextmanager
def _as_options() -> Iterator[None]:
    """What a chat model refuses is told by the name of its option."""
    from pydantic import ValidationError

    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0] if first["loc"] else "").replace("_", "-")
        raise SettingError(f"--{option}: {first['msg']}, got {first['input']!r:.40}") from None


def close(llm: ChatPareto) -> None:
    """Gives back all that was loaded for it."""
    from langchain_pareto.models import is_backend

    llm.close()
    for one in (llm.backend, llm.draft, *llm.roles.values()):
        if is_backend(one):
            one.close()


def models_by_name(options: Sequence[str]) -> dict[str, str]:
    """The model of each --model: NAME=MODEL, or by what the model is called."""
    from langchain_pareto.models import model_name

    found = dict[str, str]()
    for option in options:
        name, equals, model = (part.strip() for part in option.partition("="))
        if not equals or os.path.exists(option):  # noqa: PTH110 - false for what is too long for a path
            name, model = model_name(option), option
        if not name or not model:
            msg = f"--model {option!r} names no model"
            raise SettingError(msg, hint="Write a model, or NAME=MODEL.")
        if name in found:
            msg = f"two models are called {name!r}: {found[name]} and {model}"
            raise SettingError(msg, hint="Write NAME=MODEL for one of them.")
        found[name] = model
    return found


def models_of_roles(options: Sequence[str]) -> dict[str, str]:
    """The model of each --role."""
    from langchain_pareto.models import check_roles

    roles = dict[str, str]()
    for option in options:
        name, _, model = (part.strip() for part in option.partition("="))
        if not name or not model or name == "draft":
            msg = f"--role {option!r} names no role and its model"
            raise SettingError(msg, hint="Write NAME=MODEL, for example --role judge=./my-judge.")
        if name in roles:
            msg = f"two models are named for the role {name!r}: {roles[name]} and {model}"
            raise SettingError(msg, hint="Leave one of them out.")
        roles[name] = model
    check_roles(roles)
    return roles
