"""Certificates: exact tails, honest refusals, and guarantees that hold over many calibrations."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from langchain_pareto.errors import CertificateRefused, ParetoError, SettingError
from langchain_pareto.planning.certificates import (
    Certificate,
    Guarantee,
    certify,
    losses_of,
    p_value,
    questions_needed,
    upper_bound,
)

SPLITS = 300
RISK, DELTA = 0.05, 0.10
BOUND = DELTA + 2 * math.sqrt(DELTA * (1 - DELTA) / SPLITS)
JUST_ABOVE = RISK + 1e-6

# Families of eight plans by their true risks: each certificate that ends above RISK is a violation.
FAMILIES = {
    "a cliff": (0.001, 0.002, 0.004, *[JUST_ABOVE] * 5),
    "all just above": (JUST_ABOVE,) * 8,
    "a slope": (0.005, 0.01, 0.02, 0.04, 0.055, 0.08, 0.16, 0.32),
    "not in order": (0.01, 0.06, 0.01, 0.07, 0.01, 0.08, 0.01, 0.09),
}


def calibrations(risks, questions, *, independent=False, seed=0):
    """Losses of SPLITS calibrations (splits, plans, questions); plans fail on the same hard questions, or each on its own."""
    shape = (SPLITS, len(risks) if independent else 1, questions)
    return np.random.default_rng(seed).random(shape) < np.array(risks)[:, None]


def certified(losses, **options):
    """The plan certified by one calibration, None after a refusal."""
    try:
        return certify(losses, **options).plan
    except CertificateRefused:
        return None


def plugged_in(losses):
    """The cheapest plan whose observed risk is small enough: what certificates are there to replace."""
    fine = np.flatnonzero(losses.mean(1) <= RISK)
    return int(fine[-1]) if fine.size else None


def violations(risks, chosen):
    """The share of calibrations whose plan really has too large a risk."""
    return np.mean([plan is not None and risks[plan] > RISK for plan in chosen])


def table(*losses, questions=100):
    """Plans that fail on the first so many questions."""
    return np.arange(questions) < np.array(losses)[:, None]


@given(st.integers(1, 60), st.data())
def test_the_tail_is_the_sum_of_its_terms(questions, data):
    """p_value equals the binomial sum in exact fractions."""
    losses = data.draw(st.integers(0, questions))
    percent = data.draw(st.integers(1, 99))
    p = Fraction(percent, 100)
    exact = sum(
        math.comb(questions, k) * p**k * (1 - p) ** (questions - k) for k in range(losses + 1)
    )
    assert p_value(losses, questions, risk=percent / 100) == pytest.approx(float(exact), rel=1e-11)


@pytest.mark.parametrize(
    ("losses", "questions"), [(0, 20_000), (170, 20_000), (230, 20_000), (20_000, 20_000)]
)
def test_the_tail_is_stable_for_many_questions(losses, questions):
    """At 20,000 questions, where factors over- and underflow, it still equals the exact sum."""
    term = total = Fraction(99**questions)  # in units of 100^-questions
    for k in range(min(losses, 300)):
        term = term * (questions - k) / ((k + 1) * 99)
        total += term
    exact = 1.0 if losses == questions else float(total / 100**questions)
    assert p_value(losses, questions, risk=0.01) == pytest.approx(exact, rel=1e-8)


@given(st.integers(1, 200), st.data())
def test_the_tail_is_monotone(questions, data):
    """More losses make it larger; a larger risk, or more questions without more losses, make it smaller."""
    losses = data.draw(st.integers(0, questions - 1))
    risk = data.draw(st.floats(0.001, 0.9))
    p = p_value(losses, questions, risk=risk)
    assert p <= p_value(losses + 1, questions, risk=risk)
    assert p >= p_value(losses, questions, risk=risk * 1.1) * (1 - 1e-12)
    assert p >= p_value(losses, questions + 1, risk=risk) * (1 - 1e-12)


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0.001, 0.9), st.data())
def test_the_upper_bound_inverts_the_tail(questions, delta, data):
    """At the bound the tail is delta, and a certificate is given exactly for risks from the bound upwards."""
    losses = data.draw(st.integers(0, questions - 1))
    bound = upper_bound(losses, questions, delta=delta)
    assert p_value(losses, questions, risk=bound) == pytest.approx(delta, rel=1e-9)
    one = table(losses, questions=questions)
    assert certified(one, risk=bound, delta=delta) == 0
    assert certified(one, risk=bound * (1 - 1e-6), delta=delta) is None


def test_known_bounds():
    """Without losses the bound is 1 − delta^(1/n), the rule of three's exact form; with nothing but losses it is 1."""
    assert upper_bound(0, 100, delta=0.05) == pytest.approx(1 - 0.05**0.01, rel=1e-12)
    assert upper_bound(7, 7) == 1


