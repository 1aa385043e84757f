"""The recipe of the family: its examples, its batches, its first weights, and that a run goes on where it stopped."""

import json
import os
import subprocess
import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nano import data, models, muon, tokenizer
from nano.tasks import TASKS, draw

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = models.Size(width=64, layers=2, heads=2, hidden=64)


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    """The tokenizer, trained again from nothing."""
    return tokenizer.train()


def test_the_tokenizer_is_the_bundled_one(trained: PreTrainedTokenizerFast) -> None:
    """The recipe gives what ships: the same vocabulary, merges and template."""
    from langchain_pareto.backends.nano import tokenizer_path

    bundled = PreTrainedTokenizerFast.from_pretrained(tokenizer_path())
    assert json.loads(trained.backend_tokenizer.to_str()) == json.loads(
        bundled.backend_tokenizer.to_str()
    )
    assert trained.chat_template == bundled.chat_template


def test_the_template_is_the_training_format(trained: PreTrainedTokenizerFast) -> None:
    """A chat's last question becomes the text that the models learned, and an answer may be begun."""
    for task in TASKS:
        question = draw(task, 0, difficulty=3).question
        chat = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Something else."},
            {"role": "assistant", "content": "Yes."},
            {"role": "user", "content": f" {question}\n"},
        ]
        prompt = tokenizer.prompt_of(question)
        assert trained.apply_chat_template(chat, tokenize=False) == prompt
        chat.append({"role": "assistant", "content": "3 + 4"})
        begun = trained.apply_chat_template(chat, tokenize=False, continue_final_message=True)
        assert begun == prompt + "3 + 4"
    with pytest.raises(Exception, match="needs a user message"):
        trained.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_digits_are_tokens(trained: PreTrainedTokenizerFast) -> None:
    """No token has two digits, and every text comes back from its tokens."""
    assert all(sum(c.isdigit() for c in token) < 2 for token in trained.get_vocab())
    for text in ("12 + 345 = 357", " 007\n99", "héllo wörld 你好 🙂", "a\t\r\n\n  b", "<|end|>"):
        assert trained.decode(trained.encode(text)) == text


def encoder() -> Tokenizer:
    from langchain_pareto.backends.nano import tokenizer_path

    return Tokenizer.from_file(str(tokenizer_path() / "tokenizer.json"))


def test_only_the_solution_is_learned() -> None:
    """After each token of the solution comes the next one, after the last one the end; nothing of the question."""
    problem = draw("countdown", 0, difficulty=4)
    example = data.of_solution(encoder(), problem)
    learned = [t for t in example.targets if t >= 0]
    assert encoder().decode(learned[:-1], skip_special_tokens=False) == problem.solution
    assert learned[-1] == tokenizer.SPECIAL.index(tokenizer.END)
    assert len(example.ids) == len(example.targets)
    after = [example.ids[i + 1] for i, t in enumerate(example.targets[:-1]) if t >= 0]
    assert after == learned[:-1]


@pytest.mark.parametrize("ended", [False, True])
def test_a_judgement_stands_at_the_end_of_each_line(ended: bool) -> None:
    """One verdict a line, at the line's end or, where a sample ended, at the end token."""
    lines = ["Take 3 + 4 = 7, left 5 7", "Take 7 * 5 = 35", "Answer: ( 3 + 4 ) * 5"]
    example = data.of_judgements(
        encoder(), "Use 3 4 5 to make 35.", lines, [True, False, True], ended=ended
    )
    good, bad = (tokenizer.SPECIAL.index(t) for t in (tokenizer.GOOD, tokenizer.BAD))
    assert [t for t in example.targets if t >= 0] == [good, bad, good]
    last = [example.ids[i] for i, t in enumerate(example.targets) if t >= 0]
    end = tokenizer.SPECIAL.index(tokenizer.END)
    assert [encoder().decode([t], skip_special_tokens=False)[-1:] for t in last[:2]] == ["\n"] * 2
    assert (last[2] == end) == ended


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> data.Stream:
    monkeypatch.setattr(data, "WINDOW", 64)
    return data.solutions(warm_up=0)


def test_batches_go_on_where_they_were(stream: data.Stream) -> None:
    """From the position that stands beside a batch come exactly the batches after it, across windows."""
    feed = list(islice(data.batches(stream, 512), 40))
    assert len({window for window, *_ in feed}) > 1
    for at in (0, 7, 25):
        window, done, _, _ = feed[at]
        again = data.batches(stream, 512, window=window, skip=done)
        for expected, got in zip(feed[at + 1 :], again, strict=False):
            assert expected[:2] == got[:2]
            assert torch.equal(expected[2], got[2])
            assert torch.equal(expected[3], got[3])


