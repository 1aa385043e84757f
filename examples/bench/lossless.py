"""
Lossless decoders against plain decoding, token by token: `python examples/bench/lossless.py [torch | llama-cpp]`.

Tiny random targets that keep states, look through windows, or do both, on each runner. Every decoder draws the same branches as plain
decoding, 10,256 tokens of them: one greedy branch, five hot ones and 32 cool ones. A tiny Llama guesses what plain decoding drew
with probability 0.8, so that most rounds go back somewhere. `ours` of `theirs` tokens are equal, up to the first that differs in
each of the `differing` branches; for each of these a line on stderr says by how much the logits would have to move for the other token to be drawn: rounding
moves them by about 1e-5.
"""

import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from _measure import Numbers, Supplied, report
from transformers import (
    AutoModelForCausalLM,
    FalconH1Config,
    Gemma3TextConfig,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    PreTrainedConfig,
    PreTrainedModel,
)

from langchain_pareto.backends.base import Sampling, Stop, Usage
from langchain_pareto.backends.decoders import Lookup, Rounds, Speculative
from langchain_pareto.backends.decoding import DecodingBackend
from langchain_pareto.backends.draws import Row
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.sampling import Sampler
from langchain_pareto.backends.torch_states import torch_runner

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "backends"))
from gguf_models import write as write_gguf

SLOTS, LANES = 12_000, 128
COMMON = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}
CONFIGS: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(**COMMON),
    "mamba2": lambda: Mamba2Config(
        vocab_size=512,
        hidden_size=32,
        num_hidden_layers=3,
        state_size=16,
        num_heads=8,
        head_dim=8,
        n_groups=1,
        chunk_size=32,
    ),
    "lfm2": lambda: Lfm2Config(**COMMON, layer_types=["conv", "full_attention", "conv"]),
    "falcon_h1": lambda: FalconH1Config(
        **COMMON,
        head_dim=8,
        mamba_d_ssm=64,
        mamba_n_heads=4,
        mamba_d_head=16,
        mamba_d_state=16,
        mamba_n_groups=1,
        mamba_chunk_size=32,
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **COMMON,
        head_dim=8,
        sliding_window=32,
        layer_types=["sliding_attention", "full_attention", "sliding_attention"],
    ),
}
TARGETS = {
    "torch": ("mamba2", "lfm2", "falcon_h1", "gemma3"),
    "llama-cpp": ("mamba2", "lfm2", "gemma3"),
}
DECODERS = {
    "speculative 1": Speculative(draft_tokens=1),
    "speculative 3": Speculative(draft_tokens=3),
    "speculative 8": Speculative(draft_tokens=8),
    "lookup 4": Lookup(draft_tokens=4, shortest=1),
    "rounds, first come": Rounds(schedule="first_come"),
    "rounds, batched": Rounds(schedule="batched"),
}


@dataclass(frozen=True)
class Tree:
    """So many branches of one prompt."""

    branches: int
    tokens: int
    temperature: float

    @property
    def prompt(self) -> list[int]:
        """Random tokens, others for each number of branches."""
        generator = torch.Generator().manual_seed(self.branches)
        return torch.randint(0, 512, (48,), generator=generator).tolist()


TREES = (Tree(1, 256, 0.0), Tree(5, 400, 1.0), Tree(32, 250, 0.4))


@dataclass
class Grown:
    """What was drawn into one branch."""

    prompt: list[int]
    key: int
    sampling: Sampling
    tokens: list[int]


def grow(backend: LocalBackend | DecodingBackend, usage: Usage) -> list[Grown]:
    """The branches of all trees, one tree after the other."""
    out = []
    for tree in TREES:
        root = backend.open(tree.prompt, seed=1)
        children = root.fork(tree.branches)
        sampling, stop = Sampling(temperature=tree.temperature), Stop(tree.tokens, eos=False)
        tasks = [backend.extend(child, sampling, stop) for child in children]
        for child, task in zip(children, tasks, strict=True):
            found = task.future.result()
            usage.add(found.usage)
            out.append(Grown(tree.prompt, child.key, sampling, found.tokens))
        for branch in (*children, root):
            branch.free()
    return out


