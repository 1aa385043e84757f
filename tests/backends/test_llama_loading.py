"""GGUF files as backends: what is read off them, what settings do, and what cannot be loaded."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from langchain_pareto import ChatPareto
from langchain_pareto.backends import llama_devices
from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.nano import tokenizer_path
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.tokens import HFTokenizer
from langchain_pareto.errors import (
    CapacityError,
    ContextLengthError,
    EngineClosedError,
    ModelLoadError,
    ParetoError,
    SettingError,
)

WAIT = 60  # seconds
GREEDY = Sampling(temperature=0.0)
EXACT = {"kv_type": "f32", "flash_attn": False}


@pytest.fixture
def path(tiny_gguf: Callable[[str], Path]) -> Path:
    return tiny_gguf("llama")


@pytest.fixture
def nano(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled model as a file, in a cache of the tests."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("gguf", reason="gguf is not installed")
    from langchain_pareto.backends.llama_loading import nano_gguf

    cache = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return nano_gguf()


def draw(backend, n=8):
    branch = backend.open([1, 2, 3, 4])
    return backend.extend(branch, GREEDY, Stop(n, eos=False)).future.result(WAIT).tokens


# --- what is read off a file


def test_the_spec_is_that_of_the_weights(path, make_runner):
    """Shape, parameters and bytes are those that torch reads off the same weights; the cache is of the type asked for."""
    with load(path, device="cpu", memory="16 MB") as backend:
        spec = backend.spec
    if (torch_spec := make_runner("llama").spec).dtype != "float32":
        pytest.skip("compares with torch")
    same = "vocabulary hidden heads kv_heads head_dim windows matmul_parameters context_length"
    for name in same.split():
        assert getattr(spec, name) == getattr(torch_spec, name), name
    assert spec.kv_bytes_per_token == torch_spec.kv_bytes_per_token // 2  # F16 by default
    assert (spec.dtype, spec.device) == ("F32", "cpu")


@pytest.mark.parametrize("architecture", ["gemma3", "lfm2", "mamba2", "qwen3"])
def test_every_type_loads_and_answers(tiny_gguf, architecture):
    """Windows and layers without attention are seen, and a branch goes on through forks."""
    with load(tiny_gguf(architecture), device="cpu", memory="64 MB") as backend:
        windows = {"gemma3": (8, None), "lfm2": (None,), "mamba2": (), "qwen3": (None, None)}
        assert backend.spec.windows == windows[architecture]
        one, two = backend.open([1, 2, 3]).fork(2)
        tasks = [backend.extend(b, GREEDY, Stop(5, eos=False)) for b in (one, two)]
        first, second = (task.future.result(WAIT).tokens for task in tasks)
        assert first == second
        assert len(first) == 5


def test_a_sequence_is_limited_by_training_and_the_pool_by_memory(path):
    """The pool is what memory holds, a sequence what the model was trained on."""
    with load(path, device="cpu", memory="1 MB") as backend:
        per_token = backend.spec.kv_bytes_per_token
        assert backend.capabilities.pool_tokens == 10**6 // per_token
        assert backend.capabilities.context_length == min(4096, 10**6 // per_token)
        with pytest.raises(ContextLengthError):
            backend.open([1] * 5000)
    with load(path, device="cpu") as backend:
        assert backend.capabilities.pool_tokens == 8 * 4096
    with pytest.raises(CapacityError, match="64 token slots"):
        load(path, device="cpu", memory=1000)
    with load(path, device="cpu", max_context=50) as backend, pytest.raises(ContextLengthError):
        backend.open([1] * 51)


def test_tokens_are_those_of_hugging_face(nano):
    """The tokenizer in the file says what the folder's says: ids, text, template, ends and fingerprint."""
    from langchain_pareto.backends.gguf_tokenizer import GGUFTokenizer

    ours = GGUFTokenizer(nano)
    theirs = HFTokenizer(AutoTokenizer.from_pretrained(tokenizer_path()))
    for name in "vocabulary fingerprint end_tokens special_tokens has_template".split():
        assert getattr(ours, name) == getattr(theirs, name), name
    chat = [{"role": "user", "content": "Ben has 3 cups. How many cups does Ben have?"}]
    assert ours.render(chat) == theirs.render(chat)
    for text in ("", " 12 + 3", "héllo 你好 🙂\n\n", "<|end|>a", ours.render(chat), "\x00"):
        tokens = ours.encode(text)
        assert tokens == theirs.encode(text) == ours.encode_prompt(text)
        assert ours.decode(tokens) == theirs.decode(tokens)
        assert [ours.piece(t) for t in tokens] == [theirs.piece(t) for t in tokens]
    with pytest.raises(SettingError, match="not Unicode"):
        ours.encode("\ud800")


