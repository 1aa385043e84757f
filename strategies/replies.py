"""
Replies to prompts of their own, side by side and aside from the search: judgements, proposals.

Knows prompts and roles; does not know what is read in a reply.
"""

from __future__ import annotations

from collections.abc import Sequence

from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.thoughts import Thought
from langchain_pareto.strategies.until import ANSWER


async def replies(
    search: Search,
    prompts: Sequence[str],
    *,
    role: str,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> list[Thought | None]:
    """A reply to each prompt, which may be named several times; nothing goes on where it ends.

    None where the budget has no room for one, or ended in the middle of it; one of `max_tokens` tokens is there, but not `whole`.
    """
    if not prompts:
        return []
    asides = [
        search.on(prompt, role=role, aside=True).at_temperature(temperature).up_to(max_tokens)
        for prompt in prompts
    ]
    roots = [aside.root for aside in asides]
    drawn = await asides[0].expand(roots, ANSWER)
    search.drop(drawn)
    most = {aside.root: aside.context for aside in asides}
    got: dict[Thought | None, list[Thought]] = {root: [] for root in roots}
    for reply in drawn:
        if reply.whole or (reply.parent and reply.length >= most[reply.parent]):
            got[reply.parent].append(reply)
    return [got[root].pop(0) if got[root] else None for root in roots]
