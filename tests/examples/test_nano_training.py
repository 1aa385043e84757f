"""The recipe of the family: its examples, its batches, its first weights, and that a run goes on where it stopped."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
from jinja2 import TemplateError
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from langchain_pareto.backends.nano import tokenizer_path
from nano import (
    data,
    export,
    judgements,
    lookups,
    misreadings,
    models,
    muon,
    paths,
    tokenizer,
    train,
    word_problems,
)
from nano.recipes import RECIPES, Recipe, Size
from nano.tasks import TASKS, Problem, Task, draw, judge
from nano.word_problems import NAMES

TINY = Size(width=64, layers=2, heads=2, feed_forward=64)


@pytest.fixture(scope="module")
def trained() -> PreTrainedTokenizerFast:
    """The tokenizer, trained again from nothing."""
    return tokenizer.train()


def test_the_tokenizer_is_the_bundled_one(trained: PreTrainedTokenizerFast) -> None:
    """The recipe gives what ships: the same vocabulary, merges and template."""
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
    with pytest.raises(TemplateError, match="needs a user message"):
        trained.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_digits_are_tokens(trained: PreTrainedTokenizerFast) -> None:
    """No token has two digits, and every text comes back from its tokens."""
    assert all(sum(c.isdigit() for c in token) < 2 for token in trained.get_vocab())
    for text in ("12 + 345 = 357", " 007\n99", "héllo wörld 你好 🙂", "a\t\r\n\n  b", "<|end|>"):
        assert trained.decode(trained.encode(text)) == text


def encoder() -> Tokenizer:
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
    example = judgements.of_lines(
        encoder(), "Use 3 4 5 to make 35.", lines, [True, False, True], ended=ended
    )
    good, bad = (tokenizer.SPECIAL.index(t) for t in (tokenizer.GOOD, tokenizer.BAD))
    assert [t for t in example.targets if t >= 0] == [good, bad, good]
    last = [example.ids[i] for i, t in enumerate(example.targets) if t >= 0]
    end = tokenizer.SPECIAL.index(tokenizer.END)
    assert [encoder().decode([t], skip_special_tokens=False)[-1:] for t in last[:2]] == ["\n"] * 2
    assert (last[2] == end) == ended


def test_numbers_of_good_lines_may_be_learned_too() -> None:
    """Behind the second `=` of a calculation each token of the numbers is told, and nothing else but the verdicts."""
    lines = [
        "Cal = 37",
        "Wes = Tom + Cal = 32 + 37 = 69",
        "Dee = Wes + 20 = 70 + 20 = 90",
        "Answer: 90",
    ]
    question = "Who has how many?"
    good = [True, True, False, False]
    plain = judgements.of_lines(encoder(), question, lines, good, ended=True)
    spoken = judgements.of_lines(encoder(), question, lines, good, ended=True, spoken=True)
    assert spoken.ids == plain.ids
    more = [i for i, t in enumerate(spoken.targets) if t != plain.targets[i]]
    assert [spoken.ids[i + 1] for i in more] == [spoken.targets[i] for i in more]
    assert encoder().decode([spoken.targets[i] for i in more]) == " 32 + 37 = 69"
    assert all(plain.targets[i] == data.IGNORED for i in more)


def numbered(k: int) -> data.Stream:
    return lambda i: data.Example([k, i], [])


def test_a_mixture_shows_every_example_of_its_streams_once() -> None:
    """In every turn each stream has its share, and goes on where it was."""
    mixed = judgements.mixed((numbered(0), 1), (numbered(1), 3))
    seen = [mixed(i).ids for i in range(40)]
    assert [i for k, i in seen if k == 0] == list(range(10))
    assert [i for k, i in seen if k == 1] == list(range(30))


def test_middle_layers_are_told_whose_number_is_whose() -> None:
    """Whom a line is about, at each of its tokens; whose number comes, just before it; nobody where a number is said outright."""
    text = "Wes = Tom + Cal = 32 + 37 = 69\nDee = 3 * Wes = 3 * 69 = 207\nAnswer: 207<|end|><|pad|>"
    ids = torch.tensor([encoder().encode(text).ids])
    subjects, sources = (told[0].tolist() for told in lookups.labels_of(ids))
    tokens = [encoder().decode([t], skip_special_tokens=False) for t in ids[0].tolist()]
    lines = "".join(tokens[i] for i, s in enumerate(subjects) if s != data.IGNORED)
    assert lines == text[: text.index("Answer")]
    assert [NAMES[s] for s in dict.fromkeys(subjects) if s != data.IGNORED] == ["Wes", "Dee"]
    assert [(tokens[i], NAMES[s]) for i, s in enumerate(sources) if s != data.IGNORED] == [
        (" =", "Tom"),
        (" +", "Cal"),
        (" *", "Wes"),
    ]


def test_every_name_is_one_token() -> None:
    """At the beginning of a line and within it, so that the last token of a name says all."""
    for name in NAMES:
        assert len(encoder().encode(name).ids) == 1
        assert len(encoder().encode(f"x {name}").ids) == len(encoder().encode("x").ids) + 1


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("Wes = = +", []),
        ("Wes = Tom = 3 + 4", ["Tom"]),
        ("Wes = Tom + Cal + Ava = 1 + 2", ["Tom", "Cal"]),
        ("Wes has 3 cups.\n= Tom + Cal = 3", []),
    ],
)
def test_lines_of_any_form_may_be_told(text: str, wanted: list[str]) -> None:
    """A model writes what it likes: what is not there is not named."""
    _, sources = lookups.labels_of(torch.tensor([encoder().encode(text).ids]))
    found = [NAMES[s] for s in sources[0].tolist() if s != data.IGNORED]
    assert found == wanted


def test_what_looks_up_nothing_teaches_nothing() -> None:
    """Puzzles have no names."""
    ids = torch.tensor([encoder().encode("Take 3 + 4 = 7, left 5 7\nTake 7 * 5 = 35\n").ids])
    heads = lookups.Lookups(8)
    assert heads((torch.randn(1, ids.shape[1], 8),) * 4, ids) == 0


def verdicts_of(example: data.Example) -> list[bool]:
    marks = {
        tokenizer.SPECIAL.index(tokenizer.GOOD): True,
        tokenizer.SPECIAL.index(tokenizer.BAD): False,
    }
    return [marks[t] for t in example.targets if t in marks]


@pytest.mark.parametrize("task", TASKS)
def test_attempts_are_judged_exactly(task: Task) -> None:
    """At problems of their split; what is learned at the end of a line is the judge's verdict, of both kinds."""
    attempted = {"countdown": judgements.attempts, "word_problem": judgements.misreadings_of}[task]
    seen = set[bool]()
    for i in range(20):
        example = attempted("validation")(i)
        text = encoder().decode(example.ids, skip_special_tokens=False)
        prompt, _, solution = text.removesuffix(tokenizer.END).partition("<|assistant|>")
        question = prompt.removeprefix("<|user|>").replace("\n", " ")
        facts, asked = word_problems.read(question) if task == "word_problem" else ({}, "")
        answer = str(facts[asked].value) if facts else ""
        judged = judge(Problem(question, (), answer, task=task), solution).steps
        assert verdicts_of(example) == list(judged)
        seen |= set(judged)
    assert seen == {True, False}


