"""The tokenizer in a GGUF file says what that of transformers says."""

import pytest
from transformers import AutoTokenizer

from langchain_pareto.backends.gguf_tokenizer import GGUFTokenizer
from langchain_pareto.backends.nano import tokenizer_path
from langchain_pareto.backends.tokens import HFTokenizer
from langchain_pareto.errors import SettingError


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
