"""Process and outcome rewards by models with heads: what they are shown, what comes of it, and what it costs."""

import json
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Literal

import pytest
import torch
from readings import drawn_by_one_and_read_by_another
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForTokenClassification,
)

from langchain_pareto import ChatPareto
from langchain_pareto.backends import loading, nano, pretrained
from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.reward_head import load_head
from langchain_pareto.backends.scripted import ScriptedBackend
from langchain_pareto.budget import Budget, Cost
from langchain_pareto.errors import CapabilityError, SettingError
from langchain_pareto.ledger import Account
from langchain_pareto.models import reward_role, warn_unused
from langchain_pareto.strategies import (
    Beam,
    BestOfN,
    Cascade,
    Knockout,
    Rebase,
    Strategy,
    Vote,
    WeightedVote,
)
from langchain_pareto.strategies.head_reward import QWEN_MATH_PRM, SKYWORK_PRM, TRL_PRM, StepHead
from langchain_pareto.strategies.judge import JudgeCompare, JudgeScore
from langchain_pareto.strategies.outcome_reward import OutcomeReward
from langchain_pareto.strategies.process_reward import RLHFLOW, ProcessReward
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.scorers import MeanLogprob
from langchain_pareto.strategies.scoring import parse_scorer
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.settings import Role, Settings
from langchain_pareto.strategies.thoughts import Answer
from langchain_pareto.strategies.until import STEP

torch.set_num_threads(1)

QUESTION = "What is 2+2?"
SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 1024,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
MEMORY = 1 << 20
KINDS = {
    "steps": (Qwen2ForTokenClassification, Qwen2Config, 2),
    "values": (Qwen2ForTokenClassification, Qwen2Config, 1),
    "reward": (LlamaForSequenceClassification, LlamaConfig, 1),
    "classes": (LlamaForSequenceClassification, LlamaConfig, 2),
    "encoder": (BertForSequenceClassification, BertConfig, 1),
}


class Do(Strategy):
    """A strategy written on the spot."""

    kind: Literal["do"] = "do"
    what: Callable[[Search], Awaitable[Answer]]

    async def run(self, search: Search) -> Answer:
        return await self.what(search)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny model of each kind in a folder, and itself; the tokenizer knows the mark of Qwen2.5-Math-PRM."""
    out = {}
    for name, (cls, config, labels) in KINDS.items():
        path = tmp_path_factory.mktemp(name)
        torch.manual_seed(2)
        with pretrained.quiet():
            model = cls(config(**SHAPE, num_labels=labels)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(6)
        tokenizer = AutoTokenizer.from_pretrained(nano.tokenizer_path())
        tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_0>"]})
        with pretrained.quiet():
            model.save_pretrained(path)
        tokenizer.save_pretrained(path)
        out[name] = path, model
    return out


@pytest.fixture(scope="module")
def heads(folders):
    """`heads[name]` is the backend of each."""
    out = {
        name: load_head(path, device="cpu", dtype="float32", memory=MEMORY, self_check=False)
        for name, (path, _) in folders.items()
    }
    yield out
    for head in out.values():
        head.close()


async def ask(strategy, texts, head, budget=None, *, names=("scorer",), **settings):
    """Runs a strategy over scripted texts; whatever happens, all that both computed is paid, and nothing stays."""
    policy = ScriptedBackend(list(texts))
    account = Account(Budget.parse(budget) if budget else None)

    def render(text):
        tokenizer = head.tokenizer
        return tokenizer.encode(tokenizer.render([{"role": "user", "content": text}]))

    players = {name: Role(head, Sampling(), lambda: render(QUESTION), render) for name in names}
    meter = head.target.engine.meter if hasattr(head, "target") else head.meter
    before = meter.flops
    try:
        outcome = await run(
            strategy,
            policy,
            QUESTION,
            question=QUESTION,
            account=account,
            settings=Settings(Sampling(), roles=players, **settings),
        )
        assert outcome.spent.flops == account.spent.flops
        return outcome
    finally:
        assert account.reserved == Cost()
        assert account.spent.flops == policy.meter.flops + meter.flops - before
        assert account.spent.tokens == policy.meter.new_tokens
        assert account.spent.memory == 0


def logits(model, tokens):
    """What transformers says at every token of a text: (tokens, labels), or (1, labels)."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([tokens])).logits
    return out.reshape(-1, out.shape[-1]).double()


def chat(tokenizer, answer):
    """The tokens of a question and an answer by the chat template."""
    turns = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": answer}]
    return tokenizer.encode(tokenizer.render(turns, add_generation_prompt=False))


# --- steps


