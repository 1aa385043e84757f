"""Recurrent and hybrid models on torch: how many forwards a step takes, what a copy is, and what is given back."""

import functools
import random

import pytest
import torch
import transformers

from langchain_pareto.backends.loading import load
from langchain_pareto.backends.self_check import LANES, SLOTS, check_runner
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.torch_mixers import Mixer, Round, StateForm
from langchain_pareto.backends.torch_recorder import find_mixers
from langchain_pareto.backends.torch_states import StatePool, TorchStateRunner, torch_runner
from langchain_pareto.errors import CapabilityError, CapacityError

MULTI_TOKEN = {
    "falcon_h1": True,
    "granite_hybrid": True,
    "jamba": False,
    "lfm2": True,
    "mamba": False,
    "mamba2": True,
    "nemotron_h": True,
    "qwen3_next": True,
    "zamba2": True,
}
only_torch = pytest.mark.parametrize("make_runner", ["torch"], indirect=True)


@pytest.fixture(params=list(MULTI_TOKEN))
def architecture(request):
    return request.param


def some(n, seed=0):
    """`n` random tokens."""
    rng = random.Random(seed)
    return [rng.randrange(256) for _ in range(n)]


def count_calls(monkeypatch, module):
    """The shapes of the hidden states, or of the tokens, that a module is called with."""
    calls, forward = [], module.forward

    @functools.wraps(forward)
    def counted(*args, **kwargs):
        first = args[0] if args else next(iter(kwargs.values()))
        calls.append(tuple(first.shape))
        return forward(*args, **kwargs)

    monkeypatch.setattr(module, "forward", counted)
    return calls


@pytest.mark.parametrize("branches", [1, 3, 24])
def test_a_step_is_one_forward_and_equal_lengths_are_one_call(
    copied_model, monkeypatch, architecture, branches
):
    """However many branches there are: one forward of the model, and one call of each recurrent layer for each number of new tokens."""
    model = copied_model(architecture)
    with monkeypatch.context() as patch:
        # under the runner: what it calls is the module's own forward
        mixer = find_mixers(model, model.config)[0][0].module
        inner = count_calls(patch, mixer)
        runner = torch_runner(model, slots=2000, lanes=64)
        outer = count_calls(patch, model)
        root = runner.open(some(9))
        runner.step([Chunk(root, 9, 1)])
        several = [runner.fork(root) for _ in range(branches)]
        for branch in several:
            runner.append(branch, [1])
            runner.reuse(branch)
        inner.clear()
        outer.clear()
        runner.step([Chunk(branch, 1, 1) for branch in several])
        assert len(outer) == 1
        assert [shape[:2] for shape in inner] == [(branches, 1)]
        for i, branch in enumerate(several):
            runner.append(branch, some(1 + i % 2))
        inner.clear()
        outer.clear()
        runner.step([Chunk(branch, branch.pending, 1) for branch in several])
        assert len(outer) == 1
        lengths = {1 + i % 2 for i in range(branches)}
        if MULTI_TOKEN[architecture]:
            assert {shape[1] for shape in inner} == lengths
            assert len(inner) == len(lengths)
        else:  # token by token, for all branches of a length at once
            assert {shape[1] for shape in inner} == {1}
            assert len(inner) == sum(lengths)
        runner.close()


def test_what_forgets_its_state_is_found_out(copied_model, architecture):
    """Mamba 1 and Jamba continue token by token, whatever transformers claims; the others take several at once."""
    runner = torch_runner(copied_model(architecture), slots=100, lanes=4)
    assert isinstance(runner, TorchStateRunner)
    assert runner.multi_token == MULTI_TOKEN[architecture]
    runner.close()


def test_the_self_check_passes(copied_model, architecture):
    """As small as the loader makes it, the runner computes what the model's authors wrote, and keeps nothing of the check."""
    runner = torch_runner(copied_model(architecture), slots=SLOTS, lanes=LANES)
    check_runner(runner)
    assert runner.pool.live == 0
    runner.forget()
    assert runner.lanes.free == LANES
    runner.close()