@given(st.floats(0.001, 0.9), st.floats(0.001, 0.9))
def test_the_fewest_questions_are_the_fewest(risk, delta):
    """That many certify a family without losses, and one fewer do not."""
    n = questions_needed(risk=risk, delta=delta)
    assert certified(table(0, questions=n), risk=risk, delta=delta) == 0
    assert certified(table(0, questions=n - 1), risk=risk, delta=delta) is None


@pytest.mark.parametrize(("risk", "needed"), [(0.02, 114), (0.05, 45), (0.10, 22)])
def test_the_fewest_questions_of_common_risks(risk, needed):
    """ln(delta) / ln(1 − risk), rounded up."""
    assert questions_needed(risk=risk) == needed


def test_the_sequence_stops_at_the_first_failure():
    """A cheaper plan with few losses is not reached past one with many: it was not tested."""
    certificate = certify(table(0, 1, 0, 9, 0))
    assert (certificate.plan, certificate.losses, certificate.questions) == (2, 0, 100)
    assert certificate.p_value == p_value(0, 100, risk=RISK)
    assert certify(table(0, 1, 1, 1)).plan == 3


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8))
def test_a_looser_guarantee_reaches_as_far(losses):
    """What is certified at a risk and a delta is so at any larger ones."""
    far = [
        -1 if (plan := certified(table(*losses), risk=risk, delta=delta)) is None else plan
        for risk, delta in [(0.03, 0.05), (0.03, 0.10), (0.05, 0.10), (0.08, 0.20)]
    ]
    assert far == sorted(far)


def test_too_few_questions_are_refused():
    """The refusal says how many it takes, and what so few could certify."""
    with pytest.raises(CertificateRefused, match="it takes 45") as refused:
        certify(table(0, 0, questions=44))
    error = refused.value
    assert (error.reason, error.questions, error.needed) == ("questions", 44, 45)
    assert error.hint == "Calibrate on at least 45 questions, or allow a risk of 5.1 %."
    assert certify(table(0, questions=44), risk=0.051).plan == 0
    assert isinstance(error, ParetoError)
    assert isinstance(error, ValueError)


@pytest.mark.parametrize("questions", [0, 1])
def test_hardly_any_questions_are_refused(questions):
    """No question is too few, and no risk that could not be asked for is offered instead."""
    with pytest.raises(CertificateRefused) as refused:
        certify(table(0, questions=questions), risk=0.01, delta=1e-6)
    assert refused.value.needed == questions_needed(risk=0.01, delta=1e-6)
    assert "risk" not in refused.value.hint
    told = "1 question cannot" if questions == 1 else "0 questions cannot"
    assert str(refused.value).startswith(told)


def test_a_safest_plan_that_fails_is_refused():
    """The refusal has the observed risk, and names the least risk that so many losses would certify."""
    with pytest.raises(CertificateRefused, match=r"4 of 100 questions \(4 %\)") as refused:
        certify(table(4, 0, 0))
    error = refused.value
    assert (error.reason, error.questions, error.losses) == ("losses", 100, 4)
    assert error.needed is not None
    assert error.hint.endswith(
        f"calibrate on about {error.needed:,} questions if it fails as often, or allow a risk of 7.9 % with new questions."
    )
    for questions, enough in ((error.needed - 1, False), (error.needed, True)):
        losses = math.ceil(0.04 * questions)
        assert (certified(table(losses, questions=questions)) is not None) == enough
    assert certify(table(4, 9), risk=0.079).plan == 0
    assert certified(table(4, 9), risk=0.078) is None


