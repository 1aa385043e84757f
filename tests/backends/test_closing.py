"""A grammar kept to the end: texts end within their tokens, and nothing changes before they must."""

import json
import random

import pytest

from langchain_pareto.backends import closing
from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.closing import Closing
from langchain_pareto.backends.loading import load

pytest.importorskip("llguidance")
from langchain_pareto.backends.grammar import compile_grammar

STYLE = {
    "x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
}
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer"},
        "size": {"enum": ["small", "large"]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "home": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "number": {"type": "number"}},
            "required": ["street"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "size", "tags", "home"],
    "additionalProperties": False,
}


def lark(schema):
    return f"start: %json {json.dumps({**schema, **STYLE})}"


@pytest.fixture(scope="module")
def policy():
    with load("nano") as backend:
        yield backend


def walk(policy, constraint, seed, most):
    """Tokens drawn at random among those allowed, until one ends the text; None where that is not within `most`."""
    rng, tokens = random.Random(seed), []
    while len(tokens) < most:
        token = rng.choice(list(constraint.allowed()))
        if token in policy.tokenizer.end_tokens:
            return tokens
        constraint.advance(token)
        tokens.append(token)
    return None


@pytest.mark.parametrize("most", [110, 150, 250])
def test_a_text_ends_within_its_tokens(policy, most):
    """Random tokens under a schema make a whole value in as many tokens as there are, which without it they do not."""
    start = compile_grammar(policy.tokenizer, lark(PERSON))
    cut = 0
    for seed in range(12):
        tokens = walk(policy, Closing(start(), policy.tokenizer, most), seed, most)
        assert tokens is not None
        assert json.loads(policy.tokenizer.decode(tokens)).keys() == PERSON["properties"].keys()
        cut += walk(policy, start(), seed, most) is None
    assert cut > 5


