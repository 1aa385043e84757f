"""How many tokens to guess, by measured steps and acceptance."""

import itertools
import math
from contextlib import ExitStack, contextmanager

import pytest

from langchain_pareto.backends.draft_length import Acceptance, DraftLength, FixedLength
from langchain_pareto.backends.step_times import StepTimes


def curve(seconds, widths=range(1, 65)):
    """Step times as a function says."""
    times = StepTimes()
    for width in widths:
        for _ in range(30):
            times.note(width, seconds(width))
    return times


def learned(rate, rounds=200, length=4):
    """An acceptance that has seen so many rounds of a rate."""
    acceptance = Acceptance()
    for i in range(rounds):
        accepted = 0
        while accepted < length and (i * 7919 + accepted * 104729) % 1000 < 1000 * rate:
            accepted += 1
        acceptance.note(length, accepted)
    return acceptance


@contextmanager
def drawing(length, branches):
    """So many branches of the group are drawn inside."""
    with ExitStack() as stack:
        for _ in range(branches):
            stack.enter_context(length.drawing())
        yield


def asked(length, branches, drawn=20):
    """How many tokens a branch with so many drawn ones guesses where nothing can tell without guessing."""
    if k := length.next(branches):
        return k
    look = length.look(branches, drawn)
    return 0 if look is None else look.ahead


@pytest.mark.parametrize(("rate", "slope"), [(0.5, 0.0), (0.7, 0.1), (0.9, 0.02), (0.9, 0.3)])
def test_the_length_is_the_fastest_one(rate, slope):
    """It maximises expected tokens over time: within 1 % of brute force over the curves and the rate that the guesses really have."""
    target = curve(lambda width: 1 + slope * (width - 1))
    draft = curve(lambda _: 0.15)
    pair = learned(rate)
    chosen = DraftLength(8, target, draft, pair).next(1)

    def speed(k):
        return (1 - rate ** (k + 1)) / (1 - rate) / (0.15 * k + 1 + slope * k)

    assert speed(chosen) >= 0.99 * max(map(speed, range(9)))


@pytest.mark.parametrize(("guess", "length"), [(0.48, 0), (0.40, 1)])
def test_what_pays_next_to_nothing_is_not_guessed(guess, length):
    """1.5 tokens for 1.48 steps are left alone, for 1.40 they are taken."""
    target, draft = curve(lambda _: 1.0), curve(lambda _: guess)
    assert DraftLength(1, target, draft, learned(0.5)).next(1) == length


def test_where_the_first_guesses_tell_of_the_next_the_length_is_longer():
    """Of two pairs with the same rate, the one whose guesses are right or wrong together guesses further ahead."""
    target, draft = curve(lambda w: 1 + 0.02 * w), curve(lambda _: 0.3)
    together, apart = Acceptance(), Acceptance()
    for i in range(400):
        together.note(8, 8 if i % 3 else 0)  # 17 looked at, 16 right, in three rounds
    while apart.rounds < 400:
        right = next(n for n in range(9) if n == 8 or (apart.rounds * 7919 + n * 104729) % 17 == 0)
        apart.note(8, right)
    assert together.rate == pytest.approx(apart.rate, abs=0.02)
    longer, shorter = (DraftLength(24, target, draft, pair).next(1) for pair in (together, apart))
    assert longer > shorter


def test_expected_tokens_of_a_pair_that_has_not_guessed_are_those_of_one_rate():
    """With nothing known of any place, and as far ahead as one likes."""
    a, fresh = 0.7, Acceptance()
    found = [n for _, n in zip(range(40), fresh.tokens(), strict=False)]
    assert found == pytest.approx([(1 - a ** (k + 1)) / (1 - a) for k in range(40)])


def test_guessing_stops_where_it_does_not_pay_and_is_tried_again():
    """A draft that is always wrong guesses in few rounds, ever fewer."""
    target, draft, pair = curve(lambda w: 1 + 0.2 * w), curve(lambda _: 0.3), Acceptance()
    length = DraftLength(8, target, draft, pair)
    guessed = []
    for i in range(2000):
        k = asked(length, 1)
        guessed += [i] * (k > 0)
        length.note(k, 0)
    assert 4 <= len(guessed) <= 20
    assert max(b - a for a, b in itertools.pairwise(guessed)) > 300


def test_of_branches_that_share_steps_one_looks_whether_it_pays():
    """Each look makes the draft read what was drawn meanwhile: after an early one, sixteen branches look no oftener than one."""
    target = curve(lambda w: 1 + 0.3 * w, range(1, 200))
    length, guesses = DraftLength(8, target, curve(lambda _: 0.2), learned(0.8)), []
    with drawing(length, 16):
        for drawn in range(1000):
            lengths = [asked(length, 16, drawn) for _ in range(16)]
            guesses.append(sum(k > 0 for k in lengths))
            for k in lengths:
                length.note(k, 0)
    assert guesses[:6] == [0, 0, 0, 0, 0, 16]
    assert 2 <= sum(guesses[6:]) <= 5
    assert max(guesses[6:]) == 1