TEXT = "Add them.\nThat is 4, or 5.\nAnswer: 4"
LINES = TEXT.split("\n")


def by_mark(head):
    """As the model card of Qwen2.5-Math-PRM writes it, and where its rewards are read."""
    system = "Please reason step by step, and put your final answer within \\boxed{}."
    text = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
    tokens = head.tokenizer.encode(text + "<extra_0>".join(LINES) + "<extra_0>")
    [mark] = head.tokenizer.encode("<extra_0>")
    return tokens, [i for i, token in enumerate(tokens) if token == mark]


def by_line(start):
    """As Skywork and trl put steps together: token by token, each step and its separator apart."""

    def build(head):
        encode = head.tokenizer.encode
        tokens, ends = encode(start), []
        for line in LINES:
            tokens += encode(line) + encode("\n")
            ends.append(len(tokens) - 1)
        return tokens, ends

    return build


SHOWN = {
    "qwen_math_prm": ("steps", QWEN_MATH_PRM, by_mark),
    "skywork_prm": ("values", SKYWORK_PRM, by_line(f"<|im_start|>{QUESTION}\n")),
    "trl_prm": ("steps", TRL_PRM, by_line(QUESTION)),
}


@pytest.mark.parametrize("name", SHOWN)
@pytest.mark.parametrize("piecewise", [False, True])
async def test_steps_are_shown_and_scored_as_published(heads, folders, name, piecewise):
    """Token for token, in one forward of the whole text: P(good) of two classes, the sigmoid of one value."""
    kind, how, build = SHOWN[name]
    head, (_, model) = heads[kind], folders[kind]
    texts = [line + "\n" for line in LINES[:-1]] + LINES[-1:] if piecewise else [TEXT]
    seen = {}

    async def what(search):
        thought = search.root
        while not thought.finished:
            [thought] = await search.sample(thought, until=STEP if piecewise else "answer")
            await search.score([thought])
        [reading] = [one.result() for one in thought.readings.values()]
        seen.update(tokens=list(reading.branch.tokens), scores=thought.path_scores)
        return Answer(thought)

    await ask(Do(what=what), texts, head, scorer=ProcessReward(format=name))
    tokens, ends = build(head)
    assert ProcessReward(format=name).format == how
    assert seen["tokens"] == tokens
    rows = logits(model, tokens)[ends]
    wanted = rows.softmax(-1)[:, 1] if rows.shape[1] == 2 else rows.sigmoid()[:, 0]
    assert seen["scores"] == pytest.approx(wanted.tolist(), abs=1e-5)


async def test_without_a_mark_a_step_is_judged_at_its_last_token(heads, folders):
    """Whatever that is; the question as the model's own template has it."""
    head, (_, model) = heads["values"], folders["values"]
    outcome = await ask(
        BestOfN(n=1), ["ab\ncd"], head, scorer=ProcessReward(format=StepHead(after=""))
    )
    encode = head.tokenizer.encode
    prompt = encode(head.tokenizer.render([{"role": "user", "content": QUESTION}]))
    first, second = encode("ab"), encode("cd")
    rows = logits(model, [*prompt, *first, *second]).sigmoid()[:, 0].tolist()
    at = len(prompt) + len(first) - 1
    assert outcome.answer.thought.step_scores == pytest.approx(
        (rows[at], rows[at + len(second)]), abs=1e-5
    )


async def test_a_step_is_read_once(folders):
    """By whom it is asked about, and for its children: the meter counts each token once, and a row for each judgement."""
    head = load_head(folders["steps"][0], device="cpu", memory=MEMORY + 1, self_check=False)
    meter = head.target.engine.meter
    before = meter.forward_tokens

    async def what(search):
        [first] = await search.sample(search.root, until=STEP)
        await search.score([first])
        children = await search.expand([first] * 3)
        await search.score(children)
        for one in (first, *children):
            one.score = None
        await search.score([first, *children])
        assert all(len(child.path_scores) == 2 for child in children)
        return Answer(children[0])

    format_ = StepHead(after="\n", prompt="{question}")
    await ask(
        Do(what=what), ["one\n", "two", "six", "nine"], head, scorer=ProcessReward(format=format_)
    )
    encode = head.tokenizer.encode
    once = sum(len(encode(part)) for part in (QUESTION, "one", "two", "six", "nine")) + 4
    assert once <= meter.forward_tokens - before <= once + 3
    head.close()


# --- answers


ANSWERS = ["Answer: 4", "It must be 5.\nAnswer: 5", "Answer: 44"]