def test_more_questions_are_no_help_where_the_risk_is_too_large():
    """A plan that fails more often than allowed is not asked to try again, and one that always fails has no risk to ask for."""
    with pytest.raises(CertificateRefused) as refused:
        certify(table(20))
    assert "more questions do not help" in refused.value.hint
    assert refused.value.needed is None
    with pytest.raises(CertificateRefused) as refused:
        certify(table(1, questions=1), risk=0.9, delta=0.9)
    assert "fails on 1 of 1 question (" in str(refused.value)
    with pytest.raises(CertificateRefused) as refused:
        certify(table(100))
    assert "allow" not in refused.value.hint


def test_what_counts_as_a_loss():
    """Another answer than the reference's, or a right answer of it that is lost; no answer agrees with no answer only."""
    answers = np.array([[3, 1, -1, -1, 0], [3, 0, 2, 2, 0]])
    reference = np.array([3, 0, -1, 2, 1])
    right = np.array([[True, False, False, False, True], [True, True, True, False, False]])
    reference_right = np.array([True, True, False, True, False])
    agree = losses_of("agree", answers=answers, reference=reference)
    assert agree.tolist() == [[0, 1, 0, 1, 1], [0, 0, 1, 0, 1]]
    error = losses_of(
        "error",
        answers=answers,
        reference=reference,
        right=right,
        reference_right=reference_right,
    )
    assert error.tolist() == [[0, 1, 0, 1, 0], [0, 0, 0, 1, 0]]
    assert agree.dtype == error.dtype == np.bool_


def test_errors_need_labels():
    """Without labels "error" is refused, and "agree" is proposed."""
    answers = np.zeros((2, 50), np.int64)
    for labels in ({}, {"right": answers == 0}, {"reference_right": answers[0] == 0}):
        with pytest.raises(CertificateRefused, match="which answers are right") as refused:
            losses_of("error", answers=answers, reference=answers[0], **labels)
        assert (refused.value.reason, refused.value.questions) == ("labels", 50)
        assert '"agree"' in refused.value.hint
    assert not losses_of("agree", answers=answers, reference=answers[0]).any()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: certify(np.zeros((2, 100), np.int64)),
        lambda: certify(np.zeros(100, np.bool_)),
        lambda: certify(np.zeros((0, 100), np.bool_)),
        lambda: certify(table(0), risk=0),
        lambda: certify(table(0), delta=1.0),
        lambda: certify(table(0), risk=math.nan),
        lambda: certify(table(0), kind="both"),
        lambda: losses_of("both", answers=np.zeros((1, 9)), reference=np.zeros(9)),
        lambda: losses_of("agree", answers=np.zeros((1, 9)), reference=np.zeros(8)),
        lambda: losses_of("agree", answers=np.zeros(9), reference=np.zeros(9)),
        lambda: p_value(3, 2, risk=0.1),
        lambda: p_value(-1, 2, risk=0.1),
        lambda: p_value(0, 0, risk=0.1),
        lambda: p_value(0, 9, risk=1.0),
        lambda: upper_bound(0, 0),
        lambda: upper_bound(0, 9, delta=0),
        lambda: questions_needed(risk=1e-300),
        lambda: questions_needed(delta=1.0),
    ],
)
def test_nonsense_is_named(wrong):
    """Shapes, counts and shares that mean nothing are settings, and the error has a hint."""
    with pytest.raises(SettingError) as error:
        wrong()
    assert error.value.hint


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("agree", Guarantee(kind="agree", risk=0.05, delta=0.10)),
        ("error", Guarantee(kind="error")),
        (" Agree  0.02 ", Guarantee(kind="agree", risk=0.02)),
        ("error 2%", Guarantee(kind="error", risk=0.02)),
        ("error 2.5 %", Guarantee(kind="error", risk=0.025)),
        ("agree .1", Guarantee(kind="agree", risk=0.1)),
        ({"kind": "error", "delta": 0.2}, Guarantee(kind="error", delta=0.2)),
        (Guarantee(kind="agree", risk=0.3), Guarantee(kind="agree", risk=0.3)),
    ],
)
def test_a_guarantee_is_read_in_each_form(value, expected):
    """A word, a word with its risk, a dict, or a Guarantee."""
    assert Guarantee.parse(value) == expected


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("", "''"),
        ("safe", "'safe'"),
        ("agree often", "'agree often'"),
        ("agree 0.02 0.1", "'agree 0.02 0.1'"),
        ("agree 2", "risk=2"),
        ("agree 0", "risk=0"),
        ("error -1", "'error -1'"),
        (0.05, "0.05"),
        (None, "None"),
        ({}, "no kind"),
        ({"kind": "always"}, "kind='always'"),
        ({"kind": "agree", "risk": math.nan}, "risk=nan"),
        ({"kind": "agree", "delta": True}, "delta=True"),
        ({"kind": "agree", "epsilon": 0.1}, "epsilon=0.1"),
        ({1: 2}, "{1: 2}"),
    ],
)
def test_what_is_no_guarantee_is_named(value, named):
    """The error says what was got, and how to write it."""
    with pytest.raises(SettingError) as error:
        Guarantee.parse(value)
    assert named in str(error.value)
    assert '"error 0.02"' in error.value.hint


