"""What is read off a GGUF file."""

import pytest

from langchain_pareto.backends.llama_model import LlamaModel
from langchain_pareto.backends.llama_spec import spec_of
from langchain_pareto.backends.loading import load


@pytest.mark.parametrize("make_runner", ["torch"], indirect=True)
def test_the_spec_is_that_of_the_weights(tiny_gguf, make_runner):
    """Shape, parameters and bytes are those that torch reads off the same weights; the cache is of the type asked for."""
    with load(tiny_gguf("llama"), device="cpu", memory="16 MB") as backend:
        spec = backend.spec
    torch_spec = make_runner("llama").spec
    same = "vocabulary hidden heads kv_heads head_dim windows matmul_parameters context_length"
    for name in same.split():
        assert getattr(spec, name) == getattr(torch_spec, name), name
    assert spec.kv_bytes_per_token == torch_spec.kv_bytes_per_token // 2  # F16 by default
    assert (spec.dtype, spec.device) == ("F32", "cpu")


@pytest.mark.parametrize(("key", "attending"), [(None, 2), ("2", 1), ("0", 2)])
def test_layers_with_a_state_keep_no_keys(tiny_gguf, key, attending):
    """Of Qwen3-Next and its like every fourth layer attends: the file says how many heads there are, and which layers have them."""
    model = LlamaModel(tiny_gguf("llama"))
    if key is not None:
        model.metadata["llama.full_attention_interval"] = key
    spec = spec_of(model, "f16", "cpu")
    model.close()
    assert len(spec.windows) == attending
    assert spec.kv_bytes_per_token == attending * 2 * spec.kv_heads * spec.head_dim * 2


@pytest.mark.parametrize("architecture", ["mamba2", "lfm2"])
def test_updating_a_state_is_charged_for(tiny_gguf, architecture):
    """Six operations for each of its float32 elements, as on torch."""
    with load(tiny_gguf(architecture), device="cpu", memory="16 MB") as backend:
        ours = backend.spec.state_flops_per_token
    assert ours == 6 * backend.spec.state_bytes_per_sequence // 4
    assert ours > 0
