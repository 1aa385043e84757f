"""DeepConf: who sets the threshold, who is cut and when, and whose votes weigh what."""

import math
import statistics

import pytest
from hypothesis import given, strategies as st

from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import CapabilityError
from langchain_pareto.strategies import BestOfN, DeepConf
from langchain_pareto.strategies.answers import Exact
from langchain_pareto.strategies.deepconf import _window, confidence, elected, quantile
from langchain_pareto.strategies.thoughts import Thought

PROMPT = "2+2?"
FLOATS = st.floats(0.125, 16, width=16)


def speaker(*traces):
    """Each draw from the prompt begins the next trace, and a piece goes on with the trace that has begun so.

    A trace is its text and how confident each four tokens are; all is as confident as its beginning where it is drawn whole.
    """
    fresh = iter(traces)

    def say(text, i):
        done = text.removeprefix(PROMPT)
        same = (trace for trace in traces if trace[0].startswith(done))
        words, levels = next(same if done else fresh)
        return Line(words[len(done) :], -levels[min(len(done) // 4, len(levels) - 1)])

    return ScriptedBackend(say)


def whole(*answers):
    """Traces of ten tokens each, of answers and confidences."""
    return [(f"Answer: {answer}", [level]) for answer, level in answers]


# --- the search


async def test_whoever_falls_below_the_threshold_is_cut(ask):
    """Half of three first samples set it at 5; of two more, one falls to 3 in its second piece and ends there, at 8 tokens."""
    backend = speaker(
        *whole((1, 4), (1, 5), (2, 6)),
        ("sure: Answer: 1", [7]),  # 15 tokens and the end
        ("weak: Answer: 2", [7, 3]),
    )
    strategy = DeepConf(warmup=3, total=5, keep=0.5, window=4, check=4)
    outcome = await ask(strategy, backend)
    texts = [t.text for t in outcome.thoughts[3:]]
    assert texts == ["sure", "weak", ": An", ": An", "swer", ": 1"]
    assert outcome.answer.thought.whole_text == "sure: Answer: 1"
    assert outcome.answer.share == pytest.approx((5 + 7) / (5 + 7 + 6))
    assert outcome.spent.tokens == 3 * 10 + 16 + 8


async def test_the_first_samples_vote_only_above_their_threshold(ask):
    """Two unsure ones of three have no vote; with keep=1 they have, and win."""
    traces = whole((1, 4), (1, 5), (2, 7))
    outcome = await ask(DeepConf(warmup=3, total=3, keep=0.1), speaker(*traces))
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("2", 1.0)
    outcome = await ask(DeepConf(warmup=3, total=3, keep=1), speaker(*traces))
    assert (outcome.answer.thought.number, outcome.answer.share) == (2, 9 / 16)


async def test_a_window_that_is_not_full_cuts_nobody_but_gives_no_vote(ask):
    """A short sample ends whole; if all of it is less confident than the threshold, it does not count."""
    backend = speaker(*whole((1, 5), (2, 6), (1, 3)))
    outcome = await ask(DeepConf(warmup=2, total=3, keep=1, window=16, check=4), backend)
    assert outcome.answer.share == 6 / 11
    assert outcome.spent.tokens == 30


async def test_consensus_ends_it(ask):
    """At once where the first agree; else after the wave in which the leader gets its share of all confidence."""
    outcome = await ask(DeepConf(warmup=3, total=9), speaker(*whole((1, 4), (1, 5), (1, 6))))
    assert (len(outcome.thoughts), outcome.answer.share) == (3, 1.0)
    backend = speaker(*whole((1, 5), (2, 5), (1, 5), (1, 5), (1, 5)))
    strategy = DeepConf(warmup=2, total=9, wave=1, consensus=0.75)
    outcome = await ask(strategy, backend)
    assert (outcome.spent.tokens, outcome.answer.share) == (40, 0.75)


async def test_offline_all_are_drawn_and_all_set_the_threshold(ask):
    """The more confident half votes."""
    backend = speaker(*whole((1, 4), (1, 4), (2, 6), (1, 5)))
    outcome = await ask(DeepConf(mode="offline", total=4, keep=0.5), backend)
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("2", 6 / 11)
    assert outcome.spent.tokens == 40


async def test_a_runaway_ends_at_the_longest_length(ask):
    """Drawn in pieces, a sample has no more tokens than one drawn whole, and no vote without an end."""
    backend = speaker(*whole((1, 5), (2, 6)), ("and so on and so on Answer: 1", [9]))
    outcome = await ask(DeepConf(warmup=2, total=3, check=4, keep=1), backend, max_tokens=14)
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("2", 6 / 11)
    assert outcome.spent.tokens == 20 + 14


async def test_stop_strings_are_heeded(ask):
    """Also across pieces; those below the threshold are cut as ever, and have no vote."""
    texts = ("so Answer: 1\n\nQ", [9]), ("or Answer: 2\n\nQ", [4])
    backend = speaker(*whole((1, 5), (2, 6)), *texts)
    strategy = DeepConf(warmup=2, total=4, keep=1, window=1, check=4)
    outcome = await ask(strategy, backend, stop=("\n\n",))
    ended = [t.whole_text.rstrip("\n") for t in outcome.thoughts if t.finished]
    assert ended == ["Answer: 1", "Answer: 2", "so Answer: 1"]
    assert [t.text for t in outcome.thoughts[2:4]] == ["so A", "or A"]
    assert outcome.answer.share == 14 / 20


async def test_money_ends_it_with_the_vote_so_far(ask):
    """27 tokens are two samples and two pieces, the second of them short."""
    backend = speaker(*whole((1, 5), (2, 6), (1, 9), (1, 9)))
    outcome = await ask(DeepConf(warmup=2, total=9, wave=2, check=4, keep=1), backend, 27)
    assert [len(t.tokens) for t in outcome.thoughts] == [10, 10, 4, 3]
    assert (outcome.answer.thought.answer, outcome.stopped_by) == ("2", "tokens")
    assert outcome.spent.tokens == 27
    outcome = await ask(DeepConf(warmup=4), speaker(*whole((1, 5), (2, 6))), 25)
    assert (outcome.answer.thought.answer, outcome.spent.tokens) == ("2", 20)


async def test_time_ends_it_with_the_vote_so_far(ask):
    """Later samples that never end are stopped within a step; the first ones' vote is the answer."""

    def say(text, i):
        first = text == PROMPT and i < 2
        return Line(f"Answer: {i}", -5.0 - i) if first else Line("on and on ", -9.0, ends=False)

    backend = ScriptedBackend(say, delay=0.001)
    outcome = await ask(DeepConf(warmup=2, total=4, check=4, keep=1), backend, "0.3 s")
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("1", 6 / 11)
    assert outcome.stopped_by == "seconds"
    assert len(outcome.thoughts) > 4
    backend.close()


async def test_without_any_end_the_best_piece_is_the_answer(ask):
    """As of any vote in which everybody was cut off."""
    outcome = await ask(DeepConf(warmup=3), ScriptedBackend(["no end in sight"]), max_tokens=6)
    assert (outcome.answer.thought.text, len(outcome.thoughts)) == ("no end", 3)


async def test_it_nests(ask):
    """Its answer has no score of its own: whoever compares several asks the run's scorer."""
    strategy = BestOfN(n=2, of=DeepConf(warmup=2, total=2))
    outcome = await ask(strategy, ScriptedBackend(["Answer: 1"]))
    assert (len(outcome.thoughts), outcome.answer.thought.score) == (4, -1.0)


# --- confidence


def test_confidence_is_the_lowest_mean_of_a_window():
    """Over full windows; over all where there are fewer tokens."""
    assert confidence([4, 2, 6, 8], 2) == 3
    assert confidence([4, 2, 6, 8], 1) == 2
    assert confidence([4, 2, 6, 8], 4) == confidence([4, 2, 6, 8], 99) == 5
    with pytest.raises(CapabilityError, match="log-probabilities"):
        confidence([], 3)


@given(st.lists(FLOATS, min_size=1, max_size=30), st.integers(1, 40))
def test_confidence_is_what_a_slow_loop_says(values, window):
    """Sums of prefixes give the means of all windows."""
    window_ = min(window, len(values))
    means = [statistics.fmean(values[i : i + window_]) for i in range(len(values) - window_ + 1)]
    assert math.isclose(confidence(values, window), min(means))


def test_quantiles_lie_between_the_values():
    """Between two by a straight line, as numpy has it."""
    assert quantile([4], 0.3) == 4
    assert [quantile([3, 1, 2], share) for share in (0, 0.25, 0.5, 1)] == [1, 1.5, 2, 3]
    assert quantile([1, 2, 3, 4], 0.9) == pytest.approx(3.7)


def test_votes_weigh_what_they_are_confident():
    """Two that are unsure lose against one that is sure; without any vote the surest wins."""

    def voter(number, answer):
        return Thought("", Thought(""), number=number, answer=answer, finish="eos")

    one, two, three = voter(1, "1"), voter(2, "1"), voter(3, "2")
    answer = elected({one: 1.0, two: 1.5, three: 7.5})
    assert (answer.thought, answer.share) == (three, 0.75)
    answer = elected({one: 4.0, two: 5.0, three: 1.0})
    assert (answer.thought, answer.share) == (two, 0.9)
    prose = [voter(1, None), voter(2, None)]
    answer = elected({prose[0]: 2.0, prose[1]: 3.0})
    assert (answer.thought, answer.share) == (prose[1], None)


def test_where_nobody_is_confident_each_has_one_vote():
    """A model that is never told apart from others gives a confidence of 0 to all."""
    voters = [
        Thought("", Thought(""), number=i, answer=a, finish="eos") for i, a in enumerate("122")
    ]
    answer = elected(dict.fromkeys(voters, 0.0))
    assert (answer.thought.answer, answer.share) == ("2", 2 / 3)


async def test_confidences_of_nothing_but_zero_are_a_vote(ask):
    """As of a model that is certain of every token."""
    backend = speaker(*whole((1, 0), (2, 0), (2, 0)))
    outcome = await ask(DeepConf(warmup=3, total=3), backend)
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("2", 2 / 3)


def test_of_calls_the_shape_is_elected_first():
    """Two searches with different arguments, 6 in sum, outweigh one call of another tool with 5."""
    shapes = [Exact("w", "w"), Exact("s1", "s"), Exact("s2", "s")]
    one, two, three = (
        Thought("", Thought(""), number=i, answer=answer, finish="eos")
        for i, answer in enumerate(shapes, 1)
    )
    answer = elected({one: 5.0, two: 2.0, three: 4.0})
    assert (answer.thought, answer.share) == (three, 4 / 11)


def test_the_window_is_an_eighth_of_a_sample():
    """At least 16 tokens, and the paper's 2048 for long ones."""
    assert [_window(lengths) for lengths in ([1], [100, 300], [10**6])] == [16, 25, 2048]
