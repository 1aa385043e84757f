"""Spawn and join: wire texts to the byte, results in the order of the calls, caps that hold, and books that close however it ends."""

import asyncio
import json
import random

import pytest

from langchain_pareto import ChatPareto
from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.characters import END, CharacterTokenizer
from langchain_pareto.backends.script import Line
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget, Cost
from langchain_pareto.errors import NumericalError, SettingError
from langchain_pareto.ledger import Account
from langchain_pareto.strategies import SpawnJoin, Vote, parse_strategy
from langchain_pareto.strategies.answers import AnswerFormat
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.spawn_grammar import SpawnCall, SubSearches, TaskList

SOON = 10  # seconds; a guard against hangs

QUESTION = "Moving to Node #0\nCurrent State: 27:[22, 26, 31, 53], Operations: []"
BEFORE = """
Exploring Operation: 53-22=31, Resulting Numbers: [26, 31, 31]
Generated Node #0,0: 27:[26, 31, 31] Operation: 53-22=31
Exploring Operation: 53-31=22, Resulting Numbers: [22, 26, 22]
Generated Node #0,1: 27:[22, 26, 22] Operation: 53-31=22
"""
SPAWN = """<Calling Sub Searches>
<Start Sub Search 0 at level 1> Moving to Node #0,0
<Start Sub Search 1 at level 1> Moving to Node #0,1
<End Calling Sub Searches>
"""
CHILDREN = (
    "Moving to Node #0,0\nCurrent State: 27:[26, 31, 31], Operations: ['53-22=31']",
    "Moving to Node #0,1\nCurrent State: 27:[22, 26, 22], Operations: ['53-31=22']",
)
LOST = "\nExploring Operation: 26+31=57, Resulting Numbers: [31, 57]\nNo solution found.\n"
PATH = """Moving to Node #0,1
Current State: 27:[22, 26, 22], Operations: ['53-31=22']
Exploring Operation: 22/22=1, Resulting Numbers: [26, 1]
Generated Node #0,1,0: 27:[26, 1] Operation: 22/22=1
Moving to Node #0,1,0
Current State: 27:[26, 1], Operations: ['53-31=22', '22/22=1']
Exploring Operation: 26+1=27, Resulting Numbers: [27]
27,27 equal: Goal Reached"""
FOUND = (
    f"\nExploring Operation: 26+1=27, Resulting Numbers: [27]\n27,27 equal: Goal Reached\n{PATH}\n"
)
JOINED = f"""<Sub Searches>
<No Solution in Sub Search 0 at level 1 at Node #0,0>
<Goal Reached in Sub Search 1 at level 1 at Node #0,1>
{PATH}
<End Sub Searches>
"""
AFTER = "27,27 equal: Goal Reached\nthe whole path\n27,27 equal: Goal Reached\n"

TASKS = TaskList(
    spawn="[do]",
    end="[done]",
    results="[results]",
    prompt="{question} | {task}",
    found="{task}: {result}\n",
    missing="{task}: nothing\n",
    joined="[results]\n{results}[end]\n",
)


def says(**lines):
    """Says the line of the longest key that the text so far ends with; of a tuple, the next one each time."""
    left = {end: list(line) if isinstance(line, tuple) else line for end, line in lines.items()}

    def say(text, _):
        end = max((end for end in left if text.endswith(end)), key=len)
        line = left[end]
        return line.pop(0) if isinstance(line, list) else line

    return say


def backend_of(lines, **options) -> ScriptedBackend:
    return ScriptedBackend(says(**lines), **options)


