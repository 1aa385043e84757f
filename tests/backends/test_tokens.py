"""Text to tokens and back: every kind of tokenizer, whole and one token at a time; chat templates."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st
from tokenizers import (
    AddedToken,
    Tokenizer as RustTokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from langchain_pareto.backends.detokenizer import Detokenizer
from langchain_pareto.backends.nano import tokenizer_path
from langchain_pareto.backends.templates import render_template
from langchain_pareto.backends.tokens import HFTokenizer, Tokenizer
from langchain_pareto.errors import SettingError

NANO = tokenizer_path()
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CORPUS = [
    "the cat sat on the mat, then the dog ate",
    "你好世界 你好",
    "def f(x):\n\treturn  x + 1\n",
    "naïve café 👋🏽",
]
TEXTS = [
    "hello the cat",
    "emoji 👩‍👩‍👧 and 👋🏽!",
    "你好，世界。",
    "combining e\u0301 n\u0303",
    "tab\tnewline\n\n  two  spaces ",
    " leading",
    "",
]


def byte_level() -> PreTrainedTokenizerFast:
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    rust.train_from_iterator(
        CORPUS * 4,
        trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False),
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<|endoftext|>")
    fast.add_tokens(
        [AddedToken("<|im_start|>", special=True), AddedToken("<|im_end|>", special=True)],
        special_tokens=True,
    )
    fast.add_tokens(["<tool>", "    ", "über"])
    return fast


def llama_like(*, scheme: str = "sequence", bos: bool = False) -> PreTrainedTokenizerFast:
    """Sentencepiece BPE with byte fallback, as in Llama 2 (`sequence`), Gemma (`no_strip`), or with a Metaspace decoder."""
    pieces = [
        "▁",
        "▁the",
        "▁cat",
        "▁▁",
        "h",
        "e",
        "l",
        "o",
        "t",
        "c",
        "a",
        "s",
        "你",
        "好",
        "▁h",
        "he",
        "▁t",
        ",",
        ".",
    ]
    vocabulary = {name: i for i, name in enumerate(["<unk>", "<s>", "</s>", *BYTES, *pieces])}
    merges = [("▁", "h"), ("h", "e"), ("▁", "t"), ("▁", "▁"), ("▁t", "he")]
    rust = RustTokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if scheme == "metaspace":
        rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        rust.decoder = decoders.Sequence(
            [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")]
        )
    else:
        prepend = [normalizers.Prepend("▁")] if scheme == "sequence" else []
        rust.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
        strip = [decoders.Strip(" ", 1, 0)] if scheme == "sequence" else []
        rust.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        )
    if bos:
        rust.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 1)]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    fast.add_tokens([AddedToken("<tool>", normalized=False)])
    return fast


def unigram() -> PreTrainedTokenizerFast:
    scores = [("<unk>", 0.0), *((name, -9.0) for name in BYTES)]
    scores += [
        ("▁", -2.0),
        ("▁the", -2.5),
        ("▁cat", -3.0),
        ("s", -3.0),
        ("th", -4.0),
        ("你好", -4.0),
    ]
    rust = RustTokenizer(models.Unigram(scores, unk_id=0, byte_fallback=True))
    rust.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    rust.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="<unk>")


def wordpiece() -> PreTrainedTokenizerFast:
    words = [
        "[UNK]",
        "[CLS]",
        "the",
        "cat",
        "##s",
        "##a",
        "s",
        "a",
        ",",
        ".",
        "你",
        "hello",
        "##lo",
    ]
    rust = RustTokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece(cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="[UNK]", cls_token="[CLS]")


def suffixed() -> PreTrainedTokenizerFast:
    """Original BPE: a word's last token ends in `</w>`, so a token's text depends on the one before."""
    words = ["<unk>", "low", "er</w>", "low</w>", "new", "est</w>", "a</w>"]
    rust = RustTokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], unk_token="<unk>"))
    rust.decoder = decoders.BPEDecoder(suffix="</w>")
    return PreTrainedTokenizerFast(tokenizer_object=rust, unk_token="<unk>")


class Slow(PreTrainedTokenizer):
    """A pure-Python word tokenizer, read from a vocabulary file with one word a line."""

    vocab_files_names = {"vocab_file": "vocab.txt"}  # noqa: RUF012

    def __init__(self, vocab_file: str, **kwargs: object) -> None:
        words = Path(vocab_file).read_text(encoding="utf-8").splitlines()
        self.words = {word: i for i, word in enumerate(words)}
        super().__init__(unk_token="<unk>", eos_token="</s>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self.words)

    def get_vocab(self) -> dict[str, int]:
        return {**self.words, **self.added_tokens_encoder}

    def _tokenize(self, text: str) -> list[str]:
        return text.split()

    def _convert_token_to_id(self, token: str) -> int:
        return self.words.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return next(word for word, i in self.words.items() if i == index)


class SlowSentencePiece(Slow):
    """The same, spelled like sentencepiece."""

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        return "".join(tokens).replace("▁", " ").strip()


def slow(kind: type[Slow], folder: Path) -> Slow:
    path = folder / "vocab.txt"
    path.write_text("<unk>\n</s>\nthe\ncat\n▁the\n▁cat\ns\n你好\n", encoding="utf-8")
    return kind(str(path))


KINDS = {
    "byte-level": byte_level,
    "llama": llama_like,
    "gemma": lambda: llama_like(scheme="no_strip"),
    "metaspace": lambda: llama_like(scheme="metaspace"),
    "unigram": unigram,
    "wordpiece": wordpiece,
    "suffixed": suffixed,
}


@cache
def tokenizer(kind: str) -> HFTokenizer:
    return HFTokenizer(KINDS[kind]())


def streamed(of: Tokenizer, tokens: list[int], prefix: list[int] | None = None) -> str:
    detokenizer = Detokenizer(of, prefix or ())
    texts = [detokenizer.push(token) for token in tokens]
    texts.append(detokenizer.flush())
    assert detokenizer.text == "".join(texts)
    return detokenizer.text


def test_importing_tokens_loads_no_heavy_module():
    """Strategies may import this module: it loads neither torch nor transformers."""
    code = "import sys, langchain_pareto.backends.tokens; print({'torch', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_context_dependent_decoder_is_decoded_by_differences(kind):
    """Byte-level, sentencepiece, Metaspace and WordPiece texts are the join of pieces; `</w>` suffixes are not."""
    assert tokenizer(kind).joins == (kind != "suffixed")


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_streamed_text_is_decoded_text(kind, data):
    """For any token sequence, what the detokenizer gives piece by piece joins to `decode` of all tokens."""
    of = tokenizer(kind)
    tokens = data.draw(st.lists(st.integers(0, of.vocabulary + 2), max_size=30))
    assert streamed(of, tokens) == of.decode(tokens)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_a_branch_continues_its_prompt(kind, data):
    """Wherever a sequence is cut, the unflushed text before and the text after join to the whole: no space lost, no half character."""
    of = tokenizer(kind)
    tokens = data.draw(st.lists(st.integers(0, of.vocabulary - 1), max_size=24))
    cut = data.draw(st.integers(0, len(tokens)))
    before = Detokenizer(of)
    for token in tokens[:cut]:
        before.push(token)
    assert before.text + streamed(of, tokens[cut:], tokens[:cut]) == of.decode(tokens)


@given(tokens=st.lists(st.integers(0, 330), max_size=40))
@settings(max_examples=200, deadline=None)
def test_byte_level_decode_equals_transformers(tokens):
    """Byte-level decoding equals transformers' own on any sequence, invalid UTF-8 included."""
    of, hf = tokenizer("byte-level"), byte_level_hf()
    wrong = hf.convert_tokens_to_ids("über")  # transformers reads this added token as bytes
    tokens = [token for token in tokens if token < of.vocabulary and token != wrong]
    assert of.decode(tokens) == hf.decode(tokens, skip_special_tokens=True)


