"""The scripted backend keeps the protocol: what holds here holds of the engine too."""

import subprocess
import sys
import threading
import time

import pytest

from langchain_pareto.backends.base import Request, Sampling, Stop, Usage
from langchain_pareto.backends.characters import END
from langchain_pareto.backends.script import LOGPROB, Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.errors import (
    CapabilityError,
    ContextLengthError,
    EngineClosedError,
    NumericalError,
    SequenceError,
    SettingError,
)

DRAWS = Sampling()
LONG = Stop(100)


def drawn(backend, branch, stop=LONG, **options):
    """One extension of a fork."""
    [fork] = branch.fork()
    return backend.extend(fork, DRAWS, stop, **options).future.result(10)


def texts(tokens):
    return "".join(map(chr, (t for t in tokens if t != END)))


# --- what is said


def test_draws_below_a_root_say_the_answers_in_turn():
    """Draw i says answers[i % n], whichever branch it continues, and each root starts over."""
    backend = ScriptedBackend(["one", "two"])
    first, second = backend.open("q"), backend.open("q")
    assert [drawn(backend, first).text for _ in range(3)] == ["one", "two", "one"]
    assert drawn(backend, second).text == "one"


def test_a_function_gets_the_text_so_far_and_the_number():
    """The text includes what earlier extensions of the same branch said."""
    backend = ScriptedBackend(lambda text, i: f"[{text}{i}]")
    branch = backend.open("q")
    for expected in ("[q0]", "[q[q0]1]"):
        assert backend.extend(branch, DRAWS, LONG).future.result().text == expected


def test_tokens_are_characters_and_an_end():
    """Tokens join to the text; the end-of-text token is drawn, counted, and adds no text."""
    backend = ScriptedBackend(["größer 🐈"])
    branch = backend.open("q")
    out = backend.extend(branch, DRAWS, LONG).future.result()
    assert (out.text, out.finish, out.stop) == ("größer 🐈", "eos", None)
    assert out.tokens == [*map(ord, "größer 🐈"), END]
    assert list(branch.tokens) == [ord("q"), *out.tokens]
    assert backend.tokenizer.decode(branch.tokens) == "qgrößer 🐈"
    assert out.usage.new_tokens == 9


def test_the_end_does_not_end_where_it_is_not_asked_to():
    """With `eos=False` the end is one more token without text."""
    backend = ScriptedBackend(["ab"])
    out = drawn(backend, backend.open("q"), Stop(4, eos=False))
    assert (out.text, out.tokens, out.finish) == ("ab", [97, 98, END, END], "length")


@pytest.mark.parametrize("n", [1, 2, 3])
def test_max_tokens_cut(n):
    """A draw of n tokens has n characters, and says that it was cut."""
    backend = ScriptedBackend(["abcdef"])
    out = drawn(backend, backend.open("q"), Stop(n))
    assert (out.text, out.finish) == ("abcdef"[:n], "length")


def test_a_line_without_an_end_goes_on():
    """A runaway starts over until it is cut off, an empty one says spaces."""
    backend = ScriptedBackend([Line("ab", ends=False), Line("", ends=False)])
    root = backend.open("q")
    assert drawn(backend, root, Stop(5)).text == "ababa"
    assert drawn(backend, root, Stop(3)).text == "   "


def test_stop_strings_cut_or_stay():
    """A stop cuts the text before it, or after its token with `keep`; its tokens stay in the branch either way."""
    backend = ScriptedBackend(["a\nb"])
    root = backend.open("q")
    for keep, text in ((False, "a"), (True, "a\n")):
        out = drawn(backend, root, Stop(9, ("\n",), keep=keep))
        assert (out.text, out.finish, out.stop, texts(out.tokens)) == (text, "stop", "\n", "a\n")


def test_stop_tokens():
    """A named token ends the draw as a stop."""
    backend = ScriptedBackend(["abc"])
    out = drawn(backend, backend.open("q"), Stop(9, tokens=frozenset({98})))
    assert (out.tokens, out.finish) == ([97, 98], "stop")


def test_log_probabilities():
    """Each token has its line's log-probability, and only if asked for."""
    backend = ScriptedBackend(["ab", Line("c", logprob=-0.25)])
    root = backend.open("q")
    assert drawn(backend, root, stats=True).logprobs == [LOGPROB] * 3
    out = drawn(backend, root, stats=True)
    assert (out.logprobs, out.entropies, out.top_logprobs) == ([-0.25] * 2, [0.25] * 2, [-0.25] * 2)
    assert drawn(backend, root).logprobs == []


def test_text_is_told_as_it_comes():
    """`on_text` hears the pieces of exactly the final text, and its error fails the draw."""
    backend, heard = ScriptedBackend(["a b\nc"]), []
    root = backend.open("q")
    out = drawn(backend, root, Stop(9, ("\n",)), on_text=heard.append)
    assert (heard, out.text) == (["a", " ", "b"], "a b")
    with pytest.raises(ZeroDivisionError):
        drawn(backend, root, on_text=lambda _: 1 / 0)