async def ask(strategy, backend, budget=None, question="q", seed=0, **settings):
    """One run; however it ends, the books are closed and nothing stays behind."""
    account = Account(Budget.parse(budget) if budget else None)
    try:
        outcome = await run(
            strategy,
            backend,
            question,
            question=question,
            account=account,
            settings=Settings(Sampling(), **settings),
            seed=seed,
        )
    finally:
        assert account.reserved == Cost()
        assert account.spent.tokens == backend.meter.new_tokens
        assert account.spent.flops == backend.meter.flops
        assert account.spent.memory == 0
        assert account.budget.limits().hold(account.spent)
        assert (backend.branches, backend.live) == (0, [])
    assert outcome.spent.tokens == account.spent.tokens == outcome.usage.new_tokens
    assert outcome.spent.flops == account.spent.flops
    drawn = [t for t in outcome.thoughts if not t.given]
    assert sum(len(t.tokens) for t in drawn) == outcome.spent.tokens
    if outcome.answer is not None and outcome.answer.figures:
        figures = outcome.answer.figures
        assert figures["total_tokens"] == outcome.spent.tokens
        assert figures["sequential_tokens"] <= figures["total_tokens"]
    return outcome


async def until(condition) -> None:
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0)


def prompts(backend) -> list[str]:
    """What stood before each draw, in the order of starting."""
    decode = backend.tokenizer.decode
    return [decode(task.branch.tokens[: -task.usage.new_tokens]) for task in backend.draws]


# --- the published wire format

PUBLISHED = {
    QUESTION: BEFORE + SPAWN,
    "<Calling Sub Searches>": SPAWN.removeprefix("<Calling Sub Searches>"),
    CHILDREN[0]: LOST,
    CHILDREN[1]: FOUND,
    "<End Sub Searches>\n": AFTER,
}
APR = SpawnJoin(grammar=SubSearches())


async def test_the_published_wire_format_byte_for_byte():
    """The children see their node's state alone, the parent its own text with the results instead of the spawn."""
    backend = backend_of(PUBLISHED)
    pattern = AnswerFormat(pattern=r"(?s).*Goal Reached\n(.*Goal Reached)")
    outcome = await ask(APR, backend, question=QUESTION, answers=pattern)
    assert prompts(backend) == [
        QUESTION,
        QUESTION + BEFORE + "<Calling Sub Searches>",
        *CHILDREN,
        QUESTION + BEFORE + JOINED,
    ]
    thought = outcome.answer.thought
    assert thought.whole_text == BEFORE + JOINED + AFTER
    assert thought.answer == "the whole path\n27,27 equal: Goal Reached"
    assert outcome.stopped_by == "done"


async def test_the_trace_is_a_tree_of_what_was_drawn_and_what_was_given():
    """Texts of a path join to its context; what the host wrote has tokens that nobody sampled, and no finish."""
    outcome = await ask(APR, backend_of(PUBLISHED), question=QUESTION)
    seen = [(t.number, t.parent.number, t.given, t.aside, t.finish) for t in outcome.thoughts]
    assert seen == [
        (1, 0, False, False, "step"),
        (2, 1, True, False, None),
        (3, 2, False, False, "step"),
        (4, 0, False, True, "eos"),
        (5, 0, False, True, "eos"),
        (6, 1, True, False, None),
        (7, 6, False, False, "eos"),
    ]
    given = {t.number: t.text for t in outcome.thoughts if t.given}
    assert given == {2: "<Calling Sub Searches>", 6: JOINED}
    assert outcome.answer.thought.length == len(BEFORE + "<Calling Sub Searches>" + AFTER) + 1
    assert outcome.answer.thought.mean_logprob == -1.0


async def test_sequential_tokens_are_the_longest_chain():
    """The parent's own, and of each spawn the longest child's; in total all that was drawn."""
    outcome = await ask(APR, backend_of(PUBLISHED), question=QUESTION)
    own = len(BEFORE + SPAWN.rstrip() + AFTER) + 1
    lost, found = len(LOST) + 1, len(FOUND) + 1
    assert outcome.answer.figures == {
        "sequential_tokens": own + max(lost, found),
        "total_tokens": own + lost + found,
        "children": 2,
        "spawns": 1,
    }


