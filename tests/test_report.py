"""Reports of a search: what they say, what they are made of, and that no text of a model can break them."""

import base64
import hashlib
import io
import json
import random
import re
import tomllib
from html.parser import HTMLParser
from importlib.resources import files
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, HumanMessage, message_to_dict
from rich.console import Console
from typer.testing import CliRunner

from langchain_pareto import ChatPareto, Report, StrategyRunnable, Vote
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.call import Call, respond
from langchain_pareto.cli import app
from langchain_pareto.errors import SettingError
from langchain_pareto.events import describe
from langchain_pareto.reports import words
from langchain_pareto.reports.answers import Ballot
from langchain_pareto.strategies.answers import Exact
from langchain_pareto.strategies.thoughts import Thought

NASTY = [
    "</script><script>alert(1)</script>",
    "</style></pre></details><!-- <![CDATA[",
    "\"' onmouseover=alert(1) x='&lt;&#60;&amp",
    "\x00\x07\x1b[31m\x7f\x85\u202e\u2028\ufeff\ud800\uffff",
    '%%{init: {}}%%\nend]-->t9["`*x*`"]; style t1 fill:#f00;',
    "[bold red]no markup[/] :smile:",
    "汉字 עברית 👩‍👩‍👧 é́́́́",
]
HOSTILE = st.sampled_from(NASTY) | st.text(st.characters(), max_size=40)
TAGS = frozenset(
    "html head meta title link style body main script header section aside figure figcaption div span p h1 h2 h3 em b i a "
    "table thead tbody tr th td details summary pre dl dt dd ul li code footer svg g line rect text".split()
)
VOID = {"meta", "link"}
PICTURES = {chr(0xFFFD), *map(chr, range(0x2400, 0x2422))}  # of what cannot be shown


class Page(HTMLParser):
    """Reads a page as browsers do, and fails where tags do not close in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.ids, self.data = [], [], [], {}
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs) -> None:
        assert tag in TAGS
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        assert not [name for name in names if name.startswith("on")]
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        assert self.open or not data.strip()
        if self.open:
            self.data.setdefault(self.open[-1], []).append(data)

    def handle_comment(self, data) -> None:
        raise AssertionError(data)

    def handle_pi(self, data) -> None:
        raise AssertionError(data)

    def unknown_decl(self, data) -> None:
        raise AssertionError(data)

    def all(self, tag: str, **attributes: str) -> list[dict]:
        """The attributes of all such tags."""
        wanted = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
        return [has for name, has in self.tags if name == tag and wanted.items() <= has.items()]


def node(number: int, parent: int = 0, **values) -> dict:
    told = {"text": f"text {number}", "tokens": 10, "finish": "eos", "chosen": False}
    return {"id": number, "parent": parent, **told, **values}


def run(*nodes: dict, **values) -> dict:
    told = {
        "strategy": {"kind": "vote", "n": 4},
        "spent": {"tokens": 300, "seconds": 1.5, "flops": 2.5e9},
        "stopped_by": "tokens",
        "budget": "300 tokens",
        "answer": None,
    }
    return {**told, "tree": list(nodes), **values}


TREE = run(
    node(1, finish="step", score=0.5),
    node(2, 1, answer="6", chosen=False, score=0.25, tokens=30),
    node(3, 1, finish="step", chosen=True, score=0.75, tokens=20),
    node(4, 3, answer="7", chosen=True, score=0.9, tokens=5, seconds=0.25),
    node(5, finish="length", tokens=40),
    node(6, finish=None, tokens=99),
    node(7, answer="7.0", role="judge"),
    answer="7",
    question="What is 3 + 4?",
    text="It is 7.",
    seed=3,
    decoder={"kind": "plain"},
)


def voted() -> AIMessage:
    """A vote of four over what is said in turn."""
    backend = ScriptedBackend(["Answer: 1", "Answer: 2", "Answer: 2", "?"])
    strategy = Vote(n=4, adaptive=False)
    return StrategyRunnable(strategy, backend, seed=1, budget="90 tokens").invoke("Why?")


# --- what it is made of


def test_an_answer_has_a_report():
    """It tells the answer, the votes, what was spent of what, why it ended, and the tree with its chosen path."""
    told = str(Report.of(voted(), question="Why?"))
    for part in ("Why?", "Answer: 2", "67% of the votes", "90", "ended by itself", "vote of 4"):
        assert part in told
    assert told.count("✓") == 1
    assert "prompt · 4 thoughts" in told


def test_json_in_every_form_is_the_same_report(tmp_path):
    """A message dumped in any way, its metadata, a text, a file, and a report's own JSON."""
    message = voted()
    metadata = message.response_metadata
    want = Report.of(message)
    file = tmp_path / "answer.json"
    file.write_text(message.model_dump_json())
    saved = want.save(tmp_path / "report.json")
    forms = [
        message.model_dump(),
        message.model_dump_json(),
        json.loads(dumps(message)),
        message_to_dict(message),
        file,
        str(file),
        saved,
    ]
    assert [Report.of(form) for form in forms] == [want] * len(forms)
    assert Report.of(metadata).run.tree == Report.of(metadata["pareto"]).run.tree == want.run.tree


