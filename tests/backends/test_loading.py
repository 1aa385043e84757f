"""Loading: what is shared, what is refused, what is honoured, and what the self-check sees."""

import copy
import json
import os
import shutil
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from langchain_pareto.backends import (
    architectures,
    devices,
    nano,
    pretrained,
    self_check,
    sharing,
    torch_attention,
    torch_loading,
)
from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.torch_runner import TorchRunner
from langchain_pareto.errors import (
    CapabilityError,
    CapacityError,
    EngineClosedError,
    ModelLoadError,
    SettingError,
)

torch.set_num_threads(1)

SMALL = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 1,
}
ROPE = {"rope_type": "default", "rope_theta": 1e4}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3],
    "long_factor": [1.0, 3.0, 7.0, 16.0],
    "original_max_position_embeddings": 64,
}
MEMORY = 2 << 20


def build(config):
    torch.manual_seed(0)
    with pretrained.quiet():
        model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.mul_(6)
    return model


def save(path, config=None, *, tokenizer=True, **generation):
    """A tiny random model in a folder."""
    with pretrained.quiet():
        build(config or transformers.LlamaConfig(**SMALL)).save_pretrained(path)
    if tokenizer:
        for file in nano.tokenizer_path().iterdir():
            shutil.copy(file, path)
    if generation:
        file = path / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | generation))
    return path


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "tiny")


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(nano.tokenizer_path())


def text(backend, prompt="1 + 1 =", n=6):
    branch = backend.open(prompt, seed=3)
    return backend.extend(branch, Sampling(), Stop(n)).future.result(timeout=60).tokens


# --- sharing


def test_default_is_the_bundled_policy():
    """`load()` and `load("nano")` give the bundled policy in float32, ready to answer."""
    with load(memory=MEMORY, device="cpu") as one, load("nano", memory=MEMORY, device="cpu") as two:
        assert one.name == "nano"
        assert one.runner is two.runner
        assert one.spec.dtype == "float32"
        assert text(one) == text(two)


def test_same_settings_share_and_the_last_close_counts(folder):
    """Two users share weights and pool; closing one twice leaves the other's alone, and the last close gives them back."""
    one, two = load(folder, memory=MEMORY), load(str(folder), memory=MEMORY)
    assert one.runner is two.runner
    assert one.engine is two.engine
    one.close()
    one.close()
    with pytest.raises(EngineClosedError):
        one.open("a")
    assert text(two)
    two.close()
    assert two.runner.closed
    with load(folder, memory=MEMORY) as three:
        assert three.runner is not two.runner
        assert text(three)


def test_other_settings_do_not_share(folder):
    """Another dtype or pool is another model; another context limit is not."""
    with load(folder, memory=MEMORY) as one:
        with load(folder, memory=MEMORY, dtype="bf16") as two:
            assert two.runner is not one.runner
            assert two.spec.dtype == "bfloat16"
        with load(folder, memory=2 * MEMORY) as three:
            assert three.runner is not one.runner
        with load(folder, memory=MEMORY, max_context=10) as four:
            assert four.runner is one.runner
            assert (one.capabilities.context_length, four.capabilities.context_length) == (512, 10)


def test_threads_load_once(folder, monkeypatch):
    """Threads that load one model at the same time get one model."""
    reads = []
    read = torch_loading.read_model
    monkeypatch.setattr(torch_loading, "read_model", lambda *a: reads.append(1) or read(*a))
    barrier = threading.Barrier(4)

    def one(_):
        barrier.wait()
        return load(folder, memory=MEMORY)

    with ThreadPoolExecutor(4) as pool:
        backends = list(pool.map(one, range(4)))
    assert len(reads) == 1
    assert len({id(b.runner) for b in backends}) == 1
    for b in backends:
        b.close()
    assert backends[0].runner.closed


