"""The forward that is written out gives what the model's own gives, and is taken only where that is known."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from conftest import CONTEXT, ENDS, GROUPED
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from langchain_pareto.backends.fused_forward import fits, separate
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.tokens import HFTokenizer
from langchain_pareto.backends.torch_runner import TorchRunner

ROPE = {"rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 64}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**GROUPED, **ENDS),
    "llama, biased, tied": lambda: LlamaConfig(
        **GROUPED, **ENDS, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    ),
    "llama, rotations by llama3": lambda: LlamaConfig(
        **GROUPED,
        **ENDS,
        rope_parameters=ROPE
        | {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    ),
    "llama, rotations by yarn": lambda: LlamaConfig(
        **GROUPED, **ENDS, rope_parameters=ROPE | {"rope_type": "yarn"}
    ),
    "llama, rotations by length": lambda: LlamaConfig(
        **GROUPED,
        **ENDS,
        rope_parameters=ROPE
        | {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4},
    ),
    "mistral": lambda: MistralConfig(**GROUPED, **ENDS, sliding_window=8),
    "qwen2": lambda: Qwen2Config(
        **GROUPED, **ENDS, use_sliding_window=True, sliding_window=8, max_window_layers=1
    ),
    "qwen3": lambda: Qwen3Config(**GROUPED, **ENDS, head_dim=16),
}


@pytest.fixture(params=list(CONFIGS))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """A random model with strong weights, its norms and biases too."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made: PreTrainedModel = AutoModelForCausalLM.from_config(CONFIGS[request.param]())
        with torch.no_grad():
            for p in made.parameters():
                _ = p.mul_(4) if p.ndim > 1 else p.add_(torch.randn_like(p) * 0.3)
    return made.eval()


def ids(n: int, salt: int = 0) -> list[int]:
    """Tokens all over the vocabulary."""
    return [(71 * i * i + 13 * i + 29 * salt) % 250 for i in range(n)]


def logits(runner: TorchRunner, tokens: list[int]) -> torch.Tensor:
    """Of a long prefill, of single tokens after it, and of two forks that go on by several, in a row."""
    trunk = runner.open(tokens[:-12])
    out = [runner.step([Chunk(trunk, trunk.pending, 5)]).rows]
    for token in tokens[-12:-8]:
        runner.append(trunk, [token])
        out.append(runner.step([Chunk(trunk, 1, 1)]).rows)
    forks = [runner.fork(trunk) for _ in range(2)]
    for i, fork in enumerate(forks):
        runner.append(fork, ids(3, salt=i) if i else tokens[-8:])
    out.append(runner.step([Chunk(fork, fork.pending, fork.pending) for fork in forks]).rows)
    for sequence in (trunk, *forks):
        runner.free(sequence)
    return torch.cat(out)


@pytest.mark.parametrize("length", [30, 300])
def test_it_gives_the_logits_of_the_models_own_forward(model: PreTrainedModel, length: int) -> None:
    """In prefill, in decoding and over forks, on short and long texts."""
    own = TorchRunner(copy.deepcopy(model), slots=1000, fused=False)
    fused = TorchRunner(model, slots=1000)
    expected, got = logits(own, ids(length)), logits(fused, ids(length))
    assert fused._fused is not None
    assert own._fused is None
    assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_positions_beyond_the_first_table_are_right() -> None:
    """The table of rotations grows with the text."""
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    own = TorchRunner(copy.deepcopy(model), slots=2 * CONTEXT, fused=False)
    fused = TorchRunner(model, slots=2 * CONTEXT)
    for length in (900, 1500, 3000):
        expected, got = (logits(runner, ids(length)) for runner in (own, fused))
        assert torch.allclose(got, expected, atol=1e-4)


def test_weights_that_are_multiplied_at_once_lie_in_common_memory_and_only_once(
    model: PreTrainedModel,
) -> None:
    """A second runner of the same model copies nothing, and all weights together take what they took."""

    def memory() -> int:
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage() for p in model.parameters()}
        return sum(storage.nbytes() for storage in storages.values())

    before = memory()
    first = TorchRunner(model, slots=100)
    places = [p.data_ptr() for p in model.parameters()]
    assert memory() == before
    first.close()
    second = TorchRunner(model, slots=100)
    assert [p.data_ptr() for p in model.parameters()] == places
    second.close()


