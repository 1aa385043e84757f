"""Reward models with a head of classes: the published values, over the slot pool where that is possible, whole elsewhere; and what is refused."""

import json
import math
import threading
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BartConfig,
    BartForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2ForTokenClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from langchain_pareto.backends import cost, head_model, nano, pretrained, self_check, whole_runner
from langchain_pareto.backends.base import Request, Sampling, Stop
from langchain_pareto.backends.loading import load, load_role
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.reward_head import RewardHead, load_head
from langchain_pareto.backends.whole_runner import Reading
from langchain_pareto.errors import (
    CapabilityError,
    EngineClosedError,
    EngineFailedError,
    ModelLoadError,
    NumericalError,
    SequenceError,
    SettingError,
)

torch.set_num_threads(1)

SHAPE = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
SMALL = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
MEMORY = 1 << 20
SOON = 60  # seconds; a guard against hangs
TOKENS = [(37 * i) % 450 + 20 for i in range(40)]


def save(path, model, *, architecture=None, extra=None):
    """A model with strong random weights in a folder, with the bundled tokenizer; `architecture` renames it, as published code would."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
            else:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    with pretrained.quiet():
        model.save_pretrained(path)
        AutoTokenizer.from_pretrained(nano.tokenizer_path()).save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    config |= extra or {}
    if architecture is not None:
        config["architectures"] = [architecture]
    (path / "config.json").write_text(json.dumps(config))
    return model.eval()


def make(cls, config):
    torch.manual_seed(3)
    with pretrained.quiet():
        return cls(config)


def opened(path, **options):
    return load_head(path, device="cpu", dtype="float32", memory=MEMORY, **options)


def said(head, tokens, branch=None):
    """Log-probabilities of the good class and the bad one after these tokens."""
    branch = branch or head.open(tokens)
    [[good], [bad]] = head.score(branch, [[1], [0]]).future.result(SOON)
    return good, bad


@torch.no_grad()
def expected(model, tokens, **inputs):
    """What a model of transformers says at the end of a text, as the two log-probabilities."""
    out = model(input_ids=torch.tensor([tokens]), **inputs).logits
    row = out.reshape(-1, out.shape[-1])[-1].double()
    pair = torch.stack([torch.zeros(()).double(), row[0]]) if len(row) == 1 else row
    bad, good = pair.log_softmax(-1).tolist()
    return good, bad


def held(engine):
    """Holds the engine between two steps until the event is set."""
    begun, go = threading.Event(), threading.Event()

    def wait():
        begun.set()
        go.wait(SOON)

    engine.call(wait)
    assert begun.wait(SOON)
    return go


CAUSAL = {
    "qwen2 steps": (Qwen2ForTokenClassification, Qwen2Config, GROUPED, 2, "steps"),
    "qwen2 one value a token": (Qwen2ForTokenClassification, Qwen2Config, GROUPED, 1, "steps"),
    "gpt2 steps": (GPT2ForTokenClassification, GPT2Config, {**SMALL, **ENDS}, 2, "steps"),
    "llama": (LlamaForSequenceClassification, LlamaConfig, GROUPED, 1, "answers"),
    "gpt2": (GPT2ForSequenceClassification, GPT2Config, {**SMALL, **ENDS}, 2, "answers"),
    "gemma2": (
        Gemma2ForSequenceClassification,
        Gemma2Config,
        GROUPED | {"head_dim": 8, "sliding_window": 8, "attn_logit_softcapping": 2.0},
        1,
        "answers",
    ),
}
AHEAD = {
    "bert": (BertForSequenceClassification, BertConfig, 1, "answers"),
    "bert steps": (BertForTokenClassification, BertConfig, 2, "steps"),
    "roberta": (RobertaForSequenceClassification, RobertaConfig, 2, "answers"),
    "deberta": (DebertaV2ForSequenceClassification, DebertaV2Config, 1, "answers"),
}


def tiny(cls, kind, shape, labels):
    shape = {"vocab_size": 512, **shape}
    return make(cls, kind(**shape, num_labels=labels))


# --- over the slot pool


@pytest.mark.parametrize("name", CAUSAL)
def test_a_head_says_what_transformers_says(tmp_path, name):
    """Of every prefix of a text, however it is cut into branches; and is told from the others by its config.json."""
    cls, kind, shape, labels, judges = CAUSAL[name]
    model = save(tmp_path, tiny(cls, kind, shape, labels))
    with opened(tmp_path) as head:
        assert (head.judges, head.classes, head.whole) == (judges, labels, False)
        branch = head.open(TOKENS[:5])
        assert said(head, TOKENS[:5], branch) == pytest.approx(
            expected(model, TOKENS[:5]), abs=1e-4
        )
        branch.append(TOKENS[5:30])
        [child] = branch.fork(1)
        child.append(TOKENS[30:])
        branch.truncate(12)
        for one in (child, branch):
            tokens = list(one.tokens)
            assert said(head, tokens, one) == pytest.approx(expected(model, tokens), abs=1e-4)


def test_a_common_beginning_is_computed_once(tmp_path):
    """Forks add what is theirs, and the books say so: usages sum to the meter, flops are those of the formula without any words."""
    cls, kind, shape, labels, _ = CAUSAL["llama"]
    save(tmp_path, tiny(cls, kind, shape, labels))
    with opened(tmp_path) as head:
        engine = head.target.engine
        before = engine.meter.flops, engine.meter.forward_tokens
        branch = head.open(TOKENS[:30])
        first = head.score(branch, [[1], [0]])
        first.future.result(SOON)
        assert first.usage.flops == cost.forward_flops(head.spec, 0, 30, 0)
        assert head.estimate(Request(0, 29, 1, 1)) == (first.usage.flops, 30 * 2 * 2 * 8 * 4 * 2)
        tasks = []
        for i, child in enumerate(branch.fork(4)):
            child.append([30 + i, 40, 50])
            tasks.append(head.score(child, [[1], [0]]))
        for task in tasks:
            task.future.result(SOON)
            assert task.usage.flops <= head.estimate(Request(30, 2, 1, 1))[0]
        spent = [task.usage for task in (first, *tasks)]
        assert sum(usage.forward_tokens for usage in spent) == 30 + 4 * 3
        assert engine.meter.forward_tokens - before[1] == 30 + 4 * 3
        assert engine.meter.flops - before[0] == sum(usage.flops for usage in spent)
        assert head.spec.matmul_parameters * 2 * 30 < first.usage.flops


def test_all_branches_are_one_step(tmp_path):
    """What waits for the engine at once is read at once."""
    cls, kind, shape, labels, _ = CAUSAL["qwen2 steps"]
    model = save(tmp_path, tiny(cls, kind, shape, labels))
    with opened(tmp_path) as head:
        texts = [TOKENS[i : i + 9 + i] for i in range(8)]
        engine = head.target.engine
        go, steps = held(engine), engine.steps
        tasks = [head.score(head.open(text), [[1], [0]]) for text in texts]
        go.set()
        for text, task in zip(texts, tasks, strict=True):
            [[good], [bad]] = task.future.result(SOON)
            assert (good, bad) == pytest.approx(expected(model, text), abs=1e-4)
        assert engine.steps - steps == 1


def test_a_reward_keeps_its_bits_in_bfloat16(tmp_path):
    """The head computes in float32, whatever the body does: answers that are nearly as good stay apart."""
    cls, kind, shape, labels, _ = CAUSAL["llama"]
    model = save(tmp_path, tiny(cls, kind, shape, labels))
    with load_head(tmp_path, device="cpu", dtype="bfloat16", memory=MEMORY) as head:
        good, bad = said(head, TOKENS)
        good_, bad_ = expected(model, TOKENS)
        assert head.spec.dtype == "bfloat16"
        assert good - bad == pytest.approx(good_ - bad_, rel=0.1, abs=0.1)
        value = torch.tensor(good - bad)
        assert value.to(torch.bfloat16).float() != value


def test_the_self_check_sees_a_body_that_is_computed_otherwise(tmp_path, monkeypatch):
    """Once at load, by the hidden states under the head; unless it is switched off."""
    cls, kind, shape, labels, _ = CAUSAL["llama"]
    save(tmp_path, tiny(cls, kind, shape, labels))
    monkeypatch.setattr(self_check, "_passed", set())
    forward = head_model.HeadModel.forward

    def otherwise(self, input_ids, logits_to_keep=None, **options):
        out = forward(self, input_ids, logits_to_keep, **options)
        if "pareto" in options and self.head is None:
            out.logits = out.logits.roll(1, dims=-1)
        return out

    monkeypatch.setattr(head_model.HeadModel, "forward", otherwise)
    with pytest.raises(CapabilityError, match="does not compute what HeadModel does"):
        opened(tmp_path)
    opened(tmp_path, self_check=False).close()


# --- what is published with code of its own


class Published(torch.nn.Module):
    """A Qwen 2 body and a head, as the published code writes them."""

    def __init__(self, head):
        super().__init__()
        torch.manual_seed(5)
        self.lm = make(Qwen2ForCausalLM, Qwen2Config(**GROUPED))
        self.head = head

    def forward(self, input_ids):
        hidden = self.lm.model(input_ids=input_ids).last_hidden_state
        return SimpleNamespace(logits=self.head(hidden))


def published(path, architecture, name, head):
    """Saves a body, and the head under its published name, with a module that must not run."""
    model = Published(head)
    extra = {"auto_map": {"AutoConfig": "theirs.C", "AutoModel": "theirs.M"}}
    save(path, model.lm, architecture=architecture, extra=extra)
    weights = load_file(path / "model.safetensors")
    weights |= {f"{name}.{key}": value for key, value in head.state_dict().items()}
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    (path / "theirs.py").write_text("raise SystemExit('code of a model was run')")
    return model.eval()


def mlp(labels):
    torch.manual_seed(9)
    return torch.nn.Sequential(
        torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, labels)
    )


PUBLISHED = {
    "Qwen2ForProcessRewardModel": ("score", lambda: mlp(2), "steps", 2),
    "Qwen2ForRewardModel": ("score", lambda: mlp(1), "answers", 1),
    "Qwen2ForPrmModel": (
        "v_head",
        lambda: torch.nn.Sequential(torch.nn.Linear(32, 1)),
        "steps",
        1,
    ),
}


@pytest.mark.parametrize("architecture", PUBLISHED)
def test_published_heads_are_read_without_their_code(tmp_path, architecture):
    """Qwen2.5-Math-PRM and -RM, and Skywork-o1-Open-PRM: the layout of their weights under transformers' own Qwen 2."""
    name, build, judges, classes = PUBLISHED[architecture]
    model = published(tmp_path, architecture, name, build())
    if name == "v_head":  # its linear layer is called so
        weights = load_file(tmp_path / "model.safetensors")
        for part in ("weight", "bias"):
            weights[f"v_head.summary.{part}"] = weights.pop(f"v_head.0.{part}")
        save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with opened(tmp_path) as head:
        assert (head.judges, head.classes, head.whole) == (judges, classes, False)
        for n in (3, 17, 40):
            assert said(head, TOKENS[:n]) == pytest.approx(expected(model, TOKENS[:n]), abs=1e-4)