def test_an_exercise_has_no_question() -> None:
    """Its prompt is that of an empty one."""
    example = judgements.exercises("train")(0)
    prompt = encoder().encode(tokenizer.prompt_of("")).ids
    assert example.ids[: len(prompt)] == prompt
    assert len(verdicts_of(example)) in misreadings.PEOPLE


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> data.Stream:
    monkeypatch.setattr(data, "WINDOW", 64)
    return data.solutions(curriculum=0)


def test_batches_go_on_where_they_were(stream: data.Stream) -> None:
    """From the position that stands beside a batch come exactly the batches after it, across windows."""
    feed = list(islice(data.batches(stream, 512), 40))
    assert len({batch.window for batch in feed}) > 1
    for at in (0, 7, 25):
        again = data.batches(stream, 512, window=feed[at].window, skip=feed[at].done)
        for expected, got in zip(feed[at + 1 :], again, strict=False):
            assert (expected.window, expected.done) == (got.window, got.done)
            assert torch.equal(expected.ids, got.ids)
            assert torch.equal(expected.targets, got.targets)


def test_batches_have_few_shapes(stream: data.Stream) -> None:
    """Every batch has one of the few lengths, and no row is cut."""
    for *_, ids, targets in islice(data.batches(stream, 2048), 60):
        assert ids.shape == targets.shape == (2048 // ids.shape[1], ids.shape[1])
        assert ids.shape[1] in data.LENGTHS
        ends = (targets == tokenizer.SPECIAL.index(tokenizer.END)).sum(1)
        assert ends.tolist() == [1] * len(ids)


def test_the_first_layer_looks_back() -> None:
    """Before any training head h attends to the token h places back, whatever the tokens are."""
    generator = torch.Generator().manual_seed(0)
    [attention, *_] = first_attentions(torch.randint(8, 512, (1, 200), generator=generator))
    for h in range(RECIPES["M"].size.heads):
        assert attention[0, h].diagonal(-h).mean() > 0.8
        assert attention[0, h].diagonal(-h - 1).mean() < 0.1


def test_the_second_layer_finds_what_followed() -> None:
    """Before any training a text that came before draws half of the attention of every head but one to what followed it."""
    first, again, length = 35, 94, 6  # where the text stands, and how long it is
    generator = torch.Generator().manual_seed(0)
    texts = torch.stack([torch.randperm(500, generator=generator)[:100] + 8 for _ in range(100)])
    texts[:, again:] = texts[:, first : first + length]
    attention = first_attentions(texts)[1][:, :-1, again + length - 1].mean(0)  # (heads, keys)
    assert attention[:, first + length].min() > 0.5
    assert attention[:, 10 : first + length].max() < 0.02


def first_attentions(ids: torch.Tensor) -> list[torch.Tensor]:
    """Attention (rows, heads, queries, keys) of every layer of an untrained M."""
    torch.manual_seed(0)
    model = models.new_model(RECIPES["M"].size)
    model.set_attn_implementation("eager")
    with torch.inference_mode():
        return list(model(input_ids=ids, output_attentions=True).attentions)


def test_growth_changes_nothing_at_first() -> None:
    """A model of three times the layers computes what the small one does, and all its layers can learn."""
    torch.manual_seed(0)
    small = models.new_model(TINY)
    large = models.grown(small, Size(width=64, layers=6, heads=2, feed_forward=64))
    ids = torch.randint(8, 512, (2, 30))
    torch.testing.assert_close(large(input_ids=ids).logits, small(input_ids=ids).logits)
    large(input_ids=ids).logits.sum().backward()
    for layer in large.model.layers:
        assert layer.self_attn.o_proj.weight.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="no multiple"):
        models.grown(small, Size(width=64, layers=5, heads=2, feed_forward=64))


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_muon_steps_are_about_orthogonal(shape: tuple[int, int]) -> None:
    """All singular values of an update lie near 1 ."""
    torch.manual_seed(0)
    values = torch.linalg.svdvals(muon.orthogonalised(torch.randn(shape)))
    assert values.min() > 0.4
    assert values.max() < 1.4


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """S as a tiny model with a few steps to go, reported and saved every second one."""
    recipe = Recipe(TINY, 12_000)
    monkeypatch.setitem(RECIPES, "S", recipe)
    monkeypatch.setattr(data, "WINDOW", 64)
    for name, value in {"BATCH": 2048, "SAVE": 2, "REPORT": 2, "HELD_OUT": 1}.items():
        monkeypatch.setattr(train, name, value)
    monkeypatch.setattr(torch, "compile", lambda f, **_: f)
    monkeypatch.setattr(sys, "argv", ["nano.train", "S"])
    return recipe