def test_a_closed_engine_is_no_reason_to_fail(folder):
    """A model whose engine was closed is loaded anew, and closing the old backend does not touch the new one."""
    old = load(folder, memory=MEMORY)
    old.engine.close()
    with load(folder, memory=MEMORY) as new:
        old.close()
        assert old.runner.closed
        assert text(new)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_starts_empty(folder):
    """A forked child has no loaded models, and closing the parent's backend there does nothing."""
    with load(folder, memory=MEMORY) as backend:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of forking with threads
            pid = os.fork()
        if pid == 0:
            backend.close()
            os._exit(0 if not sharing._slots and not backend.runner.closed else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert text(backend)


def test_loading_is_silent_and_restores_what_it_silenced(folder, capfd):
    """Nothing is printed, and transformers' verbosity and bars are as before."""
    log = transformers.utils.logging
    before = (log.get_verbosity(), log.is_progress_bar_enabled())
    load(folder, memory=MEMORY).close()
    assert capfd.readouterr() == ("", "")
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before


def test_loading_leaves_the_random_state_alone(folder):
    """No draw is taken from torch's global generator, self-check included."""
    self_check._passed.clear()
    state = torch.get_rng_state()
    load(folder, memory=MEMORY).close()
    assert torch.equal(state, torch.get_rng_state())


# --- files


def test_missing_path(tmp_path):
    """A path that does not exist is named, and the network is not asked."""
    with pytest.raises(ModelLoadError, match="does not exist"):
        load(tmp_path / "nothing")
    with pytest.raises(ModelLoadError, match="does not exist"):
        load(f"{tmp_path}/nothing")


def test_folders_that_are_no_models(tmp_path):
    """An empty folder, a file and an adapter say what they are."""
    with pytest.raises(ModelLoadError, match=r"no config\.json \(nothing in it\)"):
        load(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelLoadError) as caught:
        load(tmp_path)
    assert "PEFT" in caught.value.hint
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    with pytest.raises(ModelLoadError) as caught:
        load(gguf)
    assert "GGUF" in caught.value.hint


def test_unknown_hub_id_fails_fast(monkeypatch):
    """An id that is not cached is asked for once, with a timeout, and the cause is kept."""
    asked = []

    class Api:
        def model_info(self, name, revision, timeout):
            asked.append((name, revision, timeout))
            raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(ModelLoadError, match=r"hub cannot be asked.*no route") as caught:
        load("nobody/nothing-at-all", revision="v1")
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert asked == [("nobody/nothing-at-all", "v1", 5.0)]


def test_cached_hub_id_needs_no_network(folder, monkeypatch):
    """A hub id whose files are in the cache is loaded from there, under its own name."""
    calls = []

    def snapshot(name, **options):
        calls.append(options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with load("somebody/tiny", memory=MEMORY) as backend:
        assert backend.name == backend.spec.name == "somebody/tiny"
    assert [c["local_files_only"] for c in calls] == [True]


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda f: f.write_bytes(f.read_bytes()[:-100]), "cut off or damaged"),
        (lambda f: f.write_bytes(f.read_bytes()[:20]), "cut off"),
        (lambda f: f.write_bytes(b"\x10" + b"\0" * 7 + b"x" * 40), "damaged"),
        (lambda f: f.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git-lfs"),
        (lambda f: f.unlink(), "no weights"),
    ],
)
def test_damaged_weights(folder, damage, match):
    """Weights that are cut off, damaged, missing or a pointer are named before anything is read."""
    damage(folder / "model.safetensors")
    with pytest.raises(ModelLoadError, match=match):
        load(folder)


def test_a_missing_shard_is_named(folder):
    """An index that names a file which is not there."""
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a": "model-2.safetensors"}}'
    )
    with pytest.raises(ModelLoadError, match=r"lacks model-2\.safetensors"):
        load(folder)


def test_weights_that_lack_a_tensor_are_refused(folder):
    """Transformers would draw a missing weight at random; we do not answer with that."""
    with pretrained.quiet():
        model = AutoModelForCausalLM.from_pretrained(folder)
        state = model.state_dict()
        del state["model.layers.1.mlp.down_proj.weight"]
        model.save_pretrained(folder, state_dict=state)
    with pytest.raises(ModelLoadError, match="down_proj"):
        load(folder)


def test_config_that_is_no_language_model(folder):
    """A broken, an unknown and a foreign configuration each say so, with the cause."""
    file = folder / "config.json"
    file.write_text("{broken")
    with pytest.raises(ModelLoadError, match=r"config\.json") as caught:
        load(folder)
    assert caught.value.__cause__ is not None
    file.write_text('{"model_type": "nothing-known"}')
    with pytest.raises(ModelLoadError, match="nothing-known"):
        load(folder)
    file.write_text('{"model_type": "vit"}')
    with pytest.raises(ModelLoadError, match="no causal language model"):
        load(folder)
    file.write_text('{"model_type": "t5"}')
    with pytest.raises(CapabilityError, match="encoder-decoder"):
        load(folder)


