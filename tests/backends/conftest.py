"""
Tiny random models, a byte tokenizer, and backends over them.

A test asks for a runner or a backend by the name of an architecture and does not know which engine it gets.
"""

from __future__ import annotations

import atexit
import copy
import importlib.util
import os
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from gguf_models import write as write_gguf, write_sentencepiece
from tokenizers import Tokenizer as RustTokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteMoeHybridConfig,
    JambaConfig,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    NemotronHConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3NextConfig,
    Zamba2Config,
)

from langchain_pareto.backends.base import Logits, Runner
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.llama_cells import CellRunner
from langchain_pareto.backends.llama_context import MOST_LANES, ContextSettings, LlamaContext
from langchain_pareto.backends.llama_model import LlamaModel
from langchain_pareto.backends.llama_spec import spec_of
from langchain_pareto.backends.llama_states import LlamaStateRunner
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.nano.gguf import nano_gguf
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.tokens import HFTokenizer
from langchain_pareto.backends.torch_states import torch_runner as make_torch_runner

VOCABULARY = 260  # 256 bytes, <eos>, <user>, and two rows that pad the embedding
CONTEXT = 4096  # tokens

SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
}
GROUPED = SHAPE | {"num_key_value_heads": 2}
ENDS = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": None}
LAYERS = ["sliding_attention", "full_attention"]
MAMBA2 = {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 16,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 32,
}

CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**GROUPED, **ENDS),
    "qwen3": lambda: Qwen3Config(**GROUPED, **ENDS, head_dim=8),
    "gemma2": lambda: Gemma2Config(
        **GROUPED,
        **ENDS,
        head_dim=8,
        sliding_window=8,
        attn_logit_softcapping=2.0,
        query_pre_attn_scalar=8,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **GROUPED, **ENDS, head_dim=8, sliding_window=8, layer_types=LAYERS
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=CONTEXT, **ENDS
    ),
    "gpt_oss": lambda: GptOssConfig(
        **GROUPED,
        **ENDS,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=8,
        layer_types=LAYERS,
    ),
    "mistral": lambda: MistralConfig(**GROUPED, **ENDS, sliding_window=8),
    "lfm2": lambda: Lfm2Config(
        **(GROUPED | {"num_hidden_layers": 3}),
        **ENDS,
        layer_types=["conv", "full_attention", "conv"],
    ),
    "mamba2": lambda: Mamba2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        state_size=16,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=32,
        **ENDS,
    ),
    "neox": lambda: GPTNeoXConfig(**SHAPE, **ENDS),
    "falcon_h1": lambda: FalconH1Config(**GROUPED, **ENDS, head_dim=8, mamba_d_ssm=64, **MAMBA2),
    "granite_hybrid": lambda: GraniteMoeHybridConfig(
        **GROUPED,
        **ENDS,
        shared_intermediate_size=48,
        num_local_experts=0,
        layer_types=["mamba", "attention"],
        **MAMBA2,
    ),
    "jamba": lambda: JambaConfig(
        **GROUPED,
        **ENDS,
        num_experts=2,
        mamba_d_state=8,
        use_mamba_kernels=False,
        attn_layer_period=2,
        attn_layer_offset=1,
    ),
    "mamba": lambda: MambaConfig(
        vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2, state_size=8, **ENDS
    ),
    "nemotron_h": lambda: NemotronHConfig(
        **(GROUPED | {"num_hidden_layers": 3}),
        **ENDS,
        hybrid_override_pattern="M*-",
        head_dim=8,
        mamba_num_heads=8,
        mamba_head_dim=8,
        ssm_state_size=16,
        n_groups=1,
        chunk_size=32,
    ),
    "qwen3_next": lambda: Qwen3NextConfig(
        **GROUPED,
        **ENDS,
        head_dim=8,
        layer_types=["linear_attention", "full_attention"],
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=4,
        num_experts_per_tok=2,
    ),
    "zamba2": lambda: Zamba2Config(
        **(SHAPE | {"num_hidden_layers": 4, "num_key_value_heads": 4}),
        **ENDS,
        mamba_d_state=16,
        mamba_ngroups=1,
        n_mamba_heads=8,
        chunk_size=32,
        layers_block_type=["mamba", "hybrid"] * 2,
        num_mem_blocks=1,
        use_mamba_kernels=False,
    ),
}
RECURRENT = {
    "falcon_h1",
    "granite_hybrid",
    "jamba",
    "lfm2",
    "mamba",
    "mamba2",
    "nemotron_h",
    "qwen3_next",
    "zamba2",
}
GGUF = {"gemma3", "lfm2", "llama", "mamba2", "qwen3"}  # what gguf_models.py writes
LOOSE = {
    ("llama-cpp", "gemma3"),  # llama.cpp takes its GELU from a table of half-precision numbers
    # transformers clamps the time step where it computes several tokens at once, and not where one
    ("torch", "nemotron_h"),
    ("torch", "zamba2"),
}
WINDOWED = {"gemma2", "gemma3", "gpt_oss", "mistral"}