def agreement(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens are the same from the start."""
    pairs = enumerate(zip(one, other, strict=True))
    return next((at for at, (a, b) in pairs if a != b), len(one))


def gap(target: LocalBackend, plain: Grown, other: Grown, at: int) -> float:
    """By how much the logit of plain decoding's token must sink for the other one to be drawn."""
    a, b = plain.tokens[at], other.tokens[at]
    root = target.open([*plain.prompt, *plain.tokens[:at]])
    [[of_a], [of_b]] = target.score(root, [[a], [b]]).future.result()
    root.free()
    sinks = torch.logspace(-8, 2, 1001)
    logits = torch.zeros(len(sinks), target.spec.vocabulary)
    logits[:, a], logits[:, b] = of_a - sinks, of_b
    row = Row(plain.key, len(plain.prompt) + at, plain.sampling, allowed=(a, b))
    drawn = Sampler().draw(logits, [row] * len(sinks)).tokens
    return float(sinks[(drawn == b).int().argmax()])


def compare(runner: str, family: str, target: LocalBackend, draft: LocalBackend) -> None:
    """One row: every decoder against plain decoding."""
    wanted = grow(target, Usage())
    supplied = Supplied(draft)
    supplied.rate = 0.8
    for one in wanted:
        supplied.record(one.prompt, one.tokens)
    tokens = equal = differing = 0
    guesses = dict[str, str]()
    for name, decoder in DECODERS.items():
        usage = Usage()
        found = grow(DecodingBackend(target, decoder, draft), usage)
        guesses[name] = f"{usage.accepted}/{usage.drafted}"
        for plain, other in zip(wanted, found, strict=True):
            at = agreement(plain.tokens, other.tokens)
            tokens, equal = tokens + len(plain.tokens), equal + at
            if at < len(plain.tokens):
                differing += 1
                far = gap(target, plain, other, at)
                print(f"{family} on {runner}, {name}: token {at}, {far:.1e}", file=sys.stderr)
    row = f"{family} on {runner}, {len(DECODERS)} lossless decoders"
    more = {"differing": differing, "accepted": guesses}
    report("lossless", row, equal, tokens, equal / tokens, "tokens", bar="1.0", **more)


# --- tiny models


def tiny(family: str) -> PreTrainedModel:
    """Random weights, large enough that what a model has read matters."""
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(CONFIGS[family](), attn_implementation="eager")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)
            elif not name.endswith("A_log"):  # a state that forgets at once would test nothing
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


@contextmanager
def pair(runner: str, family: str) -> Iterator[list[LocalBackend]]:
    """A target and its draft on one engine."""
    families = (family, "llama")
    if runner == "torch":
        with closing(Engine()) as engine:
            runners = [torch_runner(tiny(f), slots=SLOTS, lanes=LANES) for f in families]
            yield [LocalBackend(r.spec.name, r, Numbers(512), engine) for r in runners]
        return
    exact = {"kv_type": "f32", "flash_attn": False, "n_threads": 1}
    with tempfile.TemporaryDirectory() as folder:
        backends = list[LocalBackend]()
        for name in families:
            path = Path(folder) / f"{name}.gguf"
            write_gguf(tiny(name), path)
            backends.append(load(path, device="cpu", memory="64 MB", model_kwargs=exact))
        yield backends
        for backend in backends:
            backend.close()


def main() -> None:
    """The runners that were asked for, or both."""
    torch.set_num_threads(1)
    for runner in sys.argv[1:] or TARGETS:
        for family in TARGETS[runner]:
            with pair(runner, family) as (target, draft):
                compare(runner, family, target, draft)


if __name__ == "__main__":
    main()