@pytest.mark.parametrize("kind", ["reward", "classes"])
async def test_an_answer_is_scored_as_transformers_does(heads, folders, kind):
    """In a chat by its own template: the value as it is, of two classes P(good); best of n goes by it."""
    head, (_, model) = heads[kind], folders[kind]
    outcome = await ask(BestOfN(n=3), ANSWERS, head, scorer=OutcomeReward())
    wanted = []
    for text in ANSWERS:
        row = logits(model, chat(head.tokenizer, text))[-1]
        wanted.append(float(row[0] if len(row) == 1 else row.softmax(-1)[1]))
    scores = [thought.score for thought in outcome.thoughts]
    assert scores == pytest.approx(wanted, abs=1e-5)
    assert all(thought.step_scores == () for thought in outcome.thoughts)
    assert outcome.answer.thought.whole_text == ANSWERS[wanted.index(max(wanted))]


async def test_what_texts_have_in_common_is_read_once(folders):
    """The question, the beginning of a text that goes on, and a text that says the same."""
    path, model = folders["reward"]
    head = load_head(path, device="cpu", memory=MEMORY + 1, self_check=False)
    meter = head.target.engine.meter
    seen = {}

    async def what(search):
        [first] = await search.sample(search.root, until=STEP)
        await search.score([first])
        before = meter.forward_tokens
        children = await search.expand([first] * 3)
        await search.score(children)
        seen["children"] = meter.forward_tokens - before
        seen["scores"] = [first.score, *(child.score for child in children)]
        return Answer(children[0])

    await ask(Do(what=what), ["a long first line\n", "x", "y", "x"], head, scorer=OutcomeReward())
    texts = ["a long first line\n" + end for end in ("", "x", "y", "x")]
    tokens = [chat(head.tokenizer, text) for text in texts]
    wanted = [float(logits(model, one)[-1][0]) for one in tokens]
    assert seen["scores"] == pytest.approx(wanted, abs=1e-5)
    common = sum(a == b for a, b in zip(*tokens[:2], strict=False))
    new = sum(len(one) - common for one in tokens[1:3])  # the third says what the first said
    assert new <= seen["children"] <= new + 2
    head.close()


async def test_an_encoder_reads_every_text_whole(heads, folders):
    """By a prompt of the user's, at the price of the whole text each time."""
    head, (_, model) = heads["encoder"], folders["encoder"]
    prompt = "Q: {question}\nA: {answer}"
    meter = head.target.engine.meter
    before = meter.forward_tokens
    outcome = await ask(BestOfN(n=3), ANSWERS, head, scorer=OutcomeReward(prompt=prompt))
    texts = [f"Q: {QUESTION}\nA: {text}" for text in ANSWERS]
    tokens = [head.tokenizer.encode_prompt(text) for text in texts]
    scores = [thought.score for thought in outcome.thoughts]
    assert scores == pytest.approx([float(logits(model, one)[-1][0]) for one in tokens], abs=1e-5)
    assert meter.forward_tokens - before == sum(map(len, tokens))


# --- the account


@pytest.mark.parametrize(
    ("kind", "scorer"),
    [
        ("steps", ProcessReward(format="trl_prm")),
        ("reward", OutcomeReward()),
        ("encoder", OutcomeReward()),
    ],
    ids=["steps", "answers", "whole"],
)
async def test_no_room_to_read_leaves_no_score_and_an_answer(heads, kind, scorer):
    """However little is left: what is spent is within the budget, and some thoughts stay without a score."""
    head = heads[kind]
    texts = ["so\nAnswer: 1", "then\nAnswer: 2", "and\nAnswer: 2"]
    free = await ask(BestOfN(n=3), texts, head)
    scored = await ask(BestOfN(n=3), texts, head, scorer=scorer)
    assert scored.spent.tokens == free.spent.tokens
    unread = 0
    for share in (0, 0.3, 0.7, 1):
        flops = round(free.spent.flops + share * (scored.spent.flops - free.spent.flops))
        for strategy in (BestOfN(n=3), WeightedVote(n=3), Rebase(n=3)):
            outcome = await ask(strategy, texts, head, f"{flops} flops", scorer=scorer)
            assert outcome.answer is not None
            assert outcome.spent.flops <= flops
            unread += None in [thought.score for thought in outcome.thoughts if thought.finished]
    assert unread


