"""Decoders at the face: every route reaches the engine, and lossless ones never change an answer."""

import asyncio
import gc
import json
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from typer.testing import CliRunner

from langchain_pareto import BigLittle, ChatPareto, Lookup, Plain, Rounds, Speculative, Vote
from langchain_pareto.backends import loading
from langchain_pareto.backends.decoders import Decoder, parse_decoder
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.nano import draft_path
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.cli import app
from langchain_pareto.errors import BudgetExceeded, CapabilityError, SettingError

QUESTION = "Use 11 7 3 to make 74."


@pytest.fixture(scope="module")
def llm():
    """The bundled policy, with a seed."""
    chat = ChatPareto(seed=3, strategy=Vote(n=4), device="cpu", dtype="float32")
    yield chat
    chat.close()


def report(message):
    """What an answer says of itself."""
    return message.response_metadata["pareto"]


@pytest.mark.parametrize(
    "decoder",
    ["auto", "lookup", Speculative(draft_tokens=2), Rounds(schedule="first_come"), Rounds()],
)
def test_the_answer_does_not_depend_on_a_lossless_decoder(llm, decoder):
    """The same seed gives the same tree of texts; what is reported beside it says how the guesses went."""
    plain, spoken = llm.invoke(QUESTION), llm.invoke(QUESTION, decoder=decoder)

    def texts(message):
        return [node["text"] for node in report(message)["tree"]]

    assert texts(spoken) == texts(plain)
    assert report(plain)["decoder"] == {"kind": "plain"}
    assert "speculation" not in report(plain)
    told = report(spoken).get("speculation")
    if told is not None:  # "auto" and "lookup" may find that guessing does not pay
        assert told["accepted"] <= told["drafted"]
        assert told["tokens_per_round"] == pytest.approx(
            1 + told["accepted"] / told["rounds"], abs=1e-3
        )
    else:
        assert decoder in ("auto", "lookup")
    assert json.loads(json.dumps(report(spoken)))["decoder"]["kind"] != "plain"


def test_a_decoder_travels_by_every_route(llm):
    """Field, keyword, bind, config and JSON mean the same."""
    fixed = {"kind": "speculative", "draft_tokens": 2}
    ways = [
        ChatPareto(seed=3, device="cpu", decoder=fixed).invoke(QUESTION),
        llm.invoke(QUESTION, decoder=fixed),
        llm.bind(decoder=Speculative(draft_tokens=2)).invoke(QUESTION),
        llm.invoke(QUESTION, config={"configurable": {"decoder": json.dumps(fixed)}}),
    ]
    for message in ways:
        assert report(message)["decoder"]["draft_tokens"] == 2
        assert report(message)["speculation"]["rounds"] > 0


def test_a_draft_makes_auto_the_default():
    """With draft= the decoder is speculative; without one it is plain."""
    with load("nano-draft", device="cpu") as draft:
        with_draft = ChatPareto(draft=draft, seed=1, device="cpu")
        kind = report(with_draft.invoke(QUESTION))["decoder"]["kind"]
        with_draft.close()
    without = ChatPareto(seed=1, device="cpu")
    assert (kind, report(without.invoke(QUESTION))["decoder"]["kind"]) == ("speculative", "plain")
    without.close()


def test_a_budget_holds_under_every_decoder(llm):
    """Guesses are no tokens of the budget, and their FLOPs are."""
    for decoder in ("plain", Speculative(draft_tokens=6), Lookup(draft_tokens=4), BigLittle()):
        spent = report(llm.invoke(QUESTION, decoder=decoder, budget="150 tokens"))["spent"]
        assert 0 < spent["tokens"] <= 150
        limited = llm.invoke(QUESTION, decoder=decoder, budget="2 GFLOP")
        assert report(limited)["spent"]["flops"] <= 2e9


def test_what_cannot_be_decoded_is_refused():
    """A wrong name or value, a decoder without its draft, and a backend that is no local model: each says what to do."""
    with pytest.raises(SettingError, match="known decoders: auto, plain, speculative"):
        ChatPareto(decoder="fast")
    with pytest.raises(SettingError, match="known decoders"):
        parse_decoder(Decoder(kind="own"))
    with pytest.raises(SettingError, match="draft_tokens"):
        parse_decoder({"kind": "speculative", "draft_tokens": 0})
    with pytest.raises(SettingError, match="shortest=5 is more than ngram=2"):
        parse_decoder('{"kind": "lookup", "ngram": 2, "shortest": 5}')
    scripted = ChatPareto(backend=ScriptedBackend({QUESTION: ["Answer: 1"]}), decoder="lookup")
    with pytest.raises(CapabilityError, match="only a model on this machine"):
        scripted.invoke(QUESTION)
    with load(None, device="cpu") as target:
        alone = ChatPareto(backend=target, decoder="speculative")
        with pytest.raises(SettingError, match="needs a draft model"):
            alone.invoke(QUESTION)


