"""The five doors of a budget, one budget over many calls, and what an answer says of itself."""

from langchain_core.messages import AIMessage

from langchain_pareto import Budget, BudgetExceeded, ChatPareto, run_budget

QUESTION = "Ben has 3 more cups than Ava. Ava has 5 cups. How many cups does Ben have?"


def tell(door: str, message: AIMessage) -> None:
    """What was asked, spent and found."""
    report = message.response_metadata["pareto"]
    spent, limit = report["spent"]["tokens"], report["budget"]
    print(
        f"{door:14} {spent:4} tokens of {limit}; stopped by {report['stopped_by']}; {report['answer']}"
    )


llm = ChatPareto(budget="400 tokens, 20s", seed=1)
tell("model", llm.invoke(QUESTION))
tell("call", llm.invoke(QUESTION, budget=120))
tell("bind", llm.bind(budget=Budget(tokens=90, flops=1e9)).invoke(QUESTION))
tell("config", llm.invoke(QUESTION, config={"configurable": {"budget": "60 tokens"}}))

with run_budget("500 tokens") as account:  # the tighter of this and the call's own
    for message in llm.batch([QUESTION] * 3):
        tell("run_budget", message)
print(f"{'in all':14} {account.spent.tokens:4} tokens of {account.budget}")

try:
    llm.invoke(QUESTION, budget="20 tokens, on error")
except BudgetExceeded as error:
    print(f"on error: {error.spent} of {error.limit} {error.resource} spent")