def test_a_model_object_gets_its_weights_back_as_they_were(
    model: PreTrainedModel, tokenizer: HFTokenizer
) -> None:
    """After the backend is closed every weight has its value, and memory of its own to be saved from."""
    before = {name: p.clone() for name, p in model.state_dict().items()}
    with load(model, tokenizer=tokenizer, memory="1MB") as backend:
        assert backend.runner.spec.name
        assert any(p.untyped_storage().nbytes() > p.nbytes for p in model.parameters())
    assert all(p.untyped_storage().nbytes() == p.nbytes for p in model.parameters())
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())


def test_a_model_that_was_loaded_in_inference_mode_can_be_trained_afterwards(
    model: PreTrainedModel, tokenizer: HFTokenizer
) -> None:
    """Neither joining nor separating makes its weights tensors of that mode."""
    with torch.inference_mode():
        load(model, tokenizer=tokenizer, memory="1MB").close()
    batch = torch.tensor([ids(8)])
    model(batch, labels=batch).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_separating_a_model_that_was_never_joined_moves_nothing(model: PreTrainedModel) -> None:
    """Nor one of another kind."""
    places = [p.data_ptr() for p in model.parameters()]
    separate(model)
    separate(torch.nn.Linear(2, 2))
    assert [p.data_ptr() for p in model.parameters()] == places


def test_a_model_with_projections_that_have_no_weight_is_given_back() -> None:
    """Those of packed integers are of another kind, and were never joined."""
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]())
    model.model.layers[0].self_attn.q_proj = torch.nn.Identity()
    places = [p.data_ptr() for p in model.parameters()]
    separate(model)
    assert [p.data_ptr() for p in model.parameters()] == places


def hook(model: PreTrainedModel) -> None:
    """Somebody watches a layer."""
    model.model.layers[0].mlp.register_forward_hook(lambda *_: None)


def adapt(model: PreTrainedModel) -> None:
    """A projection is of another kind, as those of adapters and of quantised models are."""

    class Adapted(torch.nn.Linear):
        pass

    model.model.layers[1].self_attn.o_proj = Adapted(32, 32, bias=False)


def patch(model: PreTrainedModel) -> None:
    """A module's forward is replaced."""
    mlp = model.model.layers[0].mlp
    mlp.forward = mlp.forward


def cast(model: PreTrainedModel) -> None:
    """Some weights are of another type."""
    model.lm_head.to(torch.bfloat16)


def activate(model: PreTrainedModel) -> None:
    """Another activation."""
    model.config.hidden_act = "gelu"


def replace_activation(model: PreTrainedModel) -> None:
    """The same, behind the back of the settings."""
    model.model.layers[0].mlp.act_fn = torch.nn.GELU()


def override(model: PreTrainedModel) -> None:
    """A module is of a class that does more."""
    mlp = model.model.layers[1].mlp

    class Doubled(type(mlp)):  # type: ignore[misc]  # the class is known at run time only
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    mlp.__class__ = Doubled


def renorm(model: PreTrainedModel) -> None:
    """A norm is of another kind."""
    model.model.norm = torch.nn.LayerNorm(32)


def drop(model: PreTrainedModel) -> None:
    """The first layer is taken out, and the second keeps its number."""
    model.model.layers = model.model.layers[1:]


def stop_early(model: PreTrainedModel) -> None:
    """The settings name fewer layers than there are."""
    model.config.num_hidden_layers = 1


def bias_one(model: PreTrainedModel) -> None:
    """Of projections that are multiplied at once, one has a bias."""
    model.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.ones(32))


def wrap(model: PreTrainedModel) -> None:
    """Weights are of a class of tensors, as quantised and spread ones are."""

    class Packed(torch.Tensor):
        pass

    q = model.model.layers[0].self_attn.q_proj
    q.weight = torch.nn.Parameter(q.weight.data.as_subclass(Packed))


def turn(model: PreTrainedModel) -> None:
    """Weights that lie side by side, each of them transposed."""
    mlp = model.model.layers[0].mlp
    both = torch.stack([mlp.gate_proj.weight.data.t(), mlp.up_proj.weight.data.t()])
    mlp.gate_proj.weight.data, mlp.up_proj.weight.data = both[0].t(), both[1].t()


CHANGES = [
    hook,
    adapt,
    patch,
    cast,
    activate,
    replace_activation,
    override,
    renorm,
    drop,
    stop_early,
    bias_one,
    wrap,
    turn,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_model_keeps_its_own_forward(change: Callable[[PreTrainedModel], None]) -> None:
    """What its class says is then not all that it does."""
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]()).eval()
    assert fits(model)
    change(model)
    assert not fits(model)