def test_tokenizer_missing_damaged_or_given(tmp_path, tokenizer):
    """No tokenizer and a damaged one are errors; one that is given, as object or folder, is used instead."""
    path = save(tmp_path / "bare", tokenizer=False)
    with pytest.raises(ModelLoadError, match="no tokenizer"):
        load(path)
    with load(path, tokenizer=tokenizer, memory=MEMORY) as one:
        assert one.tokenizer.decode(one.tokenizer.encode("two plus")) == "two plus"
        with load(path, tokenizer=nano.tokenizer_path(), memory=MEMORY) as two:
            assert two.runner is one.runner
        with load(path, tokenizer=one.tokenizer, memory=MEMORY) as three:
            assert three.tokenizer is one.tokenizer
    (path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(ModelLoadError, match=r"tokenizer in .* cannot be read"):
        load(path)


# --- settings


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"device": "cuda:99"}, "there is no device 'cuda:99'"),
        ({"device": "toaster"}, "there is no device"),
        ({"dtype": "int3"}, "one of auto, float32"),
        ({"memory": 0}, "memory"),
        ({"memory": 1.5}, "memory"),
        ({"memory": True}, "memory"),
        ({"memory": "much"}, "memory"),
        ({"max_context": 0}, "max_context"),
        ({"revision": "main"}, "revision"),
        ({"model_kwargs": {"dtype": "auto"}}, "give dtype= itself"),
        ({"model_kwargs": {"attn_implementation": "sdpa"}}, "ours to set"),
    ],
)
def test_settings_that_cannot_be_honoured(folder, settings, match):
    """Each is refused with what was got and what is accepted."""
    with pytest.raises(SettingError, match=match):
        load(folder, **settings)


def test_a_model_on_several_devices_is_refused(folder):
    """A device_map over two devices is refused before anything is read."""
    spread = {"model_kwargs": {"device_map": {"model": 0, "lm_head": "cpu"}}}
    with pytest.raises(CapabilityError, match="0, cpu"):
        load(folder, **spread)


@pytest.mark.parametrize(
    ("memory", "slots"),
    [
        (100 << 10, 100),
        ("1.024 MB", 1000),
        ("1 MiB", 1024),
        (0.5, 500 << 10),
        ("50%", 500 << 10),
        (None, 250 << 10),
        ("900 GB", 1 << 20),
    ],
)
def test_memory_forms(monkeypatch, memory, slots):
    """Bytes, sizes in words, fractions of what is free, and the default; never more than 2**20 slots."""
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1000 * 2**20)
    assert devices.pool_sizes(memory, 1024, 0, torch.device("cpu")) == (slots, 0)


def test_a_pool_that_is_too_small(folder):
    """Below 64 slots the error says how many bytes are needed."""
    with pytest.raises(CapacityError) as caught:
        load(folder, memory=1000)
    assert caught.value.needed == 64 * 2 * 2 * 16 * 4  # slots, layers, kv heads, both widths, bytes
    assert caught.value.free == 1000


def test_dtypes(folder):
    """The CPU computes in float32 unless asked otherwise; "auto" measures."""
    cpu = torch.device("cpu")
    assert devices.find_dtype(None, cpu) is torch.float32
    assert devices.find_dtype("fp16", cpu) is torch.float16
    assert devices.find_dtype("auto", cpu) in {torch.float32, torch.bfloat16}
    assert devices.free_bytes(cpu) > 0


# --- generation config


def test_generation_config_gives_sampling_and_ends(tmp_path):
    """What the file sets becomes the sampling defaults and the end tokens, and nothing that it does not set."""
    path = save(tmp_path / "m", temperature=0.6, top_p=0.9, eos_token_id=[5, 7])
    with load(path, memory=MEMORY) as backend:
        assert backend.sampling == Sampling(temperature=0.6, top_p=0.9)
        assert {5, 7} <= backend.tokenizer.end_tokens


def test_generation_config_that_cannot_be_honoured_is_named(tmp_path):
    """What the engine does not do is named in one warning, and the rest holds."""
    path = save(tmp_path / "m", do_sample=True, top_k=20, typical_p=0.8, no_repeat_ngram_size=3)
    with pytest.warns(UserWarning, match=r"typical_p=0\.8, no_repeat_ngram_size=3"):
        backend = load(path, memory=MEMORY)
    assert backend.sampling == Sampling(top_k=20)
    backend.close()


