"""
Trains a tiny Llama on the problems of tasks.py: the recipe of the first bundled pair, on two CPU cores.

    cd examples/nano
    python train.py prepare --problems 1000000
    python train.py fit policy --width 128 --layers 8 --hidden 384 --minutes 42
    python train.py fit draft --width 64 --layers 2 --hidden 192 --minutes 5

Everything is written under work/: the tokenizer, `tokens.bin` (uint16 ids), `learn.bin` (1 = a token of a solution, which
is learned; 0 = a token of a question) and one folder of weights per model. Needs the package's own dependencies and a C
compiler (torch.compile). How far a model gets in its minutes depends on the machine.
"""

import argparse
import multiprocessing
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from tasks import Problem, countdown, render, word_problem
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

WORK = Path(__file__).parent / "work"
TOKENIZER, TOKENS, LEARN = WORK / "tokenizer.json", WORK / "tokens.bin", WORK / "learn.bin"

END, PAD = 0, 1
SPECIAL = [
    "<|end|>",
    "<|pad|>",
    "<|good|>",
    "<|bad|>",
    "<|spawn|>",
    "<|join|>",
    "<|user|>",
    "<|assistant|>",
]
# Words, single digits, punctuation, line ends: the split of the large byte-level tokenizers, digit by digit.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
VOCABULARY = 512
CHUNKS = 40  # of the training set, each with its own seed
CONTEXT, BATCH, HEAD_WIDTH = 512, 16, 32

MUON_RATE, ADAM_RATE = 0.02, 3e-3
WARM_UP, DECAY = 100, 0.4  # steps; the last share of the time, linear to zero
MOMENTUM, WEIGHT_DECAY = 0.95, 0.02


def train_tokenizer() -> None:
    """Learns byte-pair merges from 20 000 problems of each task."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    rng = random.Random(0)
    texts = (render(draw(rng)) for _ in range(20_000) for draw in (word_problem, countdown))
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=SPECIAL,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    tokenizer.save(str(TOKENIZER))


def encode(tokenizer: Tokenizer, problem: Problem) -> tuple[list[int], list[int]]:
    """The tokens of a problem, and which of them to learn."""
    solution = render(problem).removeprefix(problem.question + "\n")
    prompt: list[int] = tokenizer.encode(problem.question + "\n").ids
    target: list[int] = [*tokenizer.encode(solution).ids, END]
    return prompt + target, [0] * len(prompt) + [1] * len(target)


def draw_chunk(job: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Problems of both tasks in equal shares, packed end to end; `job` is a seed and their number."""
    seed, count = job
    rng, tokenizer = random.Random(seed), Tokenizer.from_file(str(TOKENIZER))
    tokens: list[int] = []
    learn: list[int] = []
    for _ in range(count):
        draw = word_problem if rng.random() < 0.5 else countdown
        more_tokens, more_learn = encode(tokenizer, draw(rng))
        tokens += more_tokens
        learn += more_learn
    return np.array(tokens, np.uint16), np.array(learn, np.uint8)


def prepare(problems: int) -> None:
    """Writes the tokenizer and the training set."""
    WORK.mkdir(exist_ok=True)
    train_tokenizer()
    with multiprocessing.Pool() as pool:
        jobs = [(1000 + i, problems // CHUNKS) for i in range(CHUNKS)]
        tokens, learn = zip(*pool.map(draw_chunk, jobs), strict=True)
    np.concatenate(tokens).tofile(TOKENS)
    np.concatenate(learn).tofile(LEARN)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """The nearest orthogonal matrix, about, by five Newton-Schulz steps in bfloat16 (Jordan et al. 2024, Muon)."""
    x = matrix.bfloat16()
    tall = x.size(0) > x.size(1)
    x = x.T if tall else x
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if tall else x).float()


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum, for the weight matrices; everything else takes AdamW."""

    def __init__(self, params: Iterable[torch.nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # takes no closure
        """One update of every matrix."""
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(MOMENTUM).add_(p.grad)
                update = orthogonalised(p.grad + MOMENTUM * momentum)
                shape = max(1, p.size(0) / p.size(1)) ** 0.5
                p.mul_(1 - group["lr"] * WEIGHT_DECAY).add_(update, alpha=-group["lr"] * shape)


def make_model(width: int, layers: int, hidden: int) -> LlamaForCausalLM:
    """An untrained Llama with tied embeddings and heads of 32."""
    heads = width // HEAD_WIDTH
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=END,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    return LlamaForCausalLM(config)


def batches() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Inputs and targets (16, 512) for ever, in one fixed order; -100 marks what is not learned."""
    tokens, learn = np.memmap(TOKENS, np.uint16, "r"), np.memmap(LEARN, np.uint8, "r")
    order = np.random.RandomState(0).permutation(len(tokens) // CONTEXT - 1)
    step = 0
    while True:
        starts = [order[(step * BATCH + i) % len(order)] * CONTEXT for i in range(BATCH)]
        ids = np.stack([tokens[s : s + CONTEXT + 1] for s in starts]).astype(np.int64)
        mask = np.stack([learn[s + 1 : s + CONTEXT + 1] for s in starts])
        yield torch.from_numpy(ids[:, :-1]), torch.from_numpy(np.where(mask, ids[:, 1:], -100))
        step += 1


def fit(name: str, width: int, layers: int, hidden: int, minutes: float) -> None:
    """Trains for so many minutes, then saves the weights in float16."""
    torch.manual_seed(0)
    model = make_model(width, layers, hidden)
    matrices = {n for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n}
    muon = Muon([p for n, p in model.named_parameters() if n in matrices], MUON_RATE)
    adam = torch.optim.AdamW(
        [p for n, p in model.named_parameters() if n not in matrices],
        ADAM_RATE,
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    forward = torch.compile(lambda ids: model(input_ids=ids, use_cache=False).logits)
    start, total = time.monotonic(), 0.0
    for step, (ids, targets) in enumerate(batches()):
        done = (time.monotonic() - start) / 60 / minutes
        if done >= 1:
            break
        scale = min(1, step / WARM_UP) * min(1, (1 - done) / DECAY)
        muon.param_groups[0]["lr"] = MUON_RATE * scale
        adam.param_groups[0]["lr"] = ADAM_RATE * scale
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(ids)
        loss = cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        muon.step()
        adam.step()
        model.zero_grad()
        total += loss.item()
        if (step + 1) % 100 == 0:
            speed = (step + 1) * BATCH * CONTEXT / (time.monotonic() - start)
            print(
                f"{step + 1} steps, {done * minutes:.1f} min, loss {total / 100:.4f}, "
                f"{speed:.0f} tokens/s",
                flush=True,
            )
            total = 0.0
    model.half().save_pretrained(WORK / name)


def main() -> None:
    """Reads the command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare")
    first.add_argument("--problems", type=int, default=1_000_000)
    second = commands.add_parser("fit")
    second.add_argument("name")
    for option in ("width", "layers", "hidden"):
        second.add_argument(f"--{option}", type=int, required=True)
    second.add_argument("--minutes", type=float, required=True)
    options = vars(parser.parse_args())
    if options.pop("command") == "prepare":
        prepare(**options)
    else:
        fit(**options)


if __name__ == "__main__":
    main()