async def test_what_the_parent_has_read_is_not_computed_again():
    """Of the join only the results are prefill: each token of the parent's context is charged once."""
    outcome = await ask(APR, backend_of(PUBLISHED), question=QUESTION)
    last = outcome.answer.thought.usage
    assert last.prompt_tokens == len(JOINED)
    everything = len(QUESTION + "<Calling Sub Searches>" + JOINED) + sum(map(len, CHILDREN))
    assert outcome.usage.prompt_tokens == everything
    assert outcome.cache_read == 0


async def test_a_model_that_writes_results_by_itself_is_made_to_spawn():
    """`<Sub Searches>` becomes `<Calling Sub Searches>`, and the model goes on from there."""
    lines = PUBLISHED | {QUESTION: BEFORE + "<Sub Searches>\n<Goal Reached in Sub Search 0"}
    backend = backend_of(lines)
    outcome = await ask(APR, backend, question=QUESTION)
    assert prompts(backend)[1:] == [
        QUESTION + BEFORE + "<Calling Sub Searches>",
        *CHILDREN,
        QUESTION + BEFORE + JOINED,
    ]
    assert outcome.answer.thought.whole_text == BEFORE + JOINED + AFTER


async def test_results_begun_within_a_spawn_begin_it_anew():
    """The last list of calls counts."""
    lines = PUBLISHED | {
        "<Calling Sub Searches>": (
            "\n<Start Sub Search 0 at level 1> Moving to Node #0,0\n<Sub Searches>",
            SPAWN.removeprefix("<Calling Sub Searches>"),
        )
    }
    backend = backend_of(lines)
    outcome = await ask(APR, backend, question=QUESTION)
    assert outcome.answer.thought.whole_text == BEFORE + JOINED + AFTER
    assert outcome.answer.figures["children"] == 2


async def test_the_number_of_children_may_be_asked_for():
    """The paper's condition stands before the parent's prompt, and before no child's."""
    told = {
        f"Sub Call Budget: 2 {QUESTION}" if k == QUESTION else k: v for k, v in PUBLISHED.items()
    }
    backend = backend_of(told)
    outcome = await ask(SpawnJoin(grammar=SubSearches(), sub_calls=2), backend, question=QUESTION)
    seen = prompts(backend)
    assert seen[0] == f"Sub Call Budget: 2 {QUESTION}"
    assert seen[2:] == [*CHILDREN, f"Sub Call Budget: 2 {QUESTION}{BEFORE}{JOINED}"]
    assert outcome.answer.thought.whole_text == BEFORE + JOINED + AFTER


def test_operations_add_up_along_the_path_to_a_node():
    """A node that was moved to says its state itself; an unknown one can be asked nothing."""
    text = (
        BEFORE + "Moving to Node #0,1\nCurrent State: 27:[22, 26, 22], Operations: ['53-31=22']\n"
        "Generated Node #0,1,0: 27:[26, 1] Operation: 22/22=1\n"
        "Generated Node #0,7,0: 27:[26, 1] Operation: 22/22=1\n"
    )
    block = "\n".join(
        f"<Start Sub Search {i} at level 1> Moving to Node {node}"
        for i, node in enumerate(("#0,1,0", "#0", "#0,7,0", "#9"))
    )
    assert SubSearches().calls(QUESTION, text, block) == [
        SpawnCall(
            "#0,1,0",
            "Moving to Node #0,1,0\nCurrent State: 27:[26, 1], Operations: ['53-31=22', '22/22=1']",
        ),
        SpawnCall("#0", QUESTION),
        SpawnCall("#0,7,0", None),
        SpawnCall("#9", None),
    ]


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("", None),
        ("27,27 equal: Goal Reached\n", None),
        ("Goal Reached\npath\nGoal Reached\n\n", "path\nGoal Reached"),
        ("Goal Reached\na Goal Reached\nb\nGoal Reached", "b\nGoal Reached"),
    ],
)
def test_a_child_gives_back_the_path_that_it_restates(text, result):
    """From the last but one goal to the end; a goal that is not restated is none."""
    assert SubSearches().result(text) == result


