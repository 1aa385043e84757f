"""
Certificates: that a cheaper plan serves as the dear one would, but for a small risk.

Learn-then-Test with a fixed sequence (Angelopoulos et al. 2021, arXiv 2110.01052). Plans stand in an order from the safest to the
cheapest. Down this order, each is tested against the hypothesis that its risk is above the allowed one, by the exact binomial tail of its
losses, until one fails. With probability 1 − delta over the calibration questions, the last that passed has no larger risk than allowed.

What it assumes: order, risk and delta were chosen without these questions, each question counts once, and later questions are drawn as
they were. A risk raised after a refusal needs new questions.
Whoever picks the best of several families' certificates must divide delta by their number. Knows losses; knows no plan and no model.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Self, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langchain_pareto.errors import CertificateRefused, SettingError

Kind = Literal["agree", "error"]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

_GREAT_MANY = 100_000  # questions
_LEAST = 1e-6  # of a risk or delta: less would take millions of questions
_HELP = (
    'A guarantee is "agree" (the answer is the reference plan\'s) or "error" (no right answer of it is lost), with the share of '
    'questions that may fail and the chance that it does not hold, both between 0 and 1: "agree", "error 0.02", '
    'Guarantee(kind="agree", risk=0.05, delta=0.1).'
)
_TEXT = re.compile(
    r"(?P<kind>agree|error)(?:\s+(?P<risk>[0-9]{0,9}\.?[0-9]{1,9})\s*(?P<percent>%?))?"
)


class Guarantee(BaseModel):
    """What a caller wants certified: that the share of questions on which the plan fails is at most `risk`, with confidence 1 − delta.

    It fails under "agree" where its answer differs from the reference plan's, and under "error" where that one is right and it is wrong.
    Raises SettingError for what cannot be understood.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    risk: float = Field(default=0.05, ge=_LEAST, lt=1)
    delta: float = Field(default=0.10, ge=_LEAST, lt=1)

    if not TYPE_CHECKING:  # type checkers see the fields as keywords

        def __init__(self, /, **fields: object) -> None:
            try:
                super().__init__(**fields)
            except ValidationError as error:
                raise SettingError(_explain(error), hint=_HELP) from None

    @classmethod
    def parse(cls, value: GuaranteeLike) -> Self:
        """The guarantee meant by a Guarantee, a dict, "agree", "error 0.02" or "agree 2 %"."""
        if isinstance(value, cls):
            return value
        if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
            return cls(**value)  # type: ignore[arg-type]  # the fields check their values
        match = _TEXT.fullmatch(value.strip().lower()) if isinstance(value, str) else None
        if match is None:
            raise SettingError(f"cannot read {value!r:.80} as a guarantee", hint=_HELP)
        fields: dict[str, object] = {"kind": match["kind"]}
        if match["risk"]:
            fields["risk"] = float(match["risk"]) / (100 if match["percent"] else 1)
        return cls.parse(fields)


GuaranteeLike: TypeAlias = Guarantee | Mapping[str, object] | str


