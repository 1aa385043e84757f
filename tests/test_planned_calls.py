"""Planned calls: which model and strategy a chat model takes from a profile, and how a profile is made of its own samples."""

import asyncio
import copy
import json
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.globals import set_llm_cache
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig
from profiles import OPTIONS, RIGHT, TOKENS, cells
from typer.testing import CliRunner

from langchain_pareto import BestOfN, Budget, ChatPareto, placement, run_budget
from langchain_pareto.backends import devices, hardware, llama_devices, loading
from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.characters import CharacterTokenizer
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.calibration import calibrate_quality
from langchain_pareto.cli import app
from langchain_pareto.errors import (
    CertificateRefused,
    ContextLengthError,
    EngineClosedError,
    SettingError,
)
from langchain_pareto.models import Models
from langchain_pareto.planning.calibrate import Asked
from langchain_pareto.planning.catalogue import Option
from langchain_pareto.planning.certificates import Guarantee
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.profile import Family, Profile, load_profile
from langchain_pareto.planning.store import profile_path, samples_path
from langchain_pareto.strategies import Cascade, Single, Vote
from langchain_pareto.strategies.scorers import MeanLogprob
from langchain_pareto.strategies.verifier import Verifier

QUESTIONS = [Asked(f"q{i}", f"Question {i}?", "7") for i in range(6)]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Every test has its own directory of profiles."""
    monkeypatch.setenv("LANGCHAIN_PARETO_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def llm() -> Iterator[ChatPareto]:
    """A small model that is right every other time, and a large one that always is, in four times the tokens."""
    small = ScriptedBackend(["Answer: 7", "Answer: 1", "Answer: 7", "Answer: 2"], name="small")
    large = ScriptedBackend([f"{'think ' * 6}\nAnswer: 7"], name="large")
    chat = ChatPareto(models={"small": small, "large": large}, max_tokens=60)
    yield chat
    small.close()
    large.close()


def by_hand(llm: ChatPareto) -> Profile:
    """A profile of these very models."""
    return Profile(
        "by-hand", OPTIONS, {"tokens": cells()}, keys=dict(llm.plans().keys), made="2026-01-10"
    )


def plan_of(message: object) -> dict[str, object]:
    found = message.response_metadata["pareto"]["plan"]  # type: ignore[attr-defined]
    assert isinstance(found, dict)
    return found


def test_the_plan_chooses_the_model(llm: ChatPareto) -> None:
    """The small model on a tight budget and the large one on a wide one, and the report says what was planned."""
    llm.task = by_hand(llm)
    tight, wide = (llm.invoke("Question?", budget=f"{n} tokens") for n in (100, 1600))
    assert tight.response_metadata["model_name"] == "small"
    assert wide.response_metadata["model_name"] == "large"
    assert plan_of(wide)["level"] == 1
    told = plan_of(wide)["expected"]["tokens"]  # type: ignore[index]
    assert told["limit"] == 1600
    assert told["actual"] == wide.response_metadata["pareto"]["spent"]["tokens"]
    json.dumps(wide.response_metadata)


async def test_a_budget_around_the_call_is_planned_for(llm: ChatPareto) -> None:
    """What a run has left binds as the call's own budget does."""
    llm.task = by_hand(llm)
    with run_budget("100 tokens"):
        answer = await llm.ainvoke("Question?", budget="1600 tokens")
    assert answer.response_metadata["model_name"] == "small"


def test_whoever_names_a_strategy_or_a_model_has_it(llm: ChatPareto) -> None:
    """Nothing is planned then."""
    llm.task = by_hand(llm)
    for settings in ({"strategy": "single"}, {"temperature": 0.0}):
        report = llm.invoke("Question?", **settings).response_metadata["pareto"]
        assert "plan" not in report
        assert report["strategy"]["kind"] == "single"


def test_settings_travel_in_the_config(llm: ChatPareto) -> None:
    """task and need, as budget does."""
    profile = by_hand(llm)
    config = {"configurable": {"task": profile, "need": 0.99, "budget": "1600 tokens"}}
    notes = plan_of(llm.invoke("Question?", config=config))["notes"]  # type: ignore[arg-type]
    assert any("no plan reaches 99%" in note for note in notes)  # type: ignore[union-attr]


def test_without_a_profile_two_models_make_a_cascade(llm: ChatPareto) -> None:
    """The small one is asked first; the report says that nothing was calibrated."""
    report = llm.invoke("Question?", budget="2000 tokens").response_metadata["pareto"]
    assert report["strategy"]["kind"] == "cascade"
    assert report["plan"]["level"] == 0
    assert "no profile was named" in report["plan"]["notes"]