# --- architectures


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (transformers.Llama4TextConfig(), "chunked_attention"),
        (transformers.RwkvConfig(), "RwkvForCausalLM.*keeps a recurrent state where"),
        (transformers.MiniMaxConfig(), "MiniMaxForCausalLM.*keeps a recurrent state where"),
        (
            transformers.RecurrentGemmaConfig(),
            "RecurrentGemmaForCausalLM.*keeps a recurrent state where",
        ),
        (transformers.xLSTMConfig(), "xLSTMForCausalLM.*keeps a recurrent state where"),
        (transformers.BloomConfig(), "BloomForCausalLM.*does not let its attention"),
        (
            transformers.LlamaConfig(
                **SMALL, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
            ),
            "dynamic rope",
        ),
    ],
    ids=lambda value: getattr(value, "model_type", None),
)
def test_refused_by_name_before_the_weights(tmp_path, config, match):
    """The configuration alone is enough to refuse what the engine cannot run."""
    config.save_pretrained(tmp_path)
    with pytest.raises(CapabilityError, match=match):
        load(tmp_path)


def test_attention_that_is_not_causal_is_caught(tokenizer):
    """BERT as a language model looks ahead: nothing in its configuration says so, and the self-check sees it."""
    config = transformers.BertConfig(
        **{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}
    )
    with pytest.raises(CapabilityError):
        load(build(config), tokenizer=tokenizer, memory=MEMORY)


def phi3(**more):
    long = {"max_position_embeddings": 256, "original_max_position_embeddings": 64}
    return transformers.Phi3Config(**(SMALL | long | more))


def logits_alone_and_beside_a_long_one(model):
    """A short sequence's logits, alone and in one step with one that is longer than the original context."""
    runner = TorchRunner(model, slots=400)
    short = runner.open([5, 6, 7, 8])
    alone = runner.step([Chunk(short, 4, 1)]).rows
    twin, long = runner.open([5, 6, 7, 8]), runner.open(list(range(100)))
    both = runner.step([Chunk(twin, 4, 1), Chunk(long, 100, 1)]).rows
    runner.close()
    return alone[0], both[0]


@pytest.mark.filterwarnings("ignore")
def test_longrope_is_held_at_its_long_factors(tokenizer):
    """A long batch mate does not change a short sequence's positions; close() gives the model's own rule back."""
    with pretrained.quiet():
        model = build(phi3(rope_parameters=LONGROPE))
    alone, beside = logits_alone_and_beside_a_long_one(model)
    assert (alone - beside).abs().max() > 1e-3  # what transformers does
    rotary = model.model.rotary_emb
    with load(model, tokenizer=tokenizer, memory=MEMORY) as backend:
        assert rotary.rope_type == "pinned"
        branch = backend.open([5, 6, 7])
        [pinned] = backend.score(branch, [[8]]).future.result()
        other = backend.open(list(range(100)))
        tasks = backend.score(branch, [[8]]), backend.score(other, [[8]])
        [again], _ = (task.future.result() for task in tasks)
        assert again == pytest.approx(pinned, abs=1e-5)
        with torch.no_grad():  # by the long factors: a plain forward in which somebody is long
            ids = torch.tensor([[5, 6, 7] + [0] * 100])
            model.set_attn_implementation("eager")
            expected = model(input_ids=ids).logits[0, 2].log_softmax(-1)[8].item()
            model.set_attn_implementation("pareto")
        assert pinned[0] == pytest.approx(expected, abs=1e-4)
    assert rotary.rope_type == "longrope"


@pytest.mark.filterwarnings("ignore")
def test_longrope_keeps_its_short_factors_in_a_short_context(tokenizer):
    """With max_context up to the original length the short factors hold, and nothing is pinned."""
    model = build(phi3(rope_parameters=LONGROPE))
    with load(model, tokenizer=tokenizer, memory=MEMORY, max_context=64) as backend:
        assert model.model.rotary_emb.rope_type == "longrope"
        assert backend.capabilities.context_length == 64
    assert architectures.needs_long_rope(model.config, 65)
    assert not architectures.needs_long_rope(model.config, 64)


