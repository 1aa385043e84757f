"""
What ran and why, as HTML: the settings of strategy and decoder, and the plan that chose them.

Knows plans as they were told; chooses nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from langchain_pareto.reports import words
from langchain_pareto.reports.markup import Markup, pairs, tag
from langchain_pareto.reports.run import Planned, Run

_SHOWN = 200  # rejected plans


def details_of(run: Run) -> Iterator[Markup]:
    """The plan, if there was one, and how the search was set."""
    if run.plan is not None:
        yield _plan(run.plan)
    known = {
        "strategy": _settings(run.strategy),
        "decoder": None if run.decoder is None else _settings(run.decoder),
        "guesses": None if run.speculation is None else words.speculation(run.speculation),
        "prompt": None if run.prompt_tokens is None else words.counted(run.prompt_tokens, "token"),
        **{name.replace("_", " "): f"{value:,.6g}" for name, value in run.figures.items()},
    }
    yield tag("section", tag("h2", "What ran"), pairs(known, class_="settings"))


def _settings(values: Mapping[str, object]) -> Markup:
    return tag("code", json.dumps(values, ensure_ascii=False))


def _plan(plan: Planned) -> Markup:
    known = {**words.of_plan(plan), "note": " ".join(plan.notes)}
    parts = [tag("h2", "The plan"), pairs(known, class_="settings")]
    if plan.rejected:
        rows = [
            tag("tr", tag("th", one.plan, scope="row"), tag("td", one.why))
            for one in plan.rejected[:_SHOWN]
        ]
        head = tag("tr", tag("th", "plan", scope="col"), tag("th", "why not", scope="col"))
        title = tag("summary", words.not_taken(plan))
        listed = tag("table", tag("thead", head), tag("tbody", *rows))
        parts.append(tag("details", title, tag("div", listed, class_="wide")))
    return tag("section", *parts)