@pytest.mark.slow
@pytest.mark.parametrize("taught", [False, True])
def test_a_run_resumes_where_it_stopped(
    short: Recipe, taught: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after its first save and started again, a run ends with the same weights as one that went through; heads are a part of it."""
    monkeypatch.setitem(RECIPES, "S", replace(short, lookups=taught))
    monkeypatch.setattr(lookups, "SOURCE", TINY.layers)
    for folder in ("through", "stopped"):
        (tmp_path / folder).mkdir()
    monkeypatch.setattr(train, "WORK", tmp_path / "through")
    train.main()
    monkeypatch.setattr(train, "WORK", tmp_path / "stopped")
    step = train.Run._step

    def stopping(run: train.Run, feed: Iterator[data.Batch], parts: int) -> torch.Tensor:
        if run.at.step == 3:
            raise KeyboardInterrupt
        return step(run, feed, parts)

    monkeypatch.setattr(train.Run, "_step", stopping)
    with pytest.raises(KeyboardInterrupt):
        train.main()
    monkeypatch.setattr(train.Run, "_step", step)
    train.main()
    one, other = (
        LlamaForCausalLM.from_pretrained(tmp_path / folder / "S").state_dict()
        for folder in ("through", "stopped")
    )
    for name, weight in one.items():
        assert torch.equal(weight, other[name]), name
    lines = [json.loads(x) for x in (tmp_path / "stopped/S.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[-1]["tokens"] >= short.tokens
    assert all(line["tokens_per_second"] > 0 and line["held_out"] > 0 for line in lines)


@pytest.mark.slow
def test_a_checkpoint_of_another_recipe_is_refused(
    short: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights from the middle of one schedule never go on by another."""
    monkeypatch.setattr(train, "WORK", tmp_path)
    train.main()
    monkeypatch.setitem(RECIPES, "S", replace(short, tokens=2 * short.tokens))
    with pytest.raises(ValueError, match="another recipe"):
        train.main()


def test_what_does_not_ship_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step on the way to the PRM stays at home."""
    for name in ("PRM-puzzles", "PRM"):
        (tmp_path / "work" / name).mkdir(parents=True)
        for file in ("config.json", "generation_config.json", "model.safetensors"):
            (tmp_path / "work" / name / file).write_text("{}")
    monkeypatch.setattr(export, "WORK", tmp_path / "work")
    monkeypatch.setattr(export, "SHIPPED", {"PRM": tmp_path / "ships"})
    export.main()
    assert sorted(file.name for file in (tmp_path / "ships").iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]


def test_what_neither_ships_nor_is_trained_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the command that makes it."""
    monkeypatch.setattr(paths, "WORK", tmp_path)
    with pytest.raises(FileNotFoundError, match=r"python -m nano\.train PRM-puzzles"):
        train.begun(RECIPES["PRM"])