async def test_a_reply_knows_more_than_its_message():
    """The question and the time of each draw."""
    backend = ScriptedBackend(["Answer: 1"])
    call = Call(strategy=Vote(n=2, adaptive=False))
    reply = await respond(call, backend, [HumanMessage("Why?")])
    report = Report.of(reply)
    assert report.run.question == "Why?"
    assert len(report.run.tree) == 2
    assert {**report.run.model_dump(), "question": None, "tree": None} == {
        **Report.of(reply.message()).run.model_dump(),
        "question": None,
        "tree": None,
    }


def test_a_row_without_a_tree_has_a_report_too():
    """What `pareto ask --json` prints tells the answer and its cost, and says that there is no tree."""
    row = {**TREE, "usage": {"input_tokens": 12}, "samples": 7}
    del row["tree"]
    report = Report.of(row)
    assert report.run.prompt_tokens == 12
    assert words.NO_TREE in str(report)
    assert words.NO_TREE in Page(report.html()).data["p"]
    with pytest.raises(SettingError, match=words.NO_TREE):
        report.mermaid()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (42, "not of int"),
        (HumanMessage("?"), "does not hold a report"),
        (AIMessage("4"), "does not hold a report"),
        ({}, "does not hold a report"),
        ('{"a": 1}', "does not hold a report"),
        ("{", "not JSON"),
        ('{"a": 1}\n{"b"', "line 2"),
        ('{"a": 1}\n{"b": 2}', "2 answers"),
        ('{"a": 1}\n[1]', "not an object"),
        ("no-such-file.json", "cannot read"),
        ("a\x00b", "cannot read"),
        ({"question": "?", "error": "the model broke"}, "the model broke"),
        (run(node(1), node(1)), "two thoughts have the number 1"),
        (run(node(1, 2), node(2, 1)), "names 2 as its parent"),
        (run(node(0)), "tree.0.id"),
        (run(node(1, tokens=-1)), "tree.0.tokens"),
        (run(node(1, score=float("nan"))), "finite"),
        (run(node(1, text=5)), "tree.0.text"),
        (run(spent={"tokens": "many"}), "spent.tokens"),
        (run(strategy="vote"), "strategy"),
    ],
)
def test_what_is_not_a_report_is_said_in_words(source, told):
    """Each mistake is a SettingError that names it."""
    with pytest.raises(SettingError, match=re.escape(told)):
        Report.of(source)


# --- what it says


def test_the_terminal_shows_each_thought():
    """Its number, answer, tokens, score, and how it ended; the chosen path is marked."""
    told = str(Report.of(TREE))
    for part in (
        "✓ 4  7",
        "✓ 3  step",
        "score 0.900",
        "seconds 0.25",
        "5  cut off",
        "6  given",
        "role judge",
        "300 of 300 spent",
        "7 thoughts, 115 tokens",
    ):
        assert part in told
    assert told.count("✓") == 2


