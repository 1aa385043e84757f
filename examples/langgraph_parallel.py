"""Three nodes of a LangGraph run side by side: one run budget, one engine, one answer each."""

import operator
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph

from langchain_pareto import ChatPareto, run_budget

QUESTIONS = {
    "cups": "Ben has 3 more cups than Ava. Ava has 5 cups. How many cups does Ben have?",
    "make_35": "Use 3 4 5 to make 35.",
    "make_74": "Use 11 7 3 to make 74.",
}


class State(TypedDict):
    """What the nodes write; lines of parallel nodes are added up."""

    lines: Annotated[list[str], operator.add]


llm = ChatPareto(seed=1)
graph = StateGraph(State)
for name, question in QUESTIONS.items():

    def node(_: State, question: str = question) -> State:
        """Asks one question, with whatever the others leave."""
        report = llm.invoke(question).response_metadata["pareto"]
        return {"lines": [f"{question} -> {report['answer']} ({report['spent']['tokens']} tokens)"]}

    graph.add_node(name, node)
    graph.add_edge(START, name)
    graph.add_edge(name, END)

with run_budget("600 tokens, 30s") as account:
    print("\n".join(graph.compile().invoke({"lines": []})["lines"]))
print(f"{account.spent.tokens} tokens of {account.budget}")
