"""The sizes of the family, as Llamas that any Hugging Face tool loads. Knows no data."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from langchain_pareto.backends import nano
from nano.tokenizer import END, PAD, SPECIAL, VOCABULARY, WORK


@dataclass(frozen=True, slots=True)
class Size:
    """What a Llama of the family is made of: width, layers, heads and feed-forward width."""

    width: int
    layers: int
    heads: int
    hidden: int


_SHIPPED = {
    "S": nano.draft_path(),
    "M": nano.policy_path(),
    "PRM": nano.prm_path(),
    "L": Path(__file__).parent / "weights/L",
}


def home(name: str) -> Path:
    """Where a model of the family ships from."""
    return _SHIPPED[name]


def found(name: str) -> Path:
    """The folder of a model: as it was trained here, else as it ships."""
    trained = WORK / name
    return trained if (trained / "model.safetensors").exists() else home(name)


SIZES = {
    "S": Size(width=96, layers=2, heads=6, hidden=160),
    "M": Size(width=192, layers=6, heads=6, hidden=512),
    "L": Size(width=192, layers=18, heads=6, hidden=512),
}


def new_model(size: Size) -> LlamaForCausalLM:
    """An untrained Llama with tied embeddings, its first two layers ready to look things up."""
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=size.width,
            intermediate_size=size.hidden,
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


# Initial values: a constant that every token's embedding carries, the spread of the rest, and logits at a match.
_CONSTANT, _SPREAD, _SHARP, _MATCH = 0.35, 0.05, 8.0, 3.0
_FREQUENCIES = 4  # of the rotary embedding: the fastest, which tell neighbouring positions apart
_NOISE = 0.005


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
    config = model.config
    width, heads = config.hidden_size, config.num_attention_heads
    size = width // heads  # of a head
    embedding = model.model.embed_tokens.weight
    embedding.normal_(0, _SPREAD)
    embedding[:, 0] = _CONSTANT
    constant = _CONSTANT / math.sqrt((_CONSTANT**2 + (width - 1) * _SPREAD**2) / width)
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    strength = math.sqrt(_SHARP * math.sqrt(size)) / constant
    token = torch.nn.init.orthogonal_(torch.empty(size, width))  # what of a token is moved
    token[:, 0] = 0
    for weight in (first.q_proj.weight, first.k_proj.weight):
        weight.normal_(0, _NOISE)
    torch.nn.init.orthogonal_(first.o_proj.weight)
    places = first.o_proj.weight.T.reshape(heads, size, width)  # where head h puts it
    for h in range(heads):
        rows = slice(h * size, (h + 1) * size)
        first.v_proj.weight[rows] = token
        for f in range(_FREQUENCIES):
            angle = h * config.rope_parameters["rope_theta"] ** (-2 * f / size)
            first.k_proj.weight[rows][f, 0] = strength
            first.q_proj.weight[rows][f, 0] = strength * math.cos(angle)
            first.q_proj.weight[rows][size // 2 + f, 0] = -strength * math.sin(angle)
        if h + 1 < heads:
            second.q_proj.weight[rows] = math.sqrt(_MATCH) * places[h]
            second.k_proj.weight[rows] = math.sqrt(_MATCH) * places[h + 1]
    torch.nn.init.orthogonal_(second.v_proj.weight)
    second.o_proj.weight.copy_(second.v_proj.weight.T)


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
