"""Grammars: the same masks for every kind of tokenizer, forwards and back; texts of both runners obey them, however they are decoded."""

import gc
import json
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from tokenizers import (
    AddedToken,
    Tokenizer as RustTokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from langchain_pareto.backends import grammar as module
from langchain_pareto.backends.base import Logits, Sampling, Stop
from langchain_pareto.backends.characters import END, CharacterTokenizer
from langchain_pareto.backends.constraint import TokenMask
from langchain_pareto.backends.decoders import BigLittle, Lookup, Rounds, Speculative
from langchain_pareto.backends.decoding import DecodingBackend
from langchain_pareto.backends.draws import Row
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.gguf_tokenizer import GGUFTokenizer
from langchain_pareto.backends.grammar import compile_grammar, has_grammars
from langchain_pareto.backends.nano import tokenizer_path
from langchain_pareto.backends.sampling import Sampler
from langchain_pareto.backends.tokens import HFTokenizer
from langchain_pareto.errors import CapabilityError, SettingError

pytest.importorskip("llguidance", reason="llguidance is not installed")

WAIT = 120
HOT = Sampling(temperature=1.0)
PROMPT = [5, 9, 13, 200, 7, 7, 31, 18]
CALL = {
    "type": "object",
    "properties": {
        "name": {"enum": ["add", "größe"]},
        "n": {"type": "integer", "minimum": -3, "maximum": 40},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
    },
    "required": ["name", "n"],
    "additionalProperties": False,
}


def of_schema(schema):
    """The grammar of a JSON schema."""
    return "start: %json " + json.dumps(schema)


def merged(*, special=True):
    """A byte-level tokenizer with longer tokens, two that end a turn, and a mark of calls."""
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    rust.train_from_iterator(['{"name": "add", "n": 12}, "größe" hello world'] * 9, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<|endoftext|>")
    marks = [AddedToken("<|im_end|>", special=True), AddedToken("[TOOL_CALLS]", special=special)]
    fast.add_tokens(marks, special_tokens=special)
    return HFTokenizer(fast)


class Words(PreTrainedTokenizer):
    """A pure-Python tokenizer of a few words, spelled like SentencePiece."""

    def __init__(self, **kwargs):
        names = ["<unk>", "</s>", "▁", "a", "b", "c", "ab", "▁ab", "▁c", "▁a"]
        self.names = names
        super().__init__(unk_token="<unk>", eos_token="</s>", **kwargs)

    @property
    def vocab_size(self):
        return len(self.names)

    def get_vocab(self):
        return {name: i for i, name in enumerate(self.names)} | self.added_tokens_encoder

    def _tokenize(self, text):
        return list(("▁" + text).replace(" ", "▁"))

    def _convert_token_to_id(self, token):
        return self.names.index(token) if token in self.names else 0

    def _convert_id_to_token(self, index):
        return self.names[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens).replace("▁", " ").removeprefix(" ")


def accepted(make, tokens):
    """A constraint that went through these tokens, each of which it allowed."""
    constraint = make()
    for token in tokens:
        assert token in constraint.allowed()
        constraint.advance(token)
    return constraint


def walk(constraint, rng, most=60):
    """Tokens drawn blindly among the allowed ones, up to one that ends the turn."""
    tokens = []
    while len(tokens) < most and not (tokens and constraint.complete and rng.random() < 0.3):
        tokens.append(rng.choice(constraint.allowed()))
        constraint.advance(tokens[-1])
    return tokens


# --- tokenizers


@pytest.mark.parametrize("text", ["hello world", '{"name": "add"}', "größe ☃", "<|im_end|>"])
def test_forced_text_comes_in_the_tokenizers_own_tokens(text):
    """Where a grammar leaves no choice, one token may come: that which the tokenizer would write; names in a text are text."""
    tokenizer = merged()
    constraint = compile_grammar(tokenizer, f"start: {json.dumps(text, ensure_ascii=False)}")()
    tokens = []
    while not constraint.complete:
        [token] = constraint.allowed()
        constraint.advance(token)
        tokens.append(token)
    assert b"".join(map(tokenizer.piece, tokens)) == text.encode()
    if not tokenizer.special_tokens & set(tokenizer.encode(text)):
        assert tokens == tokenizer.encode(text)
        assert len(tokens) < len(text.encode())
    assert set(constraint.allowed()) == tokenizer.end_tokens
    assert len(tokenizer.end_tokens) == 2


def test_special_tokens_come_where_they_are_named():
    """By name, in brackets or not, and nowhere else; an unknown name is told with those that there are."""
    tokenizer = merged()
    names = {tokenizer.name(token): token for token in tokenizer.special_tokens}
    mark = names["[TOOL_CALLS]"]
    text = 'start: /[a-z<>]*/ <[TOOL_CALLS]> "x" <|im_end|> // <nothing> "\n'
    first = accepted(compile_grammar(tokenizer, text), tokenizer.encode("a"))
    assert mark in first.allowed()
    assert not (tokenizer.special_tokens - {mark}) & set(first.allowed())
    first.advance(mark)
    assert [tokenizer.piece(token) for token in first.allowed()] == [b"x"]
    first.advance(first.allowed()[0])
    assert list(first.allowed()) == [names["<|im_end|>"]]
    first.advance(names["<|im_end|>"])
    assert set(first.allowed()) == tokenizer.end_tokens
    first.rollback(1)
    assert list(first.allowed()) == [names["<|im_end|>"]]
    for missing in ("<[TOOL_CALL]>", "<|nope|>"):
        with pytest.raises(SettingError, match="no special token") as error:
            compile_grammar(tokenizer, f'start: "a" {missing}')
        assert "[TOOL_CALLS]" in error.value.hint


def test_an_added_token_is_text():
    """A token that was added and is not special may come wherever its text may, whole or in pieces."""
    tokenizer = merged(special=False)
    make = compile_grammar(tokenizer, 'start: head "!"\nhead[lazy]: /(.|\\n)*\\[TOOL_CALLS\\]/')
    [mark] = tokenizer.encode("[TOOL_CALLS]")
    assert tokenizer.piece(mark) == b"[TOOL_CALLS]"
    for tokens in ([mark], [tokenizer.encode(c)[0] for c in "[TOOL_CALLS]"]):
        assert accepted(make, [*tokens, *tokenizer.encode("!")]).complete


def test_a_name_of_an_end_token_in_a_text_is_no_end():
    """A token that ends the turn is none of a text's, also where the tokenizer does not call it special."""
    tokenizer = merged()
    plain = merged()
    plain.special_tokens = frozenset(plain.special_tokens - plain.end_tokens)
    for of in (tokenizer, plain):
        constraint = compile_grammar(of, 'start: "<|" /[a-z_|>]+/ "!"')()
        for token in walk(constraint, random.Random(1), 3):
            assert token not in of.end_tokens
        assert not of.end_tokens & set(constraint.allowed())


def test_a_gguf_file_gives_the_same_masks(tiny_gguf, tokenizer):
    """llama.cpp's vocabulary and that of transformers are one to a grammar."""
    theirs = GGUFTokenizer(tiny_gguf("llama"))
    assert theirs.fingerprint == tokenizer.fingerprint
    assert [theirs.name(t) for t in range(-1, 260)] == [tokenizer.name(t) for t in range(-1, 260)]
    text = 'start: <user> %json {"type": "string", "maxLength": 5}'
    module._tables.clear()
    ours = compile_grammar(tokenizer, text)
    module._tables.clear()
    other = compile_grammar(theirs, text)
    for seed in range(20):
        first, second, rng = ours(), other(), random.Random(seed)
        for _ in range(12):
            assert first.allowed() == second.allowed()
            token = rng.choice(first.allowed())
            first.advance(token)
            second.advance(token)


def test_sentencepiece_is_read_as_it_continues_a_text(spaced_gguf):
    """The space before a text is none of the text's, for a slow tokenizer and for a GGUF file."""
    for tokenizer in (HFTokenizer(Words()), GGUFTokenizer(spaced_gguf)):
        make = compile_grammar(tokenizer, 'start: "abc ab" | "abc c"')
        for seed in range(10):
            constraint = make()
            tokens = walk(constraint, random.Random(seed))
            tokens = [token for token in tokens if token not in tokenizer.end_tokens]
            assert b"".join(map(tokenizer.piece, tokens)) in (b"abc ab", b"abc c")
            assert accepted(make, tokens).complete


def test_a_character_is_a_token_too():
    """A vocabulary of code points has names and pieces like any other."""
    tokenizer = CharacterTokenizer()
    assert [tokenizer.name(t) for t in (97, 0xE9, END)] == ["a", "é", "<end>"]
    assert (tokenizer.template, merged().template) == (None, None)


def test_the_default_template_is_told(tiny_gguf):
    """The template of a tokenizer, the default one of several, and None without."""
    hf = AutoTokenizer.from_pretrained(tokenizer_path())
    written = hf.chat_template
    assert HFTokenizer(hf).template == written
    hf.chat_template = {"tool_use": "tools", "default": "plain"}
    assert HFTokenizer(hf).template == "plain"
    hf.chat_template = None
    assert HFTokenizer(hf).template is None
    assert GGUFTokenizer(tiny_gguf("llama")).template is None


def test_the_bundled_template_is_the_same_in_a_gguf_file(nano_file):
    """Written into the file word for word."""
    theirs = HFTokenizer(AutoTokenizer.from_pretrained(tokenizer_path())).template
    assert GGUFTokenizer(nano_file).template == theirs is not None


# --- what cannot be


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Empty grammar"),
        ('start: "a" &', "cannot be compiled"),
        ('start: missing "a"', "missing"),
        ('start: %json {"type": "text"}', "Invalid type: text"),
        ('start: %json {"type": "integer", "minimum": 5, "maximum": 3}', "minimum"),
        (r"start: /[^\x00-\u{10ffff}]/", "no token"),
    ],
)
def test_a_grammar_that_is_none_is_refused_in_words(tokenizer, text, words):
    """What llguidance says comes along, and what to do."""
    with pytest.raises(SettingError, match=words) as error:
        compile_grammar(tokenizer, text)
    assert error.value.hint