@cache
def tiny_model(architecture: str) -> PreTrainedModel:
    """A random model whose weights are large enough for attention to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(
            CONFIGS[architecture](), attn_implementation="eager"
        )
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("A_log"):
                    continue  # a state that forgets at once would test nothing
                if parameter.ndim > 1:
                    parameter.mul_(6)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@cache
def stock_model(architecture: str) -> PreTrainedModel:
    """The same weights under the stock eager attention."""
    return copy.deepcopy(tiny_model(architecture))


@cache
def _tiny_tokenizer() -> HFTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    rust = RustTokenizer(
        models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[])
    )
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(["<eos>", "<user>"])
    return HFTokenizer(PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<eos>"))


def torch_runner(architecture: str, slots: int, lanes: int | None = None) -> Runner:
    """The torch runner over a fresh copy of the tiny model's modules: two may be alive at once."""
    model = copy.deepcopy(tiny_model(architecture))
    return make_torch_runner(model, slots=slots, lanes=lanes or MOST_LANES)


@cache
def _tiny_gguf(architecture: str) -> Path:
    """The same weights as a GGUF file in float32."""
    folder = Path(tempfile.mkdtemp(prefix="pareto-gguf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    path = folder / f"{architecture}.gguf"
    write_gguf(stock_model(architecture), path)
    return path


def need_llama() -> None:
    """Skips where the extra is not installed."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("gguf", reason="gguf is not installed")


def llama_runner(architecture: str, slots: int, lanes: int | None = None) -> Runner:
    """The llama.cpp runner, exact: no flash attention, a cache in float32; it tells so many sequences apart."""
    need_llama()
    if architecture not in GGUF:
        pytest.skip(f"the tests write no GGUF file of {architecture}")
    model = LlamaModel(_tiny_gguf(architecture))
    settings = ContextSettings(cells=slots, lanes=lanes or MOST_LANES, kv="f32", flash=False)
    context = LlamaContext(model, settings)
    kind = LlamaStateRunner if architecture in RECURRENT else CellRunner
    return kind(model, context, spec_of(model, "f32", "cpu"), slots=slots)


RUNNERS: dict[str, Callable[[str, int, int | None], Runner]] = {
    "torch": torch_runner,
    "llama-cpp": llama_runner,
}


@pytest.fixture(scope="session", autouse=True)
def _process() -> Iterator[None]:
    torch.set_num_threads(1)
    for architecture in CONFIGS:
        stock_model(architecture)  # before any runner takes the original over
    yield
    # llama-cpp-python never closes these, and warnings are errors
    if (utils := sys.modules.get("llama_cpp._utils")) is not None:
        utils.outnull_file.close()
        utils.errnull_file.close()


@pytest.fixture(scope="session")
def tokenizer() -> HFTokenizer:
    """One token a byte; <eos> is 256 and <user> is 257."""
    return _tiny_tokenizer()


@pytest.fixture(params=list(CONFIGS))
def architecture(request: pytest.FixtureRequest) -> str:
    """Every architecture in turn."""
    return str(request.param)


@pytest.fixture(params=sorted(WINDOWED))
def windowed(request: pytest.FixtureRequest) -> str:
    """Every architecture with a window of 8 tokens in some of its layers."""
    return str(request.param)


class Maker:
    """`make_runner(architecture, slots=..., lanes=...)`; knows whether a runner that it made is loose."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.made = list[Runner]()
        self.loose = False

    def __call__(
        self, architecture: str = "llama", *, slots: int = 4000, lanes: int | None = None
    ) -> Runner:
        self.made.append(RUNNERS[self.kind](architecture, slots, lanes))
        self.loose = self.loose or (self.kind, architecture) in LOOSE
        return self.made[-1]


@pytest.fixture(params=list(RUNNERS))
def make_runner(request: pytest.FixtureRequest) -> Iterator[Maker]:
    """Makes runners of each kind in turn, closed after the test."""
    make = Maker(request.param)
    yield make
    for runner in make.made:
        runner.close()


@pytest.fixture(scope="session")
def tiny_gguf() -> Callable[[str], Path]:
    """`tiny_gguf(architecture)`: the tiny model as a GGUF file in float32."""
    need_llama()
    return _tiny_gguf


@pytest.fixture
def nano_file(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled policy as a GGUF file, in a cache of the tests."""
    need_llama()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    return nano_gguf()


@pytest.fixture
def spaced_gguf(tmp_path: Path) -> Path:
    """A vocabulary of SentencePiece."""
    need_llama()
    write_sentencepiece(tmp_path / "spaced.gguf")
    return tmp_path / "spaced.gguf"


@pytest.fixture
def copied_model() -> Callable[[str], PreTrainedModel]:
    """`copied_model(architecture)`: a tiny model of its own, to be changed."""
    return lambda architecture: copy.deepcopy(stock_model(architecture))


@pytest.fixture
def make_backend(
    make_runner: Maker, tokenizer: HFTokenizer
) -> Iterator[Callable[..., LocalBackend]]:
    """`make_backend(architecture, slots=..., lanes=..., engine=..., max_context=...)`, closed after the test with its engine."""
    made = list[LocalBackend]()

    def make(
        architecture: str = "llama",
        *,
        slots: int = 4000,
        lanes: int | None = None,
        engine: Engine | None = None,
        max_context: int | None = None,
    ) -> LocalBackend:
        runner = make_runner(architecture, slots=slots, lanes=lanes)
        backend = LocalBackend(
            f"tiny-{architecture}",
            runner,
            tokenizer,
            engine or Engine("test"),
            max_context=max_context,
        )
        made.append(backend)
        return backend

    yield make
    for backend in made:
        backend.close()
    for backend in made:
        backend.engine.close()


@pytest.fixture(scope="session")
def reference() -> Callable[[str, Sequence[int], int], torch.Tensor]:
    """`reference(architecture, tokens, rows)`: the last rows' logits of the stock eager full forward."""

    @cache
    def logits(architecture: str, tokens: tuple[int, ...]) -> torch.Tensor:
        with torch.inference_mode():
            out = stock_model(architecture)(input_ids=torch.tensor([tokens]), use_cache=False)
        return out.logits[0]

    def last(architecture: str, tokens: Sequence[int], rows: int = 1) -> torch.Tensor:
        return logits(architecture, tuple(tokens))[-rows:]

    return last


@pytest.fixture
def loose(request: pytest.FixtureRequest) -> Callable[[], bool]:
    """Whether a runner of this test rounds so coarsely that draws may depend on the batch."""
    if "make_runner" not in request.fixturenames:
        return lambda: False
    make: Maker = request.getfixturevalue("make_runner")
    return lambda: make.loose


@pytest.fixture
def assert_close(loose: Callable[[], bool]) -> Callable[..., None]:
    """Logits agree within 1e-4 of their scale, or 1e-3 with a runner that is known to be looser."""

    def check(got: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
        assert got.shape == expected.shape
        error = (got - expected).abs().max().item()
        assert error <= (10 if loose() else 1) * tolerance * expected.abs().max().item(), error

    return check


class Gate:
    """Stands before a runner's steps: counts them, keeps what was in them, and stops the engine where a test says."""

    def __init__(self, runner: Runner) -> None:
        self.steps = list[list[tuple[int, int]]]()  # (n, rows) of each chunk
        self.before: Callable[[Sequence[Chunk]], None] | None = None
        self._stop_at: int | None = None
        self._reached, self._go = threading.Event(), threading.Event()
        self._step = runner.step
        runner.step = self._gated  # type: ignore[method-assign]

    def stop_at(self, step: int) -> None:
        """The engine's thread waits before the step of this number, counted from 0."""
        self._stop_at = step

    def wait(self) -> None:
        """Until the engine's thread stands there."""
        assert self._reached.wait(60)

    def open(self) -> None:
        """It goes on."""
        self._go.set()

    def _gated(self, chunks: Sequence[Chunk]) -> Logits:
        if len(self.steps) == self._stop_at:
            self._reached.set()
            assert self._go.wait(60)
        self.steps.append([(chunk.n, chunk.rows) for chunk in chunks])
        if self.before is not None:
            self.before(chunks)
        return self._step(chunks)


@pytest.fixture
def gate() -> Callable[[LocalBackend], Gate]:
    """`gate(backend)` puts a Gate before the backend's runner."""
    return lambda backend: Gate(backend.runner)


# --- steps of a runner, and kernels of a GPU


def walk(runner: Runner, salt: int = 0, steps: int = 80) -> torch.Tensor:
    """Logits of steps over two trees whose branches grow, part, fall back and go."""
    rng, vocabulary = random.Random(salt), runner.spec.vocabulary
    roots = [runner.open([rng.randrange(vocabulary) for _ in range(n)]) for n in (90, 40)]
    runner.step([Chunk(root, root.pending, 1) for root in roots])
    branches = [runner.fork(root) for root in roots for _ in range(3)]
    out = list[torch.Tensor]()
    for step in range(steps):
        if step % 20 == 10:
            runner.free(branches.pop(rng.randrange(len(branches))))
            branches.append(runner.fork(rng.choice(branches)))
        if step % 20 == 15:
            for branch in branches:
                runner.truncate(branch, len(branch.tokens) - rng.randrange(3))
        for branch in branches:
            runner.append(
                branch, [rng.randrange(vocabulary) for _ in range(1 + 2 * (step % 7 == 0))]
            )
        chunks = [Chunk(branch, branch.pending, branch.pending) for branch in branches]
        out.append(runner.step(chunks).rows)
    for sequence in (*roots, *branches):
        runner.free(sequence)
    assert runner.pool.live == 0
    return torch.cat(out)


# Kernels run on a GPU, or on a CPU where Triton is installed and interprets them.
INTERPRETED = (
    os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None
)
KERNELS_ON = "cpu" if INTERPRETED else "cuda"
# the interpreter's products of bfloat16 are wrong
KERNEL_DTYPES = [torch.float32, torch.float16] + [torch.bfloat16] * (not INTERPRETED)
needs_kernels = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() or INTERPRETED),
        reason="there is no CUDA device, and Triton does not interpret",
    ),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # of numpy, which interprets them
]
