"""GGUF files as backends: how they are shared and sized, and what cannot be loaded."""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf_models import write as write_tiny

from langchain_pareto import ChatPareto
from langchain_pareto.backends import llama_loading
from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.llama_loading import check_steps
from langchain_pareto.backends.loading import load
from langchain_pareto.errors import (
    CapabilityError,
    CapacityError,
    ContextLengthError,
    EngineClosedError,
    ModelLoadError,
    NumericalError,
    ParetoError,
    SettingError,
)

gguf = pytest.importorskip("gguf", reason="gguf is not installed")

WAIT = 60  # seconds
GREEDY = Sampling(temperature=0.0)
EXACT = {"kv_type": "f32", "flash_attn": False}


@pytest.fixture
def path(tiny_gguf: Callable[[str], Path]) -> Path:
    return tiny_gguf("llama")


def draw(backend, n=8):
    branch = backend.open([1, 2, 3, 4])
    return backend.extend(branch, GREEDY, Stop(n, eos=False)).future.result(WAIT).tokens


# --- what is read off a file


@pytest.mark.parametrize("architecture", ["gemma3", "lfm2", "mamba2", "qwen3"])
def test_every_architecture_loads_and_answers(tiny_gguf, architecture):
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


def test_one_place_is_enough(path, monkeypatch):
    """Where a branch's own beginning holds every place of the cache, it begins again: slowly, and with the same text."""
    texts = []
    for places in (1, 8):
        monkeypatch.setattr(llama_loading, "MOST_LANES", places)
        with load(path, device="cpu", memory=f"{3 + places} MB", model_kwargs=EXACT) as backend:
            root = backend.open([1, 2, 3])
            branches = root.fork(3)
            for _ in range(3):
                for branch in branches:
                    backend.extend(branch, Sampling(), Stop(3, eos=False)).future.result(WAIT)
            texts.append([branch.tokens for branch in branches])
            assert backend.runner.context.lanes == places
    assert texts[0] == texts[1]


@pytest.mark.parametrize("change", ["free", "truncate", "fork"])
def test_a_branch_of_a_closed_model_disturbs_nobody(path, monkeypatch, change):
    """Freed after the close, or changed at the very moment of it, it changes nothing: the engine goes on for the others."""
    with load(path, device="cpu", memory="4 MB", model_kwargs=EXACT) as other:
        backend = load(path, device="cpu", memory="4 MB")
        assert backend.engine is other.engine
        branch = backend.open([1, 2, 3])
        backend.extend(branch, GREEDY, Stop(8, eos=False)).future.result(WAIT)
        child = branch.fork(1)[0]
        branch.truncate(3)
        if change == "free":
            backend.close()
            child.free()
            branch.free()
        else:
            check = backend.check_open

            def close_after_the_check() -> None:
                check()
                backend.close()

            monkeypatch.setattr(backend, "check_open", close_after_the_check)
            branch.truncate(2) if change == "truncate" else branch.fork(1)
        assert len(draw(other)) == 8


def test_closed_by_a_callback(path):
    """A user may close the model while it streams: the draw ends, and the model is gone for good."""
    backend = load(path, device="cpu", memory="4 MB")
    branch = backend.open([1, 2, 3])
    task = backend.extend(branch, GREEDY, Stop(50, eos=False), on_text=lambda _: backend.close())
    with pytest.raises(EngineClosedError):
        task.future.result(WAIT)
    runner = backend.runner
    with load(path, device="cpu", memory="4 MB") as again:
        assert again.runner is not runner
        assert len(draw(again)) == 8
    assert runner.closed


# --- the bundled model, and the face


def test_the_bundled_model_is_the_same_by_name_and_by_file(nano_file):
    """`backend="llama-cpp"` without a model, and the model's path alone, give the same text; the file is written once."""
    question = "Use 3 4 5 to make 35."
    settings = {"temperature": 0.0, "strategy": "single", "memory": "64 MB", "device": "cpu"}
    written = nano_file.stat().st_mtime_ns
    texts = []
    for how in ({"backend": "llama-cpp"}, {"model": str(nano_file)}):
        llm = ChatPareto(**how, **settings)
        texts.append(llm.invoke(question).content)
        llm.close()
    assert texts[0] == texts[1] != ""
    assert nano_file.stat().st_mtime_ns == written


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
    with pytest.raises(SettingError, match=re.escape(said)):
        load(path, **options)


def test_a_folder_is_no_gguf(tmp_path):
    """llama.cpp is not asked to run what it cannot; a folder with a GGUF file in it names the file."""
    with pytest.raises(SettingError, match="runs GGUF files"):
        load(tmp_path, backend="llama-cpp")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError) as caught:
        load(tmp_path)
    assert str(tmp_path / "model.gguf") in caught.value.hint


# --- closing