def test_without_the_extra_there_are_no_grammars(tokenizer, monkeypatch):
    """The error names what to install."""
    assert has_grammars()
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    assert not has_grammars()
    with pytest.raises(CapabilityError, match="llguidance") as error:
        compile_grammar(tokenizer, 'start: "a"')
    assert error.value.hint == "pip install 'langchain-pareto[grammar]'"


@pytest.mark.parametrize(("name", "value"), [("end_tokens", frozenset()), ("joins", False)])
def test_a_tokenizer_that_cannot_keep_a_grammar_is_refused(name, value):
    """One whose tokens have no bytes of their own, or none that ends a text."""
    tokenizer = merged()
    setattr(tokenizer, name, value)
    with pytest.raises(CapabilityError):
        compile_grammar(tokenizer, 'start: "a"')


def test_a_byte_that_no_token_has_ends_the_grammar():
    """Where the vocabulary cannot go on, that is an error and no end of the text; going back helps."""
    tokenizer = HFTokenizer(Words())
    constraint = compile_grammar(tokenizer, 'start: "a" ("b" | /[xy]/ "c")')()
    constraint.advance(3)
    assert [tokenizer.piece(token) for token in constraint.allowed()] == [b"b"]
    stuck = compile_grammar(tokenizer, 'start: "a" /[xy]/ | "b"')()
    stuck.advance(3)
    for _ in range(2):
        with pytest.raises(SettingError, match="no token of the vocabulary"):
            stuck.allowed()
    assert not stuck.complete
    stuck.rollback(1)
    assert 4 in stuck.allowed()
    stuck.advance(4)
    assert set(stuck.allowed()) == tokenizer.end_tokens