# --- lists of tasks


async def test_results_are_in_the_order_of_the_calls_whoever_ends_first():
    """Children run side by side, and the last may be the first to end."""
    backend = backend_of(
        {
            "q": "[do]",
            "[do]": "a\nb\nc[done]",
            "a": "A",
            "b": "B",
            "c": "C",
            "[end]\n": "Answer: 1",
        },
        manual=True,
    )
    running = asyncio.create_task(ask(SpawnJoin(grammar=TASKS), backend))
    for i in (0, 1):
        await until(lambda i=i: len(backend.draws) == i + 1)
        backend.finish(i)
    await until(lambda: len(backend.draws) == 5)
    for i in (4, 2, 3):
        backend.finish(i)
    await until(lambda: len(backend.draws) == 6)
    backend.finish(5)
    outcome = await running
    assert outcome.answer.thought.whole_text == "[results]\na: A\nb: B\nc: C\n[end]\nAnswer: 1"
    assert outcome.answer.thought.answer == "1"


async def test_duplicate_children_are_kept_apart():
    """Two children with one prompt draw each for itself, and each result stands in its own place."""
    backend = backend_of(
        {"q": "[do]", "[do]": "a\nb\na[done]", "a": ("first", "second"), "b": "B", "[end]\n": "x"}
    )
    outcome = await ask(SpawnJoin(grammar=TASKS), backend)
    assert "a: first\nb: B\na: second\n" in outcome.answer.thought.whole_text
    keys = [task.branch.key for task in backend.draws]
    assert len(set(keys)) == len(keys)


async def test_a_thread_may_spawn_again_and_again():
    """Each join becomes text of the thread, on which the next spawn builds."""
    lines = {
        "q": "one [do]",
        "[do]": ("a[done]", "b[done]"),
        "a": "A",
        "b": "BBB",
        "a: A\n[end]\n": "two [do]",
        "b: BBB\n[end]\n": "Answer: 2",
    }
    outcome = await ask(SpawnJoin(grammar=TASKS), backend_of(lines))
    assert outcome.answer.thought.whole_text == (
        "one [results]\na: A\n[end]\ntwo [results]\nb: BBB\n[end]\nAnswer: 2"
    )
    assert outcome.answer.figures["spawns"] == 2
    assert outcome.answer.figures["total_tokens"] == outcome.answer.figures["sequential_tokens"]


async def test_children_may_spawn_down_to_the_depth():
    """A child's spawn is run where `depth` allows, and else has found nothing; the chain goes through all levels."""
    lines = {
        "q": "[do]",
        "[do]": ("a\nb[done]", "c[done]"),
        "q | a": "A",
        "q | b": "[do]",
        "q | b | c": "C" * 50,
        "[end]\n": ("B", "Answer: 3"),
    }
    outcome = await ask(SpawnJoin(grammar=TASKS, depth=2), backend_of(lines))
    [deep] = [t for t in outcome.thoughts if t.text == "C" * 50]
    assert deep.aside
    inner = "[results]\nc: " + "C" * 50 + "\n[end]\nB"
    assert outcome.answer.thought.whole_text == f"[results]\na: A\nb: {inner}\n[end]\nAnswer: 3"
    own = len("[do]" + "a\nb[done]" + "Answer: 3") + 1
    child = len("[do]" + "c[done]" + "B") + 1
    assert outcome.answer.figures == {
        "sequential_tokens": own + child + 51,
        "total_tokens": own + child + 51 + 2,
        "children": 3,
        "spawns": 2,
    }
    outcome = await ask(SpawnJoin(grammar=TASKS), backend_of(lines))
    assert "b: [results]\nc: nothing\n[end]\nB" in outcome.answer.thought.whole_text
    assert outcome.answer.figures["children"] == 2