def test_a_foreign_profile_is_refused_with_the_reason(llm: ChatPareto) -> None:
    """Another sampling is another quality: the call is answered, unplanned, and says why."""
    profile = by_hand(llm)
    other = llm.model_copy(update={"temperature": 0.3, "task": profile})
    plan = plan_of(other.invoke("Question?", budget="2000 tokens"))
    assert plan["level"] == 0
    assert any("of other models" in note for note in plan["notes"])  # type: ignore[union-attr]
    with pytest.raises(SettingError, match="nothing can be guaranteed"):
        other.invoke("Question?", guarantee="agree")


@pytest.mark.parametrize(
    "settings",
    [
        {"models": []},
        {"models": {"": "x"}},
        {"models": ["a/x", "a/x"]},
        {"models": {}},
        {"models": 3},
        {"models": [3]},
        {"models": {"a": 3}},
        {"models": [" "]},
        {"models": ["./a"], "model": "./b"},
        {"need": 0.5, "guarantee": "agree"},
        {"task": "no/such name"},
        {"task": 3},
        {"guarantee": "surely"},
        {"guarantee": "agree 200 %"},
    ],
)
def test_what_cannot_be_planned_with_is_refused(settings: dict[str, object]) -> None:
    """At the constructor, with a hint."""
    with pytest.raises(SettingError):
        ChatPareto(**settings)


def test_a_call_that_draws_otherwise_is_another_quality(llm: ChatPareto) -> None:
    """A temperature, a cap or a stop of the call's own: the profile does not speak of it, and certifies nothing."""
    llm.task = by_hand(llm)
    for settings in ({"temperature": 0.3}, {"max_tokens": 30}, {"stop": ["x"]}):
        assert plan_of(llm.invoke("Question?", **settings))["level"] == 0
        with pytest.raises(SettingError, match="nothing can be guaranteed"):
            llm.invoke("Question?", guarantee="agree", **settings)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"model_kwargs": {"load_in_4bit": True}}, "model_kwargs.load_in_4bit not set"),
        ({"revision": "v2"}, "revision not set, this call has v2"),
        ({"tokenizer": CharacterTokenizer()}, "another tokenizer"),
        ({"decoder": "big_little", "draft": "./tiny"}, "decoder.kind not set"),
        ({"decoder": "big_little", "draft": "./tiny"}, "draft not set"),
    ],
)
def test_what_changes_a_model_is_another_quality(settings: dict[str, Any], told: str) -> None:
    """Its quantisation, its revision, another tokenizer, a decoder that is not lossless with its draft: nothing is certified."""
    models = {"small": "./small", "large": "./large"}
    plain, other = ChatPareto(models=models), ChatPareto(models=models, **settings)
    plain.task = other.task = by_hand(plain)
    [note] = [note for note in other.plans().plan(None).notes if "of other models" in note]
    assert told in note
    with pytest.raises(SettingError, match="nothing can be guaranteed"):
        other.invoke("Question?", guarantee="agree")


def test_what_changes_no_text_keeps_the_key(tmp_path: Path) -> None:
    """A lossless decoder, settings that are as they were without, and a model's own draws where the call has others."""
    folder = on_disk(tmp_path / "m", 100)
    keys = ChatPareto(model=folder).plans().keys
    for same in (
        {"model_kwargs": {}, "revision": None},
        {"decoder": "lookup"},
        {"decoder": "speculative", "draft": "./tiny"},
    ):
        assert ChatPareto(model=folder, **same).plans().keys == keys
    hot = ChatPareto(model=folder, temperature=0.5).plans().keys
    (folder / "generation_config.json").write_text('{"temperature": 0.7, "top_p": 1.0}')
    assert ChatPareto(model=folder, temperature=0.5).plans().keys == hot
    [own] = [json.loads(key) for key in ChatPareto(model=folder).plans().keys.values()]
    assert own["model_draws.temperature"] == 0.7
    assert "model_draws.top_p" not in own
    with ScriptedBackend(["Answer: 7"], sampling=Sampling(top_k=20)) as backend:
        [own] = [json.loads(key) for key in ChatPareto(backend=backend).plans().keys.values()]
    assert own["model_draws.top_k"] == 20


async def _is_seven(_question: str, answer: str) -> bool:
    return answer == "7"