def test_an_exception_fails_its_draw_alone():
    """The future raises the very object; the step that failed was computed, and nothing was drawn."""
    error = NumericalError("no")
    backend = ScriptedBackend([error, "fine"])
    root = backend.open("q")
    [fork] = root.fork()
    task = backend.extend(fork, DRAWS, LONG)
    assert task.future.exception() is error
    assert task.usage.flops > 0
    assert task.usage.new_tokens == 0
    assert drawn(backend, root).text == "fine"
    assert fork.fork() != []  # no longer busy


# --- what is refused


def test_mistakes_are_named():
    """Empty prompts, long ones, freed, busy and foreign branches, and what it cannot do."""
    backend = ScriptedBackend(["abc"], context_length=5, manual=True)
    with pytest.raises(SettingError):
        backend.open("")
    with pytest.raises(SettingError):
        backend.open([END + 1])
    with pytest.raises(SettingError):
        backend.open("\ud800")
    with pytest.raises(ContextLengthError):
        backend.open("123456")
    full = backend.open("12345")
    with pytest.raises(ContextLengthError):
        backend.extend(full, DRAWS, LONG)
    with pytest.raises(ContextLengthError):
        full.append([1])
    with pytest.raises(SettingError):
        backend.extend(full, DRAWS, Stop(0))
    with pytest.raises(CapabilityError):
        backend.extend(full, DRAWS, LONG, constraint=object())
    with pytest.raises(SettingError):
        backend.score(full, [[]])
    with pytest.raises(SequenceError):
        ScriptedBackend(["a"]).extend(full, DRAWS, LONG)
    busy = backend.open("q")
    backend.extend(busy, DRAWS, LONG)
    for refused in (busy.fork, lambda: busy.append([1]), lambda: busy.truncate(1)):
        with pytest.raises(SequenceError):
            refused()
    full.free()
    with pytest.raises(SequenceError):
        full.fork()


@pytest.mark.parametrize("answers", [[], "text"])
def test_answers_are_a_list(answers):
    """A bare string is a mistake, not a list of characters."""
    with pytest.raises(SettingError):
        ScriptedBackend(answers)
    with pytest.raises(SettingError):
        ScriptedBackend(["a"], manual=True, delay=0.1)


def test_a_context_that_fills_up_ends_the_draw():
    """`max_tokens` is clamped to what the context has left."""
    backend = ScriptedBackend(["abcdef"], context_length=4)
    out = drawn(backend, backend.open("q"))
    assert (out.text, out.finish) == ("abc", "length")


# --- what it costs


def test_a_prefix_is_charged_once_a_tree():
    """The first to compute the prompt pays for it; its relatives pay for the pending token."""
    backend = ScriptedBackend(["ab"])
    root = backend.open("12345")
    before = root.fork(2)
    assert backend.prefill(root).future.result() is True
    assert backend.meter.prompt_tokens == 4
    usages = [backend.extend(b, DRAWS, LONG).usage for b in (*before, *root.fork())]
    assert [u.prompt_tokens for u in usages] == [1, 1, 1]
    assert [u.new_tokens for u in usages] == [3, 3, 3]
    again = backend.prefill(root)
    assert again.usage.forward_tokens == 1  # the row that it asks for, as the engine charges it


def test_the_worst_case_is_what_a_draw_of_full_length_takes():
    """An estimate equals the meter when all of max_tokens are drawn, with and without a computed prompt."""
    backend = ScriptedBackend([Line("x", ends=False)])
    root = backend.open("12345")
    for context, prefill in ((0, 4), (4, 0)):
        [fork] = root.fork()
        usage = backend.extend(fork, DRAWS, Stop(7)).usage
        assert usage.flops == backend.estimate(Request(context, prefill, 1, 7))[0]
    branch = backend.open("12345")
    task = backend.prefill(branch)
    assert task.usage.flops == backend.estimate(Request(0, 3, 1, 1))[0]


def test_the_meter_is_the_sum():
    """Usages of all requests add up to the meter, failed ones included."""
    backend = ScriptedBackend(["ab", NumericalError("no")])
    root = backend.open("123")
    tasks = [backend.extend(b, DRAWS, LONG) for b in root.fork(4)]
    tasks += [backend.score(root, [[1, 2], [3]]), backend.prefill(root)]
    total = sum((t.usage for t in tasks), Usage())
    total.wall_seconds = 0.0
    assert total == backend.meter


def test_score_gives_a_log_probability_a_token():
    """One list a continuation, and the branch stays as it is."""
    backend = ScriptedBackend(["ab"])
    branch = backend.open("123")
    assert backend.score(branch, [[1, 2], [3]]).future.result() == [[LOGPROB] * 2, [LOGPROB]]
    assert backend.score(branch, []).future.result() == []
    assert len(branch.tokens) == 3