def test_a_plan_is_told():
    """What had been expected, what binds, who plays which role, the promised accuracy, and how many other plans lost."""
    plan = {
        "source": "the profile sums",
        "level": 1,
        "binding": "device_seconds",
        "roles": {"policy": "nano-m"},
        "expected": {"tokens": {"mean": 250, "p90": 290, "actual": 300, "limit": 300}},
        "quality": {"mean": 0.8, "low": 0.75, "high": 0.85},
        "rejected": [{"plan": "one sample", "why": "worse by 9 points"}],
        "notes": ["the models are new"],
    }
    report = Report.of({**TREE, "plan": plan})
    page, told = report.html(), str(report)
    parts = ["planned from", "the profile sums", "the models are new", "250", "p90", "290"]
    parts += ["80.0% right, 90 % interval 75.0% to 85.0%", "1 plan not taken"]
    parts += ["binding resource", "on the device", "role policy", "nano-m"]
    for part in parts:
        assert part in page
        assert part in told
    assert "worse by 9 points" in page


def test_spellings_of_one_answer_are_counted_together():
    """As a vote counts them: 7 and 7.0 are one answer, written as it was chosen."""
    page = Page(Report.of(TREE).html())
    cells = " ".join(page.data["th"] + page.data["td"] + page.data["span"])
    assert "✓ 7" in cells
    assert "in 2 spellings" in cells
    assert len(page.all("span", class_="meter chosen")) == 1  # of the answers