@cache
def byte_level_hf() -> PreTrainedTokenizerFast:
    return byte_level()


@pytest.mark.parametrize("kind", ["llama", "gemma", "unigram", "wordpiece", "suffixed"])
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_other_decoders_equal_transformers(kind, data):
    """Without byte tokens, decoding equals transformers' own on any sequence."""
    of, hf = tokenizer(kind), hf_of(kind)
    bytes_ = {hf.convert_tokens_to_ids(name) for name in BYTES if name in hf.get_vocab()}
    ids = st.sampled_from(sorted(set(range(of.vocabulary)) - bytes_))
    tokens = data.draw(st.lists(ids, max_size=30))
    assert of.decode(tokens) == hf.decode(
        tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )


@cache
def hf_of(kind: str) -> PreTrainedTokenizerFast:
    return KINDS[kind]()


@pytest.mark.parametrize("kind", ["byte-level", "llama", "gemma"])
@given(text=st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_text_survives_the_round_trip(kind, text):
    """Any text is encoded, streamed and decoded to itself where the vocabulary covers bytes."""
    of = tokenizer(kind)
    text = text.replace("▁", "").replace("<", "")  # sentencepiece's space; special tokens
    assert streamed(of, of.encode(text)) == of.decode(of.encode(text)) == text


@pytest.mark.parametrize("kind", ["byte-level", "llama", "gemma"])
@pytest.mark.parametrize("text", TEXTS)
def test_scripts_and_spaces_survive(kind, text):
    """Emoji, CJK, combining marks, tabs, newlines and leading spaces come back as they were."""
    of = tokenizer(kind)
    assert streamed(of, of.encode(text)) == of.decode(of.encode(text)) == text


def test_no_half_character_is_told():
    """A character in four byte tokens comes out whole with its last byte."""
    of = tokenizer("llama")
    tokens = of.encode("👋")[-4:]
    detokenizer = Detokenizer(of)
    assert [detokenizer.push(token) for token in tokens] == ["", "", "", "👋"]
    assert detokenizer.flush() == ""


def test_invalid_bytes_become_replacement_characters_once_they_are_certain():
    """A lead byte waits; a letter after it makes it U+FFFD; at the end of the stream flush does."""
    of = tokenizer("llama")
    lead, letter = BYTES.index("<0xE4>") + 3, of.encode("a")[-1]
    detokenizer = Detokenizer(of)
    assert [detokenizer.push(lead), detokenizer.push(letter), detokenizer.push(lead)] == [
        "",
        "\ufffda",
        "",
    ]
    assert detokenizer.flush() == "\ufffd"


def test_a_continuation_keeps_its_space_and_a_text_does_not():
    """The first token of a text loses sentencepiece's space; after a prompt it keeps it."""
    of = tokenizer("llama")
    cat = of.encode("cat")
    assert of.decode(cat) == streamed(of, cat) == "cat"
    assert streamed(of, cat, of.encode("the")) == " cat"
    assert streamed(of, cat, [1]) == "cat"  # a special token is no text


def test_pieces_are_the_bytes_of_tokens():
    """Byte tokens, spaces, added tokens, specials and ids beyond the vocabulary have the bytes they should."""
    llama, byte, word = tokenizer("llama"), tokenizer("byte-level"), tokenizer("wordpiece")
    assert llama.piece(BYTES.index("<0x0A>") + 3) == b"\n"
    assert llama.piece(llama.encode("the")[0]) == b" the"
    assert llama.piece(1) == llama.piece(10**6) == b""
    assert [byte.piece(t) for t in byte.encode("<tool>über    <|im_end|>")] == [
        b"<tool>",
        "über".encode(),
        b"    ",
        b"",
    ]
    assert [word.piece(t) for t in word.encode("the cats")] == [b" the", b" cat", b"s"]


@pytest.mark.parametrize("kind", [Slow, SlowSentencePiece])
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_slow_tokenizers_stream_too(kind, data, tmp_path_factory):
    """A pure-Python tokenizer streams what it decodes."""
    of = HFTokenizer(slow(kind, tmp_path_factory.mktemp("slow")))
    tokens = data.draw(st.lists(st.integers(0, of.vocabulary - 1), max_size=12))
    assert streamed(of, tokens) == of.decode(tokens)


def test_slow_pieces(tmp_path):
    """A pure-Python tokenizer's pieces carry the spaces that its decoder puts between tokens."""
    words = HFTokenizer(slow(Slow, tmp_path))
    assert words.decode(words.encode("the cat")) == "the cat"
    assert words.piece(3) == b" cat"
    spelled = HFTokenizer(slow(SlowSentencePiece, tmp_path))
    assert [spelled.piece(t) for t in (1, 3, 5)] == [b"", b"cat", b" cat"]


def test_encode_recognises_specials_and_adds_none():
    """A special token written in a text is one token, and nothing is put before or after."""
    of = tokenizer("byte-level")
    tokens = of.encode("<|im_start|>hi<|im_end|>")
    assert tokens[0] in of.special_tokens
    assert tokens[-1] in of.end_tokens
    assert of.decode(tokens) == "hi"


def test_a_lone_surrogate_is_named():
    """Half a surrogate pair is no text, and the error says so."""
    with pytest.raises(SettingError, match="not Unicode"):
        tokenizer("byte-level").encode("\ud83d")


def test_a_raw_prompt_gets_one_bos_where_the_tokenizer_adds_one():
    """`encode_prompt` adds the tokenizer's own BOS once, and none where the tokenizer has none."""
    with_bos, without = HFTokenizer(llama_like(bos=True)), tokenizer("llama")
    assert with_bos.encode("the")[0] != 1
    assert with_bos.encode_prompt("the") == [1, *with_bos.encode("the")]
    assert with_bos.encode_prompt("<s>the").count(1) == 1
    assert without.encode_prompt("the") == without.encode("the")
    assert tokenizer("byte-level").encode_prompt("") == []


def test_end_tokens_join_config_tokenizer_and_vocabulary():
    """What the generation config names, the tokenizer's eos, and known end-of-turn tokens that were added all end a text."""
    hf = byte_level()
    eos, turn = hf.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    assert HFTokenizer(hf).end_tokens == {eos, turn}
    assert HFTokenizer(hf, eos=7).end_tokens == {eos, turn, 7}
    assert HFTokenizer(hf, eos=[7, 8]).end_tokens == {eos, turn, 7, 8}


def test_end_of_a_harmony_channel_is_not_the_end():
    """`<|end|>` ends a turn for Phi, but only a channel where `<|return|>` exists."""
    phi, harmony = byte_level(), byte_level()
    phi.add_tokens(["<|end|>"], special_tokens=True)
    harmony.add_tokens(["<|end|>", "<|return|>"], special_tokens=True)
    assert phi.convert_tokens_to_ids("<|end|>") in HFTokenizer(phi).end_tokens
    ends = HFTokenizer(harmony).end_tokens
    assert harmony.convert_tokens_to_ids("<|end|>") not in ends
    assert harmony.convert_tokens_to_ids("<|return|>") in ends


def test_fingerprints_tell_vocabularies_apart():
    """Two loads of one tokenizer agree; one token more makes a difference."""
    other = byte_level()
    assert HFTokenizer(other).fingerprint == tokenizer("byte-level").fingerprint
    other.add_tokens(["more"])
    assert HFTokenizer(other).fingerprint != tokenizer("byte-level").fingerprint


@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_the_nano_tokenizer_streams(data):
    """The bundled models' tokenizer round-trips text, and streams any token sequence."""
    of = nano()
    text = data.draw(st.text(max_size=30)).replace("<", "")  # no special tokens
    tokens = data.draw(st.lists(st.integers(0, of.vocabulary - 1), max_size=30))
    assert of.joins
    assert streamed(of, of.encode(text)) == text
    assert streamed(of, tokens) == of.decode(tokens)


@cache
def nano() -> HFTokenizer:
    return HFTokenizer(AutoTokenizer.from_pretrained(NANO))


# Templates

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% if think is false %}<think></think>{% endif %}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
    "{{ bos_token }}{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% if m.role == 'user' %}"
    "[INST] {% if loop.first and system %}{{ system }}\n\n{% endif %}{{ m.content }} [/INST]"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def chat(*turns: str) -> list[dict[str, object]]:
    roles = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
    return [{"role": roles[turn[0]], "content": turn[2:]} for turn in turns]