@pytest.mark.parametrize("how", ["engine", "exit"])
def test_closing_during_a_long_step(nano_file, how):
    """Nothing is freed while it is computed with: the step is told to give up, and the process ends as it should."""
    script = """
import atexit, sys, time
from langchain_pareto.backends import engine
from langchain_pareto.backends.loading import load
engine._DRAINING = 0.05
backend = load(sys.argv[1], device="cpu", memory="512 MB", model_kwargs={"n_threads": 1})
branches = [backend.open([(i * 7 + k) % 200 + 5 for i in range(1000)]) for k in range(30)]
tasks = [backend.score(b, [[5] * 900]) for b in branches]
while not backend.engine._stepping:
    time.sleep(0.001)
time.sleep(0.1)
if sys.argv[2] == "engine":
    backend.engine.close()
    backend.close()
else:
    atexit.register(backend.close)
print("done")
"""
    run = subprocess.run(
        [sys.executable, "-c", script, str(nano_file), how],
        capture_output=True,
        text=True,
        check=False,
        timeout=WAIT,
    )
    assert (run.returncode, run.stdout) == (0, "done\n"), run.stderr[-2000:]


def test_a_second_user_does_not_disturb_the_first(path):
    """A model that is checked for its second user keeps what the first one has cached, also when the pool is full of it."""
    with load(path, device="cpu", memory="1 MB", self_check=False) as first:
        pool = first.runner.pool
        first.runner._most_cached = pool.capacity
        for i in range(pool.capacity // 500):
            branch = first.open([(i * j) % 256 for j in range(500)])
            first.prefill(branch).future.result(WAIT)
            branch.free()
        cached = first.engine.call(lambda: pool.cached).result(WAIT)
        assert pool.free < 500 < cached
        with load(path, device="cpu", memory="1 MB"):
            assert first.engine.call(lambda: pool.cached).result(WAIT) > cached - 200


# --- the check


def test_weights_that_are_not_finite_are_refused(copied_model, path, tmp_path):
    """A NaN among the weights is found when the model is loaded, unless the check is left out."""
    model = copied_model("llama")
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 3] = float("nan")
    damaged = tmp_path / "nan.gguf"
    write_tiny(model, damaged)
    with pytest.raises(NumericalError, match="NaN or infinite"):
        load(damaged, device="cpu", memory="4 MB")
    load(damaged, device="cpu", memory="4 MB", self_check=False).close()


@pytest.mark.parametrize("make_runner", ["llama-cpp"], indirect=True)
def test_a_prompt_in_two_steps_must_be_the_prompt_in_one(make_runner, monkeypatch):
    """A model whose cache does not carry over from one step to the next is refused."""
    runner = make_runner()
    check_steps(runner)
    decode = runner.context.decode

    def forgetful(tokens, positions, lanes, wanted):
        rows = decode(tokens, positions, lanes, wanted)
        return rows if positions[0] == 0 else rows[:, ::-1].copy()

    monkeypatch.setattr(runner.context, "decode", forgetful)
    with pytest.raises(CapabilityError, match="in two steps otherwise than in one"):
        check_steps(runner)


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
    """Random bytes in the header are found, or do no harm."""
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
    done = subprocess.run(
        [sys.executable, "-c", script, str(bad)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("block_count", 0),
        ("block_count", 1000),
        ("attention.layer_norm_rms_epsilon", -1.0),
        ("attention.layer_norm_rms_epsilon", float("inf")),
        ("rope.dimension_count", 3),
        ("rope.dimension_count", 1000),
    ],
)
def test_a_header_that_cannot_be_right_is_refused(path, tmp_path, key, value):
    """Numbers on which llama.cpp would end the process are found before it sees them."""
    changed = tmp_path / "changed.gguf"
    shutil.copyfile(path, changed)
    reader = gguf.GGUFReader(changed, "r+")
    reader.fields[f"llama.{key}"].parts[-1][0] = value
    reader.data.flush()
    with pytest.raises(ModelLoadError, match=rf"its {re.escape(key)} is"):
        load(changed, device="cpu")


def test_a_model_that_continues_no_text_is_refused(path, tmp_path):
    """Embedding models and rerankers load in llama.cpp and give logits, which mean nothing."""
    model = tmp_path / "embedding.gguf"
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(model, "llama")
    for name, field in reader.fields.items():
        if not name.startswith("GGUF") and name != "general.architecture":
            kind = field.types[0]
            sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    writer.add_bool("llama.attention.causal", False)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CapabilityError, match="no causal language model"):
        load(model, device="cpu")


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
    shutil.copyfile(path, tmp_path / "model-00000-of-00000.gguf")
    with pytest.raises(ModelLoadError, match="is no part of a split file"):
        load(tmp_path / "model-00000-of-00000.gguf")
    (tmp_path / "folder.gguf").mkdir()
    with pytest.raises(ModelLoadError, match="is a folder"):
        load(tmp_path / "folder.gguf")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load("~nobodyhasthisname/model.gguf")
    with pytest.raises(ModelLoadError, match="cannot be read"):
        load(f"{'long' * 100}.gguf")


def test_without_llama_cpp_the_error_says_what_to_install(path, monkeypatch):
    """No package, no crash."""
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with pytest.raises(ParetoError) as caught:
        load(path)
    assert "langchain-pareto[llama-cpp]" in caught.value.hint