class Clock:
    """Time that passes as a test says."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(closing.time, "monotonic", lambda: self.now)


def passing(pace, tokens, rng):
    """Seconds until the next token."""
    match pace:
        case "uneven":
            return rng.choice([0.005, 0.035])
        case "slower and slower":
            return 0.01 + tokens / 20_000
        case "four at once":
            return 0.02 * (tokens % 4 == 0)
        case "a pause":
            return 0.3 if tokens == 40 else 0.01
        case _:
            return pace


@pytest.mark.parametrize(
    "pace", [0.01, 0.05, "uneven", "slower and slower", "four at once", "a pause"]
)
def test_a_text_ends_before_its_deadline(policy, monkeypatch, pace):
    """Whatever a token takes, there is time for the way out, and little of it is given away."""
    clock, rng = Clock(monkeypatch), random.Random(5)
    start = compile_grammar(policy.tokenizer, lark(PERSON))
    ended, early = 0, 0
    for seed in range(12):
        seconds = 6.0 if pace == 0.05 else 4.0
        deadline = clock.now + seconds
        constraint = Closing(start(), policy.tokenizer, 10_000, deadline=deadline)
        tokens, draw = [], random.Random(seed)
        while clock.now < deadline:
            token = draw.choice(list(constraint.allowed()))
            if token in policy.tokenizer.end_tokens:
                json.loads(policy.tokenizer.decode(tokens))
                ended += 1
                early += deadline - clock.now > seconds / 2
                break
            constraint.advance(token)
            tokens.append(token)
            clock.now += passing(pace, len(tokens), rng)
    assert ended == 12
    assert early <= 6, "a random walk may end by itself"


def test_tokens_that_come_at_once_tell_nothing_of_the_pace(policy, monkeypatch):
    """However many of them a step writes: the way out is counted in steps, and taken in time."""
    clock, encode = Clock(monkeypatch), policy.tokenizer.encode
    grammar = compile_grammar(policy.tokenizer, lark(PERSON))()
    deadline = clock.now + 12.0
    constraint = Closing(grammar, policy.tokenizer, 10_000, deadline=deadline)
    tokens, ended, letter = encode('{"name": "'), False, encode("a")[-1]
    for token in tokens:
        constraint.advance(token)
    while clock.now < deadline and not ended:
        clock.now += 0.1
        allowed = list(constraint.allowed())
        written = [letter] * 40 if len(allowed) > 1 else allowed
        for token in written:
            ended = ended or token in policy.tokenizer.end_tokens
            constraint.advance(token)
            clock.now += 5e-6
        tokens += written
    assert ended
    assert len(tokens) > 400, "there was time for some"
    json.loads(policy.tokenizer.decode(tokens[:-1]))


def test_without_haste_a_deadline_changes_nothing(policy, monkeypatch):
    """With time for far more tokens, exactly what the grammar allows is allowed; and so where the pace is not known yet."""
    clock = Clock(monkeypatch)
    start = compile_grammar(policy.tokenizer, lark(PERSON))
    for deadline, steps in ((clock.now + 1e6, 40), (clock.now + 1e-3, 3)):
        plain, closing_ = start(), Closing(start(), policy.tokenizer, 10_000, deadline=deadline)
        for _ in range(steps):
            allowed = list(plain.allowed())
            assert list(closing_.allowed()) == allowed
            for one in (plain, closing_):
                one.advance(allowed[0])
            clock.now += 0.01


def test_while_there_is_room_nothing_changes(policy):
    """With room for far more, exactly what the grammar allows is allowed."""
    start = compile_grammar(policy.tokenizer, lark(PERSON))
    plain, closing = start(), Closing(start(), policy.tokenizer, 10_000)
    rng = random.Random(0)
    for _ in range(60):
        allowed = list(plain.allowed())
        assert list(closing.allowed()) == allowed
        token = rng.choice(allowed)
        if token in policy.tokenizer.end_tokens:
            break
        plain.advance(token)
        closing.advance(token)


def test_it_rolls_back_and_forks(policy):
    """After tokens were taken back, and in a copy, the same is allowed as at first."""
    start = compile_grammar(policy.tokenizer, lark(PERSON))
    most = 130
    one = Closing(start(), policy.tokenizer, most)
    rng, seen = random.Random(3), []
    while len(seen) < most:
        allowed = list(one.allowed())
        if len(seen) > 3 and rng.random() < 0.3:
            one.rollback(3)
            again = [
                (list(one.allowed()), token) for _, token in seen[-3:] if one.advance(token) or 1
            ]
            assert len(again) == 3
            assert list(one.allowed()) == allowed
        copy = one.fork()
        assert list(copy.allowed()) == allowed
        token = rng.choice(allowed)
        if token in policy.tokenizer.end_tokens:
            break
        seen.append((allowed, token))
        one.advance(token)
    else:
        pytest.fail("it did not end")


@pytest.mark.parametrize("most", [95, 110, 130, 200])
def test_looking_ahead_changes_nothing(policy, most):
    """Guesses that are looked at and taken back, right ones and wrong ones, leave every later mask as it would have been."""
    start = compile_grammar(policy.tokenizer, lark(PERSON))
    ends = policy.tokenizer.end_tokens
    for seed in range(6):
        rng = random.Random(seed)
        plain, guessed = (Closing(start(), policy.tokenizer, most) for _ in range(2))
        path = []
        while len(path) < most:
            allowed = list(plain.allowed())
            token = rng.choice(allowed)
            if token in ends:
                break
            path.append((allowed, token))
            plain.advance(token)
        at = 0
        while at < len(path):
            right = rng.randint(0, min(6, len(path) - 1 - at))
            taken = 0
            for allowed, token in path[at : at + right]:
                assert list(guessed.allowed()) == allowed
                guessed.advance(token)
                taken += 1
            assert list(guessed.allowed()) == path[at + right][0]
            for _ in range(rng.randint(0, 4)):  # wrong ones
                token = rng.choice(list(guessed.allowed()))
                if token in ends:
                    break
                guessed.advance(token)
                taken += 1
            guessed.allowed()
            guessed.rollback(taken)
            for _, token in path[at : at + right + 1]:  # what is drawn is taken without a look
                guessed.advance(token)
            at += right + 1


def test_what_is_forced_is_all_that_is_allowed(policy):
    """By the grammar, and at the end by the way out: each forced token is the only one in its place."""
    start = compile_grammar(policy.tokenizer, lark(PERSON))
    ways = 0
    for seed in range(6):
        rng, closing, within = random.Random(seed), Closing(start(), policy.tokenizer, 120), start()
        for _ in range(120):
            allowed = list(closing.allowed())
            tokens, ahead = list(closing.forced()), closing.fork()
            for one in tokens:
                assert list(ahead.allowed()) == [one]
                ahead.advance(one)
            ways += len(tokens) > len(within.forced())
            token = rng.choice(allowed)
            if token in policy.tokenizer.end_tokens:
                break
            closing.advance(token)
            within.advance(token)
    assert ways > 6
    assert list(Closing(Free(), policy.tokenizer, 9).forced()) == []


class Free:
    """A constraint that allows all, and cannot tell what it forces."""

    def allowed(self):
        """Any token."""

    def advance(self, token):
        """Takes it."""

    def rollback(self, n):
        """Takes it back."""

    def fork(self):
        """A copy."""
        return Free()


def test_too_little_room_is_no_error(policy):
    """Where no way out fits, the text is cut off like any other."""
    start = compile_grammar(policy.tokenizer, lark(PERSON))
    assert walk(policy, Closing(start(), policy.tokenizer, 10), 0, 10) is None


def test_an_open_thought_is_closed(policy):
    """A block in which any text may stand is closed, and what must follow it follows."""
    grammar = f"start: thought body\nthought[lazy]: /(?s:.*)<\\/think>/\nbody: %json {json.dumps({**PERSON, **STYLE})}"
    start = compile_grammar(policy.tokenizer, grammar)
    tokens = walk(policy, Closing(start(), policy.tokenizer, 200), 1, 200)
    assert tokens is not None
    json.loads(policy.tokenizer.decode(tokens).partition("</think>")[2])


def test_the_engine_ends_a_text_in_its_last_token(policy):
    """Drawn by a model that never learned JSON, at temperature 1: whole at the end, by the end token."""
    start = compile_grammar(policy.tokenizer, lark(PERSON))
    root = policy.open("Use 3 4 5 to make 35.", seed=1)
    branches = root.fork(8)
    tasks = [
        policy.extend(
            branch,
            Sampling(temperature=1.0),
            Stop(120),
            constraint=Closing(start(), policy.tokenizer, 120),
        )
        for branch in branches
    ]
    for task in tasks:
        drawn = task.future.result()
        assert drawn.finish == "eos"
        assert json.loads(drawn.text).keys() == PERSON["properties"].keys()
    for branch in (*branches, root):
        branch.free()


def test_words_are_not_ended_early(policy):
    """Where any text may end, a text that is cut off at its limit is one that was cut off."""
    start = compile_grammar(policy.tokenizer, "start: /(?s:.*)/")
    closing = Closing(start(), policy.tokenizer, 8)
    for token in policy.tokenizer.encode("some words")[:8]:
        assert token in closing.allowed()
        assert len(list(closing.allowed())) > 2
        closing.advance(token)


def test_a_second_value_begins_only_where_it_can_end(policy):
    """Of values in a row, the last is whole as well."""
    value = json.dumps({"enum": ["a" * 20], **STYLE})
    grammar = f'start: one ("; " one)*\none: %json {value}'
    start = compile_grammar(policy.tokenizer, grammar)
    for most in (40, 50, 60, 70):
        for seed in range(8):
            tokens = walk(policy, Closing(start(), policy.tokenizer, most), seed, most)
            assert tokens is not None