def test_chatml_takes_every_role_and_further_names():
    """A permissive template renders messages as they are; template_kwargs reach it."""
    text = render_template(CHATML, chat("s:S", "u:A", "u:B"), template_kwargs={"think": False})
    assert text == (
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nA<|im_end|>\n<|im_start|>user\nB<|im_end|>\n"
        "<|im_start|>assistant\n<think></think>"
    )
    assert render_template(CHATML, chat("u:A"), add_generation_prompt=False).endswith(
        "A<|im_end|>\n"
    )


def test_llama3_has_one_bos():
    """A template that writes BOS gives exactly one BOS token."""
    hf = llama_like(bos=True)
    hf.chat_template = LLAMA3
    of = HFTokenizer(hf)
    text = of.render(chat("s:S", "u:the"))
    assert text.startswith("<s><|start_header_id|>system")
    assert of.has_template
    assert of.encode(text).count(1) == of.encode_prompt(text).count(1) == 1


def test_a_refused_system_message_moves_into_the_user_message():
    """Gemma's template has no system role: its text goes before the first user message."""
    text = render_template(GEMMA, chat("s:Be brief.", "u:Hi"), bos_token="<bos>")
    assert text == "<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\n"
    assert "user\nBe brief.\n\nHi\n\nHo<" in render_template(
        GEMMA, chat("s:Be brief.", "u:Hi", "u:Ho")
    )
    assert "user\nOnly<" in render_template(GEMMA, chat("s:Only"))