# --- forwards and back


# a short text, in which a mark of two bytes opens a call
CALLS = f"""start: head {of_schema(CALL)[7:]} "</c>" | "b" /[ab]*/
head[lazy]: /a[ab<=]{{0,4}}<=/"""
RULES = {
    "json": of_schema(CALL),
    "call": CALLS,
    "special": 'start: ("a" <[TOOL_CALLS]> /[bc]*/)+ <|im_end|>',
    "stop": 'start: x "z"\nx[stop="yy"]: /[abcy]*/',
    "lazy": 'start: x "z"\nx[suffix="yy"]: /[abcy]*/',
}


@pytest.mark.parametrize("rule", list(RULES))
def test_any_way_to_a_place_gives_the_same_masks(rule):
    """Forks are independent, refused tokens change nothing, and a rollback leads to where one was: as if freshly gone there."""
    tokenizer = merged()
    make = compile_grammar(tokenizer, RULES[rule])
    for seed in range(25):
        rng, live = random.Random(seed), [(make(), [])]
        for _ in range(40):
            constraint, tokens = rng.choice(live)
            kind = rng.random()
            if kind < 0.55:
                token = rng.choice(constraint.allowed())
                constraint.advance(token)
                tokens.append(token)
            elif kind < 0.75:
                n = rng.randint(0, min(6, len(tokens)))
                constraint.rollback(n)
                del tokens[len(tokens) - n :]
            elif kind < 0.85:
                wrong = rng.randrange(-2, tokenizer.vocabulary + 9)
                if wrong not in constraint.allowed():
                    with pytest.raises(SettingError, match="does not allow"):
                        constraint.advance(wrong)
            elif len(live) < 4:
                live.append((constraint.fork(), list(tokens)))
        for constraint, tokens in live:
            fresh = accepted(make, tokens)
            assert constraint.allowed() == fresh.allowed()
            assert constraint.complete == fresh.complete
            with pytest.raises(SettingError, match="taken back"):
                constraint.rollback(len(tokens) + 1)
            constraint.rollback(len(tokens))
            assert constraint.allowed() == make().allowed()


