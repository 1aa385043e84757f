"""
Which answer a text gives, in its one spelling, and which answers of many are the same.

Knows how models write an answer down (boxes, "Answer:" lines, LaTeX, thousands separators). It does
not know who is right; `equivalence.py` knows when two spellings are the same maths.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, Self

from pydantic import BaseModel, ConfigDict

from langchain_pareto.backends.thinking import THINK, THINK_END
from langchain_pareto.errors import SettingError
from langchain_pareto.strategies.equivalence import Key, classes, key_of

_BRACES = re.compile(r"(?P<box>\\boxed\s*\{)|\\.|[{}]", re.DOTALL)
_MARKER = re.compile(r"\banswer[*_]{0,3} ?[:\uff1a]", re.IGNORECASE)
_MARKDOWN = " \t\r*_`"
_LAST_NUMBER = re.compile(
    r"(?:(?<![\w)])[-\u2212])?(?<![\w.])(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:[./][0-9]+)?"
)


class Reads(Protocol):
    """Reads the answer out of a text."""

    def extract(self, text: str) -> str | None:
        """The answer that `text` gives, or None."""
        ...


class Exact(str):
    """An answer that is already written in its one form, and is the same as another only letter by letter.

    Answers of one `shape` agree on what matters first: a vote chooses the shape before it chooses among
    its answers.
    """

    __slots__ = ("shape",)

    def __new__(cls, text: str, shape: str = "") -> Self:
        """`text` as an answer of `shape`."""
        made = super().__new__(cls, text)
        made.shape = shape
        return made

    shape: str


def shape_of(answer: str | None) -> str:
    """What a vote chooses before it chooses an answer: the shape of an exact one, none of others."""
    return answer.shape if isinstance(answer, Exact) else ""


class AnswerFormat(BaseModel):
    r"""Where a text says its answer: `pattern`, or else the last `\boxed{}`, or else the last "Answer:".

    With a `pattern` (its one group, or the whole match) the last match is the answer, and a text
    without one has none. It is the user's own regex: one that backtracks exponentially will hang.
    `last_number` falls back to the last number of the text.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    pattern: str | None = None
    last_number: bool = False

    def __init__(
        self, *, pattern: str | None = None, last_number: bool = False, **unknown: object
    ) -> None:
        # A validator's ValueError would come out as pydantic's; a bad regex is a SettingError.
        if isinstance(pattern, str):
            _compile(pattern)
        super().__init__(pattern=pattern, last_number=last_number, **unknown)

    def extract(self, text: str) -> str | None:
        """The answer that `text` gives after its reasoning, or None."""
        rest = split_reasoning(text)[1]
        if self.pattern is not None:
            found = _last_match(_compile(self.pattern), rest)
        else:
            found = _last_boxed(rest) or _after_marker(rest)
            if found is None and self.last_number:
                found = _last_match(_LAST_NUMBER, rest)
        return found.strip() if found is not None and normalise(found) else None


def split_reasoning(text: str) -> tuple[str | None, str]:
    """(reasoning, rest) of `text`, which the end of its last think block divides.

    The opening tag may be missing (some templates put it into the prompt). A block that is still
    open at the end leaves no rest.
    """
    before, closed, rest = text.rpartition(THINK_END)
    if THINK in rest:
        return text.replace(THINK, "", 1).strip(), ""
    if not closed:
        return None, text
    return before.replace(THINK, "", 1).strip(), rest.strip()


def split_thinking(text: str) -> tuple[str | None, str]:
    """(reasoning, rest) of a text that may begin with a think block.

    Tags anywhere else are text like any other. A block that is still open at the end leaves no rest.
    """
    start = text.lstrip()
    if not start.startswith(THINK):
        return None, text
    reasoning, _, rest = start.removeprefix(THINK).partition(THINK_END)
    return reasoning.strip(), rest.strip()