def test_a_published_head_whose_weights_are_not_there_is_refused(tmp_path):
    """Random weights would score."""
    save(tmp_path, make(Qwen2ForCausalLM, Qwen2Config(**GROUPED)), architecture="Qwen2ForPrmModel")
    with pytest.raises(ModelLoadError, match=r"Qwen2ForPrmModel: 2 are missing .* v_head\.summary"):
        opened(tmp_path)


# --- whole texts


@pytest.mark.parametrize("name", AHEAD)
def test_what_looks_ahead_is_read_whole(tmp_path, name, caplog):
    """It says so, gives what transformers gives, and charges every text from its beginning, forks too."""
    cls, kind, labels, judges = AHEAD[name]
    model = save(tmp_path, tiny(cls, kind, SHAPE, labels))
    with opened(tmp_path) as head:
        assert "read from its beginning" in caplog.text
        assert (head.judges, head.classes, head.whole) == (judges, labels, True)
        branch = head.open(TOKENS[:30])
        assert said(head, [], branch) == pytest.approx(expected(model, TOKENS[:30]), abs=1e-4)
        [child] = branch.fork(1)
        child.append(TOKENS[30:])
        task = head.score(child, [[0], [1]])
        [[bad], [good]] = task.future.result(SOON)
        assert (good, bad) == pytest.approx(expected(model, TOKENS), abs=1e-4)
        usage = task.usage
        assert (usage.prompt_tokens, usage.forward_tokens, usage.new_tokens) == (40, 40, 0)
        # what was read before is read, and reserved, again; each token sees all 40
        assert head.estimate(Request(30, 9, 1, 1)) == (usage.flops, 0)
        seen = 2 * 4 * 32 * 40 * 40
        assert usage.flops >= 2 * head.spec.matmul_parameters * 40 + seen