@pytest.mark.parametrize("rule", list(RULES))
def test_what_is_forced_is_all_that_is_allowed(rule):
    """Each forced token is the only one in its place, up to a choice or the end; to ask changes nothing."""
    tokenizer = merged()
    make, told = compile_grammar(tokenizer, RULES[rule]), 0
    for seed in range(25):
        rng, constraint = random.Random(seed), make()
        for _ in range(40):
            tokens, allowed = constraint.forced(), list(constraint.allowed())
            told += len(tokens)
            ahead = constraint.fork()
            for token in tokens:
                assert list(ahead.allowed()) == [token]
                ahead.advance(token)
            assert (
                len(ahead.allowed()) > 1
                or ahead.complete
                or ahead.allowed()[0] in tokenizer.end_tokens
            )
            assert (constraint.forced(), list(constraint.allowed())) == (tokens, allowed)
            constraint.advance(rng.choice(allowed))
    assert told > 10  # few of a grammar that is mostly free


def test_a_long_key_is_forced_as_a_whole():
    """From the brace to the first choice of the value, in the tokenizer's own tokens; after the end nothing is."""
    tokenizer = merged()
    key = "the name of the one who asked"
    constraint = compile_grammar(tokenizer, f'start: "{{{key}: " ("x" | "y") " end"')()
    tokens = constraint.forced()
    assert b"".join(map(tokenizer.piece, tokens)) == f"{{{key}: ".encode()
    for token in [*tokens, *tokenizer.encode("y")]:
        constraint.advance(token)
    rest = constraint.forced()
    assert b"".join(map(tokenizer.piece, rest)) == b" end"
    for token in rest:
        constraint.advance(token)
    assert list(constraint.forced()) == []
    constraint.advance(min(tokenizer.end_tokens))
    assert list(constraint.forced()) == []
    constraint.rollback(1 + len(rest))
    assert constraint.forced() == rest


# --- masks