def test_a_wrong_single_step_is_refused_with_its_error(copied_model, monkeypatch):
    """A mixer that loses its state even token by token is refused, with the error that was measured."""
    runner = torch_runner(copied_model("mamba2"), slots=SLOTS, lanes=LANES)
    carrier = Mixer._carrier
    monkeypatch.setattr(
        Mixer, "_carrier", lambda self, states, **_: carrier(self, states, fresh=True)
    )
    with pytest.raises(CapabilityError, match=r"appending one token changes the logits by \d"):
        check_runner(runner)
    runner.close()


def test_the_model_is_given_back(copied_model, architecture):
    """After close() every module has its own forward, the model its attention, and computes what it did."""
    model = copied_model(architecture)
    tokens = torch.tensor([some(12)])
    before, attention = model(tokens, use_cache=False).logits, model.config._attn_implementation
    runner = torch_runner(model, slots=100, lanes=4)
    runner.close()
    runner.close()
    assert not [module for module in model.modules() if "forward" in vars(module)]
    assert model.config._attn_implementation == attention
    assert torch.equal(model(tokens, use_cache=False).logits, before)


def test_a_failed_start_gives_the_model_back(copied_model, monkeypatch):
    """Where the runner cannot be made, nothing stays replaced."""
    model = copied_model("lfm2")
    monkeypatch.setattr(Mixer, "probe", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        torch_runner(model, slots=100, lanes=4)
    assert not [module for module in model.modules() if "forward" in vars(module)]
    assert model.config._attn_implementation == "eager"


@only_torch
def test_the_shape_names_attention_and_states_apart(make_runner):
    """Windows and bytes of keys are those of the attention layers; a state's bytes are the sum of its tensors'."""
    hybrid, pure, plain = (make_runner(name).spec for name in ("falcon_h1", "mamba2", "llama"))
    assert hybrid.windows == (None, None)
    assert hybrid.kv_bytes_per_token == 2 * 2 * (8 + 8) * 4
    assert (pure.windows, pure.kv_bytes_per_token, pure.layers) == ((), 0, 0)
    conv, recurrent = (64 + 2 * 16) * 4, 8 * 8 * 16
    assert pure.state_bytes_per_sequence == 2 * (conv + recurrent) * 4
    assert pure.state_flops_per_token == 2 * 6 * recurrent
    assert (plain.state_bytes_per_sequence, plain.state_flops_per_token) == (0, 0)


# --- copies


def test_copies_that_are_noted_equal_copies_that_are_made():
    """Whatever the order of copies, removals and writes, a lane has at a step what it would have if each copy were made at once."""
    rng = random.Random(5)
    form = StateForm("recurrent", 0, (2,), torch.float32)
    mixer = Mixer(torch.nn.Identity(), 0, 2, (form,), "cache_params", Round())
    pool = StatePool([mixer], 12, torch.device("cpu"))
    [states] = mixer.pool
    states.copy_(torch.arange(24.0).view(12, 2))
    plain = states.clone()
    for _ in range(300):
        for _ in range(rng.randrange(5)):
            one, other = rng.sample(range(12), 2)
            pool.copy(one, other, -1, -1)
            plain[other] = plain[one]
        pool.settle()
        assert torch.equal(states, plain)
        lane = rng.randrange(12)
        states[lane] += 100
        plain[lane] += 100


def test_a_removed_lane_takes_no_copy():
    """A copy to a lane that was given back is not made over what its next owner has."""
    form = StateForm("conv", 0, (1,), torch.float32)
    mixer = Mixer(torch.nn.Identity(), 0, 1, (form,), "cache_params", Round())
    pool = StatePool([mixer], 3, torch.device("cpu"))
    mixer.pool[0].copy_(torch.tensor([[1.0], [2.0], [3.0]]))
    pool.copy(0, 1, -1, -1)
    pool.remove(1)
    pool.settle()
    assert mixer.pool[0].ravel().tolist() == [1, 2, 3]


# --- capacity


@only_torch
def test_more_sequences_than_states_in_one_step_are_refused(make_runner):
    """A step that cannot have so many states raises CapacityError, and nobody got a slot."""
    runner = make_runner("mamba2", lanes=4)
    sequences = [runner.open([i, 1, 2]) for i in range(5)]
    with pytest.raises(CapacityError, match="all 4 sequences") as caught:
        runner.step([Chunk(sequence, 3, 1) for sequence in sequences])
    assert caught.value.kind == "sequences"
    assert runner.pool.live == 0
    assert all(sequence.cached == 0 for sequence in sequences)
    assert len(runner.step([Chunk(sequence, 3, 1) for sequence in sequences[:4]]).rows) == 4


# --- loading

TINY = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
LAYERS = {"layer_types": ["linear_attention", "full_attention"]}
DELTA = LAYERS | {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
OTHERS = {
    "bamba": lambda: transformers.BambaConfig(
        **TINY, attn_layer_indices=[1], mamba_n_heads=4, mamba_d_head=16, mamba_d_state=16
    ),
    "falcon_mamba": lambda: transformers.FalconMambaConfig(
        vocab_size=260, hidden_size=32, num_hidden_layers=2, state_size=8
    ),
    "kimi_linear": lambda: transformers.KimiLinearConfig(
        **TINY,
        **LAYERS,
        linear_num_heads=4,
        linear_head_dim=8,
        moe_intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        q_lora_rank=None,
        kv_lora_rank=16,
        qk_nope_head_dim=8,
        qk_rope_head_dim=8,
        v_head_dim=8,
    ),
    "lfm2_moe": lambda: transformers.Lfm2MoeConfig(
        **TINY, **EXPERTS, layer_types=["conv", "full_attention"], num_dense_layers=1
    ),
    "olmo_hybrid": lambda: transformers.OlmoHybridConfig(**TINY, **DELTA),
    "qwen3_5": lambda: transformers.Qwen3_5TextConfig(**TINY, **DELTA, head_dim=8),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_others_load_and_pass_the_check(name, tokenizer):
    """What the README names beside the architectures that all tests run on."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = transformers.AutoModelForCausalLM.from_config(OTHERS[name]()).eval()
    with load(model, tokenizer=tokenizer, memory="64 MB") as backend:
        assert backend.runner.recurrent
        assert backend.runner.multi_token == (name != "falcon_mamba")


def test_memory_is_for_states_and_slots(tmp_path, copied_model, tokenizer, architecture):
    """A model from files: half of the memory at most is for states, the rest for slots."""
    copied_model(architecture).save_pretrained(tmp_path)
    with load(tmp_path, tokenizer=tokenizer, memory="1 MB") as backend:
        spec, runner = backend.spec, backend.runner
        states = runner.lanes.count * spec.state_bytes_per_sequence
        assert runner.lanes.count >= 8
        assert states <= 500_000
        assert states + runner.pool.capacity * spec.kv_bytes_per_token <= 1_000_000


def test_states_that_do_not_fit_are_refused(copied_model, tokenizer):
    """Where eight states are more than the memory, the error says so."""
    with pytest.raises(CapacityError, match="needs"):
        load(copied_model("zamba2"), tokenizer=tokenizer, memory="150 KB")


def test_a_state_in_the_attention_is_refused(tokenizer):
    """ZAYA's attention carries a state of its own: it has no layer that maps hidden states to hidden states."""
    config = transformers.ZayaConfig(
        vocab_size=260,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(CapabilityError, match="ZayaCCAProjection"):
        load(model, tokenizer=tokenizer, memory="1 MB")