def test_the_second_of_two_texts_is_told_apart(tmp_path):
    """After the separator, where the model has types of tokens."""
    model = save(tmp_path, tiny(BertForSequenceClassification, BertConfig, SHAPE, 1))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"sep_token": "[SEP]"})
    tokenizer.save_pretrained(tmp_path)
    sep = tokenizer.sep_token_id
    assert sep < 512
    tokens = [*TOKENS[:10], sep, *TOKENS[10:20], sep]
    types = torch.tensor([[0] * 11 + [1] * 11])
    with opened(tmp_path) as head:
        assert said(head, tokens) == pytest.approx(
            expected(model, tokens, token_type_ids=types), abs=1e-4
        )
        assert said(head, tokens) != pytest.approx(expected(model, tokens), abs=1e-4)


def test_whole_texts_are_padded_batches(tmp_path, monkeypatch):
    """Those that wait are read together up to a bound of tokens, each as if it were alone."""
    monkeypatch.setattr(whole_runner, "_BATCH", 100)
    model = save(tmp_path, tiny(BertForSequenceClassification, BertConfig, SHAPE, 1))
    with opened(tmp_path) as head:
        texts = [TOKENS[: 5 + 7 * i] for i in range(6)]
        shapes = []
        inner = head.target.runner.model
        forward = inner.forward
        monkeypatch.setattr(
            inner,
            "forward",
            lambda input_ids, **rest: (
                shapes.append(input_ids.shape) or forward(input_ids=input_ids, **rest)
            ),
        )
        engine = head.target.engine
        go, meter = held(engine), engine.meter.flops
        tasks = [head.score(head.open(text), [[1], [0]]) for text in texts]
        go.set()
        for text, task in zip(texts, tasks, strict=True):
            [[good], [bad]] = task.future.result(SOON)
            assert (good, bad) == pytest.approx(expected(model, text), abs=1e-4)
        assert all(rows * columns <= 100 for rows, columns in shapes)
        assert sum(rows for rows, _ in shapes) == len(texts)
        assert 1 < len(shapes) < len(texts)
        assert engine.meter.flops - meter == sum(task.usage.flops for task in tasks)