@pytest.mark.parametrize("kind", ["agree", "error"])
def test_a_certificate_goes_through_json(kind):
    """It is itself again, and its line has the numbers."""
    certificate = certify(table(0, 2, questions=200), kind=kind, risk=0.03)
    assert Certificate.model_validate_json(certificate.model_dump_json()) == certificate
    line = certificate.explain()
    assert "\n" not in line
    for told in ("90 %", "plan 1", "at most 3 %", "2 of 200"):
        assert told in line


def test_an_explanation_says_which_guarantee():
    """The two kinds read differently."""
    agree, error = (certify(table(0), kind=kind).explain() for kind in ("agree", "error"))
    assert "differs" in agree
    assert "loses a right answer" in error


@pytest.mark.parametrize("independent", [False, True])
@pytest.mark.parametrize("questions", [106, 184])  # where the test's level is 0.095 and more
@pytest.mark.parametrize("family", FAMILIES)
def test_the_guarantee_holds(family, questions, independent):
    """Over 300 calibrations, no more than delta + 2 standard errors certify a plan of too large a risk."""
    risks = FAMILIES[family]
    drawn = calibrations(risks, questions, independent=independent)
    assert violations(risks, map(certified, drawn)) <= BOUND


def test_the_guarantee_is_used_up():
    """At the boundary the violations are near delta: the test has no slack to hide behind, and twice the delta would break it."""
    risks = FAMILIES["a cliff"]
    drawn = calibrations(risks, 184)
    assert violations(risks, map(certified, drawn)) > DELTA / 2
    loose = [certified(losses, delta=2 * DELTA) for losses in drawn]
    assert violations(risks, loose) > BOUND


@pytest.mark.parametrize("family", ["a cliff", "all just above", "a slope"])
def test_plugging_in_breaks_it(family):
    """The cheapest plan that looks safe enough is too risky far more often."""
    risks = FAMILIES[family]
    drawn = calibrations(risks, 106, independent=True)
    assert violations(risks, map(plugged_in, drawn)) > 2 * BOUND


def test_a_safe_family_is_certified_to_its_end():
    """Where risks are a fifth of the allowed one, 100 questions nearly always certify a plan, and mostly the cheapest."""
    risks = np.linspace(0.001, 0.01, 8)
    chosen = [certified(losses) for losses in calibrations(risks, 100)]
    assert np.mean([plan is not None for plan in chosen]) > 0.98
    assert np.mean([plan == 7 for plan in chosen]) > 0.7


def test_more_questions_certify_more():
    """The true risk of what is certified comes near the allowed one as the questions grow."""
    risks = FAMILIES["a slope"]
    reached = [
        np.mean([-1 if (plan := certified(losses)) is None else plan for losses in drawn])
        for drawn in (calibrations(risks, n) for n in (45, 100, 400, 1600))
    ]
    assert reached == sorted(reached)
    assert reached[-1] > 2.5  # plan 3, of risk 0.04, is the last that should be reached