def test_a_mask_is_the_sequence_of_its_ids():
    """In ascending order, with its own quick answers."""
    rng = random.Random(0)
    for size in (1, 7, 8, 9, 300):
        ids = sorted(rng.sample(range(size), rng.randint(1, size)))
        mask = TokenMask.of(ids)
        assert list(mask) == ids == list(mask[:])
        assert (len(mask), mask[0], mask[-1]) == (len(ids), ids[0], ids[-1])
        assert [t in mask for t in range(-9, size + 9)] == [t in ids for t in range(-9, size + 9)]
        assert "a" not in mask


@pytest.mark.parametrize("vocabulary", [100, 8190, 20_003])
def test_a_mask_draws_what_the_same_ids_draw(vocabulary):
    """In any mixture of rows, with other edits, in logits wider or narrower than the mask; what pads them is never drawn."""
    rng = np.random.default_rng(vocabulary)
    logits = torch.from_numpy(rng.normal(size=(12, vocabulary)).astype(np.float32))
    logits[:, : vocabulary // 2] += 8
    settings = [
        HOT,
        Sampling(temperature=0.0, logit_bias=((3, 5.0),)),
        Sampling(top_p=0.9, repetition_penalty=1.4),
    ]
    sequences, masks = [], []
    for i in range(12):
        known = vocabulary - 40 * (i % 3)
        ids = sorted(rng.choice(known, size=rng.integers(1, known), replace=False).tolist())
        extra = [vocabulary, vocabulary + 70] if i % 2 else []
        shared = (i, 7, settings[i % 3], [1, 2, 3], 1)
        sequences.append(Row(*shared, allowed=None if i == 5 else ids))
        masks.append(Row(*shared, allowed=None if i == 5 else TokenMask.of(ids + extra)))
    for dtype in (torch.float32, torch.bfloat16):
        x = logits.to(dtype)
        some = [*sequences[:6], *masks[6:]]
        wanted = Sampler().draw(x, sequences).to_host().tokens
        for rows in (masks, some):
            assert Sampler().draw(x, rows).to_host().tokens == wanted
        for row, token in zip(sequences, wanted, strict=True):
            assert row.allowed is None or token in row.allowed


def test_a_mask_of_nothing_is_refused():
    """So is one that allows only what the logits do not have; the one token that is allowed comes whatever the model says."""
    logits = torch.full((1, 99), -torch.inf)
    logits[0, 3] = 0.0
    for mask in (TokenMask(b""), TokenMask(bytes(50)), TokenMask.of([99, 100])):
        with pytest.raises(SettingError, match="no token is allowed"):
            Sampler().draw(logits, [Row(1, 0, HOT, allowed=mask)])
    assert Sampler().draw(
        logits, [Row(1, 0, HOT, allowed=TokenMask.of([98, 99]))]
    ).to_host().tokens == [98]


# --- texts of models


def random_schema(rng, depth=0):
    """Some JSON schema; the text of a random model comes to its end."""
    leaf = [
        lambda: {"enum": rng.sample(["red", "größe", "☃ snow", 7, None, True, 2.5, 'a"b'], 3)},
        lambda: {"const": rng.choice(["x", 0, False, None])},
        lambda: {"type": "string", "maxLength": rng.randint(0, 6)},
        lambda: {"type": "string", "minLength": 2, "maxLength": 5},
        lambda: {"type": "boolean"},
        lambda: {"type": "integer", "minimum": -rng.randint(0, 50), "maximum": rng.randint(0, 300)},
        lambda: {"type": "number", "minimum": -1.5, "maximum": rng.choice([0.25, 7, 1000])},
        lambda: {"type": ["null", "integer"], "minimum": 0, "maximum": 9},
    ]
    if depth == 3 or (depth and rng.random() < 0.4):
        return rng.choice(leaf)()
    kind = rng.choice(["object", "object", "array", "anyOf", "$ref"])
    if kind == "object":
        names = rng.sample(["a", "b", "name", "größe", "x y", 'q"'], rng.randint(1, 4))
        properties = {name: random_schema(rng, depth + 1) for name in names}
        required = [name for name in names if rng.random() < 0.6]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
    if kind == "array":
        low = rng.randint(0, 2)
        items = random_schema(rng, depth + 1)
        return {"type": "array", "items": items, "minItems": low, "maxItems": low + 2}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(2)]}
    return {"$ref": "#/$defs/list"}