def test_refused_neighbours_of_one_role_are_joined():
    """Mistral's template wants alternation: neighbours are joined by a blank line, and the system message stays."""
    text = render_template(
        MISTRAL, chat("s:S", "u:A", "u:B", "a:C", "a:D", "u:E"), eos_token="</s>"
    )
    assert text == "[INST] S\n\nA\n\nB [/INST] C\n\nD</s>[INST] E [/INST]"


def test_a_late_system_message_joins_the_next_user_message():
    """A system message in the middle goes where it stands: before the user message after it."""
    text = render_template(MISTRAL, chat("u:A", "a:B", "s:S", "u:C"))
    assert text == "[INST] A [/INST] B[INST] S\n\nC [/INST]"


@pytest.mark.parametrize("template", [GEMMA, MISTRAL])
def test_an_assistant_who_speaks_first_is_answered(template):
    """An empty user message goes before a first assistant message; a system message serves as that user message."""
    assert "Hello" in render_template(template, chat("a:Hello", "u:Hi"))
    mended = render_template(template, chat("s:S", "a:Hello", "u:Hi"))
    assert mended.index("S") < mended.index("Hello") < mended.index("Hi")


def test_what_cannot_be_mended_is_quoted():
    """The error quotes the template's own message, and names the roles."""
    with pytest.raises(SettingError, match="roles must alternate") as caught:
        render_template(MISTRAL, chat("u:A", "a:B", "t:result", "u:C"))
    assert "['user', 'assistant', 'tool', 'user']" in caught.value.hint
    with pytest.raises(SettingError, match="Expected an expression"):
        render_template("{% if %}", chat("u:A"))


def test_messages_stay_as_they_were():
    """Mending works on copies."""
    messages = chat("s:S", "u:A", "u:B")
    render_template(GEMMA, messages)
    assert messages == chat("s:S", "u:A", "u:B")


def test_tools_reach_the_template():
    """Tools are given to the template; without a template they are refused rather than dropped."""
    tool = {"type": "function", "function": {"name": "add"}}
    assert render_template("{{ tools | tojson }}", chat("u:A"), tools=[tool]) == (
        '[{"type": "function", "function": {"name": "add"}}]'
    )
    with pytest.raises(SettingError, match="template"):
        tokenizer("byte-level").render(chat("u:A"), tools=[tool])


def test_without_a_template_messages_are_lines():
    """A base model's prompt is the contents, a line each."""
    of = tokenizer("byte-level")
    assert not of.has_template
    assert of.render(chat("s:S", "u:question")) == "S\nquestion\n"