def test_exact_answers_are_counted_letter_by_letter():
    """As a vote over answers of a schema counts them, though a report is read from JSON."""
    schema = {"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]}
    said = ['{"n": "7"}', '{"n": "7.0"}', '{"n": "7"}', '{"n": "7"}']
    llm = ChatPareto(backend=ScriptedBackend(said), strategy=Vote(n=4, adaptive=False), seed=1)
    shown = llm.with_structured_output(schema, include_raw=True).invoke("?")
    report = Report.of(shown["raw"].model_dump_json())
    assert report.run.share == 0.75
    ballot = Ballot.of(report.run.tree, report.run.answer)
    assert [choice.count for choice in ballot.choices] == [3, 1]
    loose = [node.model_copy(update={"exact": False}) for node in report.run.tree]
    assert [choice.count for choice in Ballot.of(loose, report.run.answer).choices] == [4]


def test_only_exact_answers_are_told_as_such():
    """The key is left out elsewhere."""
    told = [describe(Thought("?", text="7", answer=answer)) for answer in (Exact("7"), "7", None)]
    assert [one.get("exact") for one in told] == [True, None, None]
    assert "exact" not in told[1]


@pytest.mark.parametrize(
    ("value", "resource", "told"),
    [
        (999.4, "flops", "999 FLOP"),
        (999.7, "flops", "1 kFLOP"),
        (2.5e9, "flops", "2.5 GFLOP"),
        (999_600, "memory", "1 MB"),
        (99.5, "seconds", "99.5 s"),
        (1234.5, "seconds", "1,234 s"),
        (0.25, "usd", "$0.25"),
        (12345, "tokens", "12,345"),
    ],
)
def test_amounts_have_three_digits_and_a_unit(value, resource, told):
    """Rounding never makes a fourth digit before the point; counts stand in full."""
    assert words.amount(value, resource) == told


def test_one_line_says_when_something_is_missing():
    """However long the text is, and whatever its spaces are."""
    assert words.one_line(" a  b\n\nc ", 9, newline=" / ") == "a b / c"
    assert words.one_line("abcdef", 5) == "abcd…"
    assert words.one_line("a" + " " * 100 + "b", 5).endswith("…")


def test_a_terminal_shows_as_many_thoughts_as_are_wanted():
    """The chosen ones among them, and how many more there are."""
    out = io.StringIO()
    Console(file=out, width=80).print(Report.of(TREE).renderable(thoughts=2))
    assert "5 more thoughts" in out.getvalue()
    assert out.getvalue().count("✓") == 2
    with pytest.raises(SettingError, match="-1 thoughts"):
        Report.of(TREE).renderable(thoughts=-1)


def test_a_bar_begins_where_the_one_before_it_ends():
    """In the drawing, length is tokens; what nobody sampled has next to none, and the longest path fills the width."""
    page = Page(Report.of(TREE).html())
    bars = page.all("rect", class_="bar")
    order = list(dict.fromkeys(has["data-t"] for has in page.all("a") if "data-t" in has))
    places = {
        number: tuple(float(bar[name].rstrip("%")) for name in ("x", "width"))
        for number, bar in zip(order, bars, strict=False)
    }
    assert order == ["1", "2", "3", "4", "5", "6", "7"]
    assert places["1"][0] == places["5"][0] == 0
    for child, parent in (("2", "1"), ("3", "1"), ("4", "3")):
        assert places[child][0] == pytest.approx(sum(places[parent]), abs=0.01)
    assert places["2"][1] == pytest.approx(3 * places["1"][1], rel=1e-3)
    assert max(map(sum, places.values())) == pytest.approx(100, abs=0.01)
    assert places["6"][1] < 1


def test_every_link_of_the_drawing_leads_to_a_row():
    """The table has one row a thought, under the id that its bar links to."""
    page = Page(Report.of(TREE).html())
    assert page.ids == [f"thought-{i}" for i in (1, 2, 3, 4, 5, 6, 7)]
    links = {has["href"] for has in page.all("a")}
    assert links == {f"#{name}" for name in page.ids}


def test_one_bar_can_be_reached_by_tab():
    """The chosen one; arrow keys do the rest, so that a large tree does not stand in the way."""
    page = Page(Report.of(TREE).html())
    reached = [has["data-t"] for has in page.all("a") if has.get("tabindex") == "0"]
    assert reached == ["4"]


def test_a_page_needs_nothing_else():
    """It loads nothing, names no server, and its policy lets no script but its own run."""
    text = Report.of(TREE).html()
    page = Page(text)
    assert not [has for _, has in page.tags if "src" in has]
    assert [has["href"] for has in page.all("link")] == ["data:,"]
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    (script,) = page.data["script"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [has["content"] for has in page.all("meta") if "http-equiv" in has]
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_a_notebook_gets_no_script():
    """And two reports in one notebook have different ids."""
    one, two = (Report.of({**TREE, "seed": seed})._repr_html_() for seed in (1, 2))
    assert "<script" not in one
    assert set(Page(one).ids).isdisjoint(Page(two).ids)


def test_style_and_script_ship():
    """They are among the package's data, and hold nothing that would end them early."""
    table = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    shipped = table["tool"]["setuptools"]["package-data"]["langchain_pareto.reports"]
    for name in ("report.css", "report.js"):
        assert name in shipped
        assert "</" not in files("langchain_pareto.reports").joinpath(name).read_text(
            encoding="utf-8"
        )


@pytest.mark.parametrize("name", ["r.html", "r.HTM", "r.mmd", "r.md", "r.txt", "r.json"])
def test_the_name_says_the_form(name, tmp_path):
    """Each form is written as its file's name says."""
    report = Report.of(TREE)
    text = report.save(tmp_path / name).read_text(encoding="utf-8")
    starts = {
        "html": "<!doctype html>",
        "htm": "<!doctype html>",
        "mmd": "flowchart",
        "md": "```mermaid",
        "json": "{",
    }
    assert text.startswith(starts.get(name.lower().partition(".")[2], "╭"))
    assert "7" in text


def test_other_names_are_refused(tmp_path):
    """With the names that there are, and where a file cannot be written, why."""
    with pytest.raises(SettingError, match=r"\.pdf"):
        Report.of(TREE).save(tmp_path / "r.pdf")
    with pytest.raises(SettingError, match="cannot write"):
        Report.of(TREE).save(tmp_path / "no" / "r.html")


# --- texts that would break it


def hostile(texts: list[str]) -> dict:
    """A search of which every text is one of these."""
    said = cycle(texts)
    nodes = [
        node(
            i, (i - 1) // 2, text=next(said), answer=next(said), finish=next(said), role=next(said)
        )
        for i in range(1, 6)
    ]
    return run(
        *nodes,
        strategy={"kind": next(said), next(said): [next(said)]},
        spent={next(said): 5, "tokens": 4},
        stopped_by=next(said),
        budget=next(said),
        question=next(said),
        text=next(said),
        answer=next(said),
        model=next(said),
        figures={next(said): 1.5},
        decoder={"kind": next(said)},
        plan={
            "source": next(said),
            "notes": [next(said)],
            "roles": {next(said): next(said)},
            "rejected": [{"plan": next(said), "why": next(said)}],
        },
    )


@settings(max_examples=60, deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=12))
def test_no_text_breaks_a_page(texts):
    """Tags stay ours and close in order, attributes and script stay ours, and what is written can be read again as UTF-8."""
    report = Report.of(hostile(texts))
    page = Page(report.html())
    assert page.data["script"] == [
        files("langchain_pareto.reports").joinpath("report.js").read_text("utf-8")
    ]
    assert len(page.all("tr", id="thought-5")) == 1
    Page(report._repr_html_())
    written = report.html()
    assert written.encode().decode() == written
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e]", written)