@pytest.mark.parametrize("kind", ["reward", "encoder"])
async def test_what_is_dropped_gives_its_memory_back(heads, kind):
    """The reward model's cache of a text; one that reads whole texts holds none."""
    head = heads[kind]

    async def what(search):
        [first] = await search.sample(search.root, until=STEP)
        await search.score([first])
        middle = search.room.unspent.memory
        children = await search.expand([first] * 3)
        drawn = search.room.unspent.memory
        await search.score(children)
        assert (search.room.unspent.memory < drawn) == (kind == "reward")
        search.drop(children)
        assert search.room.unspent.memory == middle
        return Answer(first)

    await ask(Do(what=what), ["a\n", "b", "c", "d"], head, "900 KB", scorer=OutcomeReward())


async def test_a_reading_is_given_back_to_whoever_paid_for_it(heads):
    """What one run draws and another reads is on two accounts, whoever drops it."""
    await ask(
        Do(what=drawn_by_one_and_read_by_another),
        ["a line\n"],
        heads["reward"],
        "900 KB",
        scorer=OutcomeReward(),
    )


# --- mistakes


WRONG = [
    ("steps", OutcomeReward(), "scores steps, not answers", "ProcessReward(format=...)"),
    ("reward", ProcessReward(format="skywork_prm"), "scores answers, not steps", "OutcomeReward()"),
    ("steps", ProcessReward(), "no words to judge with", '"qwen_math_prm"'),
    ("reward", ProcessReward(format="rlhflow"), "no words to judge with", "OutcomeReward()"),
    ("reward", JudgeScore(role="scorer"), "writes none", "roles="),
]


@pytest.mark.parametrize(("kind", "scorer", "match", "hint"), WRONG)
async def test_a_scorer_and_a_head_that_do_not_fit_are_told_apart(heads, kind, scorer, match, hint):
    """CapabilityError, with what to take instead."""
    with pytest.raises(CapabilityError, match=match) as caught:
        await ask(BestOfN(n=2), ["a", "b"], heads[kind], scorer=scorer)
    assert hint in caught.value.hint


@pytest.mark.parametrize("scorer", [OutcomeReward(), ProcessReward(format="qwen_math_prm")])
async def test_a_model_of_words_has_no_head(scorer):
    """On whatever backend; llama.cpp reads none."""
    with pytest.raises(CapabilityError, match=r"no head for \w+ classification") as caught:
        await ask(BestOfN(n=2), ["a", "b"], ScriptedBackend(["x"], name="words"), scorer=scorer)
    assert "llama.cpp does not" in caught.value.hint


async def test_a_large_model_that_is_a_reward_model_is_refused(heads):
    """As whoever is to write."""
    with pytest.raises(CapabilityError, match="writes none"):
        await ask(Cascade(n=1, agreement=1), ["a"], heads["reward"], names=("large",))


async def test_an_outcome_reward_needs_a_model_and_a_way_to_show(heads):
    """SettingError: no role, no chat template, a prompt without its places."""
    with pytest.raises(SettingError, match="no model plays the role 'orm'"):
        await ask(BestOfN(n=2), ["a"], heads["reward"], scorer=OutcomeReward(role="orm"))
    with pytest.raises(ValueError, match=r"lacks \{answer\}"):
        OutcomeReward(prompt="{question}")


async def test_a_model_without_a_template_needs_a_prompt(folders, tmp_path):
    """It is not made up what it was trained to read."""
    path, model = folders["encoder"]
    with pretrained.quiet():
        model.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with load_head(tmp_path, device="cpu", memory=MEMORY) as head:
        with pytest.raises(SettingError, match="no chat template") as caught:
            await ask(BestOfN(n=2), ["a"], head, scorer=OutcomeReward())
        assert "[CLS]{question}[SEP]{answer}[SEP]" in caught.value.hint


@pytest.mark.parametrize(
    "scorer",
    [
        OutcomeReward(role="orm", prompt="{question} {answer}"),
        ProcessReward(format="skywork_prm"),
        ProcessReward(format=StepHead(after="", prompt="{question}")),
    ],
)
def test_scorers_go_through_json(scorer):
    """As text and as a dict, with their formats."""
    assert parse_scorer(scorer.model_dump_json()) == scorer
    assert parse_scorer(json.loads(scorer.model_dump_json())) == scorer
    assert parse_scorer("outcome_reward") == OutcomeReward()


# --- the face


async def test_a_chat_model_loads_a_head_for_a_role(folders):
    """By its path alone; the bundled reward model is not what a StepHead reads."""
    question = "Tom has 3 apples. He buys 4 more. How many apples does Tom have?"
    for kind, scorer, strategy in (
        ("steps", ProcessReward(format="qwen_math_prm"), Rebase(n=3)),
        ("reward", OutcomeReward(), BestOfN(n=3)),
    ):
        path, _ = folders[kind]
        llm = ChatPareto(
            strategy=strategy,
            scorer=scorer,
            roles={"scorer": str(path)},
            seed=1,
            device="cpu",
            budget=Budget(tokens=300),
        )
        message = await llm.ainvoke(question)
        report = message.response_metadata["pareto"]
        assert any(t["score"] is not None and math.isfinite(t["score"]) for t in report["tree"])
        assert report["spent"]["tokens"] == sum(t["tokens"] for t in report["tree"]) <= 300
        llm.close()
    assert reward_role(ProcessReward(format="qwen_math_prm"), None) == {}


