"""What is read off a GGUF file."""

import pytest

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
