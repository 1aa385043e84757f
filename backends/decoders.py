"""
How a branch is decoded, as a user writes it: plain, speculative, or by two models.

Knows names and values; knows no model. `decoding.py` does what these say.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from langchain_pareto.errors import SettingError

Accept = Literal["draw", "max"]  # which guesses stay


class Decoder(BaseModel):
    """Settings of one way to decode; `lossless` ones keep the distribution of the text and, but for `accept="max"`, the text for a seed, up to near ties."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    lossless: ClassVar[bool] = True
    drafts: ClassVar[bool] = False  # whether it needs a draft model
    kind: str

    @property
    def most(self) -> int:
        """The most tokens that it ever guesses at once."""
        return 0

    def most_wrong(self, tokens: int) -> int:
        """The most wrong guesses that a text of so many tokens costs."""
        return tokens * self.most


class Plain(Decoder):
    """One token a step."""

    kind: Literal["plain"] = "plain"


_WRONG = 4  # guesses for each token of a text, where their number is not given: more never pay


class Guessing(Decoder):
    """One that guesses `draft_tokens` a round, None for as many as pay by measured step times and acceptance, up to `longest`."""

    draft_tokens: int | None = Field(default=None, ge=1, le=64)
    longest: int = Field(default=24, ge=1, le=64)

    @property
    def most(self) -> int:
        """The most tokens that it ever guesses at once."""
        return self.draft_tokens or self.longest

    def most_wrong(self, tokens: int) -> int:
        """The most wrong guesses that a text of so many tokens costs; where their number is free, it is bounded on the whole."""
        if self.draft_tokens is not None:
            return super().most_wrong(tokens)
        return min(super().most_wrong(tokens), self.longest + _WRONG * tokens)


class Speculative(Guessing):
    """A draft model guesses, the target verifies.

    A guess ends where the draft gives its most probable token less than `confidence`.

    `accept="draw"` keeps a guess that is the target's own draw: the text for a seed is that of plain decoding. "max" keeps a little more
    (Leviathan et al. 2023, arXiv 2211.17192): greedy text and the distribution of sampled text are those of plain decoding, the text
    for a seed is another one. That text depends on where guesses begin and end, so it comes again only with the same `draft_tokens`,
    not None, and the same `max_tokens`.
    """

    kind: Literal["speculative"] = "speculative"
    drafts: ClassVar[bool] = True
    confidence: float = Field(default=0.0, ge=0, lt=1)
    accept: Accept = "draw"


class Lookup(Guessing):
    """What was written before after the same tokens, in the prompt or in any branch of the tree, is the guess: no draft model.

    Prompt lookup, across sibling branches (STAND, arXiv 2506.04708). `ngram` and `shortest` are how many equal tokens it looks for.
    """

    kind: Literal["lookup"] = "lookup"
    longest: int = Field(default=10, ge=1, le=64)
    ngram: int = Field(default=4, ge=1, le=16)
    shortest: int = Field(default=2, ge=1, le=16)

    @model_validator(mode="after")
    def _ordered(self) -> Lookup:
        if self.shortest > self.ngram:
            raise ValueError(f"shortest={self.shortest} is more than ngram={self.ngram}")
        return self


class Rounds(Decoder):
    """SeeD's rounds over the branches of a tree (arXiv 2406.18200): all drafts come from one set of draft weights, together.

    "first_come": the target verifies one branch a step, in the order in which their guesses were ready, while others guess: the
    paper's system. "batched": it verifies all of them in one step, once all have guessed. `accept` as in Speculative.
    """

    kind: Literal["rounds"] = "rounds"
    drafts: ClassVar[bool] = True
    schedule: Literal["first_come", "batched"] = "batched"
    draft_tokens: int = Field(default=3, ge=1, le=64)
    accept: Accept = "draw"

    @property
    def most(self) -> int:
        """The most tokens that it ever guesses at once."""
        return self.draft_tokens


class BigLittle(Decoder):
    """Big Little Decoder (arXiv 2302.07863): the draft model writes, the target takes over where it is unsure and takes back what it finds unlikely.

    It changes the text: what stays is the draft's. Below a probability of `fallback` for its best token, or after `longest` tokens,
    the draft hands over; the target takes back from the first token on to which it gives less than exp(-`rollback`). With
    `rollback=0` the text is the target's. `verify_tail` has it look at the run that ends the text, too.
    """

    kind: Literal["big_little"] = "big_little"
    lossless: ClassVar[bool] = False
    drafts: ClassVar[bool] = True
    fallback: float = Field(default=0.6, ge=0, le=1)
    rollback: float = Field(default=5.0, ge=0, allow_inf_nan=False)
    longest: int = Field(default=10, ge=1, le=64)
    verify_tail: bool = False

    @property
    def most(self) -> int:
        """The most tokens that it ever guesses at once."""
        return self.longest


AnyDecoder = Annotated[
    Plain | Speculative | Lookup | Rounds | BigLittle, Field(discriminator="kind")
]
_ADAPTER: TypeAdapter[Decoder] = TypeAdapter(AnyDecoder)
_KINDS = ("auto", "plain", "speculative", "lookup", "rounds", "big_little")


def parse_decoder(value: Decoder | str | dict[str, object] | None) -> Decoder | None:
    """A decoder from its name, its JSON or itself; None for "auto": speculative where there is a draft model, else plain.

    Raises SettingError.
    """
    if value is None or isinstance(value, Plain | Speculative | Lookup | Rounds | BigLittle):
        return value
    if value == "auto":
        return None
    try:
        if isinstance(value, str) and value.lstrip().startswith("{"):
            return _ADAPTER.validate_json(value)
        return _ADAPTER.validate_python({"kind": value} if isinstance(value, str) else value)
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["type"] in {"union_tag_invalid", "union_tag_not_found"}:
            msg = f"there is no decoder {value!r}; known decoders: {', '.join(_KINDS)}, or the JSON of one"
        else:
            name = ".".join(str(part) for part in problem["loc"][1:])
            told = problem["msg"][:1].lower() + problem["msg"][1:]
            msg = f"{name or 'the decoder'} of {value!r}: {told}"
        raise SettingError(msg) from None