async def test_a_blank_task_is_not_run_and_has_found_nothing():
    """A pattern may match an item of a list that the model left empty."""
    grammar = TASKS.model_copy(update={"task": r"(?m)^- (.*)$", "prompt": "{task}"})
    lines = {"q": "[do]", "[do]": "- a\n- \n-  \n[done]", "a": "A", "[end]\n": "x"}
    outcome = await ask(SpawnJoin(grammar=grammar), backend_of(lines))
    assert outcome.answer.thought.whole_text == ("[results]\na: A\n: nothing\n : nothing\n[end]\nx")
    assert outcome.answer.figures["children"] == 1


async def test_a_spawn_without_any_task_is_joined_with_nothing():
    """The thread goes on."""
    outcome = await ask(
        SpawnJoin(grammar=TASKS), backend_of({"q": "[do]", "[do]": "\n[done]", "[end]\n": "x"})
    )
    assert outcome.answer.thought.whole_text == "[results]\n[end]\nx"


async def test_a_thread_that_never_spawns_is_one_sample():
    """The mark of a spawn's end means nothing by itself."""
    outcome = await ask(SpawnJoin(grammar=TASKS), backend_of({"q": "so [done] Answer: 4"}))
    [thought] = outcome.thoughts
    assert (thought.answer, thought.whole_text) == ("4", "so [done] Answer: 4")
    assert outcome.answer.figures["children"] == 0


class Marked(CharacterTokenizer):
    """Two marks are special tokens, as those of the nano family: no text shows them, but the script's."""

    marks = (("<|spawn|>", "\ue000"), ("<|join|>", "\ue001"))
    special_tokens = frozenset({END, 0xE000, 0xE001})

    def encode(self, text):
        for mark, token in self.marks:
            text = text.replace(mark, token)
        return super().encode(text)

    def piece(self, token):
        return b"" if token in self.special_tokens else super().piece(token)

    def decode(self, tokens):
        return "".join(chr(token) for token in tokens if token != END)


async def test_marks_may_be_special_tokens():
    """The default grammar is the nano family's: its marks are in the contexts and in no text."""
    spawn, join = "\ue000", "\ue001"
    lines = {
        "q": f"first {spawn}",
        f"{spawn}": f"a\nb\n{join}",
        "a": "A",
        "b": "",
        f"A\n{join}b\n{join}": "Answer: 5",
    }
    backend = backend_of(lines)
    backend.tokenizer = Marked()
    outcome = await ask(SpawnJoin(), backend)
    assert outcome.answer.thought.whole_text == "first a\nA\nb\nAnswer: 5"
    assert outcome.answer.thought.answer == "5"
    assert prompts(backend)[1:] == [
        f"qfirst {spawn}",
        "a",
        "b",
        f"qfirst {spawn}a\nA\n{join}b\n{join}",
    ]


# --- caps


async def test_children_beyond_the_cap_have_found_nothing():
    """They are not run, and the join says so."""
    lines = {"q": "[do]", "[do]": "a\nb\nc[done]", "a": "A", "b": "B", "[end]\n": "x"}
    outcome = await ask(SpawnJoin(grammar=TASKS, children=2), backend_of(lines))
    assert "a: A\nb: B\nc: nothing\n" in outcome.answer.thought.whole_text
    assert outcome.answer.figures["children"] == 2