LIST = {
    "type": "object",
    "properties": {
        "v": {"type": "integer", "minimum": 0, "maximum": 99},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/list"}]},
    },
    "required": ["v", "next"],
    "additionalProperties": False,
}
TYPES = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "null": type(None),
}


def valid(value, schema, defs):
    """Whether a value keeps to a schema, of what `random_schema` writes."""
    if "$ref" in schema:
        return valid(value, defs[schema["$ref"].removeprefix("#/$defs/")], defs)
    if "anyOf" in schema:
        return any(valid(value, option, defs) for option in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        known = schema.get("enum", [schema.get("const")])
        return any(value == k and isinstance(value, bool) == isinstance(k, bool) for k in known)
    kinds = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if isinstance(value, bool):
        return "boolean" in kinds
    if not any(isinstance(value, TYPES[kind]) and kind != "boolean" for kind in kinds):
        return False
    if isinstance(value, dict):
        known = schema["properties"]
        fields = all(k in known and valid(v, known[k], defs) for k, v in value.items())
        return fields and set(schema["required"]) <= set(value)
    if isinstance(value, list):
        whole = schema["minItems"] <= len(value) <= schema["maxItems"]
        return whole and all(valid(item, schema["items"], defs) for item in value)
    if isinstance(value, str):
        return schema.get("minLength", 0) <= len(value) <= schema["maxLength"]
    return value is None or schema["minimum"] <= value <= schema["maximum"]


def unique(pairs):
    """An object whose keys came once each."""
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def test_every_finished_text_keeps_to_its_schema(make_backend, tokenizer):
    """Fifty random schemas, random weights, temperature 1; what is cut off is the beginning of a text that does."""
    backend = make_backend(slots=30_000)
    rng, cut = random.Random(17), 0
    schemas = [random_schema(rng) | {"$defs": {"list": LIST}} for _ in range(50)]
    makes = [compile_grammar(tokenizer, of_schema(schema)) for schema in schemas]
    roots = [backend.open(PROMPT, seed=seed) for seed in range(50)]
    tasks = [
        backend.extend(root, HOT, Stop(250 if i % 5 else 9), constraint=make())
        for i, (root, make) in enumerate(zip(roots, makes, strict=True))
    ]
    for task, make, schema in zip(tasks, makes, schemas, strict=True):
        found = task.future.result(WAIT)
        constraint = accepted(make, found.tokens)
        assert tokenizer.vocabulary > max(found.tokens)
        if found.finish == "length":
            cut += 1
            continue
        assert found.finish == "eos"
        assert constraint.complete
        value = json.loads(found.text, object_pairs_hook=unique)
        assert valid(value, schema, {"list": LIST}), (found.text, schema)
    assert 2 <= cut <= 20


def drawn(backend, constraints, *, stop):
    """Tokens of as many branches of one prompt, each under a constraint of its own."""
    root = backend.open(PROMPT, seed=3)
    children = root.fork(len(constraints))
    tasks = [
        backend.extend(child, HOT, stop, constraint=constraint)
        for child, constraint in zip(children, constraints, strict=True)
    ]
    found = [task.future.result(WAIT) for task in tasks]
    for branch in (root, *children):
        branch.free()
    return found


@pytest.mark.parametrize("rule", ["json", "call"])
def test_speculation_gives_the_same_tokens_under_a_grammar(make_backend, tokenizer, rule):
    """With a small model or by look-up, from right guesses and wrong ones: what stays is what plain decoding draws."""
    engine = Engine("test")
    target, draft = make_backend(engine=engine), make_backend(engine=engine)
    step, generator = draft.runner.step, torch.Generator().manual_seed(3)

    def noisy(chunks):
        logits = step(chunks)
        wrong = torch.randn(logits.rows.shape, generator=generator) * 3
        return Logits(logits.rows + wrong, logits.union)

    draft.runner.step = noisy
    make, stop = compile_grammar(tokenizer, RULES[rule]), Stop(40)
    plain = drawn(target, [make() for _ in range(4)], stop=stop)
    assert any("{" in found.text for found in plain)
    for decoder in (
        Speculative(draft_tokens=4),
        Rounds(schedule="first_come"),
        BigLittle(rollback=0.0, fallback=0.02),
        Lookup(shortest=1, draft_tokens=4),
    ):
        constraints = [make() for _ in range(4)]
        found = drawn(DecodingBackend(target, decoder, draft), constraints, stop=stop)
        assert [f.tokens for f in found] == [f.tokens for f in plain], decoder
        assert sum(f.usage.drafted for f in found) > 0
        for constraint, one in zip(constraints, found, strict=True):
            assert constraint.allowed() == accepted(make, one.tokens).allowed()


# --- what goes wrong, and who pays


def test_a_matcher_that_breaks_is_its_own_programs_error(make_backend, tokenizer):
    """A tokenizer that raises inside llguidance, or a grammar that leads nowhere, fails one extension alone."""
    backend = make_backend()
    broken = merged()
    make = compile_grammar(broken, 'start: /[ab]/ "hello" "world"')
    started = make()
    module._table_of(broken)._spelling._tokenizer = None
    module._table_of(broken)._spelling._known.clear()
    mates = [make_mate(backend, tokenizer, seed) for seed in range(2)]
    task = backend.extend(backend.open(PROMPT), HOT, Stop(20), constraint=started)
    with pytest.raises(SettingError, match="no token of the vocabulary"):
        task.future.result(WAIT)
    for mate in mates:
        assert mate.future.result(WAIT).finish == "eos"
    module._tables.clear()


def make_mate(backend, tokenizer, seed):
    """Another text under a grammar."""
    constraint = compile_grammar(tokenizer, 'start: "abc" | "def"')()
    return backend.extend(backend.open(PROMPT, seed=seed), HOT, Stop(20), constraint=constraint)


def test_grammars_are_compiled_while_others_are_decoded(make_backend, tokenizer):
    """Any thread may ask for a constraint of the same grammar or of another one, at any time."""
    backend = make_backend(slots=20_000)
    gate = threading.Barrier(4)

    def ask(number):
        gate.wait(WAIT)
        found = []
        for i in range(6):
            schema = {"enum": [f"{number}-{i}", "größe"]} if i % 2 else CALL
            constraint = compile_grammar(tokenizer, of_schema(schema))()
            root = backend.open(PROMPT, seed=i)
            task = backend.extend(root, HOT, Stop(100), constraint=constraint)
            found.append((schema, task.future.result(WAIT)))
        return found

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(ask, range(4)):
            for schema, one in found:
                if schema is not CALL:
                    assert json.loads(one.text) in schema["enum"]


def test_what_is_remembered_is_bounded(monkeypatch):
    """Tables, grammars and spellings beyond the limits are forgotten, the oldest first, and made anew when they are asked for."""
    monkeypatch.setattr(module, "_TABLES", 2)
    monkeypatch.setattr(module, "_GRAMMARS", 3)
    monkeypatch.setattr(module, "_SPELLINGS", 5)
    module._tables.clear()
    tokenizer = merged()
    held = compile_grammar(tokenizer, 'start: "first"')()
    table = module._table_of(tokenizer)
    for i in range(9):
        make = compile_grammar(tokenizer, f'start: /[xyz]/ "text {i}"')
        assert compile_grammar(tokenizer, f'start: /[xyz]/ "text {i}"')() is not make()
        walk(make(), random.Random(i))
    assert len(table._compiled) == 3
    assert len(table._spelling._known) <= 5
    for i in range(3):
        other = merged()
        other.end_tokens = frozenset({i + 1})
        compile_grammar(other, 'start: "a"')
    assert len(module._tables) == 2
    assert module._table_of(tokenizer) is not table
    walk(held, random.Random(0))
    assert held.complete
    module._tables.clear()
    old = weakref.ref(table._spelling)
    del held, make, table
    gc.collect()
    assert old() is None