def engine_of(chat):
    """The engine, once it has nothing to do."""
    engine = chat._backend().engine
    end = time.monotonic() + 60
    while engine.call(lambda: engine.live).result():
        assert time.monotonic() < end, "a program goes on"
    return engine


def slots_of(chat):
    """Slots that branches hold, on the model and on its draft."""
    gc.collect()
    engine = engine_of(chat)
    backends = [chat._backend(), chat._players.load_beside(chat._players.draft_for())]
    return [engine.call(lambda b=b: b.runner.pool.live).result() for b in backends]


LONG = {"strategy": "single", "temperature": 3.0, "max_tokens": 150}
DECODERS = [
    Speculative(draft_tokens=4),
    Lookup(draft_tokens=4, shortest=1),
    Rounds(schedule="first_come"),
    Rounds(),
    BigLittle(rollback=0),
]


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.kind)
def test_leaving_a_stream_ends_its_rounds(llm, decoder):
    """A loop that breaks off leaves nothing running and nothing held, and the next call draws what it always drew."""
    wanted = llm.invoke(QUESTION, **LONG).content
    pieces = []
    for chunk in llm.stream(QUESTION, decoder=decoder, **LONG):
        pieces.append(chunk.content)
        if len(pieces) == 5:
            break
    assert wanted.startswith("".join(pieces))
    assert slots_of(llm) == [0, 0]
    assert llm.invoke(QUESTION, decoder=decoder, **LONG).content == wanted


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.kind)
async def test_a_cancelled_call_ends_its_rounds(llm, decoder):
    """The caller's loop gives up while guesses are made."""
    begun = asyncio.Event()

    async def read():
        async for _ in llm.astream(QUESTION, decoder=decoder, **LONG):
            begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert slots_of(llm) == [0, 0]


@pytest.mark.parametrize("decoder", DECODERS, ids=lambda decoder: decoder.kind)
def test_time_may_run_out_in_a_round(llm, decoder):
    """What comes of it is a beginning of the whole text, or an error that says so."""
    whole = llm.invoke(QUESTION, **LONG).content
    for seconds in (0.001, 0.02, 0.05, 0.1, 0.2):
        with suppress(BudgetExceeded):
            text = llm.invoke(QUESTION, decoder=decoder, budget=f"{seconds}s", **LONG).content
            assert whole.startswith(text.rstrip("\N{REPLACEMENT CHARACTER}"))
    assert slots_of(llm) == [0, 0]


def test_threads_use_one_model_under_different_decoders(llm):
    """Side by side in one engine, each call draws what it draws alone."""
    short = {"strategy": "single", "max_tokens": 60}
    asked = [(seed, decoder) for seed in range(3) for decoder in ("plain", "auto", *DECODERS)]
    wanted = [llm.invoke(QUESTION, seed=seed, **short).content for seed in range(3)]

    def draw(one):
        seed, decoder = one
        return llm.invoke(QUESTION, seed=seed, decoder=decoder, **short).content

    with ThreadPoolExecutor(len(asked)) as pool:
        found = list(pool.map(draw, asked))
    assert found == [wanted[seed] for seed, _ in asked]
    assert slots_of(llm) == [0, 0]


def test_decoders_are_plain_settings():
    """They go through JSON and pickle, and enter a model's identity; only Big Little says that it changes texts."""
    for decoder in (
        Plain(),
        Speculative(confidence=0.4),
        Lookup(),
        Rounds(),
        BigLittle(rollback=2),
    ):
        assert parse_decoder(decoder.model_dump_json()) == decoder
        assert decoder.lossless == (not isinstance(decoder, BigLittle))
    one, two = ChatPareto(decoder=BigLittle()), ChatPareto(decoder=BigLittle(rollback=2))
    assert pickle.loads(pickle.dumps(two)).decoder == two.decoder
    assert one._identifying_params != two._identifying_params


def test_a_draft_has_settings_of_its_own():
    """A model keeps its settings whatever its draft is called, and a decoder without a draft loads none."""
    chat = ChatPareto(model="nano", draft="nano-draft", max_context=64, seed=1, device="cpu")
    chat.invoke(QUESTION, max_tokens=8)
    limit = chat._backend().capabilities.context_length
    chat.close()
    assert limit == 64
    plain = ChatPareto(decoder="plain", draft="/there/is/none", seed=1, device="cpu")
    assert plain.invoke(QUESTION, max_tokens=8).content
    plain.close()