async def test_spawns_beyond_the_rounds_have_found_nothing():
    """The thread may still end by itself; one that spawns for ever ends with its tokens."""
    lines = {"q": "[do]", "[do]": "a[done]", "a": "A", "[end]\n": ("[do]", "[do]", "Answer: 1")}
    outcome = await ask(SpawnJoin(grammar=TASKS, rounds=1), backend_of(lines))
    assert outcome.answer.figures == {
        "sequential_tokens": outcome.spent.tokens,
        "total_tokens": outcome.spent.tokens,
        "children": 1,
        "spawns": 3,
    }
    assert outcome.answer.thought.whole_text.count("a: nothing") == 2
    endless = lines | {"[end]\n": "[do]"}
    outcome = await ask(SpawnJoin(grammar=TASKS, thread_tokens=100), backend_of(endless))
    own = sum(len(t.tokens) for t in outcome.thoughts if not t.given and not t.aside)
    assert own == 100
    assert outcome.answer.thought.answer is None


@pytest.mark.parametrize("nothing", [{"joined": ""}, {"joined": "{results}", "missing": ""}])
async def test_a_spawn_that_leaves_nothing_ends_the_thread_once_its_rounds_are_spent(nothing):
    """It would be where it was before, and spawn for ever."""
    lines = {"q": "[do]", "[do]": "a[done]", "a": "A", "a: A\n": "[do]"}
    grammar = TASKS.model_copy(update={"results": None, **nothing})
    async with asyncio.timeout(SOON):
        outcome = await ask(SpawnJoin(grammar=grammar, rounds=2), backend_of(lines))
    assert outcome.answer.figures["spawns"] == 3
    assert outcome.answer.figures["children"] == 2


async def test_children_are_as_long_as_the_call_says_and_have_stops_of_their_own():
    """A child is a thread of the same model; what ends an answer is no end of its marks."""
    lines = {"q": "[do]", "[do]": "a[done]", "a": "A\nB" + "b" * 90, "[end]\n": "Answer: 1"}
    outcome = await ask(SpawnJoin(grammar=TASKS), backend_of(lines), max_tokens=40, stop=("B",))
    [child] = [t for t in outcome.thoughts if t.aside]
    assert (child.text, child.finish) == (("A\nB" + "b" * 90)[:40], "length")


async def test_a_thread_ends_with_its_tokens():
    """Each thread has as many, what it spent on spawns included; what was cut off has found nothing."""
    lines = {
        "q": "1234567[do]",  # 11 tokens
        "[do]": "a\nb[done]",  # 9
        "a": Line("A", ends=False),
        "b": "B",
        "[end]\n": Line("on", ends=False),
    }
    outcome = await ask(SpawnJoin(grammar=TASKS, thread_tokens=25), backend_of(lines))
    assert outcome.answer.thought.whole_text == "1234567[results]\na: nothing\nb: B\n[end]\nonono"
    assert [len(t.tokens) for t in outcome.thoughts if t.aside] == [25, 2]
    assert not outcome.answer.thought.finished
    assert outcome.stopped_by == "length"
    again = await ask(SpawnJoin(grammar=TASKS), backend_of(lines), max_tokens=25)
    assert again.answer.thought.whole_text == outcome.answer.thought.whole_text


async def test_all_threads_together_have_so_many_tokens():
    """The cap holds to the token, and what did not fit is cut off or not run."""
    lines = {
        "q": "[do]",
        "[do]": "a\nb[done]",
        "a": Line("A", ends=False),
        "b": "B",
        "[end]\n": "x",
    }
    for total in range(1, 60):
        outcome = await ask(SpawnJoin(grammar=TASKS, total_tokens=total), backend_of(lines))
        assert outcome.spent.tokens <= total
        assert outcome.stopped_by == "tokens"
    assert [len(t.tokens) for t in outcome.thoughts if t.aside] == [15, 2]
    assert outcome.answer.thought.whole_text == "[results]\na: nothing\nb: B\n[end]\nx"


# --- budgets and failures