def test_batches_have_few_shapes(stream: data.Stream) -> None:
    """Every batch has one of the few lengths, and no row is cut."""
    for _, _, ids, targets in islice(data.batches(stream, 2048), 60):
        assert ids.shape == targets.shape == (2048 // ids.shape[1], ids.shape[1])
        assert ids.shape[1] in data.LENGTHS
        ends = (targets == tokenizer.SPECIAL.index(tokenizer.END)).sum(1)
        assert ends.tolist() == [1] * len(ids)


def test_the_first_layer_looks_back() -> None:
    """Before any training head h attends to the token h places back, whatever the tokens are."""
    attention = first_attentions(torch.randint(8, 512, (1, 200)))[0]
    for h in range(models.SIZES["M"].heads):
        assert attention[0, h].diagonal(-h).mean() > 0.8
        assert attention[0, h].diagonal(-h - 1).mean() < 0.1


def test_the_second_layer_finds_what_followed() -> None:
    """Before any training a text that came before draws half of the attention of every head but one to what followed it."""
    generator = torch.Generator().manual_seed(0)
    texts = torch.stack([torch.randperm(500, generator=generator)[:100] + 8 for _ in range(100)])
    texts[:, 94:] = texts[:, 35:41]
    attention = first_attentions(texts)[1][:, :-1, 99]
    assert attention[..., 41].mean() > 0.5
    assert attention[..., 10:41].mean() < 0.02


def first_attentions(ids: torch.Tensor) -> list[torch.Tensor]:
    """Attention (rows, heads, queries, keys) of every layer of an untrained M."""
    torch.manual_seed(0)
    model = models.new_model(models.SIZES["M"])
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        return list(model(input_ids=ids, output_attentions=True).attentions)


def test_growth_changes_nothing_at_first() -> None:
    """A model of three times the layers computes what the small one does, and all its layers can learn."""
    torch.manual_seed(0)
    small = models.new_model(TINY)
    large = models.grown(small, models.Size(width=64, layers=6, heads=2, hidden=64))
    ids = torch.randint(8, 512, (2, 30))
    torch.testing.assert_close(large(input_ids=ids).logits, small(input_ids=ids).logits)
    large(input_ids=ids).logits.sum().backward()
    for layer in large.model.layers:
        assert layer.self_attn.o_proj.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="no multiple"):
        models.grown(small, models.Size(width=64, layers=5, heads=2, hidden=64))


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_muon_steps_are_about_orthogonal(shape: tuple[int, int]) -> None:
    """All singular values of an update lie near 1 (the five steps end between 0.7 and 1.2)."""
    torch.manual_seed(0)
    values = torch.linalg.svdvals(muon.orthogonalised(torch.randn(shape)))
    assert values.min() > 0.4
    assert values.max() < 1.4


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Stopped after its first save and started again, a run ends with the same weights as one that went through."""
    script = """
import sys, torch, nano.train as t, nano.tokenizer as k
from pathlib import Path
import nano.data as d
d.WINDOW = 64
t.WORK, t.BATCH, t.SAVE, t.REPORT, t.HELD_OUT = Path(sys.argv[1]), 2048, 2, 2, 1
torch.compile = lambda f, **_: f
t.SIZES["S"] = t.SIZES["S"].__class__(width=64, layers=2, heads=2, hidden=64)
if sys.argv[2] == "stop":
    step = t.Run._step
    def stopping(run, *a):
        if run.at.step == 3:
            sys.exit("stopped")
        return step(run, *a)
    t.Run._step = stopping
sys.argv[1:] = ["S", "--tokens", "0.012"]
t.main()
"""
    env = {**os.environ, "PYTHONPATH": str(EXAMPLES), "OMP_NUM_THREADS": "1"}

    def run(folder: str, how: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / folder).mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / folder), how],
            env=env,
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )

    through = run("through", "go")
    assert through.returncode == 0, through.stderr
    assert run("stopped", "stop").stderr.endswith("stopped\n")
    assert run("stopped", "go").returncode == 0
    one, other = (
        LlamaForCausalLM.from_pretrained(tmp_path / f / "S").state_dict()
        for f in ("through", "stopped")
    )
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name
    lines = [json.loads(x) for x in (tmp_path / "stopped/S.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(line["tokens_per_second"] > 0 and line["held_out"] > 0 for line in lines)
