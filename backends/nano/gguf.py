"""
A model of the family as a GGUF file, for llama.cpp.

Reads a Hugging Face folder of a Llama with a byte-level BPE that splits as GPT-2 does, and writes the same numbers: the weights are
float16, so F16 is exact and F32 holds no more. Knows neither torch nor llama.cpp; needs the package `gguf`.
"""

import atexit
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from langchain_pareto.backends.nano import POLICY, bundled, tokenizer_path
from langchain_pareto.errors import CapabilityError

if TYPE_CHECKING:
    from gguf import GGUFWriter

Precision = Literal["f32", "f16", "q8_0"]

_VERSION = 1  # of what is written here: another one makes other files in the cache


def nano_gguf(model: str = POLICY) -> Path:
    """A bundled model as a GGUF file in float16, written on first use to the user's cache, else to a temporary folder."""
    weights = bundled(model)
    assert weights is not None, f"{model} is not bundled"
    digest = hashlib.sha256(b"%d" % _VERSION)
    for folder in (weights, tokenizer_path()):
        for path in sorted(folder.iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
    name = f"{model}-{digest.hexdigest()[:16]}.gguf"
    cached = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "langchain-pareto"
    try:
        return _written(weights, cached / name)
    except OSError:  # a home that cannot be written to
        return _written(weights, _temporary() / name)


def _written(weights: Path, path: Path) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_gguf(weights, tokenizer_path(), path)
    return path


@cache
def _temporary() -> Path:
    """A folder that nobody else can write to, for as long as the process runs."""
    folder = tempfile.TemporaryDirectory(prefix="langchain-pareto-", ignore_cleanup_errors=True)
    atexit.register(folder.cleanup)
    return Path(folder.name)


def write_gguf(folder: Path, tokenizer: Path, path: Path, precision: Precision = "f16") -> None:
    """Writes the model of `folder` with the tokenizer of `tokenizer` to `path`, which appears when it is whole.

    Norms stay float32 in every precision, as llama.cpp wants them. Raises CapabilityError for a model that is no plain Llama, and
    without the package `gguf`.
    """
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        msg = "writing a GGUF file needs the package gguf"
        raise CapabilityError(msg, hint="pip install 'langchain-pareto[llama-cpp]'") from error
    config = json.loads((folder / "config.json").read_text())
    _check_plain(folder, config)
    # of this process alone: several may write the same file at once
    unfinished = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        writer = GGUFWriter(unfinished, "llama")
        _add_architecture(writer, config, folder.name, precision)
        _add_tokenizer(writer, config, tokenizer)
        for name, weight in _weights(folder, config):
            _add_tensor(writer, name, weight, precision)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _check_plain(folder: Path, config: dict[str, Any]) -> None:
    rope = config["rope_parameters"].get("rope_type", "default")
    biased = config.get("attention_bias") or config.get("mlp_bias")
    if config["model_type"] != "llama" or biased or rope != "default":
        msg = f"{folder} is no plain Llama, without biases and with unscaled rotary embeddings"
        raise CapabilityError(msg, hint="Convert it with llama.cpp's convert_hf_to_gguf.py.")


def _add_architecture(
    writer: "GGUFWriter", config: dict[str, Any], name: str, precision: Precision
) -> None:
    from gguf import GGML_QUANT_VERSION, LlamaFileType

    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    types = {
        "f32": LlamaFileType.ALL_F32,
        "f16": LlamaFileType.MOSTLY_F16,
        "q8_0": LlamaFileType.MOSTLY_Q8_0,
    }
    writer.add_name(name)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(types[precision])
    writer.add_quantization_version(GGML_QUANT_VERSION)


def _add_tokenizer(writer: "GGUFWriter", config: dict[str, Any], folder: Path) -> None:
    from gguf import TokenType

    bpe = json.loads((folder / "tokenizer.json").read_text())
    special = {token["id"]: token["content"] for token in bpe["added_tokens"]}
    pieces = {index: piece for piece, index in bpe["model"]["vocab"].items()} | special
    tokens, types = [], []
    for i in range(config["vocab_size"]):
        tokens.append(pieces.get(i, f"<unused{i}>"))
        normal = TokenType.NORMAL if i in pieces else TokenType.UNUSED
        types.append(TokenType.CONTROL if i in special else normal)
    writer.add_tokenizer_model("gpt2")  # llama.cpp's name for byte-level BPE
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in bpe["model"]["merges"]])
    for name, add in (("eos", writer.add_eos_token_id), ("pad", writer.add_pad_token_id)):
        token = config.get(f"{name}_token_id")
        if token is not None:
            add(token[0] if isinstance(token, list) else token)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    template = folder / "chat_template.jinja"
    if template.is_file():
        writer.add_chat_template(template.read_text())


def _weights(folder: Path, config: dict[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by its name in llama.cpp."""
    from safetensors.numpy import load_file

    state = load_file(folder / "model.safetensors")
    yield "token_embd.weight", state["model.embed_tokens.weight"]
    yield "output_norm.weight", state["model.norm.weight"]
    if not config["tie_word_embeddings"]:
        yield "output.weight", state["lm_head.weight"]
    names = {
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
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for i in range(config["num_hidden_layers"]):
        for hf_name, gguf_name in names.items():
            weight = state[f"model.layers.{i}.{hf_name}.weight"]
            if gguf_name in heads:
                weight = _interleaved(weight, heads[gguf_name])
            yield f"blk.{i}.{gguf_name}.weight", weight


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads × 2 × half) as (heads × half × 2): llama.cpp rotates neighbours, Hugging Face halves."""
    rows, columns = weight.shape
    return (
        weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def _add_tensor(writer: "GGUFWriter", name: str, weight: np.ndarray, precision: Precision) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType.Q8_0
    block, _ = GGML_QUANT_SIZES[kind]
    if weight.ndim == 1 or precision == "f32":
        writer.add_tensor(name, weight.astype(np.float32))
    elif precision == "q8_0" and weight.shape[-1] % block == 0:
        writer.add_tensor(name, quantize(weight.astype(np.float32), kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, weight.astype(np.float16))