async def test_under_a_budget_children_run_side_by_side_and_leave_something_to_the_parent():
    """Each may take an equal share of what is left, so that nobody waits for another's lease."""
    lines = {"q": "[do]", "[do]": "a\nb\nc[done]", "[end]\n": "x"}
    lines |= {c: Line(c.upper(), ends=False) for c in "abc"}
    backend = backend_of(lines, manual=True)
    running = asyncio.create_task(ask(SpawnJoin(grammar=TASKS), backend, 415))
    for i in (0, 1):
        await until(lambda i=i: len(backend.draws) == i + 1)
        backend.finish(i)
    await until(lambda: len(backend.draws) == 5)
    assert [task.asked[1].max_tokens for task in backend.draws[2:]] == [100] * 3
    for i in (2, 3, 4):
        backend.finish(i)
    await until(lambda: len(backend.draws) == 6)
    assert backend.draws[5].asked[1].max_tokens == 100
    backend.finish(5)
    outcome = await running
    assert outcome.answer.thought.finished
    assert outcome.stopped_by == "tokens"


@pytest.mark.parametrize("tokens", range(1, 60))
async def test_whatever_the_budget_there_is_an_answer(tokens):
    """The best so far: of a spawn that was cut off too, marked as cut off; everything is paid."""
    lines = {"q": "so [do]", "[do]": "a\nb[done]", "a": "A", "b": "BBB", "[end]\n": "Answer: 1"}
    outcome = await ask(SpawnJoin(grammar=TASKS), backend_of(lines), tokens)
    thought = outcome.answer.thought
    assert not thought.given
    assert not thought.aside
    assert thought.finished == (outcome.stopped_by == "done")
    if not thought.finished:
        assert thought.answer is None
    if tokens < len("so [do]"):
        assert "so [do]".startswith(thought.whole_text)
    elif tokens < len("so [do]a\nb[done]"):
        assert "so [do]a\nb[done]".startswith(thought.whole_text)


async def test_a_child_that_fails_fails_the_strategy():
    """Its error comes out as it is, and its siblings are cancelled."""
    error = NumericalError("no")
    lines = {"q": "[do]", "[do]": "a\nb[done]", "a": error, "b": "B"}
    backend = backend_of(lines, manual=True)
    running = asyncio.create_task(ask(SpawnJoin(grammar=TASKS), backend))
    for i in (0, 1):
        await until(lambda i=i: len(backend.draws) == i + 1)
        backend.finish(i)
    await until(lambda: len(backend.draws) == 4)
    backend.step()
    with pytest.raises(NumericalError) as caught:
        await running
    assert caught.value is error


@pytest.mark.parametrize("draws", [1, 2, 3, 4])
async def test_cancelling_ends_every_thread(draws):
    """Whatever is in flight ends within a step, and is paid for."""
    lines = {"q": "[do]", "[do]": "a\nb[done]", "a": "A", "b": "B", "[end]\n": "x"}
    backend = backend_of(lines, manual=True)
    running = asyncio.create_task(ask(SpawnJoin(grammar=TASKS), backend))
    for i in range(draws - 1):
        await until(lambda i=i: len(backend.draws) > i)
        if i < 2:
            backend.finish(i)
    await until(lambda: len(backend.draws) >= draws)
    backend.step()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_at_the_deadline_the_thread_returns_what_it_has():
    """Children that are not done have found nothing, and the parent is cut off where it stands."""
    lines = {"q": "so [do]", "[do]": "a\nb[done]", "a": Line("A", ends=False), "b": "B"}
    backend = backend_of(lines, delay=0.001)
    outcome = await ask(SpawnJoin(grammar=TASKS), backend, "0.2s")
    backend.close()
    assert outcome.stopped_by == "seconds"
    assert outcome.answer.thought.whole_text == "so "


async def test_a_context_that_is_full_ends_the_thread():
    """Results that have no place in it are not joined; what was written before the spawn is the answer."""
    lines = {"q": "so [do]", "[do]": "a[done]", "a": "A" * 70, "[end]\n": "x"}
    outcome = await ask(SpawnJoin(grammar=TASKS), backend_of(lines, context_length=80))
    assert outcome.answer.thought.whole_text == "so "
    assert (outcome.answer.thought.finished, outcome.stopped_by) == (False, "done")


