"""
What the benchmarks share: random models, backends made by hand, guesses of any quality, and medians of alternating rounds.

Everything runs on one CPU thread. The machine may be shared and its speed may drift, so the contenders take turns in one process,
and what counts is the ratio of their medians.
"""

import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from langchain_pareto.backends.base import Branch, Extension, Logits, Sampling, Stop
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.local_branch import LocalBranch
from langchain_pareto.backends.nano import policy_path, tokenizer_path
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.tokens import HFTokenizer
from langchain_pareto.backends.torch_runner import TorchRunner

ROUNDS = 5
GREEDY = Sampling(temperature=0.0)


class Numbers:
    """A tokenizer for random models: a token's text is its number."""

    fingerprint = "numbers"
    end_tokens = special_tokens = frozenset[int]()
    has_template = False

    def __init__(self, vocabulary: int) -> None:
        self.vocabulary = vocabulary

    def encode(self, text: str) -> list[int]:
        """The numbers in `text`."""
        return [int(word) for word in text.split()]

    encode_prompt = encode

    def decode(self, tokens: Sequence[int]) -> str:
        """The numbers, each after a space."""
        return "".join(f" {token}" for token in tokens)

    def piece(self, token: int) -> bytes:
        """The same for one token."""
        return b" %d" % token

    def render(
        self,
        messages: Sequence[Mapping[str, str]],
        *,
        generate: bool = True,  # noqa: ARG002 - the protocol's name
    ) -> str:
        """The contents in a row."""
        return " ".join(message["content"] for message in messages)


@dataclass(frozen=True)
class Shape:
    """A random Llama."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int
    positions: int

    def model(self) -> LlamaForCausalLM:
        """The model in float32, the same for the same shape."""
        torch.manual_seed(0)
        return LlamaForCausalLM(self.config()).eval()

    def twin(self, model: torch.nn.Module) -> LlamaForCausalLM:
        """The same weights, not copied, under transformers' own attention."""
        with torch.device("meta"):
            twin = LlamaForCausalLM(self.config())
        twin.load_state_dict(model.state_dict(), assign=True)
        twin.model.rotary_emb = type(twin.model.rotary_emb)(twin.config)  # its buffer has no state
        return twin.eval()

    def config(self) -> LlamaConfig:
        """A fresh configuration."""
        return LlamaConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            max_position_embeddings=self.positions,
        )


LLAMA_10M = Shape(256, 8, 8, 4, 704, 8192, 16384)
LLAMA_30M = Shape(512, 8, 8, 4, 1408, 8192, 4096)
LLAMA_100M = Shape(768, 12, 12, 4, 2048, 32000, 4096)


def backend_of(model: torch.nn.Module, slots: int, engine: Engine | None = None) -> LocalBackend:
    """A backend of a random model, with an engine of its own unless it is given one."""
    runner = TorchRunner(model, slots=slots)
    return LocalBackend("random", runner, Numbers(runner.spec.vocabulary), engine or Engine())


def nano_policy() -> torch.nn.Module:
    """The bundled policy in float32."""
    model = AutoModelForCausalLM.from_pretrained(policy_path(), dtype=torch.float32)
    return model.eval()


def nano_backend(slots: int = 30_000) -> LocalBackend:
    """A backend of the bundled policy with an engine of its own."""
    tokenizer = HFTokenizer(AutoTokenizer.from_pretrained(tokenizer_path()))
    return LocalBackend("nano", TorchRunner(nano_policy(), slots=slots), tokenizer, Engine())


def extend(
    backend: LocalBackend,
    branches: Sequence[Branch],
    tokens: int,
    sampling: Sampling = GREEDY,
    *,
    eos: bool = False,
) -> list[Extension]:
    """Extends all branches at once and waits for them."""
    stop = Stop(tokens, eos=eos)
    tasks = [backend.extend(branch, sampling, stop) for branch in branches]
    return [task.future.result() for task in tasks]


