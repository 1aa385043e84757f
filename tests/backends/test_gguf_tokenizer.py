"""The tokenizer in a GGUF file says what that of transformers says."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from gguf_models import write_bytes
from transformers import AutoTokenizer

from langchain_pareto.backends.gguf_tokenizer import GGUFTokenizer
from langchain_pareto.backends.nano import tokenizer_path
from langchain_pareto.backends.tokens import HFTokenizer
from langchain_pareto.errors import CapabilityError, SettingError


def test_tokens_are_those_of_hugging_face(nano_file):
    """Ids, text, template, ends and fingerprint are those of the folder's tokenizer."""
    ours = GGUFTokenizer(nano_file)
    theirs = HFTokenizer(AutoTokenizer.from_pretrained(tokenizer_path()))
    for name in "vocabulary fingerprint end_tokens special_tokens has_template".split():
        assert getattr(ours, name) == getattr(theirs, name), name
    chat = [{"role": "user", "content": "Ben has 3 cups. How many cups does Ben have?"}]
    assert ours.render(chat) == theirs.render(chat)
    for text in ("", " 12 + 3", "héllo 你好 🙂\n\n", "<|end|>a", ours.render(chat), "\x00"):
        tokens = ours.encode(text)
        assert tokens == theirs.encode(text) == ours.encode_prompt(text)
        assert ours.decode(tokens) == theirs.decode(tokens)
        assert [ours.piece(t) for t in tokens] == [theirs.piece(t) for t in tokens]
    with pytest.raises(SettingError, match="not Unicode"):
        ours.encode("\ud800")


def test_a_prompt_of_sentencepiece_has_one_bos_and_no_space_of_its_own(spaced_gguf):
    """Its BOS is added to a raw prompt once; the space that its tokens begin with is none of the text's."""
    tokenizer = GGUFTokenizer(spaced_gguf)
    bare, whole = tokenizer.encode("ab c"), tokenizer.encode_prompt("ab c")
    assert whole == [1, *bare]
    assert tokenizer.encode_prompt("<s>ab c") == whole
    assert tokenizer.decode(bare) == "ab c"
    assert b"".join(map(tokenizer.piece, bare)) == b" ab c"
    assert tokenizer.special_tokens == {1, 2}
    assert tokenizer.end_tokens == {2}


def test_long_texts_need_no_deep_stack(tmp_path):
    """Some vocabularies are split by a recursive regular expression: whoever asks, the stack is deep enough."""
    write_bytes(tmp_path / "tekken.gguf", pre="tekken")
    tokenizer = GGUFTokenizer(tmp_path / "tekken.gguf")
    for symbol in "a =":
        assert len(tokenizer.encode(symbol * 200_000)) == 200_000
    before = threading.stack_size(512 * 1024)
    try:
        with ThreadPoolExecutor(1) as pool:
            assert len(pool.submit(tokenizer.encode, "a" * 5_000).result(60)) == 5_000
    finally:
        threading.stack_size(before)


def test_tokens_out_of_range_have_no_text(nano_file):
    """Negative ids and those beyond the vocabulary are nobody's, and nothing ends the process."""
    tokenizer = GGUFTokenizer(nano_file)
    assert tokenizer.decode([-1, -5, 10**6]) == ""


def test_a_file_without_a_vocabulary_is_refused(tmp_path):
    """It says what it lacks."""
    write_bytes(tmp_path / "none.gguf", model="no_vocab")
    with pytest.raises(CapabilityError, match="has no vocabulary"):
        GGUFTokenizer(tmp_path / "none.gguf")