def test_branches_are_counted():
    """What was opened and forked is counted until it is freed; a busy branch until it ends."""
    backend = ScriptedBackend(["ab"], manual=True)
    root = backend.open("q")
    forks = root.fork(3)
    assert backend.branches == 4
    backend.extend(forks[0], DRAWS, LONG)
    for branch in (root, *forks, root):
        branch.free()
    assert backend.branches == 1
    backend.finish(0)
    assert backend.branches == 0


def test_keys_are_independent_of_time():
    """A child's key depends on its parent's and its index, a root's on seed and prompt."""
    backend = ScriptedBackend(["a"])
    roots = [backend.open(q, seed=s) for q, s in (("q", 0), ("q", 1), ("r", 0))]
    keys = [b.key for root in roots for b in (root, *root.fork(2))]
    assert len(set(keys)) == 9
    assert [b.key for b in backend.open("q", seed=0).fork(2)] == keys[1:3]


# --- when it is said


def test_by_default_a_request_is_done_before_its_call_returns():
    """No thread, no wait."""
    threads = threading.active_count()
    backend = ScriptedBackend(["a"])
    assert backend.extend(backend.open("q"), DRAWS, LONG).future.done()
    assert threading.active_count() == threads


def test_by_hand_draws_go_in_any_order():
    """`step` advances all that live by a token, `finish` ends one; usage grows as they go."""
    backend = ScriptedBackend(["abc", "defg"], manual=True)
    one, two = (backend.extend(b, DRAWS, LONG) for b in backend.open("q").fork(2))
    backend.step(2)
    assert (one.usage.new_tokens, two.usage.new_tokens) == (2, 2)
    backend.finish(1)
    assert two.future.result().text == "defg"
    assert backend.live == [one]
    backend.finish(0)
    backend.finish(0)
    assert one.future.result().text == "abc"
    assert backend.live == []


def test_by_hand_cancelling_gives_what_there_is():
    """A cancelled draw ends at once with its partial text, and a deadline with the next step."""
    backend = ScriptedBackend(["abc"], manual=True)
    root = backend.open("q")
    cancelled, late = (
        backend.extend(root.fork()[0], DRAWS, LONG),
        backend.extend(root.fork()[0], DRAWS, LONG, deadline=time.monotonic() + 0.02),
    )
    backend.step(2)
    cancelled.cancel()
    out = cancelled.future.result(0)
    assert (out.text, out.finish) == ("ab", "cancelled")
    time.sleep(0.03)
    backend.step()
    out = late.future.result(0)
    assert (out.text, out.finish) == ("ab", "deadline")
    cancelled.cancel()  # too late, and harmless


def test_a_cancelled_prefill_did_not_get_there():
    """A deadline in the past gives False, and costs nothing."""
    backend = ScriptedBackend(["abc"])
    task = backend.prefill(backend.open("qqq"), deadline=time.monotonic() - 1)
    assert task.future.result() is False
    assert task.usage.flops == 0


def test_with_a_delay_draws_overlap():
    """A thread of its own says one token for every live draw a round; short lines end first."""
    with ScriptedBackend(["abcdef", "a"], delay=0.002) as backend:
        long, short = (backend.extend(b, DRAWS, LONG) for b in backend.open("q").fork(2))
        assert short.future.result(10).text == "a"
        assert not long.future.done()
        assert long.future.result(10).text == "abcdef"
        last = backend.extend(backend.open("q"), DRAWS, LONG, deadline=time.monotonic() + 0.005)
        assert last.future.result(10).finish == "deadline"


def test_cancelling_from_another_thread():
    """Cancelling a runaway ends it, with the futures resolved on the backend's thread."""
    with ScriptedBackend([Line("x", ends=False)], delay=0.001, context_length=100_000) as backend:
        names = []
        task = backend.extend(backend.open("q"), DRAWS, Stop(90_000))
        task.future.add_done_callback(lambda _: names.append(threading.current_thread().name))
        time.sleep(0.01)
        task.cancel()
        assert task.future.result(10).finish == "cancelled"
        assert names == ["pareto-scripted"]


@pytest.mark.parametrize("options", [{"manual": True}, {"delay": 30.0}])
def test_closing_ends_what_lives(options):
    """Nobody waits for ever."""
    backend = ScriptedBackend(["abc"], **options)
    branch = backend.open("q")
    task = backend.extend(branch, DRAWS, LONG)
    backend.close()
    backend.close()
    assert isinstance(task.future.exception(10), EngineClosedError)
    with pytest.raises(EngineClosedError):
        backend.extend(branch, DRAWS, LONG)
    branch.free()
    assert backend.branches == 0


def test_it_loads_no_torch():
    """Strategies and their tests stay light."""
    code = "import sys, langchain_pareto.backends.scripted; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
