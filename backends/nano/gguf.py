"""
A model of the family as a GGUF file, for llama.cpp.

Reads a Hugging Face folder of a Llama with a byte-level BPE that splits as GPT-2 does, and writes the same numbers: the weights are
float16, so F16 is exact and F32 holds no more. Knows neither torch nor llama.cpp; needs the package `gguf`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from langchain_pareto.errors import CapabilityError

if TYPE_CHECKING:
    from gguf import GGUFWriter

Precision = Literal["f32", "f16", "q8_0"]

_QUANTISED_BLOCK = 32  # a row of another length stays float16


def write_gguf(folder: Path, tokenizer: Path, path: Path, precision: Precision = "f16") -> None:
    """Writes the model of `folder` with the tokenizer of `tokenizer` to `path`.

    Norms stay float32 in every precision, as llama.cpp wants them. Raises CapabilityError without the package `gguf`.
    """
    try:
        from gguf import GGUFWriter
    except ImportError as error:
        msg = "writing a GGUF file needs the package gguf"
        raise CapabilityError(msg, hint="pip install 'langchain-pareto[llama-cpp]'") from error
    config = json.loads((folder / "config.json").read_text())
    unfinished = path.with_suffix(".tmp")
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


def _add_architecture(
    writer: "GGUFWriter", config: dict[str, Any], name: str, precision: Precision
) -> None:
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or config["hidden_size"] // heads
    writer.add_name(name)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type({"f32": 0, "f16": 1, "q8_0": 7}[precision])
    writer.add_quantization_version(2)


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
        for theirs, ours in names.items():
            weight = state[f"model.layers.{i}.{theirs}.weight"]
            if ours in heads:
                weight = _interleaved(weight, heads[ours])
            yield f"blk.{i}.{ours}.weight", weight


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows (heads × 2 × half) as (heads × half × 2): llama.cpp rotates neighbours, Hugging Face halves."""
    rows, columns = weight.shape
    return (
        weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    )


def _add_tensor(writer: "GGUFWriter", name: str, weight: np.ndarray, precision: Precision) -> None:
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    if weight.ndim == 1 or precision == "f32":
        writer.add_tensor(name, weight.astype(np.float32))
    elif precision == "q8_0" and weight.shape[-1] % _QUANTISED_BLOCK == 0:
        kind = GGMLQuantizationType.Q8_0
        writer.add_tensor(name, quantize(weight.astype(np.float32), kind), raw_dtype=kind)
    else:
        writer.add_tensor(name, weight.astype(np.float16))