def seen(text: str) -> str:
    """What cannot be seen, and what stands in a page in its place, as a dot."""
    return "".join(
        "." if not (c.isprintable() or c in "\n\t") or c in PICTURES else c for c in text
    )


@settings(max_examples=60, deadline=None)
@given(HOSTILE)
def test_a_text_stands_in_the_page_as_it_is(text):
    """All that can be shown of it: what a reader copies is what the model wrote."""
    page = Page(Report.of(run(node(1, text=f"[{text}\n]", chosen=True))).html())
    want = seen(f"[{text}\n]".replace("\r\n", "\n"))
    assert seen(page.data["pre"][0]) == want  # beside the drawing


@settings(max_examples=60, deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=12))
def test_no_text_breaks_a_chart(texts):
    """Every line is of one of Mermaid's forms that are meant, and labels hold letters, digits and entities."""
    label = r'"(?:[\w .,+*=!?\'|/]|[^\x00-\x7f]|#\d+;|<br>)*"'
    forms = rf"flowchart LR|    (?:t\d+(?:\(\[{label}\]\)|\[{label}\])|t\d+ (?:==>|-->) t\d+|classDef [\w :#;,-]+|class [t\d,]+ \w+)"
    for line in Report.of(hostile(texts)).mermaid().split("\n"):
        assert re.fullmatch(forms, line), line


@settings(max_examples=40, deadline=None)
@given(st.lists(HOSTILE, min_size=1, max_size=12), st.integers(30, 120))
def test_no_text_steers_a_terminal(texts, width):
    """No control character is printed, no markup is read, and where signs must be ASCII ours are."""
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(Report.of(hostile(texts)))
    assert all(c.isprintable() or c == "\n" for c in out.getvalue())


