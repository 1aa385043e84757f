"""Tiny random models of transformers written as F32 GGUF files, with the byte tokenizer of the tests."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import pre_tokenizers
from transformers import PreTrainedModel

Tensors = dict[str, np.ndarray]


def write(model: PreTrainedModel, path: Path, *, template: str | None = None) -> None:
    """Writes `model` to `path`; llama.cpp's names, layouts and keys, one function a type."""
    from gguf import GGUFWriter

    config = model.config
    state = {name: t.detach().float().numpy() for name, t in model.state_dict().items()}
    writer = GGUFWriter(path, config.model_type.removesuffix("_text"))
    writer.add_name(f"tiny {config.model_type}")
    writer.add_vocab_size(config.vocab_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_file_type(0)
    _add_tokenizer(writer, config.vocab_size, template)
    for name, weight in _TYPES[config.model_type](writer, config, state).items():
        writer.add_tensor(name, np.ascontiguousarray(weight.astype(np.float32)))
    _finish(writer)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_bytes(path: Path, *, model: str = "gpt2", pre: str = "gpt-2") -> None:
    """A vocabulary of bytes alone, for a tokenizer that splits texts as `pre` does."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(258)
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_context_length(64)
    writer.add_head_count(4)
    writer.add_feed_forward_length(8)
    writer.add_layer_norm_rms_eps(1e-6)
    _add_tokenizer(writer, 258, None, model=model, pre=pre)
    _finish(writer)


def write_sentencepiece(path: Path) -> None:
    """A vocabulary alone, as SentencePiece makes it: a BOS token, bytes, and words that begin with a space."""
    from gguf import GGUFWriter, TokenType

    words = ["\u2581", "a", "b", "c", "ab", "\u2581ab", "\u2581c"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *words]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    types += [TokenType.BYTE] * 256 + [TokenType.NORMAL] * len(words)
    writer = GGUFWriter(path, "llama")
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-1.0 * i for i in range(len(words), 0, -1)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    _finish(writer)


def _add_tokenizer(
    writer: Any, size: int, template: str | None, *, model: str = "gpt2", pre: str = "gpt-2"
) -> None:
    from gguf import TokenType

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<eos>", "<user>"]
    types = [TokenType.NORMAL] * 256 + [TokenType.CONTROL] * 2
    tokens += [f"<unused{i}>" for i in range(len(tokens), size)]
    types += [TokenType.UNUSED] * (size - len(types))
    writer.add_tokenizer_model(model)
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["<none> <none>"])  # the key must be there; this pair never comes
    writer.add_eos_token_id(256)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    if template is not None:
        writer.add_chat_template(template)


def _llama(writer: Any, config: Any, state: Mapping[str, np.ndarray]) -> Tensors:
    """Llama itself, whose rotation pairs neighbours in llama.cpp."""
    tensors = _transformer(writer, config, state)
    for i in range(config.num_hidden_layers):
        for name, heads in (
            ("attn_q", config.num_attention_heads),
            ("attn_k", config.num_key_value_heads),
        ):
            key = f"blk.{i}.{name}.weight"
            rows, columns = tensors[key].shape
            halves = tensors[key].reshape(heads, 2, rows // heads // 2, columns)
            tensors[key] = halves.swapaxes(1, 2).reshape(rows, columns)
    return tensors


def _gemma3(writer: Any, config: Any, state: Mapping[str, np.ndarray]) -> Tensors:
    """Gemma 3: norms around one, windows in some layers, a scale of attention that is not the head's width."""
    writer.add_sliding_window(config.sliding_window)
    writer.add_sliding_window_pattern([t == "sliding_attention" for t in config.layer_types])
    tensors = _transformer(writer, config, state)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    names = {"pre_feedforward_layernorm": "ffn_norm", "post_feedforward_layernorm": "post_ffw_norm"}
    names |= {"post_attention_layernorm": "post_attention_norm"}
    for i in range(config.num_hidden_layers):
        for hf_name, gguf_name in names.items():
            tensors[f"blk.{i}.{gguf_name}.weight"] = state[f"model.layers.{i}.{hf_name}.weight"]
    for name in tensors:
        if "norm" in name:
            tensors[name] = tensors[name] + 1
        if "attn_q_norm" in name:
            tensors[name] = tensors[name] * (config.head_dim / config.query_pre_attn_scalar) ** 0.5
    return tensors


def _mamba2(writer: Any, config: Any, state: Mapping[str, np.ndarray]) -> Tensors:
    """Mamba 2: a state instead of attention."""
    inner = int(config.expand * config.hidden_size)
    writer.add_context_length(4096)
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_ssm_conv_kernel(config.conv_kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(config.state_size)
    writer.add_ssm_time_step_rank(inner // config.head_dim)
    writer.add_ssm_group_count(config.n_groups)
    writer.add_layer_norm_rms_eps(config.layer_norm_epsilon)
    tensors = {
        "token_embd.weight": state["backbone.embeddings.weight"],
        "output_norm.weight": state["backbone.norm_f.weight"],
        "output.weight": state["lm_head.weight"],
    }
    for i in range(config.num_hidden_layers):
        layer = {
            name.removeprefix(f"backbone.layers.{i}."): weight
            for name, weight in state.items()
            if name.startswith(f"backbone.layers.{i}.")
        }
        tensors |= {
            f"blk.{i}.attn_norm.weight": layer["norm.weight"],
            f"blk.{i}.ssm_in.weight": layer["mixer.in_proj.weight"],
            f"blk.{i}.ssm_out.weight": layer["mixer.out_proj.weight"],
            f"blk.{i}.ssm_conv1d.weight": layer["mixer.conv1d.weight"].squeeze(1),
            f"blk.{i}.ssm_conv1d.bias": layer["mixer.conv1d.bias"],
            f"blk.{i}.ssm_a": -np.exp(layer["mixer.A_log"])[:, None],
            f"blk.{i}.ssm_d": layer["mixer.D"][:, None],
            f"blk.{i}.ssm_dt.bias": layer["mixer.dt_bias"],
            f"blk.{i}.ssm_norm.weight": layer["mixer.norm.weight"].reshape(config.n_groups, -1),
        }
    return tensors


def _lfm2(writer: Any, config: Any, state: Mapping[str, np.ndarray]) -> Tensors:
    """LFM 2: short convolutions in some layers, attention in the others."""
    attention = [kind == "full_attention" for kind in config.layer_types]
    width = config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_feed_forward_length(state["model.layers.0.feed_forward.w1.weight"].shape[0])
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv([config.num_key_value_heads * a for a in attention])
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(width)
    writer.add_shortconv_l_cache(config.conv_L_cache)
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "token_embd_norm.weight": state["model.embedding_norm.weight"],
    }
    names = {
        "operator_norm": "attn_norm",
        "ffn_norm": "ffn_norm",
        "feed_forward.w1": "ffn_gate",
        "feed_forward.w2": "ffn_down",
        "feed_forward.w3": "ffn_up",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_output",
        "self_attn.q_layernorm": "attn_q_norm",
        "self_attn.k_layernorm": "attn_k_norm",
        "conv.in_proj": "shortconv.in_proj",
        "conv.out_proj": "shortconv.out_proj",
        "conv.conv": "shortconv.conv",
    }
    for i in range(config.num_hidden_layers):
        for hf_name, gguf_name in names.items():
            weight = state.get(f"model.layers.{i}.{hf_name}.weight")
            if weight is not None:
                tensors[f"blk.{i}.{gguf_name}.weight"] = (
                    weight.squeeze(1) if weight.ndim == 3 else weight
                )
    return tensors


def _transformer(writer: Any, config: Any, state: Mapping[str, np.ndarray]) -> Tensors:
    """What Llama, Qwen 3 and Gemma 3 have in common."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope.get("full_attention", rope)["rope_theta"])
    writer.add_rope_dimension_count(width)
    writer.add_key_length(width)
    writer.add_value_length(width)
    tensors = {
        "token_embd.weight": state["model.embed_tokens.weight"],
        "output_norm.weight": state["model.norm.weight"],
    }
    if not config.tie_word_embeddings:
        tensors["output.weight"] = state["lm_head.weight"]
    names = {
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    for i in range(config.num_hidden_layers):
        for hf_name, gguf_name in names.items():
            weight = state.get(f"model.layers.{i}.{hf_name}.weight")
            if weight is not None:
                tensors[f"blk.{i}.{gguf_name}.weight"] = weight
    return tensors


_TYPES: dict[str, Callable[[Any, Any, Mapping[str, np.ndarray]], Tensors]] = {
    "llama": _llama,
    "qwen3": _transformer,
    "gemma3_text": _gemma3,
    "lfm2": _lfm2,
    "mamba2": _mamba2,
}