def test_the_tokenizer_outlives_the_model(path):
    """Text can be read after close; drawing says that the backend was closed."""
    backend = load(path, device="cpu", memory="4 MB")
    backend.close()
    backend.close()
    assert backend.tokenizer.decode(backend.tokenizer.encode("abc")) == "abc"
    with pytest.raises(EngineClosedError):
        backend.open("abc")


def test_users_of_one_file_share_it(path):
    """The same file with the same settings is loaded once, and closed with the last user."""
    one, two = (load(path, device="cpu", memory="4 MB") for _ in range(2))
    other = load(path, device="cpu", memory="4 MB", model_kwargs=EXACT)
    assert one.runner is two.runner is not other.runner
    one.close()
    assert len(draw(two)) == 8
    two.close()
    other.close()
    assert two.runner.closed


# --- the bundled model, and the face


def test_the_bundled_model_runs_on_both(nano, monkeypatch):
    """`backend="llama-cpp"` without a model, and the model's path alone, give the same text; the file is written once."""
    question = "Use 3 4 5 to make 35."
    settings = {"temperature": 0.0, "strategy": "single", "memory": "64 MB", "device": "cpu"}
    written = nano.stat().st_mtime_ns
    texts = []
    for how in ({"backend": "llama-cpp"}, {"model": str(nano)}):
        llm = ChatPareto(**how, **settings)
        texts.append(llm.invoke(question).content)
        llm.close()
    assert texts[0] == texts[1] != ""
    assert nano.stat().st_mtime_ns == written


def test_a_cache_that_cannot_be_written_is_done_without(nano, monkeypatch, tmp_path):
    """Where the cache folder is a file, the temporary folder serves."""
    from langchain_pareto.backends.llama_loading import nano_gguf

    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    assert nano_gguf().read_bytes() == nano.read_bytes()


# --- settings


def test_an_adapter_changes_what_its_weights_say(path, tmp_path):
    """A LoRA adapter of scale s computes with W + s B A: to first order the logits move with s, and not at all at 0."""
    import gguf

    rng = np.random.default_rng(0)
    a, b = (rng.normal(size=s).astype(np.float32) for s in ((4, 32), (32, 4)))
    writer = gguf.GGUFWriter(tmp_path / "adapter.gguf", "llama")
    writer.add_string("general.type", "adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    writer.add_tensor("blk.1.attn_output.weight.lora_a", a)
    writer.add_tensor("blk.1.attn_output.weight.lora_b", b)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    def logits(kwargs):
        with load(path, device="cpu", memory="4 MB", model_kwargs=EXACT | kwargs) as backend:
            sequence = backend.runner.open([1, 2, 3, 4])
            rows = backend.engine.call(lambda: backend.runner.step([Chunk(sequence, 4, 1)]).rows)
            return rows.result(WAIT)

    adapter = str(tmp_path / "adapter.gguf")
    plain = logits({})
    torch.testing.assert_close(logits({"lora": {adapter: 0.0}}), plain)
    half, whole = (logits({"lora": {adapter: s}}) for s in (0.001, 0.002))
    assert (half - plain).abs().max() > 1e-4
    torch.testing.assert_close(whole - plain, 2 * (half - plain), rtol=0.05, atol=5e-4)


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0", "q4_0"])
def test_every_type_of_cache_runs(nano, kv_type):
    """The bytes of a token are those of the type."""
    per_value = {"f32": 4, "f16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}[kv_type]
    with load(nano, device="cpu", memory="8 MB", model_kwargs={"kv_type": kv_type}) as backend:
        spec = backend.spec
        values = 2 * spec.layers * spec.kv_heads * spec.head_dim
        assert spec.kv_bytes_per_token == int(values * per_value)
        assert len(draw(backend)) == 8


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"device_map": "auto"}, "has no 'device_map': it has flash_attn, kv_type"),
        ({"kv_type": "f64"}, "kv_type must be one of f32, f16"),
        ({"kv_type": "q8_0", "flash_attn": False}, "needs flash attention"),
        ({"flash_attn": "yes"}, "flash_attn must be True, False or None"),
        ({"n_gpu_layers": -2}, "n_gpu_layers must be an integer of at least -1"),
        ({"n_gpu_layers": 1.5}, "n_gpu_layers must be an integer"),
        ({"n_threads": 0}, "n_threads must be an integer of at least 1"),
        ({"lora": ["a.gguf"]}, "lora must map paths to scales"),
        ({"n_gpu_layers": 10}, "no device 'cuda'"),
    ],
)
def test_settings_are_checked(path, kwargs, said):
    """A setting that cannot be honoured is a SettingError that names it."""
    if "cuda" in said and llama_devices.gpus():
        pytest.skip("there is a GPU")
    with pytest.raises(SettingError, match=said.replace("(", r"\(")):
        load(path, model_kwargs=kwargs)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"dtype": "float16"}, "has its own"),
        ({"revision": "main"}, "has its own"),
        ({"tokenizer": "."}, "has its own"),
        ({"backend": "torch"}, "which torch does not run"),
        ({"backend": "vllm"}, "known backends: auto, torch, llama-cpp"),
        ({"device": "mps"}, "no device 'mps': there is cpu"),
        ({"memory": "much"}, "memory must be"),
        ({"max_context": 0}, "at least 1 token"),
    ],
)
def test_options_of_other_models_are_refused(path, options, said):
    """What only a model of transformers has is not silently ignored."""
    with pytest.raises(SettingError, match=said):
        load(path, **options)


