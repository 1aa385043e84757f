"""What a grammar costs beside the model's step, on one CPU thread: `python examples/bench/grammar.py`.

A random model of 89 million parameters beside its embedding, with a vocabulary of 128,000 tokens, decodes 16 branches. The vocabulary is
byte-level BPE with random merges: two tokens of up to six letters, digits and signs, drawn alike, become one; the second does not begin
with a space. Two grammars: `call`, any text, in which `<tool_call>` is followed by an object of a schema (so that nearly every token may
come), and `json`, the object alone. One line of JSON each: milliseconds a step that masks and their use in the draw add, and those of
the plain step; their ratio, which is to stay below 0.05; microseconds of a mask, a row and a step; tokens that a mask allows at the end,
on average. All in CPU time, since the machine may be shared. `table_ms` is what the first grammar of a tokenizer waits for.
"""

import json
import random
import statistics
import time

import torch
from _measure import ROUNDS, Shape, report
from tokenizers import Tokenizer as RustTokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.constraint import Constraint, TokenMask
from langchain_pareto.backends.draws import Row
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.grammar import compile_grammar
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.sampling import Sampler
from langchain_pareto.backends.tokens import HFTokenizer
from langchain_pareto.backends.torch_runner import TorchRunner

ROWS, TOKENS, VOCABULARY, SEED = 16, 32, 128_000, 0
SHAPE = Shape(512, 8, 8, 4, 1408, VOCABULARY, 4096)
PLAIN = Sampling()
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer", "minimum": 1, "maximum": 14},
        "units": {"type": "array", "items": {"enum": ["metric", "imperial"]}},
    },
    "required": ["city", "days", "units"],
    "additionalProperties": False,
}
OBJECT = "%json " + json.dumps(SCHEMA)
GRAMMARS = {
    "call": f"""start: TEXT | head {OBJECT} "</tool_call>"
TEXT: /(.|\\n)*/
head[lazy]: /(.|\\n)*<tool_call>/""",
    "json": f"start: {OBJECT}",
}


class Timed:
    """A constraint, and the seconds that its masks took."""

    def __init__(self, inner: Constraint) -> None:
        self._inner, self.seconds, self.masks = inner, 0.0, 0
        self.advance, self.rollback, self.fork = inner.advance, inner.rollback, inner.fork

    def allowed(self) -> TokenMask:
        """The mask."""
        began = time.thread_time()
        mask = self._inner.allowed()
        self.seconds += time.thread_time() - began
        self.masks += 1
        assert isinstance(mask, TokenMask)
        return mask


def tokenizer() -> HFTokenizer:
    """The vocabulary described above."""
    rng = random.Random(SEED)
    known = {symbol: i for i, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    short = [*"etaoinshrdlucmfwypvbgkjqxzETAOINSR0123456789.,:;(){}[]\"'-_=/", "Ġ"]
    merges = list[tuple[str, str]]()
    while len(known) < VOCABULARY - 2:
        left, right = rng.choice(short), rng.choice(short)
        if left + right in known or "Ġ" in right:
            continue
        known[left + right] = len(known)
        merges.append((left, right))
        if len(left + right) <= 6:
            short.append(left + right)
    rust = RustTokenizer(models.BPE(vocab=known, merges=merges))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    rust.add_special_tokens(["<eos>", "<user>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<eos>")  # noqa: S106 - a name
    return HFTokenizer(fast)


def decode(backend: LocalBackend, constraints: list[Timed]) -> float:
    """Seconds a step of all branches, each under one of `constraints` or under none."""
    root = backend.open([1, 2, 3], seed=SEED)
    branches = root.fork(ROWS)
    backend.prefill(root).future.result()
    began = time.process_time()
    tasks = [
        backend.extend(branch, PLAIN, Stop(TOKENS, eos=False), constraint=constraint)
        for branch, constraint in zip(branches, constraints or [None] * ROWS, strict=True)
    ]
    for task in tasks:
        task.future.result()
    seconds = time.process_time() - began
    for branch in (root, *branches):
        branch.free()
    return seconds / TOKENS


def applied(masks: list[TokenMask]) -> float:
    """Seconds that masks add to the draw of a step."""
    logits, sampler = torch.randn(ROWS, VOCABULARY), Sampler()
    free = [Row(i, 0, PLAIN) for i in range(ROWS)]
    bound = [Row(i, 0, PLAIN, allowed=mask) for i, mask in enumerate(masks)]
    seconds: tuple[list[float], ...] = ([], [])
    for _ in range(4 * ROUNDS):
        for times, rows in zip(seconds, (free, bound), strict=True):
            began = time.process_time()
            sampler.draw(logits, rows).to_host()
            times.append(time.process_time() - began)
    return statistics.median(seconds[1]) - statistics.median(seconds[0])


def main() -> None:
    """Measures both grammars."""
    torch.set_num_threads(1)
    text = tokenizer()
    backend = LocalBackend("random", TorchRunner(SHAPE.model(), slots=1000), text, Engine())
    step = statistics.median(decode(backend, []) for _ in range(ROUNDS))
    began = time.process_time()
    compile_grammar(text, 'start: "a"')
    table = time.process_time() - began
    for name, grammar in GRAMMARS.items():
        began = time.process_time()
        make = compile_grammar(text, grammar)
        compiled = time.process_time() - began
        constraints = [Timed(make()) for _ in range(ROWS)]
        decode(backend, constraints)
        mask = sum(c.seconds for c in constraints) / sum(c.masks for c in constraints)
        masks = [constraint.allowed() for constraint in constraints]
        added = ROWS * mask + applied(masks)
        report(
            "grammar",
            name,
            1e3 * added,
            1e3 * step,
            added / step,
            "ms",
            mask_us=round(1e6 * mask, 1),
            allowed=round(sum(map(len, masks)) / ROWS),
            compile_ms=round(1e3 * compiled, 1),
            table_ms=round(1e3 * table),
        )
    backend.close()
    backend.engine.close()


if __name__ == "__main__":
    main()
