"""Tests of extracting, normalising and grouping answers; each docstring states the fact."""

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from random import Random

import pytest
from hypothesis import given, settings, strategies as st
from pydantic import ValidationError

from langchain_pareto.errors import SettingError
from langchain_pareto.strategies import equivalence
from langchain_pareto.strategies.answers import (
    AnswerFormat,
    Exact,
    group,
    normalise,
    shape_of,
    split_reasoning,
)


def equivalent(a: str, b: str) -> bool:
    """Whether two answers are grouped together."""
    return len(group([a, b])) == 1


def soon(a: str, b: str) -> bool:
    """Whether two answers are grouped together, which a thread must find out in ten seconds."""
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(equivalent(a, b)), daemon=True)
    thread.start()
    thread.join(10)
    assert results, f"{a} and {b} took too long to compare"
    return results[0]


PIECES = [
    *(
        "\\text{",
        "\\boxed{",
        "\\frac",
        "\\dfrac",
        "\\left(",
        "\\,",
        "\\%",
        "$",
        "**",
        "{",
        "}",
        "{,}",
    ),
    *(
        "1,234",
        ",",
        ".",
        "0",
        "00",
        "-",
        "+",
        " ",
        "½",
        "²",
        "⁻",
        "−",
        "'",
        '"',
        "(B)",
        "^{2}",
        "İ",
    ),
]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES)).map("".join))