@pytest.mark.parametrize(
    ("first", "of_model", "of_call"),
    [
        (ChatPareto.get_num_tokens, {"decoder": "auto"}, {}),
        (ChatPareto.invoke, {"decoder": "auto"}, {}),
        (ChatPareto.invoke, {}, {"decoder": "auto"}),
        (lambda chat, text, **of_call: list(chat.stream(text, **of_call)), {}, {"decoder": "auto"}),
    ],
)
def test_the_draft_is_loaded_before_its_target(monkeypatch, first, of_model, of_call):
    """Whichever method is called first: the target's pool takes what memory is left."""
    loaded = []

    def noted(model, **settings):
        loaded.append(model)
        return load(model, **settings)

    monkeypatch.setattr(loading, "load", noted)
    chat = ChatPareto(seed=1, device="cpu", max_tokens=4, **of_model)
    assert first(chat, QUESTION, **of_call)
    chat.invoke(QUESTION, decoder="auto")
    chat.close()
    assert loaded == ["nano-draft", None]


@pytest.mark.parametrize(
    ("draft", "match"),
    [
        ("", "name is empty"),
        (" ", "name is empty"),
        ([], "a Backend, not list"),
        (3, "a Backend, not int"),
        ("nano", "nano cannot draft for itself"),
        (draft_path().parent / "draft" / ".." / "policy", "nano cannot draft for itself"),
    ],
)
def test_a_draft_that_cannot_be_one_is_refused_at_once(draft, match):
    """By its type, its empty name, or because it is the model; each error says what to give instead."""
    with pytest.raises(SettingError, match=match):
        ChatPareto(draft=draft)
    if isinstance(draft, str):
        told = CliRunner().invoke(app, ["ask", QUESTION, "--draft", draft])
        assert told.exit_code == 2
        assert match in told.stderr


def test_no_call_goes_to_the_model_that_drafts():
    """A call that names the draft as its model says so, and a Backend cannot draft for itself."""
    chat = ChatPareto(draft="nano-draft", seed=1, device="cpu")
    with pytest.raises(SettingError, match="nano-draft cannot draft for itself"):
        chat.invoke(QUESTION, model="nano-draft")
    with load("nano-draft", device="cpu") as backend, pytest.raises(SettingError, match="itself"):
        ChatPareto(backend=backend, draft=backend)


def test_a_draft_that_waits_is_told_of():
    """Look-up uses no draft model: the command line refuses one, the chat model may use it in another call and warns."""
    with pytest.warns(UserWarning, match='"lookup" takes no draft model'):
        chat = ChatPareto(draft="nano-draft", decoder="lookup", seed=1, device="cpu")
    asked = chat.invoke(QUESTION, decoder="speculative", max_tokens=8)
    assert report(asked)["decoder"]["kind"] == "speculative"
    chat.close()
    for decoder in ("lookup", "plain"):
        told = CliRunner().invoke(
            app, ["ask", QUESTION, "--draft", "nano-draft", "--decoder", decoder]
        )
        assert told.exit_code == 2
        assert f'"{decoder}" takes no draft model' in told.stderr


def test_the_command_line_takes_a_decoder():
    """`--decoder` and `--draft`; what the guesses came to is shown."""
    ask = ["ask", QUESTION, "--seed", "1", "--device", "cpu", "--strategy", "single"]
    told = CliRunner().invoke(app, [*ask, "--decoder", '{"kind": "rounds", "draft_tokens": 2}'])
    assert told.exit_code == 0
    assert "guesses right" in " ".join(told.stdout.split())
    told = CliRunner().invoke(app, [*ask, "--draft", "nano-draft"])
    assert told.exit_code == 0
    told = CliRunner().invoke(app, [*ask, "--decoder", "fast"])
    assert told.exit_code == 2
    assert "known decoders" in told.stderr


@pytest.mark.parametrize("seed", range(4))
def test_what_the_draft_ends_unseen_can_be_chosen_by_its_likelihood(llm, seed):
    """The figures of the tokens that no target looks at are the draft's."""
    decoder = BigLittle(rollback=0.1, fallback=0, longest=30)
    told = llm.invoke(
        QUESTION, decoder=decoder, strategy="best_of_n", seed=seed, temperature=1, max_tokens=60
    )
    assert all(node["score"] < 0 for node in report(told)["tree"] if node["score"] is not None)