@pytest.mark.filterwarnings("ignore")
def test_longrope_that_cannot_be_held_is_refused(tokenizer):
    """PhiMoE looks at the batch in its own code: refused with the context in which it works."""
    rope = LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.3}
    config = transformers.PhimoeConfig(
        **(SMALL | {"max_position_embeddings": 256}),
        original_max_position_embeddings=64,
        num_local_experts=2,
        rope_parameters=rope,
    )
    model = build(config)
    with pytest.raises(CapabilityError, match="longrope") as caught:
        load(model, tokenizer=tokenizer, memory=MEMORY)
    assert "max_context=64" in caught.value.hint
    assert model.model.rotary_emb.rope_type == "longrope"
    load(model, tokenizer=tokenizer, memory=MEMORY, max_context=64).close()


def test_a_rope_for_each_layer_type_works(tmp_path):
    """Gemma 3 has two ropes and two kinds of layers, and passes the self-check."""
    config = transformers.Gemma3TextConfig(
        **SMALL,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
    )
    with load(save(tmp_path / "g", config), memory=MEMORY) as backend:
        assert backend.spec.windows == (8, None)
        assert text(backend)


# --- model objects


def test_a_model_object_is_used_and_given_back(tokenizer):
    """Its weights are used in place, and its attention and training modes are as before afterwards."""
    model = build(transformers.LlamaConfig(**SMALL))
    model.set_attn_implementation("eager")
    model.train()
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    with load(model, tokenizer=tokenizer, memory=MEMORY) as one:
        assert one.runner.model is model
        assert not any(m.training for m in model.modules())
        with load(model, tokenizer=tokenizer, memory=MEMORY) as two:
            assert two.runner is one.runner
        with pytest.raises(SettingError, match="in use with"):
            load(model, tokenizer=tokenizer, memory=2 * MEMORY)
        assert text(one)
    assert model.config._attn_implementation == "eager"
    assert [m.training for m in model.modules()] == modes
    with load(model, tokenizer=tokenizer, memory=2 * MEMORY) as three:
        assert text(three)


def test_a_model_object_needs_a_tokenizer_and_no_more(folder, tokenizer):
    """From a path it finds its own tokenizer; what is for loading is refused."""
    with pytest.raises(SettingError, match="needs its tokenizer"):
        load(build(transformers.LlamaConfig(**SMALL)))
    with pretrained.quiet():
        model = AutoModelForCausalLM.from_pretrained(folder)
    with load(model, memory=MEMORY) as backend:
        assert text(backend)
    with pytest.raises(SettingError, match="dtype='bf16'"):
        load(model, dtype="bf16")
    with pytest.raises(SettingError, match="not Linear"):
        load(torch.nn.Linear(2, 2), tokenizer=tokenizer)


def test_a_wrapper_of_adapters_is_opened(tokenizer):
    """What PEFT wraps is run with its adapters; a learned prompt, which lives in the wrapper, is refused."""

    class Config:
        is_prompt_learning = False

    class Wrapper(torch.nn.Module):  # as much of peft.PeftModel as is looked at
        def __init__(self, model):
            super().__init__()
            self.base, self.peft_config = model, {"default": Config()}

        def get_base_model(self):
            return self.base

    wrapper = Wrapper(build(transformers.LlamaConfig(**SMALL)))
    with load(wrapper, tokenizer=tokenizer, memory=MEMORY) as backend:
        assert text(backend)
    wrapper.peft_config["default"].is_prompt_learning = True
    with pytest.raises(CapabilityError, match="learns a prompt"):
        load(wrapper, tokenizer=tokenizer, memory=MEMORY)


def test_a_failed_load_gives_the_model_back(tokenizer):
    """A pool that is too small leaves attention, modes and registry as they were."""
    model = build(transformers.LlamaConfig(**SMALL)).train()
    before = model.config._attn_implementation
    with pytest.raises(CapacityError):
        load(model, tokenizer=tokenizer, memory=1000)
    assert model.training
    assert model.config._attn_implementation == before
    load(model, tokenizer=tokenizer, memory=MEMORY).close()


# --- self-check


MISTRAL = transformers.MistralConfig(**SMALL, sliding_window=300)
GEMMA2 = transformers.Gemma2Config(**SMALL, head_dim=8, sliding_window=300)
GPT_OSS = transformers.GptOssConfig(
    **SMALL, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=300
)