@pytest.fixture
def without_math_verify(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Behave as if math-verify were not installed."""
    monkeypatch.setattr(equivalence, "_math_verify", lambda: None)
    equivalence._verified.cache_clear()
    yield
    equivalence._verified.cache_clear()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{4}", "4"),
        (r"\boxed{3}, no: \boxed{\frac{1}{2}} is it. Answer: 7", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\boxed{3} and then \boxed{4", "3"),
        ("Answer: 41\nFinal answer: 42.", "42"),
        ("**Answer:** **Paris**.\nBye", "Paris"),
        ("**Final Answer**: `x`", "x"),
        ("### Final Answer:\n\n42\n", "42"),
        ("Answer:\nAnswer: 5", "5"),
        ("ANSWER: 1.5.", "1.5"),
        ("Answer:", None),
        ("Answer: **.**", None),
        (r"\boxed{}", None),
        ("it is 42", None),
        ("", None),
    ],
)
def test_default_extraction(text: str, answer: str | None) -> None:
    """The last balanced box wins, then the line after the last "Answer:"; else there is none."""
    assert AnswerFormat().extract(text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("from 3 to -1,234.50 euro.", "-1,234.50"),
        ("5-3", "3"),
        ("3/4 of x2", "3/4"),
        ("Answer: 5, or 6", "5, or 6"),
        ("none", None),
    ],
)
def test_last_number_is_the_last_resort(text: str, answer: str | None) -> None:
    """The last number counts only where nothing else is found."""
    assert AnswerFormat(last_number=True).extract(text) == answer


def test_pattern_is_the_only_way_when_given() -> None:
    """The last match, its group if it has one; a text without a match has no answer."""
    assert AnswerFormat(pattern=r"#### (\S+)").extract("#### 1 #### 2") == "2"
    assert AnswerFormat(pattern=r"\d+").extract("1 and 23") == "23"
    assert AnswerFormat(pattern=r"#### (\S+)").extract(r"\boxed{4}") is None
    assert AnswerFormat(pattern=r"(\d)?x").extract("x") is None


@pytest.mark.parametrize("pattern", ["(", "(a)(b)", "a{99999999999999999999}"])
def test_bad_pattern_is_a_setting_error(pattern: str) -> None:
    """A regex that does not compile or has two groups is named at the border."""
    with pytest.raises(SettingError, match="answer pattern"):
        AnswerFormat(pattern=pattern)
    with pytest.raises(ValidationError, match="answer pattern"):
        AnswerFormat.model_validate({"pattern": pattern})


def test_format_round_trips_and_refuses_unknown_fields() -> None:
    """A format is JSON and back; a misspelt field is an error."""
    form = AnswerFormat(pattern="x", last_number=True)
    assert AnswerFormat.model_validate_json(form.model_dump_json()) == form
    with pytest.raises(ValidationError):
        AnswerFormat.model_validate({"last_numbers": True})


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("plain ", (None, "plain ")),
        ("<think>a</think>\n\n4", ("a", "4")),
        ("a</think>4", ("a", "4")),
        ("<think>a</think>b<think>c</think>d", ("a</think>b<think>c", "d")),
        ("<think>Answer: 4", ("Answer: 4", "")),
        ("<think>a</think>Answer: 4 <think>hm", ("a</think>Answer: 4 <think>hm", "")),
    ],
)
def test_reasoning_is_split_off(text: str, parts: tuple[str | None, str]) -> None:
    """All before the last closing tag is reasoning; an open block leaves nothing."""
    assert split_reasoning(text) == parts


def test_answers_in_reasoning_do_not_count() -> None:
    """Only what follows the reasoning is searched, and an unclosed block has no answer."""
    assert AnswerFormat().extract(r"<think>\boxed{3}</think>Answer: 4") == "4"
    assert AnswerFormat().extract(r"<think>\boxed{3}") is None
    assert AnswerFormat(last_number=True).extract("<think>a</think>4<think>5") is None


@pytest.mark.parametrize(
    ("answer", "form"),
    [
        ("1,234", "1234"),
        (r"1{,}234", "1234"),
        (r"1\,234", "1234"),
        ("$1,234.50$", "1234.5"),
        ("(1,234)", "(1, 234)"),
        ("1, 234", "1, 234"),
        ("1,2", "1, 2"),
        ("42.0", "42"),
        ("42.", "42"),
        ("+5", "5"),
        ("-0", "0"),
        ("-0.00", "0"),
        (".5", "0.5"),
        ("007", "7"),
        ("−3", "-3"),
        ("(1.0,2.50)", "(1, 2.5)"),
        (r"\left( 1,\, 2 \right)", "(1, 2)"),
        (r"\dfrac{1}{2}", "1/2"),
        (r"-\frac12", "-1/2"),
        (r"3\frac{1}{2}", "3 1/2"),
        ("3½", "3 1/2"),
        ("x² + 1", "x^2+1"),
        ("x^{2}+1", "x^2+1"),
        ("10²", "10^2"),
        (r"50\%", "50%"),
        (r"5\text{ cm}", "5 cm"),
        (r"\text{Yes}", "yes"),
        ("**New   York.**", "new york"),
        ("(B)", "b"),
        ("B.", "b"),
        ("5!", "5!"),
        ("X+y", "X+y"),
        ("?", ""),
    ],
)
def test_normal_forms(answer: str, form: str) -> None:
    """Dressing goes, numbers are plain, words lose case; units and percent signs stay."""
    assert normalise(answer) == form


@settings(max_examples=500, deadline=None)
@given(TEXTS)
def test_normalise_is_idempotent(text: str) -> None:
    """The normal form of a normal form is itself, for any junk."""
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize(
    "piece",
    ["a", "\\text{", "{", "1,", "1", " ", "\\boxed{", "answer:", "Answer: \n", "-", "\u0301\u0316"],
)
def test_long_junk_is_linear(piece: str) -> None:
    """A hundred thousand characters take no time to extract from or to normalise."""
    text = piece * (100_000 // len(piece))
    start = time.perf_counter()
    normalise(text)
    AnswerFormat(last_number=True).extract(text)
    assert time.perf_counter() - start < 1.0


EXACTLY = [
    *(("0.5", "1/2"), ("3½", "3.5"), ("1,000", "1000.0"), ("Yes.", "yes"), ("2/4", "1/2")),
    *(("( 3 + 4 ) * 2", "2 × (4+3)"), ("(3+5)*2", "16"), ("8 ÷ 2", r"12 \div 3")),
]


@pytest.mark.usefixtures("without_math_verify")
def test_equivalence_without_math_verify_is_exact() -> None:
    """Normal forms, rational numbers and arithmetic of them are compared; algebra is not."""
    assert all(equivalent(a, b) and equivalent(b, a) for a, b in EXACTLY)
    assert not equivalent("x+1", "1+x")
    assert not equivalent("1/3", "0.333333333333")
    assert not equivalent("1/0", "2/0")


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        *((a, b, True) for a, b in EXACTLY),
        (r"\sqrt{8}", r"2\sqrt{2}", True),
        ("(x+1)^2", "x^2+2x+1", True),
        ("(3+5)*2", "16", True),
        (r"\{1,2\}", r"\{2,1\}", True),
        ("(1/2,3)", "(0.5,3)", True),
        ("y=2x+3", "y=3+2x", True),
        ("(1,2)", "(2,1)", False),
        ("[1,2)", "[1,2]", False),
        ("10^{-7}", "2*10^{-7}", False),
        ("50%", "50", False),
        ("5 m", "5 g", False),
        ("5 cm", "5", False),
        ("yes", "no", False),
        ("1/3", "0.333333333333", False),
    ],
)
def test_equivalence_with_math_verify(a: str, b: str, same: bool) -> None:
    """Algebra is compared, in both orders; units, percents and roundings are not glossed over."""
    pytest.importorskip("math_verify")
    assert equivalent(a, b) is same
    assert equivalent(b, a) is same


@pytest.mark.parametrize(
    "bomb",
    [
        *("9^9^9^9", "9^{9^{9^9}}", "(((9^{99})^{99})^{99})^{99}", "99999999!", "x^599+1"),
        *(r"\binom{9999999}{5}", "x" + "+x" * 400, "(" * 200, "x y " * 24 + "!"),
        r"\sqrt{" * 30 + "x" + "}" * 30,
    ],
)
def test_maths_that_would_hang_is_not_compared(bomb: str) -> None:
    """Towers, factorials and long formulas are left as different, quickly, in any thread."""
    pytest.importorskip("math_verify")
    assert not soon(bomb, "3")


def test_groups_are_ordered_by_size_then_by_first_seen() -> None:
    """None is in no group, and spellings of one answer share theirs."""
    assert group(["4", "a", None, "b", "4.0", "B", "8/2", None]) == [[0, 4, 6], [3, 5], [1]]
    assert group([]) == []
    assert group([None]) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.none() | TEXTS | st.sampled_from(["1", "1.0", "2/2", "x", "X", "2"])))
@pytest.mark.usefixtures("without_math_verify")
def test_grouping_is_a_partition(given_answers: list[str | None]) -> None:
    """Every answer is in one group, equivalent to its first member; sizes never grow."""
    groups = group(given_answers)
    members = sorted(index for cluster in groups for index in cluster)
    assert members == [i for i, answer in enumerate(given_answers) if answer is not None]
    order = [(-len(cluster), cluster[0]) for cluster in groups]
    assert order == sorted(order)
    for cluster in groups:
        texts = [given_answers[index] or "" for index in cluster]
        assert all(equivalent(texts[0], text) for text in texts)
    forms = {normalise(answer) for answer in given_answers if answer is not None}
    assert len(groups) <= len(forms)


def test_import_is_light() -> None:
    """Importing answers and scorers loads no torch, no LangChain and no sympy."""
    program = (
        "import sys, langchain_pareto.strategies.answers, langchain_pareto.strategies.scorers\n"
        "print({'torch', 'langchain_core', 'sympy', 'math_verify'} & set(sys.modules))"
    )
    run = [sys.executable, "-c", program]
    done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_exact_answers_are_the_same_letter_by_letter():
    """Nothing is normalised, and their shape is looked at by a vote alone."""
    exact = [Exact('["$5"]', "a"), Exact('["5"]', "a"), Exact('["$5"]', "a"), "5", "$5"]
    assert group(exact) == [[0, 2], [3, 4], [1]]
    assert [shape_of(answer) for answer in (exact[0], "5", None)] == ["a", "", ""]


# --- equal only where it is sure, in any order, and quickly


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        *(("1e3", "1000", True), ("2.5E3", "2500", True), ("-2e-3", "-0.002", True)),
        *(("2e3", "3e2", False), ("2x3", "6x", False), ("2e3", "6e", False)),
        *(("2024-05-01", "2018", False), ("555-1234", "-679", False), ("5-10", "-5", False)),
        *(("5-10", "10-15", False), ("4/2/2024", "2/1/2024", False), ("1.2.3", "0.36", False)),
        *(("1.5-2.5", "-1", False), ("5-10+x", "x-5", True)),
        *(("(1,2)", "1,2", False), ("{1,2}", "(1,2)", False), (r"\{1,2\}", "2,1", True)),
        *(("(x,1)", "[x,1]", False), ("1,1,2", "1,2", False), (r"2\pm1", "3,1", True)),
        *((r"[1,2]\cup(3,4)", r"(3,4)\cup[1,2]", True), ("x<5", "5>x", True)),
        *(("x=5", "5", True), ("x=2+3=5", "5", True), ("f(x)=2x", "x*2", True)),
        *(("x+y=5", "y=5-x", True), ("2x=y", "y=x+x", True), ("5=x", "x=5", True)),
        *(("2x=10", "10", False), ("x+y=5", "5", False), ("x=5", "y=5", False)),
        *(("2+3=5", "5", True), ("2+3=5", "1+1=2", False), ("5=x", "x", False)),
    ],
)
def test_only_what_is_surely_the_same_is_one_answer(a: str, b: str, same: bool) -> None:
    """Numbers are read as numbers; dates, ranges, points and equations are not read as sums, sets or their right sides."""
    pytest.importorskip("math_verify")
    assert equivalent(a, b) is same
    assert equivalent(b, a) is same


MIXED = [
    *("1,2", "(1,2)", "(2,1)", "{1,2}", "2, 1", r"\{2,1\}", "[1,2]"),
    *("5", "x=5", "y=5", "x=5.0", "5=x", "2+3=5", "3+2", "10/2", "2x=10"),
    *("1e3", "1000", "2e3", "3e2", "5-10", "-5", "2024-05-01", "2018", "x+5", "5+x"),
]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(MIXED), max_size=8), st.randoms())
def test_the_order_of_answers_changes_no_group(answers: list[str], random: Random) -> None:
    """Whoever was drawn first, the same answers are together."""
    shuffled = random.sample(answers, len(answers))

    def together(order: list[str]) -> set[frozenset[str]]:
        return {frozenset(order[index] for index in cluster) for cluster in group(order)}

    assert together(answers) == together(shuffled)


@pytest.mark.parametrize("answers", [*itertools.permutations(["x=5", "5", "5.0", "y=5"])])
def test_a_number_has_the_name_of_the_only_letter(answers: tuple[str, ...]) -> None:
    """With y=5 among the answers, 5 is neither; without it, 5 is x."""
    sizes = [len(cluster) for cluster in group(answers)]
    assert sizes == [2, 1, 1]
    assert len(group([answer for answer in answers if answer != "y=5"])) == 1


@pytest.mark.parametrize(
    "formula",
    [
        "({}+d+f+g)^{{20}}",
        "({}+d+f+g)^{{x+31}}",
        "({}+d)(e+f)(g+h)(j+k)(m+n)(p+q)(r+s)(t+u)(v+w)(x+y)(a+d)(b+e)(c+f)(d+g)(e+h)",
        "1/({}+d)+1/(e+f)+1/(g+h)+1/(j+k)+1/(m+n)",
        r"(\sqrt{{{}+d}}+\sqrt{{e+f}}+\sqrt{{2}}+\sqrt{{3}})^{{16}}",
    ],
)
def test_formulas_of_many_terms_are_not_multiplied_out(formula: str) -> None:
    """What would have more than 500 terms is left as different, though it is the same."""
    pytest.importorskip("math_verify")
    one, other = formula.format("a*(b+c)"), formula.format("(a*b+a*c)")
    assert not soon(one, other)
    assert soon("(a*(b+c)+d)^{8}", "(a*b+a*c+d)^{8}")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("1/(a*a+b)+1/(c*c+d)=1/(a+d)", "1/(a*a+b)+1/(c*c+d)=2/(a+d)"),
        (r"\{(a*(b+c)+d+f+g)^7,1\}", r"\{(a*(b+c)+d+f+g)^7*y,1\}"),
        ("((((9^{1+99})^{1+99})^{1+99})^{1+99})", "3"),
    ],
)
def test_equations_that_are_hard_to_solve_are_not_solved(a: str, b: str) -> None:
    """Nor are long elements of sets compared, or sums in towers of powers worked out."""
    pytest.importorskip("math_verify")
    assert not soon(a, b)