def test_a_scorer_of_ones_own_is_known_in_another_process() -> None:
    """By its class and the settings it was made with, not by where it lies, nor by what it counts."""

    class Judge:
        def __init__(self, least: float, *, check: object = None) -> None:
            self.least, self._check, self.asked = least, check, 0

        async def score(self, thoughts: list[Any]) -> list[float]:
            return [self.least for _ in thoughts]

    def key(scorer: object) -> str:
        with ScriptedBackend(["Answer: 7"]) as backend:
            return ChatPareto(backend=backend, scorer=scorer).plans().keys["scripted"]

    one, two = Judge(0.5, check=json.loads), Judge(0.5, check=json.loads)
    two.asked = 3
    assert key(one) == key(two)
    assert " at 0x" not in key(one)
    assert "Judge" in key(one)
    assert len({key(one), key(Judge(0.6, check=json.loads)), key(Judge(0.5))}) == 3
    checks = Verifier(_is_seven)
    assert "_is_seven" in key(checks)
    assert " at 0x" not in key(checks)
    assert json.loads(key(MeanLogprob()))["scorer"] == "MeanLogprob(kind='mean_logprob')"


def test_a_guarantee_is_kept_or_refused(llm: ChatPareto) -> None:
    """As a field too, without a profile, and where the call leaves the planner nothing to choose."""
    bare = ChatPareto(backend=llm.models["small"], guarantee="agree")
    with pytest.raises(SettingError, match="nothing can be guaranteed"):
        bare.invoke("Question?")
    llm.task = by_hand(llm)
    for settings in ({"strategy": "vote"}, {"temperature": 0.0}):
        with pytest.raises(SettingError, match="a guarantee is kept by a plan"):
            llm.invoke("Question?", guarantee="agree", **settings)


@pytest.mark.parametrize("need", ["0.8", [0.8], True, 0, 1, -1])
def test_a_need_of_a_call_is_a_share(llm: ChatPareto, need: object) -> None:
    """What is none is refused with an example, never ignored."""
    llm.task = by_hand(llm)
    with pytest.raises(SettingError, match="share of right answers"):
        llm.invoke("Question?", need=need)


def test_a_need_beside_a_guarantee_is_refused(llm: ChatPareto) -> None:
    """They are two answers to one question: whether both come with the call, or one of them with the model."""
    llm.task = by_hand(llm)
    with pytest.raises(SettingError, match="need= and guarantee="):
        llm.invoke("Question?", need=0.5, guarantee="agree")
    llm.need = 0.5
    with pytest.raises(SettingError, match="need= and guarantee="):
        llm.invoke("Question?", guarantee="agree")
    with pytest.raises(SettingError, match="need= and guarantee="):
        llm.guarantee = "agree"


def test_a_call_names_one_of_several_models(llm: ChatPareto) -> None:
    """By its name, or as it was given; any other is refused, and no hub is asked."""
    for model in ("large", llm.models["large"]):
        answer = llm.invoke("Question?", model=model, budget="200 tokens")
        assert answer.response_metadata["model_name"] == "large"
    for door in (llm.invoke, lambda text, **settings: list(llm.stream(text, **settings))):
        with pytest.raises(SettingError, match="no 'huge' among models=") as caught:
            door("Question?", model="huge")
        assert "small, large" in str(caught.value.hint)


def test_one_model_does_not_join_several(llm: ChatPareto) -> None:
    """Setting it later is refused as it is at the constructor, and so is a copy with both."""
    with pytest.raises(SettingError, match="either one model or several"):
        llm.model = "./other"
    with pytest.raises(SettingError, match="either one model or several"):
        llm.backend = llm.models["small"]
    with pytest.raises(SettingError, match="either one model or several"):
        llm.model_copy(update={"model": "./other"}).invoke("Question?")
    llm.models = None
    llm.model = "./other"
    assert llm.model == "./other"


@pytest.mark.parametrize(("tokens", "wanted"), [(100, "./small"), (1600, "./large")])
def test_a_stream_loads_what_its_plan_needs(
    monkeypatch: pytest.MonkeyPatch, tokens: int, wanted: str
) -> None:
    """And nothing before it is planned."""
    loaded = list[object]()
    backend = ScriptedBackend(["Answer: 7"])

    def get(_: Models, model: object, __: object, *, role: bool = False) -> ScriptedBackend:
        loaded.append(model)
        return backend

    monkeypatch.setattr(Models, "get", get)
    llm = ChatPareto(models={"small": "./small", "large": "./large"})
    llm.task = by_hand(llm)
    text = "".join(str(c.content) for c in llm.stream("Question?", budget=f"{tokens} tokens"))
    assert text == "Answer: 7"
    assert set(loaded) == {wanted}
    backend.close()