def settle(backend: LocalBackend) -> None:
    """Waits until the engine has done all that was posted."""
    backend.engine.call(lambda: None).result()


def pretend_cached(backend: LocalBackend, branches: Sequence[Branch]) -> None:
    """Gives all tokens but each branch's last a slot without computing them: the pool holds what `scribble` left there."""

    def fill() -> None:
        for branch in branches:
            assert isinstance(branch, LocalBranch)
            sequence = branch.sequence
            sequence.put(backend.runner.pool.allocate(sequence.pending - 1))

    backend.engine.call(fill).result()


class Supplied:
    """Makes a draft guess what was recorded, with probability `rate`; it computes all the same.

    It may compute on a stream of its own, so that what it said is waited for. A place is known by its number and the tokens right before it: where a near tie falls otherwise in another batch, the guesses after
    it are still supplied.
    """

    def __init__(self, draft: LocalBackend) -> None:
        self.rate = 1.0
        self._next = dict[tuple[int, ...], int]()  # by place
        self._step, self._join = draft.runner.step, draft.runner.join
        draft.runner.step = self._supplied

    def record(self, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        """One branch of a plain run."""
        whole = [*prompt, *tokens]
        for at in range(len(prompt), len(whole)):
            self._next[_place(whole[:at])] = whole[at]

    def _supplied(self, chunks: Sequence[Chunk]) -> Logits:
        logits = self._step(chunks)
        self._join()
        rows, at = logits.rows.clone(), 0
        guesses = list[tuple[int, int]]()  # row and token
        for chunk in chunks:
            tokens = chunk.sequence.tokens
            for left in reversed(range(chunk.rows)):  # tokens behind this row's
                place = _place(tokens[: len(tokens) - left])
                if (token := self._next.get(place)) is not None:
                    right = random.Random(f"{place}").random() < self.rate
                    guesses.append((at, token if right else (token + 1) % rows.shape[1]))
                at += 1
        if guesses:
            where = torch.tensor(guesses).T.to(rows.device, non_blocking=True)
            rows[where[0], where[1]] = 1e9
        return Logits(rows, logits.union)


def _place(tokens: Sequence[int]) -> tuple[int, ...]:
    return len(tokens), *tokens[-4:]


@contextmanager
def mean_steps(backend: LocalBackend) -> Iterator[Callable[[int], float]]:
    """Mean seconds of the backend's decode steps inside, by how many tokens they compute; between such widths a straight line."""
    times, seconds = backend.engine.times(backend.runner), defaultdict[int, list[float]](list)
    note = times.note

    def noted(tokens: int, took: float, context: float = 0.0) -> None:
        seconds[tokens].append(took)
        note(tokens, took, context)

    def mean(tokens: int) -> float:
        widths = sorted(seconds)
        return float(np.interp(tokens, widths, [statistics.fmean(seconds[w]) for w in widths]))

    times.note = noted  # type: ignore[method-assign]
    try:
        yield mean
    finally:
        del times.note  # type: ignore[method-assign]  # the class's is there again


def alternate(
    contenders: Mapping[str, Callable[[], object]], rounds: int = ROUNDS, warm: int = 1
) -> dict[str, float]:
    """Median seconds of each contender over `rounds` in which everyone takes a turn, after `warm` that do not count.

    In every round they come in another order: what ran before leaves its traces in caches.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warm + rounds):
        for name in random.Random(turn).sample(list(contenders), len(contenders)):
            began = time.perf_counter()
            contenders[name]()
            if turn >= warm:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(times) for name, times in seconds.items()}


def report(
    bench: str, row: str, ours: float, theirs: float, ratio: float, unit: str, **more: object
) -> None:
    """Prints one row as a line of JSON."""
    numbers = {"ours": _short(ours), "theirs": _short(theirs), "ratio": round(ratio, 3)}
    print(json.dumps({"bench": bench, "row": row, **numbers, "unit": unit, **more}), flush=True)


def _short(x: float) -> float:
    return x if isinstance(x, int) else float(f"{x:.4g}")
