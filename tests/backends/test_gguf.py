"""The bundled models as GGUF files: the same numbers, and in llama.cpp the same logits and token ids."""

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from langchain_pareto.backends.nano import draft_path, policy_path, tokenizer_path
from langchain_pareto.backends.nano.gguf import Precision, write_gguf
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


def with_gguf() -> Any:
    return pytest.importorskip("gguf", reason="the package gguf is not installed")


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
    for theirs, ours in (
        ("model.embed_tokens.weight", "token_embd.weight"),
        ("model.norm.weight", "output_norm.weight"),
        ("model.layers.1.mlp.down_proj.weight", "blk.1.ffn_down.weight"),
        ("model.layers.1.self_attn.v_proj.weight", "blk.1.attn_v.weight"),
        ("model.layers.1.self_attn.k_proj.weight", "blk.1.attn_k.weight"),
    ):
        tensor = read[ours]
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        if "attn_k" in ours:
            rows, columns = weight.shape
            weight = weight.reshape(heads, -1, 2, columns).swapaxes(1, 2).reshape(rows, columns)
        wanted = state[theirs].numpy()
        error = np.abs(wanted).max() / 127 if precision == "q8_0" and wanted.ndim > 1 else 0
        assert np.abs(weight - wanted).max() <= error, ours


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
    llama = opened(tmp_path / "model.gguf")
    assert llama.tokenize(TEXT.encode(), add_bos=False, special=True) == ids
    llama.eval(ids)
    got = torch.from_numpy(np.array(llama.scores[: len(ids)]))
    llama.close()
    if precision == "q8_0":
        p, q = wanted.double().log_softmax(-1), got.double().log_softmax(-1)
        assert (p.exp() * (p - q)).sum(-1).mean() <= 1e-2
    else:
        assert (got - wanted).abs().max() <= (1e-4 if precision == "f32" else 3e-2)


def test_llama_cpp_reads_the_tokenizer(tmp_path: Path) -> None:
    """Token ids of awkward strings, the end token, the template and the special tokens are those of the Hugging Face tokenizer."""
    with_gguf()
    write_gguf(draft_path(), tokenizer_path(), tmp_path / "model.gguf")
    llama = opened(tmp_path / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_path())
    for text in AWKWARD:
        ids = llama.tokenize(text.encode(), add_bos=False, special=True)
        assert ids == tokenizer(text)["input_ids"], text
        assert llama.detokenize(ids, special=True) == text.encode()
    assert llama.token_eos() == tokenizer.eos_token_id
    assert llama.metadata["tokenizer.chat_template"] == tokenizer.chat_template
    llama.close()


def opened(path: Path) -> Any:
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    return llama_cpp.Llama(
        str(path),
        n_ctx=512,
        logits_all=True,
        flash_attn=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        n_threads=1,
        verbose=False,
    )


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
    model = LlamaForCausalLM(config).half()
    model.save_pretrained(tmp_path / "random")
    write_gguf(tmp_path / "random", tokenizer_path(), tmp_path / "model.gguf", "f32")
    llama = opened(tmp_path / "model.gguf")
    ids = list(range(8, 40))
    llama.eval(ids)
    with torch.inference_mode():
        wanted = model.float()(torch.tensor([ids])).logits[0]
    assert (torch.from_numpy(np.array(llama.scores[: len(ids)])) - wanted).abs().max() <= 1e-4
    llama.close()


def test_without_gguf_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No package, no file."""
    imported = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "gguf":
            raise ImportError(name)
        return imported(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(CapabilityError) as caught:
        write_gguf(draft_path(), tokenizer_path(), tmp_path / "model.gguf")
    assert "llama-cpp" in caught.value.hint
    assert not list(tmp_path.iterdir())