def test_a_model_in_another_role_is_the_model_that_was_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a cascade the large one is quantised, of the revision and as long as where it answers, in less memory; a role of one's own is not."""
    loaded = dict[str, tuple[dict[str, Any], bool]]()
    backend = ScriptedBackend(["Answer: 7", "Answer: 8"])

    def get(
        _: Models, model: object, settings: dict[str, Any], *, role: bool = False
    ) -> ScriptedBackend:
        loaded[str(model)] = settings, role
        return backend

    monkeypatch.setattr(Models, "get", get)
    llm = ChatPareto(
        models={"small": "./small", "large": "./large"},
        roles={"judge": "./judge"},
        model_kwargs={"load_in_4bit": True},
        revision="v2",
        max_context=500,
    )
    report = llm.invoke("Question?", budget="2000 tokens").response_metadata["pareto"]
    assert report["strategy"]["kind"] == "cascade"
    (small, _), (large, as_role), (judge, _) = (
        loaded[f"./{name}"] for name in ("small", "large", "judge")
    )
    assert large == {**small, "memory": 0.1}
    assert not as_role
    assert judge == {"backend": "auto", "device": None, "dtype": None, "memory": 0.1}
    assert small["model_kwargs"] == {"load_in_4bit": True}
    assert (small["revision"], small["max_context"], small["memory"]) == ("v2", 500, None)
    backend.close()


# --- the device


CPU, GPU = (hardware.called(name)[0] for name in ("cpu", "cuda:0"))


