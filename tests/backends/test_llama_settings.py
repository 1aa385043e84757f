"""What `model_kwargs` of a GGUF model do, and which are refused."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from langchain_pareto.backends.llama_context import KV_BYTES
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.errors import ModelLoadError, SettingError

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

WAIT = 60  # seconds
EXACT = {"kv_type": "f32", "flash_attn": False}
PROMPT = [(7 * i * i + 3) % 250 for i in range(60)]


@pytest.fixture
def path(tiny_gguf):
    return tiny_gguf("llama")


def logits(path, kwargs, tokens=(1, 2, 3, 4)):
    """The last token's, and the runner's thread count and bytes of a token."""
    with load(path, device="cpu", memory="8 MB", model_kwargs=kwargs) as backend:
        sequence = backend.runner.open(tokens)
        chunk = Chunk(sequence, len(tokens), 1)
        return backend.engine.call(lambda: backend.runner.step([chunk]).rows).result(WAIT)


def test_settings_reach_llama_cpp(nano_file):
    """A coarser cache moves the logits more, and flash attention moves them a little."""
    exact = logits(nano_file, EXACT, PROMPT)

    def moved(**kwargs):
        return float((logits(nano_file, kwargs, PROMPT) - exact).abs().max() / exact.abs().max())

    half, eight, four = (moved(kv_type=kind, flash_attn=True) for kind in ("f16", "q8_0", "q4_0"))
    assert 0 < half < 3e-3 < eight < four < 0.5
    assert 0 < moved(kv_type="f32", flash_attn=True) < 2e-3
    assert moved(kv_type="f16", flash_attn=False) not in {0, half}


@pytest.mark.parametrize("kv_type", sorted(KV_BYTES))
def test_the_bytes_of_a_token_are_those_of_its_type(nano_file, kv_type):
    """Keys and values of every layer, in blocks of 32 with their scales where they are quantised."""
    kwargs = {"kv_type": kv_type, "n_threads": 3}
    with load(nano_file, device="cpu", memory="8 MB", model_kwargs=kwargs) as backend:
        spec, context = backend.spec, backend.runner.context
        values = 2 * spec.layers * spec.kv_heads * spec.head_dim
        bits = {"f32": 32, "f16": 16, "q8_0": 8.5, "q4_0": 4.5}[kv_type]
        assert spec.kv_bytes_per_token == int(values * bits / 8)
        assert context.api.llama_n_threads(context._context) == 3


def write_adapter(path, scale=1.0):
    """A random LoRA adapter of rank 4 for one matrix of the tiny model."""
    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((4, 32), (32, 4)))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    writer.add_tensor("blk.1.attn_output.weight.lora_a", scale * a)
    writer.add_tensor("blk.1.attn_output.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_an_adapter_changes_what_its_weights_say(path, tmp_path):
    """A LoRA adapter of scale s computes with W + s B A: to first order the logits move with s, and not at all at 0."""
    write_adapter(tmp_path / "adapter.gguf")
    adapter = str(tmp_path / "adapter.gguf")
    plain = logits(path, EXACT)
    torch.testing.assert_close(logits(path, EXACT | {"lora": {adapter: 0.0}}), plain)
    half, whole = (logits(path, EXACT | {"lora": {adapter: s}}) for s in (0.001, 0.002))
    assert (half - plain).abs().max() > 1e-4
    torch.testing.assert_close(whole - plain, 2 * (half - plain), rtol=0.05, atol=5e-4)


def test_an_adapter_is_the_file_that_was_named(path, tmp_path, monkeypatch):
    """A relative path means what it meant when the model was loaded, not what it means to the next user of the same weights."""
    with pytest.raises(ModelLoadError, match="there is no file"):
        load(path, device="cpu", model_kwargs={"lora": {"nowhere.gguf": 1.0}})
    found = []
    for folder, scale in (("one", 1.0), ("two", 3.0)):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        write_adapter(Path("adapter.gguf"), scale)
        kwargs = EXACT | {"lora": {"adapter.gguf": 0.01}}
        found.append(load(path, device="cpu", memory="4 MB", model_kwargs=kwargs))
    assert found[0].runner is not found[1].runner
    for backend in found:
        backend.close()


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"n_ctx": 2048}, "has no 'n_ctx'"),
        ({"device_map": "auto"}, "has no 'device_map': it has flash_attn, kv_type"),
        ({"kv_type": "f64"}, "kv_type of model_kwargs: input should be 'f32', 'f16'"),
        ({"kv_type": ["f16"]}, "kv_type of model_kwargs: input should be"),
        ({"kv_type": "q8_0", "flash_attn": False}, "q8_0 needs flash attention"),
        ({"flash_attn": "yes"}, "flash_attn of model_kwargs: input should be a valid boolean"),
        ({"flash_attn": 1.0}, "flash_attn of model_kwargs: input should be a valid boolean"),
        ({"n_gpu_layers": -2}, "n_gpu_layers of model_kwargs: input should be greater than"),
        ({"n_gpu_layers": 1.5}, "n_gpu_layers of model_kwargs: input should be a valid integer"),
        ({"n_gpu_layers": True}, "n_gpu_layers of model_kwargs: input should be a valid integer"),
        ({"n_threads": 0}, "n_threads of model_kwargs: input should be greater than"),
        ({"n_threads": 10**6}, "n_threads of model_kwargs: input should be less than"),
        ({"n_gpu_layers": 2**40}, "n_gpu_layers of model_kwargs: input should be less than"),
        ({"max_roots": 0}, "max_roots of model_kwargs: input should be greater than"),
        ({"lora": ["a.gguf"]}, "lora of model_kwargs: input should be a valid dictionary"),
        ({"lora": {"a": True}}, "lora.a of model_kwargs: input should be a valid number"),
        ({"lora": {1: 2.0}}, "of model_kwargs: input should be a valid string"),
    ],
)
def test_settings_are_checked(path, kwargs, said):
    """A setting that cannot be honoured is a SettingError that names it."""
    with pytest.raises(SettingError, match=re.escape(said)):
        load(path, device="cpu", model_kwargs=kwargs)