def broken(monkeypatch, change):
    """Our attention with one argument changed on its way."""
    call, in_order = torch_attention._call, torch_attention._in_order

    def changed(form):
        return torch_attention.Form(*change(form.scale, form.window, form.softcap, form.sinks))

    monkeypatch.setattr(
        torch_attention, "_call", lambda plan, *rest: call(plan, *rest[:-1], changed(rest[-1]))
    )
    monkeypatch.setattr(
        torch_attention,
        "_in_order",
        lambda span, *rest: in_order(span, *rest[:-1], changed(rest[-1])),
    )


@pytest.mark.parametrize(
    ("config", "change"),
    [
        (MISTRAL, lambda scale, window, softcap, sinks: (scale, None, softcap, sinks)),
        (MISTRAL, lambda scale, window, softcap, sinks: (scale, window + 1, softcap, sinks)),
        (GEMMA2, lambda scale, window, softcap, sinks: (scale, window, None, sinks)),
        (GEMMA2, lambda scale, window, softcap, sinks: (scale * 1.1, window, softcap, sinks)),
        (GPT_OSS, lambda scale, window, softcap, sinks: (scale, window, softcap, None)),
    ],
    ids=["window", "window+1", "softcap", "scale", "sinks"],
)
def test_self_check_catches_what_attention_leaves_out(monkeypatch, config, change):
    """A window, soft-cap, scale or sink that is not honoured shows on the shrunken copy, and is not remembered as right."""
    self_check._passed.clear()
    runner = TorchRunner(build(copy.deepcopy(config)), slots=self_check.SLOTS)
    with monkeypatch.context() as patch:
        broken(patch, change)
        with pytest.raises(CapabilityError, match="its own attention changes the logits by"):
            self_check.check_runner(runner)
    self_check.check_runner(runner)
    assert len(self_check._passed) == 1


def test_self_check_runs_once_a_configuration(folder, monkeypatch):
    """The shrunken copy is compared once; the weights each time, also for a user who joins one that did not ask."""
    self_check._passed.clear()
    copies, steps = [], []
    against, check = self_check._against_eager, self_check._check_steps
    monkeypatch.setattr(self_check, "_against_eager", lambda *a: copies.append(1) or against(*a))
    monkeypatch.setattr(self_check, "_check_steps", lambda r: steps.append(1) or check(r))
    with load(folder, memory=MEMORY, self_check=False):
        assert (len(copies), len(steps)) == (0, 0)
        load(folder, memory=MEMORY).close()
        assert (len(copies), len(steps)) == (1, 1)
    load(folder, memory=MEMORY, dtype="bf16").close()
    assert (len(copies), len(steps)) == (1, 2)


def test_self_check_catches_a_past_that_is_lost(folder, monkeypatch):
    """A cache that is written to the wrong place shows on the real weights."""
    call = torch_attention._call

    def forgetful(plan, rows, keys, *rest):
        if plan.rows.numel() <= 8:  # a step that stands on what others computed
            keys[:, :, 1:3] = 0
        return call(plan, rows, keys, *rest)

    monkeypatch.setattr(torch_attention, "_call", forgetful)
    with pytest.raises(CapabilityError, match="changes the logits by"):
        load(folder, memory=MEMORY)


def test_self_check_without_a_copy_compares_the_model_itself(folder, monkeypatch):
    """Where no small copy can be made, the real model's eager attention is the judge, and is put back afterwards."""

    def fails(config):
        raise ValueError("forbidden")

    monkeypatch.setattr(self_check, "shrink", fails)
    with load(folder, memory=MEMORY) as backend:
        assert text(backend)
    broken(monkeypatch, lambda scale, *others: (scale * 3, *others))
    with pytest.raises(CapabilityError, match="its own attention"):
        load(folder, memory=MEMORY)


def test_closing_the_last_share_ends_what_runs(folder):
    """A program in flight learns that its backend was closed, and the engine keeps nothing of it."""
    backend = load(folder, memory=MEMORY)
    engine, runner = backend.engine, backend.runner
    branch = backend.open([5, 6, 7])
    task = backend.extend(branch, Sampling(), Stop(400, eos=False))
    backend.close()
    with pytest.raises(EngineClosedError):
        task.future.result(60)
    assert all(owner is not runner for owner, _ in engine._scheduler._sequences.values())
