"""An agent that may spend so much in all: a script plans, the bundled model solves in a tool, the run pays for both."""

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import Runnable

from langchain_pareto import BudgetMiddleware, ChatPareto

PUZZLES = [f"Use {a} 7 3 to make {7 * a - 3}." for a in range(9, 19)]
solver = ChatPareto(seed=1, budget="200 tokens")


def solve(puzzle: str) -> str:
    """Makes a number out of others."""
    return solver.invoke(puzzle).text.splitlines()[-1]


class Planner(BaseChatModel):
    """In place of a hosted model: one puzzle after another, as long as it is offered a tool."""

    _llm_type = "script"

    def bind_tools(self, tools: list[object], **_: object) -> Runnable:
        return self.bind(tools=tools)

    def _generate(self, messages: list[BaseMessage], *_: object, **told: object) -> ChatResult:
        done = [message.text for message in messages if message.type == "tool"]
        call = {"name": "solve", "args": {"puzzle": PUZZLES[len(done)]}, "id": str(len(done))}
        calls = [call] if "tools" in told else []
        message = AIMessage("" if calls else "; ".join(done), tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=message)])


agent = create_agent(Planner(), tools=[solve], middleware=[BudgetMiddleware("700 tokens, 8 calls")])
out = agent.invoke({"messages": [("human", "Solve what you can.")]})
print("last answer:", out["messages"][-1].text)
print(out["budget_spent"]["spent"]["tokens"], "tokens of 700")