def test_our_own_signs_are_ascii_where_they_must_be():
    """On a console that knows no others."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding="ascii", errors="strict")
    Console(file=file, width=80, color_system=None).print(Report.of(TREE))
    file.flush()
    assert b"* 4  7" in raw.getvalue()
    assert b"prompt, 7 thoughts" in raw.getvalue()


def big(shape: str) -> dict:
    draw = random.Random(1)
    above = {
        "wide": lambda _: 0,
        "deep": lambda i: i - 1,
        "random": lambda i: draw.randint(max(0, i - 40), i - 1),
    }[shape]
    chosen = (lambda _: True) if shape == "deep" else (lambda i: i == 9999 and shape == "wide")
    return run(
        *(
            node(i, above(i), chosen=chosen(i), score=draw.random(), answer=str(i))
            for i in range(1, 10_001)
        )
    )


@pytest.mark.parametrize("shape", ["wide", "deep", "random"])
def test_ten_thousand_thoughts(shape):
    """The drawing, the terminal and the chart show some and say of how many; the table has all; the chosen one is never left out."""
    report = Report.of(big(shape))
    page = report.html()
    assert page.count('<tr id="thought-') == 10_000
    assert page.count('<rect class="hit"') == 2000
    assert "2,000 of 10,000" in page
    told, chart = str(report), report.mermaid()
    assert "9,960 more thoughts" in told
    assert "9,850 more thoughts" in chart
    assert max(map(len, told.split("\n"))) <= 100
    assert len(chart) < 50_000
    if shape == "wide":
        assert "✓ 9999" in told
        assert "thought 9999, chosen" in chart
        assert re.search(r'<a href="#thought-9999" class="chosen"', page)


def test_what_was_cancelled_is_told():
    """It left no thought, and was paid all the same."""
    told = {"strategy": {"kind": "first_finish"}, "stopped_by": "done"}
    nodes = [{"id": 1, "parent": 0, "text": "a", "tokens": 9, "finish": "eos", "chosen": True}]
    for spent, more in (
        (9, None),
        (29, "20 more tokens of what was cancelled"),
        (10, "1 more token of"),
    ):
        report = Report.of({**told, "spent": {"tokens": spent}, "tree": nodes})
        for page in (str(report), report.html()):
            assert ("cancelled before its end" in page) == (more is not None)
            assert more is None or more in page


def test_very_long_texts_are_cut_and_say_so():
    """A page stays of a size that browsers can read."""
    page = Report.of(
        run(node(1, text="x" * 3_000_000, answer="y" * 5000), answer="y" * 5000)
    ).html()
    assert "… and 2,900,000 more characters" in page
    assert "… and 3,000 more characters" in page
    assert len(page) < 400_000


def test_a_search_without_thoughts_has_a_page():
    """A tree with nothing in it is not an error."""
    report = Report.of(run())
    assert "No thought was drawn." in report.html()
    assert "0 thoughts" in str(report)
    assert report.mermaid().startswith("flowchart LR")


# --- the command


def pareto(*arguments: str, given: str | None = None):
    return CliRunner().invoke(app, ["report", *arguments], input=given)


def test_the_command_reads_files_and_pipes(tmp_path):
    """Text by default, a page with --html, a chart with --mermaid; of several answers one is named."""
    file = tmp_path / "answers.jsonl"
    file.write_text("".join(f"{json.dumps({**TREE, 'question': q})}\n" for q in ("One?", "Two?")))
    assert "Two?" in pareto(str(file), "--line", "2").stdout
    piped = pareto("-", "--mermaid", given=json.dumps(TREE))
    assert piped.stdout.startswith("flowchart LR")
    page = tmp_path / "page.html"
    done = pareto(str(file), "--line", "1", "--html", str(page), "--question", "Three?")
    assert (done.exit_code, done.stdout) == (0, "")
    assert "Three?" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["two"], "--line N`, from 1 to 2"),
        (["two", "--line", "3"], "line 3 is beyond the last answer of two, which holds 2"),
        (["none"], "cannot read"),
        (["-"], "not JSON"),
        (["two", "--line", "1", "--html", "page.pdf"], "page.pdf"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, told, tmp_path, monkeypatch):
    """With exit code 2."""
    monkeypatch.chdir(tmp_path)
    Path("two").write_text(f"{json.dumps(TREE)}\n{json.dumps(TREE)}\n")
    done = pareto(*arguments, given="")
    assert done.exit_code == 2
    assert told in done.stderr
