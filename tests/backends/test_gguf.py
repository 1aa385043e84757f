"""The bundled models as GGUF files: the same numbers, and in llama.cpp the same logits and token ids."""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from langchain_pareto.backends.nano import (
    draft_path,
    gguf as gguf_module,
    policy_path,
    tokenizer_path,
)
from langchain_pareto.backends.nano.gguf import Precision, nano_gguf, write_gguf
from langchain_pareto.errors import CapabilityError

QUESTION = "Use 3 28 16 24 to make 65."
SOLUTION = "Take 24 - 3 = 21, left 28 16 21\nTake 21 + 16 = 37, left 28 37\nTake 28 + 37 = 65\nAnswer: 28 + ( ( 24 - 3 ) + 16 )"
TEXT = f"<|user|>{QUESTION}<|assistant|>{SOLUTION}<|end|>"
AWKWARD = (
    "héllo wörld 你好 🙂\u200d",
    "  two  spaces\t\ttabs\r\n\r\n x",
    "isn't IT'S we'LL 'tis",
    "1234567 x=y*z  12 a1b2",
    "<|end|>",
    "a<|user|>b  <|assistant|> <|unknown|>",
    "\x00\x01",
    "½ ²³ ٣ Ⅷ 𝟙𝟚",
    "..\n\n?!\n  ",
    "\ufeffBOM",
    " ",
    "\n",
    "e\u0301 ſ's 'ſ",
    "a\u00a0b \u3000c",
)
MODELS = [draft_path, policy_path]
LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def with_gguf() -> Any:
    return pytest.importorskip("gguf", reason="the package gguf is not installed")


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file in llama.cpp, exact."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    llama = llama_cpp.Llama(
        str(path),
        n_ctx=512,
        logits_all=True,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        n_threads=1,
        verbose=False,
    )
    yield llama
    llama.close()


def logits(path: Path, ids: list[int]) -> torch.Tensor:
    """Of every position, (tokens, vocabulary)."""
    with opened(path) as llama:
        llama.eval(ids)
        return torch.from_numpy(np.array(llama.scores[: len(ids)]))


@pytest.fixture(params=["f32", "f16", "q8_0"])
def precision(request) -> Precision:
    return request.param


def test_weights_are_the_same_numbers(tmp_path: Path, precision: Precision) -> None:
    """Every weight is in the file: exactly, but for Q8_0's own rounding; attention rows are permuted back for the comparison."""
    gguf = with_gguf()
    path = tmp_path / "model.gguf"
    write_gguf(draft_path(), tokenizer_path(), path, precision)
    assert [p.name for p in tmp_path.iterdir()] == ["model.gguf"]
    read = {t.name: t for t in gguf.GGUFReader(path).tensors}
    state = AutoModelForCausalLM.from_pretrained(draft_path(), dtype=torch.float32).state_dict()
    config = json.loads((draft_path() / "config.json").read_text())
    heads = config["num_attention_heads"]
    assert len(read) == 2 + 9 * config["num_hidden_layers"]
    names = {"embed_tokens": "token_embd", "norm": "output_norm"}
    names |= {f"layers.{i}.{a}": f"blk.{i}.{b}" for i in range(2) for a, b in LAYER.items()}
    for hf_name, gguf_name in names.items():
        tensor = read.pop(f"{gguf_name}.weight")
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if "attn_q" in gguf_name or "attn_k" in gguf_name:
            rows, columns = weight.shape
            weight = weight.reshape(heads, -1, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        wanted = state[f"model.{hf_name}.weight"].numpy()
        step = np.abs(wanted).max() / 127 if precision == "q8_0" and wanted.ndim > 1 else 0
        # half a step of the coarsest block, and 127 times what float16 rounds off its scale
        assert np.abs(weight - wanted).max() <= (1 / 2 + 127 / 2**11) * step, gguf_name
    assert not read


@pytest.mark.parametrize("folder", MODELS, ids=lambda f: f().name)
def test_logits_are_those_of_hugging_face(
    tmp_path: Path, folder: Any, precision: Precision
) -> None:
    """Flash attention off, a float32 cache: 1e-4 from an F32 file, 3e-2 from F16, a divergence of 1e-2 nats from Q8_0."""
    with_gguf()
    ids = AutoTokenizer.from_pretrained(tokenizer_path())(TEXT)["input_ids"]
    model = AutoModelForCausalLM.from_pretrained(folder(), dtype=torch.float32)
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0]
    write_gguf(folder(), tokenizer_path(), tmp_path / "model.gguf", precision)
    got = logits(tmp_path / "model.gguf", ids)
    if precision == "q8_0":
        p, q = wanted.double().log_softmax(-1), got.double().log_softmax(-1)
        assert (p.exp() * (p - q)).sum(-1).mean() <= 1e-2
    else:
        assert (got - wanted).abs().max() <= (1e-4 if precision == "f32" else 3e-2)