def test_who_is_late_or_gives_up_is_not_read(tmp_path):
    """Between two batches; it costs nothing, and the others are read."""
    save(tmp_path, tiny(BertForSequenceClassification, BertConfig, SHAPE, 1))
    with opened(tmp_path) as head:
        go = held(head.target.engine)
        late = head.score(head.open(TOKENS), [[1]], deadline=time.monotonic() - 1)
        gone = head.score(head.open(TOKENS), [[1]])
        kept = head.score(head.open(TOKENS), [[1]], deadline=time.monotonic() + SOON)
        gone.cancel()
        go.set()
        assert late.future.result(SOON) is None
        assert gone.future.result(SOON) is None
        assert len(kept.future.result(SOON)) == 1
        assert (late.usage.flops, gone.usage.flops) == (0, 0)
        assert kept.usage.flops > 0


def test_a_failure_is_its_batchs_alone(tmp_path, monkeypatch):
    """The engine goes on for others, and what waits for a closed backend is told so."""
    save(tmp_path, tiny(BertForSequenceClassification, BertConfig, SHAPE, 1))
    head = opened(tmp_path)
    inner, engine = head.target.runner.model, head.target.engine

    def fails(**_):
        raise ZeroDivisionError("by nothing")

    with monkeypatch.context() as patched:
        patched.setattr(inner, "forward", fails)
        task = head.score(head.open(TOKENS), [[1]])
        with pytest.raises(EngineFailedError, match="by nothing") as caught:
            task.future.result(SOON)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert math.isfinite(said(head, TOKENS)[0])
    with torch.no_grad():
        inner.classifier.weight.fill_(math.nan)
    with pytest.raises(NumericalError, match="NaN"):
        said(head, TOKENS)
    go = held(engine)  # what comes now waits
    closing = threading.Thread(target=head.close)
    waiting = Reading([1, 2], [1], None)
    head.target.runner._waiting.append(waiting)
    closing.start()
    go.set()
    closing.join(SOON)
    with pytest.raises(EngineClosedError, match="was closed"):
        waiting.future.result(SOON)
    with pytest.raises(EngineClosedError):
        head.open(TOKENS)
    with pytest.raises(EngineClosedError, match="was closed"):
        head.target.runner.submit([1, 2], [1], None).future.result(SOON)


