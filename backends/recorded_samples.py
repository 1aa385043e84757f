"""
Recorded samples of one model, as whoever replays them reads them: in which order they are met, how long they are, what they say.

Knows arrays; knows no branch and no strategy. Classes of answers stand for texts, which were not kept.
"""

from __future__ import annotations

import hashlib
import math
import struct
from typing import TYPE_CHECKING, Protocol

from langchain_pareto.errors import NotRecorded, SettingError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

CUT = "(cut off)"  # the text of a sample that did not come to its end
NONE = "(no answer)"  # the text of one that did, and says nothing that counts
HINT = "Measure it live: only strategies that draw whole answers to the question can be replayed."


class Recorded(Protocol):
    """Samples of one model as arrays of (questions, samples)."""

    @property
    def model(self) -> str: ...
    @property
    def questions(self) -> tuple[str, ...]: ...
    @property
    def answers(self) -> npt.NDArray[np.int64]: ...  # classes; below 0 is none
    @property
    def tokens(self) -> npt.NDArray[np.int64]: ...
    @property
    def prompts(self) -> npt.NDArray[np.int64]: ...  # (questions,)
    @property
    def logprobs(self) -> npt.NDArray[np.float64] | None: ...  # means, nats


def order(question: str, seed: int, samples: int) -> list[int]:
    """The order in which the samples of a question are met: a permutation that depends on question and seed alone."""
    name = f"{seed}:{question}".encode(errors="surrogatepass")
    words = struct.unpack(f"<{samples}Q", hashlib.shake_128(name).digest(8 * samples))
    return sorted(range(samples), key=words.__getitem__)


def text_of(answer: int) -> str:
    """The text of a sample that came to its end with this class of answers; AnswerFormat reads the class in it."""
    return f"Answer: {answer}" if answer >= 0 else NONE


def length_of(tokens: int) -> int:
    """Tokens of a sample: one at least, which ends it."""
    return max(1, tokens)


def prompt_of(tokens: int) -> int:
    """Tokens of a prompt: one at least, which the first draw continues."""
    return max(1, tokens)


def likelihood(mean: float) -> float:
    """A mean log-probability to 20 binary places: so many tokens of it have exactly this mean again."""
    if not math.isfinite(mean):
        msg = f"a recorded log-probability is {mean}"
        raise SettingError(msg, hint="Record finite ones, in nats per token, or leave them out.")
    return round(mean * 2**20) / 2**20


def not_recorded(what: str) -> NotRecorded:
    """The error of who asks for more than whole answers to a recorded question."""
    return NotRecorded(f"{what} was not recorded", hint=HINT)


def no_more(question: str, samples: int) -> NotRecorded:
    """The error of who asks for one sample more than there are."""
    msg = f"the question {question!r:.80} has {samples} recorded samples, and one more is wanted"
    return NotRecorded(msg, hint="Record more samples, or ask for fewer.")