def test_a_folder_is_no_gguf(tmp_path):
    """llama.cpp is not asked to run what it cannot; a folder with a GGUF file in it names the file."""
    with pytest.raises(SettingError, match="runs GGUF files"):
        load(tmp_path, backend="llama-cpp")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError) as caught:
        load(tmp_path)
    assert str(tmp_path / "model.gguf") in caught.value.hint


# --- files that are none


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.05, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, tmp_path, share):
    """Wherever a file ends too early, ModelLoadError says so and the process goes on."""
    data = path.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ModelLoadError, match=r"cut\.gguf"):
        load(cut, device="cpu")
    with load(path, device="cpu", memory="4 MB") as backend:
        assert len(draw(backend)) == 8


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_file_is_refused_or_runs(path, tmp_path, seed):
    """Random bytes in the header never end the process."""
    data = bytearray(path.read_bytes())
    rng = np.random.default_rng(seed)
    for at in rng.integers(4, 3000, 8):
        data[at] = rng.integers(256)
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    script = (
        "import sys\nfrom langchain_pareto.backends.loading import load\n"
        "from langchain_pareto.errors import ParetoError\n"
        "try:\n    load(sys.argv[1], device='cpu', memory='4 MB').close()\n"
        "except ParetoError as error:\n    print('refused')\n"
    )
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", script, str(bad)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_missing_files_are_named(path, tmp_path):
    """A path that does not exist, a pointer of git-lfs, something else, and a part of a split file."""
    with pytest.raises(ModelLoadError, match=r"there is no file .*gone\.gguf"):
        load(tmp_path / "gone.gguf")
    pointer = tmp_path / "pointer.gguf"
    pointer.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelLoadError) as caught:
        load(pointer)
    assert "git lfs pull" in caught.value.hint
    pointer.write_text("hello")
    with pytest.raises(ModelLoadError, match="is no GGUF file"):
        load(pointer)
    part = tmp_path / "model-00002-of-00003.gguf"
    shutil.copyfile(path, part)
    with pytest.raises(ModelLoadError, match=r"lacks model-00001-of-00003\.gguf"):
        load(part)


def test_without_llama_cpp_the_error_says_what_to_install(path, monkeypatch):
    """No package, no crash."""
    import sys

    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ParetoError) as caught:
        load(path)
    assert "langchain-pareto[llama-cpp]" in caught.value.hint


# --- threads


def test_threads_are_the_cores_that_may_be_used(monkeypatch):
    """The least of affinity, the control group's quota and OMP_NUM_THREADS, and at least one."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    monkeypatch.setattr(llama_devices, "_quota", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert llama_devices.usable_threads() == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert llama_devices.usable_threads() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    assert llama_devices.usable_threads() == 8
    monkeypatch.setattr(llama_devices, "_quota", lambda: 0)
    assert llama_devices.usable_threads() == 1
