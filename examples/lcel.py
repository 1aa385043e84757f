"""A chain in LangChain's expression language, with a budget: one question, then several at once."""

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

from langchain_pareto import ChatPareto

prompt = ChatPromptTemplate.from_messages([("human", "Use {numbers} to make {target}.")])
llm = ChatPareto(budget="300 tokens", seed=1)  # the bundled model; yours: ChatPareto(model=...)
chain = prompt | llm | StrOutputParser()

print(chain.invoke({"numbers": "11 7 3", "target": 74}))

puzzles = [
    {"numbers": "3 4 5", "target": 35},
    {"numbers": "20 6 2", "target": 60},
    {"numbers": "9 8 7", "target": 65},
]
for puzzle, text in zip(puzzles, chain.batch(puzzles), strict=True):  # side by side in one engine
    print(puzzle["numbers"], "to", puzzle["target"], "->", text.splitlines()[-1])

cheap = chain.with_config(configurable={"budget": "40 tokens"})  # one sample at most
print("with 40 tokens:", cheap.invoke(puzzles[0]).splitlines()[-1])
