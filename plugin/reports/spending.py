"""
What a search spent of what, and what had been expected, as HTML.

Knows budgets and plans as they were told; computes no price.
"""

from __future__ import annotations

from langchain_pareto.reports import words
from langchain_pareto.reports.markup import Markup, tag
from langchain_pareto.reports.run import Run


def spending(run: Run) -> Markup:
    """A row for each resource; a meter where there is a limit."""
    most = words.limits(run)
    expected = {} if run.plan is None else run.plan.expected
    columns = ["spent", *(["limit"] if most else []), *(["expected"] if expected else [])]
    head = tag(
        "tr",
        tag("th", "resource", scope="col"),
        *(tag("th", name, scope="col", class_="n") for name in columns),
        *([tag("th", tag("span", "of the limit", class_="hidden"), scope="col")] if most else []),
    )
    rows = [_row(run, name, taken, most) for name, taken in run.spent.items()]
    told = "No budget was set." if run.budget is None else f"Budget: {run.budget}."
    return tag(
        "section",
        tag("h2", "Spent"),
        tag("p", told, class_="note"),
        tag("table", tag("thead", head), tag("tbody", *rows)),
    )


def _row(run: Run, name: str, taken: float, most: dict[str, float]) -> Markup:
    reached = name == run.stopped_by
    cells = [
        tag("th", words.resource_name(name), scope="row"),
        tag("td", words.amount(taken, name), class_="n reached-word" if reached else "n"),
    ]
    limit = most.get(name)
    if most:
        cells.append(tag("td", "–" if limit is None else words.amount(limit, name), class_="n"))
    if run.plan is not None and run.plan.expected:
        cells.append(tag("td", *_expected(run, name), class_="n"))
    if most:
        cells.append(
            tag("td", *([] if limit is None else [_meter(taken / limit, reached)]), class_="bar")
        )
    return tag("tr", *cells)


def _expected(run: Run, name: str) -> list[str]:
    assert run.plan is not None
    spend = run.plan.expected.get(name)
    if spend is None:
        return ["–"]
    told = words.amount(spend.mean, name)
    if spend.p90 is None:
        return [told]
    most = tag("span", f" p90 {words.amount(spend.p90, name)}", class_="note under")
    return [told, most]


def _meter(share: float, reached: bool) -> Markup:
    bar = tag("i", style=f"--w:{100 * min(1.0, share):.1f}%")
    told = tag("span", f"{share:.0%}", class_="hidden")
    return tag("span", bar, told, class_="meter reached" if reached else "meter chosen")
