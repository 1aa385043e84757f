"""Untrained models of the family, as Llamas that any Hugging Face tool loads. Knows no data."""

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

from nano.recipes import Size
from nano.tokenizer import END, PAD, SPECIAL, VOCABULARY

# Initial values of the induction circuit.
_CONSTANT = 0.35  # component 0 of every token's embedding
_SPREAD = 0.05  # standard deviation of the others
_SHARP = 8.0  # logit of the first layer's heads at their distance, a rotary frequency
_FREQUENCIES = 4  # of the rotary embedding: the fastest, which tell neighbouring positions apart
_NOISE = 0.005  # standard deviation of what is not part of the circuit
_MATCH = 3.0  # by how much the second layer's weights favour a token that matches


def new_model(size: Size) -> LlamaForCausalLM:
    """An untrained Llama with tied embeddings, its first two layers ready to look things up."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.width,
            intermediate_size=size.feed_forward,
            num_hidden_layers=size.layers,
            num_attention_heads=size.heads,
            num_key_value_heads=size.heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=SPECIAL.index(END),
            pad_token_id=SPECIAL.index(PAD),
        )
    )
    _prepare_lookup(model)
    return model


@torch.no_grad()
def _prepare_lookup(model: LlamaForCausalLM) -> None:
    """Begins with an induction circuit (Olsson et al. 2022), which training alone finds only after very many tokens.

    In the first layer head h attends to the token h places back, whatever it is: queries and keys see only a constant part of the
    embeddings, which the rotary embedding turns into that distance. All heads move the same projection of that token, each into a
    subspace of its own. In the second layer head h compares the token h places back of the query with the token h + 1 places back
    of the key, and copies: what followed the same words before; only the last head, for want of a token further back, starts like
    any other. Starting attention near what trained models do is mimetic initialisation (Trockman & Kolter 2023). Training is free
    to change all of it.
    """
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, _SPREAD)
    embedding[:, 0] = _CONSTANT
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    places = _look_back(first, model.config)
    _match_what_preceded(second, places)


def _look_back(attention: LlamaAttention, config: LlamaConfig) -> torch.Tensor:
    """Head h attends to the token h places back, and moves it; returns where to: (heads, head size, width).

    The logit at distance d is the sum over the frequencies θ of `_SHARP` cos((d - h) θ).
    """
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads
    assert config.rope_parameters is not None
    theta = float(config.rope_parameters["rope_theta"] or 0)
    # component 0 of an embedding behind the layer's norm
    constant = _CONSTANT / math.sqrt((_CONSTANT**2 + (width - 1) * _SPREAD**2) / width)
    strength = math.sqrt(_SHARP * math.sqrt(size)) / constant
    token = torch.nn.init.orthogonal_(torch.empty(size, width))  # what of a token is moved
    token[:, 0] = 0
    for weight in (attention.q_proj.weight, attention.k_proj.weight):
        weight.normal_(0, _NOISE)
    for h in range(heads):
        rows = slice(h * size, (h + 1) * size)
        attention.v_proj.weight[rows] = token
        for f in range(_FREQUENCIES):
            angle = h * theta ** (-2 * f / size)
            attention.k_proj.weight[rows][f, 0] = strength
            attention.q_proj.weight[rows][f, 0] = strength * math.cos(angle)
            attention.q_proj.weight[rows][size // 2 + f, 0] = -strength * math.sin(angle)
    torch.nn.init.orthogonal_(attention.o_proj.weight)
    return attention.o_proj.weight.T.reshape(heads, size, width)


def _match_what_preceded(attention: LlamaAttention, places: torch.Tensor) -> None:
    """Head h compares what stands h places before the query with what stands h + 1 places before the key, and copies."""
    heads, size, _ = places.shape
    for h in range(heads - 1):
        rows = slice(h * size, (h + 1) * size)
        attention.q_proj.weight[rows] = math.sqrt(_MATCH) * places[h]
        attention.k_proj.weight[rows] = math.sqrt(_MATCH) * places[h + 1]
    torch.nn.init.orthogonal_(attention.v_proj.weight)
    attention.o_proj.weight.copy_(attention.v_proj.weight.T)


@torch.no_grad()
def grown(small: LlamaForCausalLM, size: Size) -> LlamaForCausalLM:
    """A deeper model that computes what `small` does: after each layer, copies of it whose outputs are zero at first.

    Function-preserving growth in depth (Chen et al. 2016, Net2Net; Wu et al. 2024, LLaMA Pro).
    """
    model = new_model(size)
    times, rest = divmod(size.layers, small.config.num_hidden_layers)
    if rest:
        raise ValueError(
            f"{size.layers} layers are no multiple of {small.config.num_hidden_layers}"
        )
    model.model.embed_tokens.load_state_dict(small.model.embed_tokens.state_dict())
    model.model.norm.load_state_dict(small.model.norm.state_dict())
    for i, layer in enumerate(model.model.layers):
        layer.load_state_dict(small.model.layers[i // times].state_dict())
        if i % times:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model
