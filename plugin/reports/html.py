"""
One search as HTML: a page that needs nothing else, or the same without its script, for notebooks.

Knows sections and their order; tags and texts are `markup.py`'s, the picture is `picture.py`'s. No text of a search is ever
part of a script or a style: the page's script reads the table that everybody can read.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from functools import cache
from importlib.resources import files

from langchain_pareto.reports import words
from langchain_pareto.reports.answers import Ballot
from langchain_pareto.reports.details import details_of
from langchain_pareto.reports.markup import Markup, tag
from langchain_pareto.reports.picture import DRAWN, Picture, legend
from langchain_pareto.reports.run import Run
from langchain_pareto.reports.spending import spending
from langchain_pareto.reports.table import cut, panel, thoughts
from langchain_pareto.reports.tree import Forest

_ANSWERS = 8  # different ones that are listed
_TITLE = "Report of a search"


def page(run: Run, forest: Forest | None) -> str:
    """A whole HTML document. Even if a text could smuggle in a script, its policy would let none but ours run."""
    style, script = _asset("report.css"), _asset("report.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    title = _TITLE if run.question is None else words.one_line(run.question, 70)
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="generator", content="langchain-pareto"),
        tag("title", title),
        tag("link", rel="icon", href="data:,"),
        tag("style", Markup(style)),
    )
    body = tag(
        "body",
        tag("main", *_sections(run, forest, "thought-")),
        tag("script", Markup(script)),
        class_="pareto page",
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def fragment(run: Run, forest: Forest | None) -> str:
    """The same to stand among other things: no script, and ids of its own."""
    digest = hashlib.sha256(run.model_dump_json().encode()).hexdigest()[:10]
    inside = tag("div", *_sections(run, forest, f"thought-{digest}-"), class_="pareto-main")
    style = tag("style", Markup(_asset("report.css")))
    return style + tag("div", inside, class_="pareto embedded")


@cache
def _asset(name: str) -> str:
    return files("langchain_pareto.reports").joinpath(name).read_text(encoding="utf-8")


def _sections(run: Run, forest: Forest | None, prefix: str) -> Iterator[Markup]:
    yield _header(run)
    yield _answer(run, forest)
    ballot = Ballot.of(() if forest is None else forest.nodes, run.answer)
    votes = _votes(ballot)
    parts = [spending(run), *([] if votes is None else [votes])]
    yield tag("div", *parts, class_="pair")
    if forest is not None and forest.nodes:
        yield _search(forest, ballot, prefix)
        yield thoughts(forest, prefix)
    else:
        told = words.NO_TREE if forest is None else "No thought was drawn."
        yield tag("section", tag("h2", "The search"), tag("p", told, class_="note"))
    yield from details_of(run)
    yield _footer(run)


def _header(run: Run) -> Markup:
    asked = run.question
    title = _TITLE if asked is None else words.one_line(asked, 200)
    parts = [tag("p", _TITLE, class_="kicker")] if asked is not None else []
    parts.append(tag("h1", title, dir="auto"))
    if asked is not None and title != asked.strip():
        text = tag("pre", cut(asked), dir="auto", tabindex=0)
        parts.append(tag("details", tag("summary", "The whole question", class_="note"), text))
    return tag("header", *parts)


def _answer(run: Run, forest: Forest | None) -> Markup:
    found = run.answer is not None
    share = "" if run.share is None else f", with {run.share:.0%} of the votes"
    parts = [
        tag("p", f"Answer{share}" if found else words.NO_ANSWER, class_="label"),
        tag(
            "p",
            cut(run.answer, 2000) if run.answer is not None else "–",
            class_="value",
            dir="auto",
        ),
        tag("p", words.stopped(run), " ", _course(run, forest), class_="lead"),
    ]
    if run.text:
        text = tag("pre", cut(run.text), dir="auto", tabindex=0)
        parts.append(
            tag(
                "details",
                tag("summary", "The whole text"),
                text,
                open=not found or len(run.text) < 600,
            )
        )
    return tag("div", *parts, class_="answer" if found else "answer none")


def _course(run: Run, forest: Forest | None) -> str:
    """How the answer was come by, in a sentence."""
    told = words.strategy(run)
    told = told[:1].upper() + told[1:]
    if (decoder := words.kind(run.decoder)) not in (None, "plain"):
        told += f", decoded by {decoder}"
    if forest is None or not forest.tokens:
        return f"{told}."
    kept = sum(node.sampled for node in forest.chosen)
    many = words.counted(len(forest.nodes), "thought")
    total = words.counted(forest.tokens, "token")
    of_them = f"; {kept:,} of these tokens are the answer's text" if kept else ""
    dropped = words.dropped(run, forest.tokens)
    besides = f"; and {dropped}" if dropped else ""
    return f"{told}: {many}, {total} in all{of_them}{besides}."


def _votes(ballot: Ballot) -> Markup | None:
    """How often each answer was given; None where there is nothing to compare."""
    if len(ballot.choices) < 2:
        return None
    most = ballot.choices[0].count
    rows = []
    for choice in ballot.choices[:_ANSWERS]:
        own = choice.spellings == ballot.won
        ways = len(choice.spellings)
        more = [tag("span", f" in {ways} spellings", class_="note")] if ways > 1 else []
        meter = tag(
            "span",
            tag("i", style=f"--w:{100 * choice.count / most:.1f}%"),
            class_="meter chosen" if own else "meter",
        )
        rows.append(
            tag(
                "tr",
                tag(
                    "th",
                    f"{'✓ ' if own else ''}{words.one_line(choice.answer, 48)}",
                    *more,
                    scope="row",
                    dir="auto",
                ),
                tag("td", meter, class_="bar"),
                tag("td", f"{choice.count:,}", class_="n"),
                tag("td", f"{choice.tokens:,}", class_="n"),
            )
        )
    head = tag(
        "tr",
        tag("th", "answer", scope="col"),
        tag("th", tag("span", "share", class_="hidden"), scope="col"),
        tag("th", "times", scope="col", class_="n"),
        tag("th", "tokens", scope="col", class_="n"),
    )
    parts = [tag("h2", "Answers"), tag("table", tag("thead", head), tag("tbody", *rows))]
    if len(ballot.choices) > _ANSWERS:
        parts.append(
            tag(
                "p",
                f"and {words.counted(len(ballot.choices) - _ANSWERS, 'other answer')}",
                class_="note",
            )
        )
    return tag("section", *parts)


def _search(forest: Forest, ballot: Ballot, prefix: str) -> Markup:
    drawn = Picture.of(forest, ballot, prefix)
    told = "Each bar is one thought. It is as long as the tokens that were drawn into it, and begins where the thought before it ended; the scale counts tokens."
    parts = [tag("h2", "Where the tokens went"), tag("p", told, class_="note")]
    if len(forest.nodes) > DRAWN:
        few = f"Drawn are {DRAWN:,} of {len(forest.nodes):,} thoughts; the list below has all of them."
        parts.append(tag("p", few, class_="note"))
    picture = tag(
        "figure", tag("div", drawn.render(), class_="scroll"), tag("figcaption", legend(drawn))
    )
    shown = forest.chosen[-1] if forest.chosen else forest.nodes[0]
    beside = tag(
        "aside", *panel(shown), class_="panel", aria_label="One thought", aria_live="polite"
    )
    return tag("section", *parts, tag("div", picture, beside, class_="search"))


def _footer(run: Run) -> Markup:
    known = {"Model": run.model, "Seed": run.seed, "Samples": run.samples}
    told = [f"{name} {value}" for name, value in known.items() if value is not None]
    return tag("footer", " · ".join([*told, "langchain-pareto"]))