async def test_a_chat_model_that_is_a_reward_model_is_refused(folders):
    """Before its weights are read, with the role that it can play."""
    path, _ = folders["reward"]
    llm = ChatPareto(model=str(path), device="cpu")
    with pytest.raises(CapabilityError, match="scores texts, and writes none") as caught:
        await llm.ainvoke("?")
    assert 'roles={"scorer": ...}' in caught.value.hint


# --- RLHFlow's turns


LLAMA = (
    "{{ bos_token }}{% if system %}<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n<|eot_id|>{% endif %}"
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.mark.parametrize("system", [True, False])
async def test_rlhflow_begins_as_the_models_template_does(system):
    """As its published evaluation: the whole conversation by the template, with a system turn where that puts one."""
    tokenizer = AutoTokenizer.from_pretrained(nano.tokenizer_path())
    tokenizer.chat_template = f"{{% set system = {str(system).lower()} %}}{LLAMA}"
    seen = []

    async def what(search):
        [thought] = await search.sample(search.root)
        await search.score([thought])
        [reading] = [one.result() for one in thought.readings.values()]
        seen.append((list(reading.branch.tokens), len(thought.step_scores)))
        return Answer(thought)

    backend = loading.load(
        nano.PRM, tokenizer=tokenizer, device="cpu", memory=8 * MEMORY, self_check=False
    )
    role = Role(backend, Sampling(), list, backend.tokenizer.encode)
    policy = ScriptedBackend(["first\nsecond"])
    settings = Settings(Sampling(), roles={"scorer": role}, scorer=ProcessReward(format=RLHFLOW))
    await run(Do(what=what), policy, QUESTION, question=QUESTION, settings=settings)
    turns = [
        {"role": "user", "content": f"{QUESTION} first"},
        {"role": "assistant", "content": "+"},
        {"role": "user", "content": "second"},
        {"role": "assistant", "content": "+"},
    ]
    text = backend.tokenizer.render(turns, add_generation_prompt=False)
    assert ("system" in text) == system
    assert seen == [(backend.tokenizer.encode(text.removesuffix("+<|eot_id|>")), 2)]
    backend.close()


def test_a_template_needs_a_place_for_the_question():
    """What the template writes comes before it."""
    for prompt in (None, "no place"):
        with pytest.raises(ValueError, match=r"place for \{question\}"):
            RLHFLOW.model_validate({**RLHFLOW.model_dump(), "prompt": prompt})


# --- roles that nobody plays


def warned(caplog, roles, strategy, scorer=None):
    caplog.clear()
    with caplog.at_level(logging.WARNING, "langchain_pareto"):
        warn_unused(roles, strategy, scorer or MeanLogprob())
    return [record.getMessage() for record in caplog.records]


def test_a_role_that_is_misspelt_is_told_once(caplog, monkeypatch):
    """With what may have been meant; those that a strategy, a judge in it or the scorer names are not."""
    monkeypatch.setattr("langchain_pareto.models._warned", set())
    [message] = warned(caplog, ["lagre"], Cascade())
    assert "'lagre'" in message
    assert "did you mean 'large'?" in message
    assert warned(caplog, ["lagre"], Cascade()) == []
    assert warned(caplog, ["large"], BestOfN(of=Cascade())) == []
    assert warned(caplog, ["prm"], Beam(), ProcessReward(role="prm")) == []
    assert warned(caplog, ["orm"], Beam(), OutcomeReward(role="orm")) == []
    assert warned(caplog, ["expert"], Knockout(judge=JudgeCompare(role="expert"))) == []
    assert len(warned(caplog, ["scorer", "judge"], Vote())) == 2


def test_roles_of_ones_own_code_are_not_told(caplog, monkeypatch):
    """A strategy or scorer of the user's may name any."""
    monkeypatch.setattr("langchain_pareto.models._warned", set())

    class Mine:
        async def score_in(self, search, thoughts):
            return [0.0] * len(thoughts)

    assert warned(caplog, ["x"], Do(what=len)) == []
    assert warned(caplog, ["x"], Beam(), Mine()) == []
    assert len(warned(caplog, ["x"], Beam())) == 1
