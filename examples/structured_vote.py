"""Structured output with a vote: equal objects vote together, whatever else their texts are, and one of the winners is returned."""

from collections import Counter
from typing import Literal

from pydantic import BaseModel, Field

from langchain_pareto import ChatPareto, Vote

QUESTION = "Ben has 3 more cups than Ava. Ava has 5 cups. How many cups does Ben have?"


class Cups(BaseModel):
    """Who has more cups, and how many."""

    who: Literal["Ava", "Ben"]
    cups: int = Field(ge=0, le=9)


# The bundled model knows nothing of JSON: a grammar makes its objects fit the schema, and what they say is a guess.
llm = ChatPareto(seed=1, strategy=Vote(n=16, adaptive=False), budget="600 tokens")
found = llm.with_structured_output(Cups, include_raw=True).invoke(QUESTION)

report = found["raw"].response_metadata["pareto"]
for answer, votes in Counter(thought["answer"] for thought in report["tree"]).most_common():
    print(f"{votes:3} x {answer}")
print(f"the winner, with {report['share']:.0%} of the votes: {found['parsed']!r}")
print(f"{report['spent']['tokens']} tokens of {report['budget']}")