class Certificate(BaseModel):
    """That the plan at index `plan` of its family keeps a guarantee, and the count that says so."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Kind
    plan: int = Field(ge=0)
    risk: float = Field(ge=_LEAST, lt=1)  # certified: its risk is no larger
    delta: float = Field(ge=_LEAST, lt=1)
    questions: int = Field(ge=1)
    losses: int = Field(ge=0)  # questions on which the plan failed
    p_value: float = Field(ge=0, le=1)

    def explain(self) -> str:
        """One line: what is certified, how surely, and on what evidence."""
        fails = {
            "agree": "differs from the reference plan",
            "error": "loses a right answer of the reference plan",
        }[self.kind]
        return (
            f"certified with {_percent(1 - self.delta)} confidence: plan {self.plan} {fails} on at most {_percent(self.risk)} of "
            f"questions ({self.losses} of {self.questions} in calibration, p = {self.p_value:.2g})"
        )


def losses_of(
    kind: Kind,
    *,
    answers: Ints,
    reference: Ints,
    right: Bools | None = None,
    reference_right: Bools | None = None,
) -> Bools:
    """On which questions each plan fails; (plans, questions).

    `answers` (plans, questions) and `reference` (questions,) are classes of equal answers, the same for all plans; a plan without an answer
    agrees with a reference without one. `right` and `reference_right` say which are right. Raises CertificateRefused where "error" has no
    labels.
    """
    Guarantee(kind=kind)
    ours, theirs = (answers, reference) if kind == "agree" else (right, reference_right)
    if ours is None or theirs is None:
        raise CertificateRefused(
            'the guarantee "error" needs to know which answers are right',
            reason="labels",
            questions=int(answers.shape[-1]),
            hint='Calibrate on questions with known answers, or ask for "agree", which needs none.',
        )
    if ours.ndim != 2 or theirs.shape != ours.shape[1:]:
        raise SettingError(
            f"answers of shape {ours.shape} do not fit a reference of shape {theirs.shape}",
            hint="Give (plans, questions) and (questions,).",
        )
    failed: Bools = np.not_equal(ours, theirs) if kind == "agree" else np.greater(theirs, ours)
    return failed


def certify(
    losses: Bools, *, kind: Kind = "agree", risk: float = 0.05, delta: float = 0.10
) -> Certificate:
    """The certificate of the cheapest plan that the fixed sequence reaches.

    `losses` (plans, questions) says where each plan fails, from the safest plan to the cheapest; the reference itself, which cannot fail,
    is left out, and is what to use after a refusal. Raises CertificateRefused where nothing can be certified.
    """
    Guarantee(kind=kind, risk=risk, delta=delta)
    if losses.ndim != 2 or losses.dtype != np.bool_ or not len(losses):
        raise SettingError(
            f"losses are booleans of (plans, questions), not {losses.dtype} of {losses.shape}",
            hint="Make them with losses_of.",
        )
    questions = losses.shape[1]
    needed = questions_needed(risk=risk, delta=delta)
    if questions < needed:
        raise _too_few(questions, needed, risk, delta)
    certificate = None
    for plan, count in enumerate(losses.sum(1).tolist()):
        p = p_value(count, questions, risk=risk)
        if p > delta:
            break
        certificate = Certificate(
            kind=kind,
            plan=plan,
            risk=risk,
            delta=delta,
            questions=questions,
            losses=count,
            p_value=p,
        )
    if certificate is None:
        raise _too_risky(int(losses[0].sum()), questions, risk, delta)
    return certificate


def p_value(losses: int, questions: int, *, risk: float) -> float:
    """The chance of no more losses than these if the risk were `risk`: P(Bin(questions, risk) <= losses), exact."""
    _check_counts(losses, questions)
    _check_share("risk", risk)
    odds, none = math.log(risk) - math.log1p(-risk), questions * math.log1p(-risk)
    ways = math.lgamma(questions + 1)
    terms = (
        math.exp(ways - math.lgamma(k + 1) - math.lgamma(questions - k + 1) + k * odds + none)
        for k in range(losses + 1)
    )
    return 1.0 if losses == questions else min(1.0, math.fsum(terms))


def upper_bound(losses: int, questions: int, *, delta: float = 0.10) -> float:
    """The risk above which so few losses have at most the chance `delta` (Clopper and Pearson 1934, one-sided)."""
    _check_counts(losses, questions)
    _check_share("delta", delta)
    if losses == questions:
        return 1.0
    low, high = 0.0, 1.0
    while low < (middle := (low + high) / 2) < high:
        if p_value(losses, questions, risk=middle) > delta:
            low = middle
        else:
            high = middle
    return high


def questions_needed(*, risk: float = 0.05, delta: float = 0.10) -> int:
    """The fewest questions that certify `risk` if none is lost: the least n with (1 − risk)^n <= delta."""
    Guarantee(kind="agree", risk=risk, delta=delta)
    near = max(1, math.floor(math.log(delta) / math.log1p(-risk)) - 1)
    return next(
        n for n in (near, near + 1, near + 2, near + 3) if p_value(0, n, risk=risk) <= delta
    )


def _too_few(questions: int, needed: int, risk: float, delta: float) -> CertificateRefused:
    hint = f"Calibrate on at least {needed} questions"
    if questions:
        hint += _or_risk(upper_bound(0, questions, delta=delta))  # the losses have no say in it
    return CertificateRefused(
        f"{_counted(questions)} cannot certify a risk of {_percent(risk)} with {_percent(1 - delta)} confidence even if none is lost: "
        f"it takes {needed}",
        reason="questions",
        questions=questions,
        needed=needed,
        hint=f"{hint}.",
    )


def _too_risky(losses: int, questions: int, risk: float, delta: float) -> CertificateRefused:
    needed = _needed_at(losses / questions, questions, risk, delta)
    return CertificateRefused(
        f"the safest plan fails on {losses} of {_counted(questions)} ({_percent(round(losses / questions, 3))}), too many to certify a risk of "
        f"{_percent(risk)} with {_percent(1 - delta)} confidence",
        reason="losses",
        questions=questions,
        needed=needed,
        losses=losses,
        hint="Use the reference plan, begin the family with a safer one"
        + (f", calibrate on about {needed:,} questions if it fails as often" if needed else "")
        + (
            " (more questions do not help while it fails as often)"
            if losses / questions >= risk
            else ""
        )
        + f"{_or_risk(upper_bound(losses, questions, delta=delta), ' with new questions')}.",
    )


def _needed_at(share: float, questions: int, risk: float, delta: float) -> int | None:
    """How many questions certify `risk` where this share of them is lost; None where not even a great many would."""

    def enough(n: int) -> bool:
        return p_value(math.ceil(share * n), n, risk=risk) <= delta

    if share >= risk or not enough(_GREAT_MANY):
        return None
    low, high = questions, _GREAT_MANY
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _counted(questions: int) -> str:
    return "1 question" if questions == 1 else f"{questions} questions"


def _check_counts(losses: int, questions: int) -> None:
    if not 0 <= losses <= questions or questions < 1:
        raise SettingError(
            f"{losses} losses of {questions} questions are no count",
            hint="Give 0 <= losses <= questions, and at least one question.",
        )


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise SettingError(f"{name} is {value}", hint="It lies between 0 and 1, exclusive.")


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _or_risk(bound: float, when: str = "") -> str:
    """The risk that could be certified, rounded up to a tenth of a percent so that who asks for it gets it."""
    percent = math.ceil(1000 * bound) / 10
    return f", or allow a risk of {percent:g} %{when}" if percent < 100 else ""


def _explain(error: ValidationError) -> str:
    faults = []
    for fault in error.errors():
        got = f"{'.'.join(map(str, fault['loc']))}={fault['input']!r:.40}"
        missing = fault["type"] == "missing"
        faults.append("it has no kind" if missing else f"{got} ({fault['msg']})")
    return f"cannot read this guarantee: {', '.join(faults)}"