def test_of_trees_that_share_steps_each_looks_as_often_as_it_has_branches():
    """Sixteen calls of one branch each look once, as sixteen branches of one call do: not each as often as all together."""
    target = curve(lambda w: 1 + 0.3 * w, range(1, 200))
    length, guesses = DraftLength(8, target, curve(lambda _: 0.2), learned(0.1)), []
    with drawing(length, 1):
        for drawn in range(100):
            guesses.append(k := asked(length, 16, drawn))
            length.note(k, 0)
    assert guesses[:6] == [0, 0, 0, 0, 0, 2]
    assert not any(guesses[6:])


def test_only_branches_of_one_tree_begin_after_the_same_text():
    """First guesses of sixteen trees are sixteen, and those of sixteen branches of one tree are one."""
    target, draft = curve(lambda w: 1 + 0.02 * w, range(1, 200)), curve(lambda _: 0.2)
    trees, tree = learned(0.85), learned(0.85)
    for _ in range(16):
        length = DraftLength(8, target, draft, trees)
        with drawing(length, 1):
            length.note(4, 0, first=True)
    length = DraftLength(8, target, draft, tree)
    with drawing(length, 16):
        for _ in range(16):
            length.note(4, 0, first=True)
    one = learned(0.85)
    one.note(4, 0)
    assert tree.rate == pytest.approx(one.rate, abs=0.001)
    assert trees.rate < one.rate - 0.05


def test_a_tree_finds_out_by_itself_that_it_pays():
    """Where other texts were hard, an early look of its branches tells that this one is not."""
    target, draft = curve(lambda w: 1 + 0.02 * w, range(1, 200)), curve(lambda _: 0.3)
    length = DraftLength(8, target, draft, learned(0.1))
    assert length._fastest(16) == 0
    with drawing(length, 16):
        for drawn in range(5):
            assert not any(asked(length, 16, drawn) for _ in range(16))
        for _ in range(16):
            length.note(k := asked(length, 16, 5), k)
        assert length.next(16) > 0


def test_one_branch_has_no_early_look():
    """Its draft would read the whole prompt for it, and what other texts told is all that there is to go by."""
    target = curve(lambda w: 1 + 0.3 * w)
    length = DraftLength(8, target, curve(lambda _: 0.2), learned(0.1))
    with drawing(length, 1):
        assert not any(asked(length, 1, drawn) for drawn in range(60))
        assert any(asked(length, 1, drawn) for drawn in range(60, 80))


def test_a_look_has_something_to_look_at():
    """Of extensions of a few tokens each, the one that has drawn some looks, however often it was due before."""
    target = curve(lambda w: 1 + 0.3 * w)
    length = DraftLength(8, target, curve(lambda _: 0.2), learned(0.1))
    with drawing(length, 1):
        assert not any(asked(length, 1, drawn % 4) for drawn in range(200))
        assert asked(length, 1, 4) > 0


@pytest.mark.parametrize("known", [0.1, 0.85])
def test_a_wrong_guess_that_all_branches_make_is_one_wrong_guess(known):
    """They begin after the same text, so that the first guess is right or wrong for all; the next ones tell what the text is like."""
    target, draft = curve(lambda w: 1 + 0.02 * w, range(1, 200)), curve(lambda _: 0.2)
    length = DraftLength(8, target, draft, learned(known))
    with drawing(length, 16):
        for round_, _ in itertools.product(range(6), range(16)):
            k = asked(length, 16, round_)
            length.note(k, k if round_ else 0, first=not round_)
            assert k > 0 or known < 0.5
        assert length.next(16) > 0


@pytest.mark.parametrize("most", [1, 3, 8])
def test_a_look_back_tells_what_rounds_would_have_told(most):
    """The same places are looked at in the same rounds, and the last round as far as the look reaches."""
    target, draft = curve(lambda _: 1.0), curve(lambda _: 0.1)
    right = [(i * 7919) % 1000 < 800 for i in range(100)]
    looked, guessed = Acceptance(), Acceptance()
    DraftLength(most, target, draft, looked).note_look(right)
    length, at = DraftLength(most, target, draft, guessed), 0
    while at < len(right):
        accepted = sum(itertools.takewhile(bool, right[at : at + most]))
        length.note(min(most, len(right) - at), accepted)
        at += accepted + 1
    assert looked == guessed
    assert looked.rounds > 10


def test_what_one_branch_finds_counts_for_all_at_once():
    """Where its look tells that guesses are right by now, the next branch guesses."""
    target, draft = curve(lambda w: 1 + 0.02 * w, range(1, 200)), curve(lambda _: 0.2)
    length = DraftLength(8, target, draft, learned(0.4))
    with drawing(length, 16):
        assert length.next(16) == 0
        length.note_look([True] * 16)
        assert length.next(16) > 0


def test_a_look_at_first_tokens_is_one_look_of_all_branches():
    """They come after the same text; tokens behind them tell of each branch's own."""
    target, draft = curve(lambda _: 1.0), curve(lambda _: 0.1)
    pair = learned(0.85)
    length = DraftLength(8, target, draft, pair)
    with drawing(length, 16):
        for _ in range(16):
            length.note_look([False, True, True], first=True)
    other = learned(0.85)
    other.note(1, 0)
    for _ in range(16):
        other.note(2, 2)
    assert pair.rate == pytest.approx(other.rate, abs=0.01)


