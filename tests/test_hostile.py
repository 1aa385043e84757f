"""Careless settings are named at the border, in words that say what to do."""

import pytest

from langchain_pareto import (
    BestOfN,
    Budget,
    ChatPareto,
    JudgeScore,
    ProcessReward,
    StrategyRunnable,
    Vote,
)
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.cli_models import models_of_roles
from langchain_pareto.errors import SettingError
from langchain_pareto.models import reward_role
from langchain_pareto.strategies.steps import Steps


@pytest.fixture
def backend():
    return ScriptedBackend(["one\ntwo\nAnswer: 2"])


def test_a_runnable_reads_the_name_of_a_scorer(backend):
    """As the chat model does."""
    runnable = StrategyRunnable("best_of_n", backend, scorer="mean_confidence")
    assert runnable.invoke("1+1?").text.endswith("Answer: 2")


@pytest.mark.parametrize("stop", ["two", ["two"], ("two",)])
def test_a_runnable_takes_one_stop_string_bare(backend, stop):
    """Its letters are no stop strings."""
    assert StrategyRunnable("single", backend, stop=stop).invoke("1+1?").text == "one\n"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scorer", "unheard"),
        ("scorer", lambda thoughts: 1.0),
        ("scorer", JudgeScore),
        ("stop", 5),
        ("stop", ("",)),
        ("aggregation", "max"),
        ("steps", "\n"),
        ("answers", 5),
        ("roles", 5),
        ("roles", {"judge": "a/path"}),
        ("roles", {"judge": None}),
        ("rates", 5),
    ],
)
def test_a_runnable_names_a_setting_that_it_cannot_read(backend, name, value):
    """When it is made, not in the middle of a call."""
    with pytest.raises(SettingError):
        StrategyRunnable("best_of_n", backend, **{name: value})


@pytest.mark.parametrize("model", [None, "nano"])
def test_a_runnable_wants_a_backend_that_is_open(model):
    """The hint says how to open one."""
    with pytest.raises(SettingError, match="must be a Backend") as caught:
        StrategyRunnable("vote", model)
    assert "loading.load" in caught.value.hint


@pytest.mark.parametrize("asked", [5, None, {"question": "1+1?"}])
def test_a_runnable_names_a_question_that_it_cannot_read(backend, asked):
    """A dict of an earlier link of a chain is the likeliest."""
    with pytest.raises(SettingError, match="a question is"):
        StrategyRunnable("single", backend).invoke(asked)


@pytest.mark.parametrize(
    ("scorer", "hint"), [(JudgeScore, "JudgeScore(...)"), (lambda thoughts: 1.0, "Verifier")]
)
def test_a_class_and_a_function_are_no_scorers(backend, scorer, hint):
    """The hint says what makes one of them."""
    with pytest.raises(SettingError) as caught:
        ChatPareto(backend=backend, scorer=scorer)
    assert hint in caught.value.hint


def test_nobody_else_plays_the_policy(backend):
    """Half of a strategy's prompts would go to another model."""
    with pytest.raises(SettingError, match="policy"):
        ChatPareto(backend=backend, roles={"policy": backend})
    with pytest.raises(SettingError, match="policy"):
        StrategyRunnable("refine", backend, roles={"policy": backend})
    with pytest.raises(SettingError, match="policy"):
        models_of_roles(["policy=./other"])
    assert reward_role(ProcessReward(role="policy"), None) == {}


def test_a_role_has_one_model():
    """The first of two on a command line is not forgotten."""
    assert models_of_roles(["judge=a=b", " large = c "]) == {"judge": "a=b", "large": "c"}
    with pytest.raises(SettingError, match="two models"):
        models_of_roles(["judge=a", "judge=b"])


def test_a_field_that_is_set_is_read_as_one_that_is_given(backend):
    """A name becomes a strategy, and a mistake is named at once."""
    llm = ChatPareto(backend=backend)
    llm.strategy, llm.budget, llm.steps = "vote", "50 tokens", {"tokens": 3}
    assert (llm.strategy, llm.budget, llm.steps) == (Vote(), Budget(tokens=50), Steps(tokens=3))
    assert llm.invoke("1+1?").text.endswith("Answer: 2")
    with pytest.raises(SettingError, match="no strategy"):
        llm.strategy = "unheard"
    with pytest.raises(ValueError, match="temperature"):
        llm.temperature = -1
    assert llm.strategy == Vote()


def test_a_scorer_may_be_named_per_call():
    """As a keyword, bound, or in the config; a name that nobody knows is refused."""
    llm = ChatPareto(strategy=BestOfN(n=3), seed=1)
    question = "Use 11 7 3 to make 74."
    config = {"configurable": {"scorer": "process_reward"}}
    messages = [
        llm.invoke(question, scorer="process_reward"),
        llm.bind(scorer={"kind": "process_reward"}).invoke(question),
        llm.invoke(question, config=config),
    ]
    for message in messages:
        scores = [node["score"] for node in message.response_metadata["pareto"]["tree"]]
        assert all(0 <= score <= 1 for score in scores)
    with pytest.raises(SettingError, match="known scorers: "):
        llm.invoke(question, scorer="taste")
    llm.close()