@pytest.mark.parametrize(
    ("measured", "settings", "known"),
    [
        (CPU, {"device": "cpu"}, True),
        (CPU, {"device": "cuda:77"}, False),
        ("Abacus", {"device": "cpu"}, False),
        ("cuda:0", {"device": "cpu"}, False),
        # what llama.cpp alone can use has no name but its number
        (GPU, {"backend": "llama-cpp"}, True),
        (GPU, {"device": "cuda:0", "backend": "llama-cpp"}, True),
        (GPU, {"device": "cpu", "backend": "llama-cpp"}, False),
        (CPU, {"device": "cpu", "backend": "llama-cpp"}, True),
        (CPU, {"backend": "llama-cpp"}, False),
        (CPU, {"backend": "llama-cpp", "model_kwargs": {"n_gpu_layers": 0}}, True),
    ],
)
def test_seconds_are_those_of_the_device_that_is_asked_for(
    measured: str, settings: dict[str, Any], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another device of this machine is another device; llama.cpp has one GPU here."""
    monkeypatch.setattr(llama_devices, "gpus", lambda: [llama_devices.Gpu(0, "Vulkan", 1)])
    monkeypatch.setattr(placement, "_llama_device", placement._llama_device.__wrapped__)
    models = {"small": "./small", "large": "./large"}
    llm = ChatPareto(models=models, **settings)
    table = {"tokens": cells(), "seconds": cells()}
    devices_ = dict.fromkeys(models, measured)
    llm.task = Profile("p", OPTIONS, table, keys=dict(llm.plans().keys), devices=devices_)
    plan = llm.plans().plan(Budget(seconds=400, tokens=1600))
    assert ("seconds" in plan.expected) is known
    assert any("another device" in note for note in plan.notes) is not known


def test_plans_for_two_devices_are_not_mixed_up() -> None:
    """One profile, and two chat models of it on two devices, one after another."""
    one, two = (ChatPareto(models={"small": "./small"}, device=name) for name in ("cpu", "cuda:77"))
    options = (Option(Single(), {"policy": "small"}),)
    rows = cells(RIGHT[:1], TOKENS[:1])
    keys = dict(one.plans().keys)
    one.task = two.task = Profile(
        "p", options, {"tokens": rows, "seconds": rows}, keys=keys, devices={"small": CPU}
    )
    budget = Budget(seconds=400, tokens=1600)
    told = ["seconds" in chat.plans().plan(budget).expected for chat in (one, two, one)]
    assert told == [True, False, True]


def test_a_loaded_model_runs_where_it_is(llm: ChatPareto) -> None:
    """Whatever device is asked for: the backends of this chat model are on the processor."""
    llm.device = "cuda:77"
    table = {"tokens": cells(), "seconds": cells()}
    llm.task = replace(by_hand(llm), cells=table, devices=dict.fromkeys(llm.models, CPU))
    assert "seconds" in llm.plans().plan(Budget(seconds=400)).expected


# --- memory, joules, money


def test_what_the_memory_does_not_hold_is_rejected(llm: ChatPareto) -> None:
    """A sample of the large model takes (20 + 150) tokens of 16 bytes each, one of the small (20 + 50)."""
    llm.task = replace(by_hand(llm), prompt=20.0)
    wide, narrow = (llm.plans().plan(Budget(memory=n)) for n in (2720, 2719))
    assert wide.model == "large"
    assert narrow.model == "small"
    lost = {str(r.option): r.why for r in narrow.rejected}
    assert lost["one sample by large"] == "one sample does not fit into the memory"


def on_disk(path: Path, size: int) -> Path:
    """A folder of weights that are only as long as they should be."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"dtype": "float32"}))
    with (path / "model.safetensors").open("wb") as file:
        file.truncate(size)
    return path


def with_cascade(llm: ChatPareto) -> Profile:
    """A profile with a cascade that is better than all else."""
    cascade = Option(Cascade(n=4, n_large=4), {"policy": "small", "large": "large"})
    right = [*RIGHT, [0.95] * 5]
    tokens = [*TOKENS, [100, 200, 300, 300, 300]]
    options = (*OPTIONS, cascade)
    return Profile("c", options, {"tokens": cells(right, tokens)}, keys=dict(llm.plans().keys))


def test_models_that_do_not_fit_together_are_not_planned_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With free memory for either, the cascade of both is rejected, and says how much it would take; with more it is taken."""
    models = {name: on_disk(tmp_path / name, 3 * 10**9) for name in ("small", "large")}
    llm = ChatPareto(models=models, device="cpu", dtype="float32")
    llm.task = with_cascade(llm)
    plans = {}
    for free in (7, 4, 1):
        monkeypatch.setattr(devices, "free_bytes", lambda _, free=free: free * 10**9)
        plans[free] = llm.plans().plan(Budget(tokens=1600))
    assert plans[7].strategy.kind == "cascade"
    assert (plans[4].strategy.kind, plans[4].model) == ("vote", "large")
    [why] = [r.why for r in plans[4].rejected if isinstance(r.option.strategy, Cascade)]
    assert why == "its models together do not fit on the device: 6.0 GB to load, 4.0 GB free"
    assert plans[1].level == 0
    assert len(plans[1].rejected) >= len(OPTIONS) + 1
    unplanned = ChatPareto(models=models, device="cpu", dtype="float32")
    assert unplanned.plans().plan(None).strategy.kind == "auto"


def test_weights_count_as_wide_as_they_are_loaded(tmp_path: Path) -> None:
    """Half as much in 16 bits, and nothing where something else decides, as in a quantisation."""
    folder = on_disk(tmp_path / "m", 10**9)

    def missing(**settings: object) -> int:
        plans = ChatPareto(model=folder, device="cpu", **settings).plans()
        assert plans.footprint is not None
        return plans.footprint.missing({"policy": "m"})

    assert missing(dtype="float32") == 10**9
    assert missing(dtype="float16") == 10**9 // 2
    assert missing(dtype="float32", model_kwargs={"load_in_8bit": True}) == 0


def test_a_certificate_holds_for_the_plans_that_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A family loses the plans that do not fit and keeps its order; without its reference there is nothing to certify."""
    models = {name: on_disk(tmp_path / name, 3 * 10**9) for name in ("small", "large")}
    llm = ChatPareto(models=models, device="cpu", dtype="float32")
    never = np.zeros((2, 200), bool)
    profile = with_cascade(llm)
    llm.task = replace(profile, family=Family(3, (4, 2), never))
    monkeypatch.setattr(devices, "free_bytes", lambda _: 4 * 10**9)
    plan = llm.plans().plan(None, guarantee=Guarantee(kind="agree"))
    assert (plan.strategy, plan.model) == (Single(), "large")
    llm.task = replace(profile, family=Family(4, (2, 0), never))
    with pytest.raises(CertificateRefused):
        llm.plans().plan(None, guarantee=Guarantee(kind="agree"))


@pytest.mark.parametrize(
    ("budget", "rates", "told"),
    [
        ({"joules": 5}, {}, "watts="),
        ({"usd": 0.1}, {}, "usd_per_hour="),
        ({"usd": 0.1}, {"usd_per_hour": 1, "usd_per_million_tokens": 1}, "has 2"),
        ({"joules": 5}, {"watts": 10}, None),
        ({"usd": 0.1}, {"usd_per_million_tokens": 1}, None),
        ({"tokens": 100}, {}, None),
    ],
)
def test_a_plan_says_what_has_no_rate(
    llm: ChatPareto, budget: dict[str, float], rates: dict[str, float], told: str | None
) -> None:
    """A limit in joules or usd that no call could keep is named in a note, with a profile and without."""
    models = llm.models
    chat = ChatPareto(models=models, max_tokens=60, **rates)
    for task in (None, by_hand(chat)):
        chat.task = task
        notes = [n for n in chat.plans().plan(Budget(**budget)).notes if "refused" in n]
        assert len(notes) == (told is not None)
        assert all(str(told) in note for note in notes)


# --- batches under one budget


@pytest.fixture
def even() -> Iterator[ChatPareto]:
    """Samples of 51 tokens from the small model, and of 131 from the large one; a question with "sure" in it is easy."""
    pad = "x" * 40

    def small(text: str, i: int) -> str:
        return f"{pad}\nAnswer: {7 if 'sure' in text else i % 5}"

    backends = {
        "small": ScriptedBackend(small, name="small"),
        "large": ScriptedBackend([f"{3 * pad}\nAnswer: 7"], name="large"),
    }
    yield ChatPareto(models=backends, max_tokens=200)
    for backend in backends.values():
        backend.close()


def reports(answers: list[AIMessage]) -> list[dict[str, Any]]:
    return [answer.response_metadata["pareto"] for answer in answers]


@pytest.mark.parametrize("together", [None, 1, 3])
@pytest.mark.parametrize("tokens", [100, 200, 400])
def test_the_last_call_of_a_batch_has_its_share(
    even: ChatPareto, together: int | None, tokens: int
) -> None:
    """All are planned with what is left for each, whether they run at once or one after another; nobody starves."""
    even.task = by_hand(even)
    config = None if together is None else RunnableConfig(max_concurrency=together)
    with run_budget(Budget(tokens=8 * tokens)) as account:
        answers = even.batch([f"Question {i}?" for i in range(8)], config)
    assert account.spent.tokens <= 8 * tokens
    limits = [r["plan"]["expected"]["tokens"]["limit"] for r in reports(answers)]
    assert min(limits) >= tokens
    assert all(r["answer"] is not None for r in reports(answers))
    if together is None:
        assert set(limits) == {tokens}
    if together == 1:
        assert limits == sorted(limits)  # what one saves is there for the next


def test_a_batch_takes_no_more_than_its_shares(even: ChatPareto) -> None:
    """Also calls that were not planned: whoever draws many samples at once leaves the others theirs."""
    with run_budget(Budget(tokens=8 * 120)) as account:
        answers = even.batch(
            [f"Question {i}?" for i in range(8)], model="small", strategy=BestOfN(n=16)
        )
    assert account.spent.tokens <= 8 * 120
    assert [r["samples"] for r in reports(answers)] == [2] * 8  # of 51 tokens each
    assert all(r["spent"]["tokens"] <= 120 for r in reports(answers))


def test_a_batch_spends_where_it_is_unsure(even: ChatPareto) -> None:
    """Votes that are sure end early, and what they leave is drawn by those that are not, in whatever order they stand."""
    options = (Option(Vote(n=16), {"policy": "small"}),)
    table = {"tokens": cells([[0.5, 0.6, 0.7, 0.8, 0.9]], [[100, 200, 400, 700, 800]])}
    even.models = {"small": even.models["small"]}
    even.task = Profile("votes", options, table, keys=dict(even.plans().keys))
    for questions in (["sure"] * 6 + ["open"] * 6, ["open"] * 6 + ["sure"] * 6):
        with run_budget(Budget(tokens=12 * 300)) as account:
            # On one loop: threads decide by chance whether the sure end before the others look for more.
            asked = [f"{q} {i}?" for i, q in enumerate(questions)]
            found = reports(asyncio.run(even.abatch(asked)))
        assert account.spent.tokens <= 12 * 300
        drawn = {kind: [] for kind in ("sure", "open")}
        for question, report in zip(questions, found, strict=True):
            drawn[question].append(report["samples"])
        assert max(drawn["sure"]) <= 4  # as many as decide a vote that agrees
        assert min(drawn["open"]) > 300 // 51  # more than an equal share holds


def test_a_batch_without_a_budget_shares_nothing(even: ChatPareto) -> None:
    """And a call's own budget is its own."""
    even.task = by_hand(even)
    found = reports(even.batch([f"Question {i}?" for i in range(4)], budget="1600 tokens"))
    assert {r["plan"]["expected"]["tokens"]["limit"] for r in found} == {1600}


@pytest.mark.parametrize("new", [0, 3, 7])
def test_what_is_cached_leaves_its_share_of_a_batch(even: ChatPareto, new: int) -> None:
    """The one input that is asked may spend all that the batch has, wherever it stands."""
    questions = [f"Question {i}?" for i in range(8)]
    llm = even.bind(model="small", strategy=BestOfN(n=4))
    set_llm_cache(InMemoryCache())
    try:
        for i, question in enumerate(questions):
            if i != new:
                llm.invoke(question)
        with run_budget(Budget(tokens=8 * 60)) as account:
            answers = llm.batch(questions)
    finally:
        set_llm_cache(None)
    assert account.spent.tokens == 4 * 51
    assert reports(answers)[new]["stopped_by"] == "done"


def test_copies_share_their_backends(llm: ChatPareto) -> None:
    """A deep copy has settings of its own, and the same models; a pickle of loaded models is refused in our words."""
    copied = copy.deepcopy(llm)
    assert copied.models["small"] is llm.models["small"]
    with pytest.raises(SettingError, match="cannot be pickled"):
        pickle.dumps(llm)


def test_chat_models_of_other_models_are_not_confused(llm: ChatPareto) -> None:
    """What a cache tells answers apart by names the models, the task and what is wanted."""
    other = ChatPareto(models={"small": llm.models["small"]}, max_tokens=60)
    needy = llm.model_copy(update={"need": 0.5})
    assert len({repr(x._identifying_params) for x in (llm, other, needy)}) == 3


def test_a_missing_profile_says_how_to_make_one(llm: ChatPareto) -> None:
    """A task that nobody calibrated is an error: the caller named it."""
    llm.task = "nowhere"
    with pytest.raises(SettingError) as caught:
        llm.invoke("Question?")
    assert "calibrate" in str(caught.value.hint)


# --- calibration


def calibrate(llm: ChatPareto, **settings: object) -> Profile:
    return asyncio.run(calibrate_quality(llm, QUESTIONS, task="t", samples=8, **settings))  # type: ignore[arg-type]


def test_a_profile_is_made_of_own_samples(llm: ChatPareto) -> None:
    """Quality is that of the scripts; the profile plans the calls of the chat model that made it, and no other."""
    profile = calibrate(llm)
    assert profile.labelled
    assert profile.questions == len(QUESTIONS)
    index = {(o.strategy, o.players): i for i, o in enumerate(profile.options)}
    best = profile.cells["tokens"].right[:, -1].mean(1)
    assert best[index[Single(), "small"]] == pytest.approx(0.5, abs=0.2)
    assert best[index[Single(), "large"]] == 1
    assert best[index[Vote(n=8), "small"]] == 1
    llm.task = "t"
    plan = plan_of(llm.invoke("Question?", budget="2000 tokens"))
    assert (plan["level"], plan["source"][:9]) == (1, "profile t")  # type: ignore[index]


def test_a_calibration_resumes(llm: ChatPareto) -> None:
    """What was drawn is kept, also with a line that was cut off; nothing is drawn twice."""
    first = calibrate(llm)
    backends = [llm.models[name] for name in ("small", "large")]
    drawn = [len(backend.draws) for backend in backends]
    path = samples_path("t")
    text = path.read_text()
    assert calibrate(llm).cells["tokens"].right.tolist() == first.cells["tokens"].right.tolist()
    assert [len(backend.draws) for backend in backends] == drawn
    path.write_text(text[:-20])
    calibrate(llm)
    assert sum(len(backend.draws) for backend in backends) == sum(drawn) + 8
    assert path.read_text().count("\n") == text.count("\n")


def test_a_calibration_keeps_its_budget(llm: ChatPareto) -> None:
    """It ends where its budget does, measures what it has, and goes on later."""
    with pytest.raises(SettingError, match="no question was answered by every model"):
        calibrate(llm, budget="100 tokens")
    some = calibrate(llm, budget="1500 tokens")
    assert 0 < some.questions < len(QUESTIONS)
    assert calibrate(llm).questions == len(QUESTIONS)


@pytest.mark.parametrize(
    "limits",
    [{"budget": "30 tokens", "timeout": 1e-6, "guarantee": "agree"}, {"need": 0.9}],
)
def test_what_limits_calls_does_not_limit_their_calibration(
    llm: ChatPareto, limits: dict[str, Any]
) -> None:
    """All is drawn as without them, from the models that are loaded already; afterwards they are as before."""
    limited = copy.copy(llm)
    for name, value in limits.items():
        setattr(limited, name, value)
    profile = calibrate(limited)
    assert profile.questions == len(QUESTIONS)
    assert profile.keys == llm.plans().keys
    assert limited.timeout == limits.get("timeout")
    assert (limited.budget is None) is ("budget" not in limits)


def test_a_calibration_loads_no_model_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it loads belongs to the chat model, is there for its calls, and is closed with it."""
    loaded = list[ScriptedBackend]()

    def load(model: object, **_: object) -> ScriptedBackend:
        loaded.append(ScriptedBackend(["Answer: 7"], name=str(model)))
        return loaded[-1]

    monkeypatch.setattr(loading, "load", load)
    llm = ChatPareto(model="./small", max_tokens=60, budget="30 tokens")
    calibrate(llm)
    llm.invoke("Question?")
    assert len(loaded) == 1
    llm.close()
    with pytest.raises(EngineClosedError):
        ChatPareto(backend=loaded[0]).invoke("Question?")


def test_without_labels_most_samples_stand_in(llm: ChatPareto) -> None:
    """Plans are ranked, and no accuracy is told."""
    bare = [Asked(q.id, q.text) for q in QUESTIONS]
    profile = asyncio.run(calibrate_quality(llm, bare, task="t", samples=8))
    assert not profile.labelled
    assert Planner(profile).plan().quality is None
    llm.task = "t"
    with pytest.raises(CertificateRefused):
        llm.invoke("Question?", guarantee="error")


def test_a_checker_may_judge(llm: ChatPareto) -> None:
    """Where many answers are right, a function says so."""
    profile = asyncio.run(
        calibrate_quality(llm, QUESTIONS, task="t", samples=8, is_right=lambda _, a: a == "1")
    )
    index = {(o.strategy, o.players): i for i, o in enumerate(profile.options)}
    best = profile.cells["tokens"].right[:, -1].mean(1)
    assert best[index[Single(), "large"]] == 0
    assert best[index[Single(), "small"]] == pytest.approx(0.25, abs=0.2)


def test_labels_may_come_later(llm: ChatPareto) -> None:
    """What is known of a question is what is asked with now; a question of another text is not that question."""
    bare = [Asked(q.id, q.text) for q in QUESTIONS]
    asyncio.run(calibrate_quality(llm, bare, task="t", samples=8))
    assert calibrate(llm).labelled
    changed = [Asked(q.id, q.text + "!", "7") for q in QUESTIONS]
    with pytest.raises(SettingError, match="another text"):
        asyncio.run(calibrate_quality(llm, changed, task="t", samples=8))


def test_an_error_while_sampling_is_told_alone(llm: ChatPareto) -> None:
    """No group of errors reaches the caller, and a file that was left empty is begun again."""
    samples_path("t").parent.mkdir(parents=True)
    samples_path("t").write_text("")
    long = [Asked("long", "x" * 10_000, "7")]
    with pytest.raises(ContextLengthError):
        asyncio.run(calibrate_quality(llm, long, task="t", samples=8))
    assert calibrate(llm).questions == len(QUESTIONS)


def test_samples_of_other_models_do_not_mix(llm: ChatPareto) -> None:
    """A name that holds samples of other models or settings is refused, and nothing of it is lost."""
    calibrate(llm)
    text = samples_path("t").read_text()
    with pytest.raises(SettingError, match="samples a question"):
        calibrate(llm.model_copy(update={"temperature": 0.3}))
    assert samples_path("t").read_text() == text
    samples_path("t").write_text("nonsense\n")
    with pytest.raises(SettingError, match="no samples"):
        calibrate(llm)


def test_the_command_line_calibrates_and_plans(tmp_path: Path) -> None:
    """With the bundled model: a profile comes out, and `pareto plan` reads it, as text and as JSON."""
    file = tmp_path / "q.jsonl"
    rows = [
        {"question": f"Ava has {i} cups. How many cups does Ava have?", "answer": str(i)}
        for i in (3, 5)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = CliRunner().invoke
    made = run(app, ["calibrate", "quality", str(file), "--task", "cups", "--samples", "4"])
    assert made.exit_code == 0, made.output
    assert load_profile(profile_path("cups")).questions == 2
    told = run(app, ["plan", "Ava has 9 cups.", "--task", "cups", "--budget", "200 tokens"])
    assert told.exit_code == 0, told.output
    assert "Plan: one sample by nano" in told.output
    as_json = run(app, ["plan", "x", "--task", "cups", "--budget", "200", "--json"])
    assert json.loads(as_json.output)["strategy"]["kind"] == "single"
    wrong = run(app, ["plan", "x", "--task", "never"])
    assert wrong.exit_code == 2


@pytest.mark.parametrize(
    "budget", [None, "1", "1 flop", "1 B", "0.001 ms", "unlimited", str(10**16)]
)
@pytest.mark.parametrize("measured", [True, False])
def test_a_plan_is_json(tmp_path: Path, budget: str | None, measured: bool) -> None:
    """Without a profile, and at the smallest and the largest budget: the same keys, and no number that JSON has not."""
    llm = ChatPareto()
    options = tuple(Option(o.strategy, {"policy": "nano"}) for o in OPTIONS[:2])
    file = tmp_path / "p.json"
    table = {"tokens": cells(RIGHT[:2], TOKENS[:2], questions=20)}
    Profile("p", options, table, keys=dict(llm.plans().keys)).save(file)
    task = ["--task", str(file)] if measured else []
    limits = [] if budget is None else ["--budget", budget]
    done = CliRunner().invoke(app, ["plan", "Question?", "--json", *task, *limits])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout, parse_constant=lambda x: pytest.fail(f"{x} is no JSON"))
    keys = {"strategy", "model", "decoder", "binding", "expected", "quality", "rejected"}
    assert keys <= set(found)
    assert found["strategy"]["kind"]
    assert (found["level"] == 1) is (measured and budget != "1 B")


def test_a_cascade_of_a_plan_reaches_both_models(llm: ChatPareto) -> None:
    """The roles of a plan are bound to its models: what the small one leaves open, the large one decides."""
    report = llm.invoke(
        "Question?", strategy=Cascade(n=4, n_large=2, agreement=1.0), budget="900 tokens"
    )
    assert report.response_metadata["pareto"]["answer"] == "7"
