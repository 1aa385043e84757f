"""Any strategy, with any lossless decoder, on either backend, through any door: one seed, one tree of thoughts; and budgets hold."""

import asyncio
import json

import pytest

from langchain_pareto import ChatPareto, Speculative
from langchain_pareto.strategies import BestOfN, TreeOfThought, Vote

QUESTIONS = ["Use 11 7 3 to make 74.", "Use 3 4 5 to make 35."]
STRATEGIES = [
    TreeOfThought(breadth=2, samples=3),
    BestOfN(n=6),
    Vote(n=6, adaptive=False),
]
DECODERS = ["plain", Speculative(draft_tokens=3)]
ENOUGH, TIGHT = 5_000, 150  # tokens


@pytest.fixture(scope="module", params=["torch", "llama-cpp"])
def llm(request):
    """The bundled policy and reward model on one of the backends."""
    if request.param == "llama-cpp":
        pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
        pytest.importorskip("gguf", reason="gguf is not installed")
    chat = ChatPareto(
        backend=request.param, seed=5, temperature=0.8, scorer="process_reward", device="cpu"
    )
    yield chat
    chat.close()


def tree(message):
    """What was drawn, and which of it was chosen."""
    nodes = message.response_metadata["pareto"]["tree"]
    return [(t["id"], t["parent"], t["text"], t["chosen"]) for t in nodes]


def tokens(message):
    """What was spent."""
    return message.response_metadata["pareto"]["spent"]["tokens"]


def doors(llm, **settings):
    """Each question by invoke, abatch and stream."""

    async def batched():
        return await llm.abatch(QUESTIONS, **settings)

    def streamed(question):
        chunks = list(llm.stream(question, **settings))
        whole = chunks[0]
        for chunk in chunks[1:]:
            whole += chunk
        return whole

    return {
        "invoke": [llm.invoke(question, **settings) for question in QUESTIONS],
        "abatch": asyncio.run(batched()),
        "stream": [streamed(question) for question in QUESTIONS],
    }


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.kind)
def test_one_seed_is_one_tree(llm, strategy):
    """Decoders and doors change nothing of what is drawn or chosen."""
    first = None
    for decoder in DECODERS:
        for door, messages in doors(llm, strategy=strategy, decoder=decoder, budget=ENOUGH).items():
            trees = [tree(message) for message in messages]
            first = first or trees
            assert trees == first, (decoder, door)


@pytest.mark.parametrize("strategy", STRATEGIES, ids=lambda s: s.kind)
def test_budgets_hold_in_every_cell(llm, strategy):
    """Whatever draws, no cell spends more tokens than it was given, and each says what it did."""
    for decoder in DECODERS:
        for messages in doors(llm, strategy=strategy, decoder=decoder, budget=TIGHT).values():
            assert all(0 < tokens(message) <= TIGHT for message in messages)
            assert all(message.text for message in messages)
            json.dumps([message.response_metadata for message in messages])