def test_llama_cpp_reads_the_tokenizer(tmp_path: Path) -> None:
    """Token ids of awkward strings, the end token, the template and the special tokens are those of the Hugging Face tokenizer."""
    with_gguf()
    write_gguf(draft_path(), tokenizer_path(), tmp_path / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path())
    with opened(tmp_path / "model.gguf") as llama:
        for text in (TEXT, *AWKWARD):
            ids = llama.tokenize(text.encode(), add_bos=False, special=True)
            assert ids == tokenizer(text)["input_ids"], text
            assert llama.detokenize(ids, special=True) == text.encode()
        assert llama.token_eos() == tokenizer.eos_token_id
        assert llama.metadata["tokenizer.chat_template"] == tokenizer.chat_template


def test_grouped_queries_and_an_untied_head_are_written(tmp_path: Path) -> None:
    """Another Llama than ours: fewer key heads than query heads, an output matrix of its own."""
    with_gguf()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        eos_token_id=0,
        pad_token_id=1,
    )
    LlamaForCausalLM(config).half().save_pretrained(tmp_path / "random")
    write_gguf(tmp_path / "random", tokenizer_path(), tmp_path / "model.gguf", "f32")
    ids = list(range(8, 40))
    model = LlamaForCausalLM.from_pretrained(tmp_path / "random", dtype=torch.float32)
    with torch.inference_mode():
        wanted = model(torch.tensor([ids])).logits[0]
    assert (logits(tmp_path / "model.gguf", ids) - wanted).abs().max() <= 1e-4


def test_another_model_is_refused(tmp_path: Path) -> None:
    """What a Llama of llama.cpp has no place for would be lost without a word: it is refused."""
    with_gguf()
    config = json.loads((draft_path() / "config.json").read_text())
    for change in (
        {"model_type": "mistral"},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"rope_parameters": config["rope_parameters"] | {"rope_type": "linear", "factor": 2.0}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(CapabilityError, match="no plain Llama"):
            write_gguf(tmp_path, tokenizer_path(), tmp_path / "model.gguf")


def test_without_gguf_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the package nothing is written, and the error names the extra."""
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CapabilityError) as caught:
        write_gguf(draft_path(), tokenizer_path(), tmp_path / "model.gguf")
    assert "llama-cpp" in caught.value.hint
    assert not list(tmp_path.iterdir())


def test_a_file_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a file is never where a whole one is looked for, nor beside it."""
    with_gguf()
    monkeypatch.setattr(gguf_module, "_add_tensor", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_gguf(draft_path(), tokenizer_path(), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_the_cache_has_one_file_for_what_is_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written once, and again when anything of model or tokenizer has changed."""
    with_gguf()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first = nano_gguf()
    written = first.stat().st_mtime_ns
    assert nano_gguf() == first
    assert first.stat().st_mtime_ns == written
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_path(), tokenizer)
    (tokenizer / "chat_template.jinja").write_text("{{ messages }}")
    monkeypatch.setattr(gguf_module, "tokenizer_path", lambda: tokenizer)
    assert nano_gguf() != first


def test_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the cache folder is a file, a temporary folder of the process serves."""
    with_gguf()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    path = nano_gguf()
    assert path.read_bytes()[:4] == b"GGUF"
    assert path.parent.stat().st_mode & 0o077 == 0
    assert nano_gguf() == path