def test_where_a_draft_is_unsure_it_has_taken_a_step_for_nothing():
    """As with a wrong guess; a look-up that finds nothing has taken none."""
    target, draft = curve(lambda _: 1.0), curve(lambda _: 0.3)
    unsure, wrong, free = learned(0.8), learned(0.8), learned(0.8)
    for _ in range(40):
        DraftLength(8, target, draft, unsure).note(2, 2, unsure=True)
        DraftLength(8, target, draft, wrong).note(3, 2)
        DraftLength(8, target, None, free).note(0, 0, unsure=True)
    assert unsure == wrong
    assert unsure.rate < 0.75
    assert free == learned(0.8)


def test_nothing_is_guessed_before_a_plain_step_was_measured():
    """Without a curve there is nothing to go by: the first round is plain, the next ones find the curve."""
    target, draft = StepTimes(), StepTimes()
    length = DraftLength(8, target, draft, Acceptance())
    assert length.next(1) == 0
    target.note(1, 1.0)
    assert length.next(1) == 4


def test_many_branches_make_guesses_dear():
    """Where the step time grows with its width, wide batches guess less."""
    target = curve(lambda width: max(1.0, width / 16), [*range(1, 9), *range(16, 200, 8)])
    draft, pair = curve(lambda _: 0.05), learned(0.8)
    lengths = [DraftLength(8, target, draft, pair).next(b) for b in (1, 4, 16)]
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0] > lengths[-1]


def test_acceptance_follows_what_happens():
    """It is the share of looked-at guesses that were right, over about the last 200."""
    acceptance = learned(0.9)
    assert acceptance.rate == pytest.approx(0.9, abs=0.05)
    for _ in range(200):
        acceptance.note(4, 0)
    assert acceptance.rate < 0.4
    assert acceptance.copy().looked_at <= 16


def test_a_fixed_length_is_fixed():
    """Whatever happens."""
    length = FixedLength(3)
    length.note(3, 0)
    length.note_look([False])
    assert length.next(100) == 3
    assert length.look(100, 100) is None


def test_step_times_are_averages_with_lines_between():
    """Narrow widths are told apart; between measured widths it is linear, and beyond them goes on as it rose; one interruption counts little."""
    times = StepTimes()
    assert times.seconds(1) is None
    times.note(2, 1.0)
    times.note(4, 2.0)
    assert [times.seconds(n) for n in (1, 2, 3, 4, 8)] == [1.0, 1.0, 1.5, 2.0, 4.0]
    times.note(1, 3.0)  # slower than wider ones: noise
    assert times.seconds(8) == 2.0
    times.note(2, 1000.0)
    assert times.seconds(2) == pytest.approx(1.2)
    times.note(100, 9.0)
    times.note(104, 10.0)  # within an eighth of it: the same average
    assert times.seconds(104) == pytest.approx(9.1)


def test_step_times_are_told_for_texts_as_long_as_those_of_now():
    """Of widths that were measured after short texts and after long ones, the wider one still takes longer."""
    times = StepTimes()

    def seconds(width, context):
        return (1 + 0.05 * width) * (1 + 0.002 * context)

    def step(width, context):
        times.note(
            width,
            (1 + 0.05 * math.sin(7919 * (width + context))) * seconds(width, context),
            context,
        )

    for context in range(100, 200):
        step(80, context)
    for context in range(100, 600):
        step(16, context)
    assert times.seconds(16) == pytest.approx(seconds(16, 600), rel=0.1)
    assert times.seconds(80) == pytest.approx(seconds(80, 600), rel=0.2)
    for context in range(100, 120):  # a new tree begins
        step(16, context)
    assert times.seconds(80) == pytest.approx(seconds(80, 120), rel=0.1)
    assert times.seconds(16) == pytest.approx(seconds(16, 120), rel=0.1)


def test_steps_that_take_no_longer_after_long_texts_are_told_so():
    """Those of recurrent models."""
    times = StepTimes()
    for context in range(1, 500):
        times.note(4, 1 + 0.05 * math.sin(7919 * context), context)
    assert times.seconds(4) == pytest.approx(1, abs=0.05)
    assert times.seconds(1) == pytest.approx(1, abs=0.05)


def test_a_length_is_chosen_anew_where_texts_have_become_longer():
    """What pays after short texts may not after long ones, and the other way round."""
    target, draft = StepTimes(), curve(lambda _: 0.1)
    for width, context in itertools.product((16, 48), range(100, 120)):
        target.note(width, 1.0 if width == 16 else 3.0, context)
    length = DraftLength(2, target, draft, learned(0.9))
    lengths = [length.next(16) for _ in range(100)]
    assert lengths[-1] == 0
    for context in range(400, 430):
        target.note(48, 1.5, context)
        target.note(16, 1.2, context)
    assert length.next(16) == 2