# --- what it is, and is not


def test_it_writes_nothing(tmp_path):
    """A head is no policy: neither by loading one as a model, nor by drawing from it; what it can be asked is told."""
    cls, kind, shape, labels, _ = CAUSAL["llama"]
    save(tmp_path, tiny(cls, kind, shape, labels))
    with pytest.raises(CapabilityError, match="scores texts, and writes none") as caught:
        load(tmp_path, device="cpu")
    assert "roles=" in caught.value.hint
    with opened(tmp_path) as head:
        branch = head.open(TOKENS)
        with pytest.raises(CapabilityError, match="writes none"):
            head.extend(branch, Sampling(), Stop(4))
        with pytest.raises(CapabilityError, match="writes none"):
            head.prefill(branch)
        for wrong in ([], [[2]], [[1, 0]], [[]]):
            with pytest.raises(SettingError, match="its classes are"):
                head.score(branch, wrong)
        branch.free()
        with pytest.raises(SequenceError, match="freed"):
            head.score(branch, [[1]])


def test_a_role_is_a_head_where_its_config_says_so(tmp_path):
    """Any other model is loaded as ever."""
    cls, kind, shape, labels, _ = CAUSAL["qwen2 steps"]
    save(tmp_path / "head", tiny(cls, kind, shape, labels))
    save(tmp_path / "words", make(LlamaForCausalLM, LlamaConfig(**GROUPED)))
    with load_role(tmp_path / "head", device="cpu", memory=MEMORY) as head:
        assert isinstance(head, RewardHead)
    for words in (tmp_path / "words", nano.PRM):
        with load_role(words, device="cpu", memory=MEMORY, self_check=False) as backend:
            assert isinstance(backend, LocalBackend)


def test_whoever_asks_for_the_same_shares_it(tmp_path):
    """Weights and pool; the last one to close gives them back."""
    cls, kind, shape, labels, _ = CAUSAL["llama"]
    save(tmp_path, tiny(cls, kind, shape, labels))
    one, two = opened(tmp_path, self_check=False), opened(tmp_path)
    assert one.target.runner is two.target.runner
    one.close()
    one.close()
    assert math.isfinite(said(two, TOKENS)[0])
    two.close()
    assert two.target.runner.closed


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (
            {"architectures": ["InternLM2ForRewardModel"]},
            r"head of its own \(InternLM2ForRewardModel\)",
        ),
        ({"architectures": ["NobodysForSequenceClassification"]}, "transformers .* has no Nobodys"),
        ({"id2label": {str(i): str(i) for i in range(5)}}, "has 5 labels"),
        ({"architectures": ["Qwen2ForPrmModel"]}, "has the configuration of 'llama'"),
    ],
    ids=["code of its own", "unknown", "five labels", "another body"],
)
def test_a_head_that_cannot_be_read_is_refused_by_name(tmp_path, config, match):
    """With what could be read instead."""
    cls, kind, shape, labels, _ = CAUSAL["llama"]
    save(tmp_path, tiny(cls, kind, shape, labels), extra=config)
    with pytest.raises(CapabilityError, match=match) as caught:
        opened(tmp_path)
    assert caught.value.hint


def test_an_encoder_decoder_is_refused(tmp_path):
    """It reads two texts."""
    config = BartConfig(
        vocab_size=512,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        num_labels=1,
        **ENDS,
    )
    save(tmp_path, make(BartForSequenceClassification, config))
    with pytest.raises(CapabilityError, match="encoder-decoder"):
        opened(tmp_path)


def test_a_recurrent_or_rope_that_no_pool_can_hold_is_read_whole(tmp_path, caplog):
    """Still by its last token, and at the price of a causal text."""
    cls, kind, shape, labels, _ = CAUSAL["llama"]
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    model = save(tmp_path, tiny(cls, kind, shape | {"rope_parameters": rope}, labels))
    with opened(tmp_path) as head:
        assert "dynamic rope" in caplog.text
        assert head.whole
        task = head.score(head.open(TOKENS), [[1], [0]])
        [[good], [bad]] = task.future.result(SOON)
        assert (good, bad) == pytest.approx(expected(model, TOKENS), abs=1e-4)
        seen = 2 * 4 * 32 * (40 * 41 // 2)
        assert task.usage.flops == 2 * head.spec.matmul_parameters * 40 + seen