@lru_cache(maxsize=64)
def _compile(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        message = f"answer pattern {pattern!r} is not a regular expression: {error}"
        raise SettingError(message) from error
    if compiled.groups > 1:
        message = f"answer pattern {pattern!r} has {compiled.groups} groups, expected at most one"
        raise SettingError(message, hint="Write groups that are not the answer as (?:...).")
    return compiled


def _last_match(pattern: re.Pattern[str], text: str) -> str | None:
    last = None
    for match in pattern.finditer(text):
        last = match.group(pattern.groups)
    return last


def _last_boxed(text: str) -> str | None:
    """The content of the last box whose braces balance; one pass over the text."""
    opened: list[int | None] = []  # where a box's content starts, None for other braces
    start, end = -1, -1
    for token in _BRACES.finditer(text):
        if token["box"]:
            opened.append(token.end())
        elif token[0] == "{":
            opened.append(None)
        elif token[0] == "}" and opened:
            box = opened.pop()
            if box is not None and box > start:
                start, end = box, token.start()
    return text[start:end] if start >= 0 else None


def _after_marker(text: str) -> str | None:
    """The line after the last "Answer:" (the next one if that is empty), undressed."""
    end = None
    for marker in _MARKER.finditer(text):
        end = marker.end()
    if end is None:
        return None
    line = text[end:].lstrip(_MARKDOWN + "\n").partition("\n")[0]
    return line.rstrip(_MARKDOWN).removesuffix(".").rstrip(_MARKDOWN) or None


_LONGEST = 1000  # characters; a longer answer is prose, and is compared as it stands
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_CHARACTERS = str.maketrans(
    {"−": "-", "–": "-", "⁄": "/", "÷": "/", "×": "*", "$": None, "\u200b": None, "\ufeff": None}
)
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|displaystyle)(?![A-Za-z])", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:cdot|times)(?![A-Za-z])", "*"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\(?:text(?:bf|it|rm)?|math(?:rm|bf|it)|mbox|boxed)\s*\{([^{}]*)\}", r"\1"),
        (r"\\[,!;:()\[\]]|\\ |\\(?=%)", ""),
        (r"\{,\}", ","),
        (r"([\^_])\{(\w)\}", r"\1\2"),
        (r"\\frac([0-9])([0-9])", r"\\frac{\1}{\2}"),
        (r"\A(-?)\\frac\{([0-9]+)\}\{([0-9]+)\}\Z", r"\1\2/\3"),
        (r"\A(-?[0-9]+) ?\\frac\{([0-9]+)\}\{([0-9]+)\}\Z", r"\1 \2/\3"),
        (r"\s+", " "),
        (r" ?([-+*/^=<>]) ?", r"\1"),
        (r"([(\[{]) | (?=[)\]}])", r"\1"),
        (r"\A[\s*_`\"“”:;,?]+|[\s*_`\"“”:;,.?]+\Z", ""),
        (r"\A'([^']*)'\Z|\A\(([A-Za-z])\)\Z", r"\1\2"),
        # 2.50 -> 2.5, 42.0 -> 42, .5 -> 0.5
        (r"(?<![\w.])(?=\.[0-9])", "0"),
        (r"(?<![\w.])([0-9]+)(?:\.0+|(\.[0-9]*[1-9])0+)(?![0-9.])", r"\1\2"),
    )
)
_THOUSANDS = re.compile(r"(?<![\w.,])[0-9]{1,3}(?:,[0-9]{3})+(?![0-9]|,[0-9])")
_MATHS_SIGNS = frozenset("0123456789\\^=+*/<>_{}()[]|")


@lru_cache(maxsize=4096)
def normalise(answer: str) -> str:
    """The exact normal form of `answer`: one spelling for what is surely the same answer.

    Dressing goes (LaTeX spacing, `$`, markdown, punctuation around it); numbers lose thousands
    separators and idle zeros; plain words lose case. Percent signs and units stay. Idempotent,
    never raises, linear in the length; more than 1000 characters only have their spaces collapsed.
    """
    form = " ".join(answer.split())
    if len(form) > _LONGEST:
        return form
    for _ in range(_LONGEST):  # dressing may be nested; most answers need two passes
        previous, form = form, _undress(form)
        if form == previous or len(form) > _LONGEST:
            break
    return form


def _undress(text: str) -> str:
    text = re.sub(r"[⁰¹²³⁴-⁹⁻]+", lambda run: "^" + run[0].translate(_SUPERSCRIPTS), text)
    text = re.sub(r"(?<=[0-9])(?=[¼-¾⅐-⅞])", " ", text)  # three and a half is not 31/2
    text = unicodedata.normalize("NFKC", text).replace("\\$", "").translate(_CHARACTERS)
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    if not any(bracket in text for bracket in "([{"):  # (1,234) is a pair
        text = _THOUSANDS.sub(lambda number: number[0].replace(",", ""), text)
    text = re.sub(r" ?, ?(?=[^ )\]}])", ", ", text).strip()
    if _NUMBER.fullmatch(text):
        return _plain_number(text)
    return text if _MATHS_SIGNS.intersection(text) else text.casefold()


def _plain_number(text: str) -> str:
    whole, _, decimals = text.lstrip("+-").partition(".")
    decimals = decimals.rstrip("0")
    number = (whole.lstrip("0") or "0") + (f".{decimals}" if decimals else "")
    return f"-{number}" if text.startswith("-") and number != "0" else number


def group(answers: Sequence[str | None]) -> list[list[int]]:
    """Clusters of indices of equivalent answers, largest first, then first seen first.

    None is in no cluster. In another order the same answers are together.
    """
    spelt: dict[str, list[int]] = {}  # most are written more than once
    for index, answer in enumerate(answers):
        if answer is not None:
            spelt.setdefault(answer, []).append(index)
    exact = [indices for answer, indices in spelt.items() if isinstance(answer, Exact)]
    places: dict[Key, list[int]] = {}
    for answer, indices in spelt.items():
        if not isinstance(answer, Exact):
            places.setdefault(_key(answer), []).extend(indices)
    same = [sorted(i for key in members for i in places[key]) for members in classes(places)]
    return sorted([*exact, *same], key=lambda indices: (-len(indices), indices[0]))


@lru_cache(maxsize=4096)
def _key(answer: str) -> Key:
    return key_of(normalise(answer))