async def test_the_same_seed_gives_the_same_trace():
    """Texts, parents and keys."""

    def trace(outcome, backend):
        thoughts = [(t.number, t.parent.number, t.text, t.finish) for t in outcome.thoughts]
        return thoughts, [task.branch.key for task in backend.draws]

    traces = []
    for seed in (1, 1, 2):
        backend = backend_of(PUBLISHED)
        traces.append(trace(await ask(APR, backend, question=QUESTION, seed=seed), backend))
    assert traces[0] == traces[1]
    assert traces[0][0] == traces[2][0]
    assert traces[0][1] != traces[2][1]


async def test_any_grammar_of_spawns_closes_its_books():
    """Random threads, caps and budgets: nothing leaked, nothing unpaid, the chain never longer than the whole."""
    rng = random.Random(0)
    pieces = ["[do]", "[done]", "[results]", "a", "b\n", "Answer: 1", "\n", "word "]

    def say(text, i):
        words = "".join(rng.choice(pieces) for _ in range(rng.randint(0, 6)))
        return Line(words, ends=rng.random() < 0.9)

    for _ in range(150):
        strategy = SpawnJoin(
            grammar=TASKS,
            children=rng.randint(1, 3),
            rounds=rng.randint(1, 3),
            depth=rng.randint(1, 3),
            thread_tokens=rng.choice([None, 5, 40]),
            total_tokens=rng.choice([None, 7, 100]),
            sub_calls=rng.choice([None, 2]),
        )
        budget = rng.choice([None, "30 tokens", "200 tokens", "2 Mflops", "3000 B"])
        outcome = await ask(strategy, ScriptedBackend(say, context_length=400), budget)
        if strategy.total_tokens is not None:
            assert outcome.spent.tokens <= strategy.total_tokens


async def test_spawning_nests_in_other_strategies():
    """A vote over threads counts the answers of those that came to their end."""
    lines = {"q": "[do]", "[do]": "a\nb[done]", "a": "A", "b": "B", "[end]\n": "Answer: 1"}
    outcome = await ask(Vote(n=3, adaptive=False, of=SpawnJoin(grammar=TASKS)), backend_of(lines))
    assert (outcome.answer.thought.answer, outcome.answer.share) == ("1", 1.0)


@pytest.mark.parametrize("strategy", [APR, SpawnJoin(), SpawnJoin(grammar=TASKS, depth=2)])
def test_the_grammar_goes_through_json_and_back(strategy):
    """It is part of the settings."""
    assert parse_strategy(strategy.model_dump_json()) == strategy


@pytest.mark.parametrize(
    "grammar",
    [{"kind": "x"}, {"kind": "task_list", "task": "("}, {"kind": "task_list", "find": "x"}],
)
def test_a_mistake_in_a_grammar_is_named(grammar):
    """An unknown kind, no regular expression, no group."""
    with pytest.raises(SettingError, match="grammar"):
        parse_strategy({"kind": "spawn_join", "grammar": grammar})


def test_the_report_has_the_figures():
    """They are in the answer's metadata, and what the host wrote is no sample."""
    lines = {"q\n": "[do]", "a\n": "A", "b\n": "B"}  # a prompt without a template is a line
    backend = backend_of({**lines, "[do]": "a\nb[done]", "[end]\n": "Answer: 1"})
    llm = ChatPareto(backend=backend, strategy=SpawnJoin(grammar=TASKS), temperature=0)
    message = llm.invoke("q")
    report = message.response_metadata["pareto"]
    assert (report["answer"], report["samples"]) == ("1", 5)
    assert report["figures"]["total_tokens"] == message.usage_metadata["output_tokens"]
    assert json.loads(json.dumps(report)) == report
    assert backend.draws[0].asked[0].temperature == 0
