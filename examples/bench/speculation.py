"""
Draft and verify: `python examples/bench/speculation.py [nano | supplied | trees]`.

`nano`: the bundled draft for the large policy of examples/nano, where that is there, and for the bundled one, tokens a second of one branch
over word problems and puzzles, against plain decoding and against transformers' assisted generation with the same pair, all
greedy. `supplied`: a random 100M target and a random 6M draft, whose guesses are taken from a recorded plain run with probability a
while the draft still runs; the speed-up against the one that the same run's step times (with what is done between steps) predict for its
rounds and the branches that were live in each (`nominal`: for as many accepted as a promises, by branches that all end together), and the
controlled length against every fixed one, plain decoding among them. `trees`: branches of one prompt under every schedule: steps of the target for each token, and seconds.
"""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
from _measure import LLAMA_100M, Shape, Supplied, alternate, backend_of, mean_steps, report
from transformers import AutoModelForCausalLM, GenerationConfig

from langchain_pareto.backends.base import Logits, Sampling, Stop, Usage
from langchain_pareto.backends.decoders import Decoder, Plain, Rounds, Speculative
from langchain_pareto.backends.decoding import DecodingBackend
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.nano import draft_path, tokenizer_path
from langchain_pareto.backends.sequences import Chunk

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano.paths import trained_or_shipped
from nano.tasks import DIFFICULTIES, TASKS, draw
from nano.tokenizer import prompt_of

LLAMA_6M = Shape(96, 4, 4, 4, 256, 32000, 4096)
GREEDY, HOT = Sampling(temperature=0.0), Sampling(temperature=0.8)
TOKENS = 256  # of each branch with supplied guesses: of short texts, much of the time is that of the branch that ends last
LENGTHS = (1, 2, 4, 8)
SUPPLIED_ROUNDS = 5  # the best of many contenders is the luckiest one where each is measured seldom


def run(
    backend: LocalBackend | DecodingBackend,
    prompts: Sequence[str | Sequence[int]],
    branches: int,
    sampling: Sampling,
    stop: Stop,
) -> tuple[list[list[int]], list[Usage]]:
    """Tokens of all branches of each prompt in turn, and what each took."""
    tokens, usages = list[list[int]](), list[Usage]()
    for prompt in prompts:
        root = backend.open(prompt, seed=1)
        children = root.fork(branches)
        tasks = [backend.extend(child, sampling, stop) for child in children]
        for task in tasks:
            found = task.future.result()
            tokens.append(found.tokens)
            usages.append(found.usage)
        for branch in (*children, root):
            branch.free()
    return tokens, usages


# --- real models


def nano_pair(device: str = "cpu", bench: str = "speculation", **told: object) -> None:
    """The bundled draft ahead of the large policy, and of the bundled one."""
    prompts = [
        prompt_of(draw(task, i, split="validation", difficulty=DIFFICULTIES[task][-1]).question)
        for i in range(6)
        for task in TASKS
    ]
    for policy in map(trained_or_shipped, ("L", "M")):
        if (policy / "model.safetensors").exists():
            for dtype in ("float32", "bfloat16"):
                _nano_rows(policy, dtype, prompts, device, bench, told)


def _nano_rows(
    policy: Path,
    dtype: str,
    prompts: list[str],
    device: str,
    bench: str,
    told: dict[str, object],
) -> None:
    """One policy in one dtype."""
    stop, counted = Stop(300), dict[str, int]()
    memory = None if device == "cpu" else "2GB"
    with (
        load(
            policy, tokenizer=tokenizer_path(), dtype=dtype, device=device, memory=memory
        ) as target,
        load("nano-draft", dtype=dtype, device=device, memory=memory) as draft,
    ):
        spoken = DecodingBackend(target, Speculative(), draft)
        usage = Usage()

        def ours() -> None:
            nonlocal usage
            tokens, usages = run(spoken, prompts, 1, GREEDY, stop)
            usage = sum(usages, Usage())
            counted["ours"] = sum(map(len, tokens))

        def plain() -> None:
            counted["plain"] = sum(map(len, run(target, prompts, 1, GREEDY, stop)[0]))

        hf = _assisted(policy, dtype, prompts, target, counted)
        seconds = alternate({"ours": ours, "plain": plain, "hf": hf}, rounds=3)
        told = told | {
            "tokens_per_round": round(1 + usage.accepted / max(1, usage.rounds), 2),
            "accepted": round(usage.accepted / max(1, usage.drafted), 3),
        }
        rate = {name: counted[name] / s for name, s in seconds.items()}
        for other in ("plain", "hf"):
            row = f"nano {policy.name}, {dtype}, against {other}"
            ratio = rate["ours"] / rate[other]
            report(bench, row, rate["ours"], rate[other], ratio, "tokens/s", **told)


def _assisted(
    folder: Path,
    dtype: str,
    prompts: Sequence[str],
    target: LocalBackend,
    counted: dict[str, int],
) -> Callable[[], None]:
    """transformers' assisted generation with the same pair."""
    kind = getattr(torch, dtype)
    device = target.spec.device
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=kind).to(device)
    assistant = AutoModelForCausalLM.from_pretrained(draft_path(), dtype=kind).to(device)
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=300, eos_token_id=model.config.eos_token_id
    )
    settings.pad_token_id = model.config.pad_token_id
    ids = [
        torch.tensor([target.tokenizer.encode_prompt(prompt)], device=device) for prompt in prompts
    ]

    def generate() -> None:
        counted["hf"] = 0
        for one in ids:
            out = model.generate(one, assistant_model=assistant, generation_config=settings)
            counted["hf"] += out.shape[1] - one.shape[1]

    return generate


# --- guesses of any quality


def supplied_rows() -> None:
    """Predicted against measured, and the control against fixed lengths."""
    engine = Engine()
    target = backend_of(LLAMA_100M.model().bfloat16(), 20_000, engine)
    draft = backend_of(LLAMA_6M.model().bfloat16(), 20_000, engine)
    random_draft = backend_of(LLAMA_6M.model().bfloat16(), 20_000, engine)
    supplied = Supplied(draft)
    prompt = torch.randint(10, 400, (128,), generator=torch.Generator().manual_seed(0)).tolist()
    stop = Stop(TOKENS, eos=False)
    for branches in (1, 4, 16):
        recorded, _ = run(target, [prompt], branches, HOT, stop)
        for tokens in recorded:
            supplied.record(prompt, tokens)
        go = partial(run, prompts=[prompt], branches=branches, sampling=HOT, stop=stop)
        for rate in (0.5, 0.7, 0.9):
            supplied.rate = rate
            _race(target, draft, branches, rate, go)
        work = {
            "plain": partial(go, target, stop=Stop(512, eos=False)),
            "ours": partial(
                go,
                DecodingBackend(target, Speculative(), random_draft),
                stop=Stop(512, eos=False),
            ),
        }
        seconds = alternate(work, rounds=SUPPLIED_ROUNDS)
        row = f"random draft, 512 tokens, {branches} branches"
        ratio = seconds["plain"] / seconds["ours"]
        mine, theirs = (512 * branches / seconds[k] for k in ("ours", "plain"))
        report("speculation", row, mine, theirs, ratio, "tokens/s", bar=">= 0.95")
    for backend in (target, draft, random_draft):
        backend.close()
    engine.close()


def _race(
    target: LocalBackend,
    draft: LocalBackend,
    branches: int,
    rate: float,
    go: Callable[[LocalBackend | DecodingBackend], tuple[list[list[int]], list[Usage]]],
) -> None:
    """Every fixed length and the controlled one against plain decoding, and against what the step times predict."""
    backends: dict[str, LocalBackend | DecodingBackend] = {"plain": target}
    for k in LENGTHS:
        backends[str(k)] = DecodingBackend(target, Speculative(draft_tokens=k), draft)
    backends["auto"] = DecodingBackend(target, Speculative(), draft)
    usages = dict[str, list[Usage]]()

    def turn(name: str) -> None:
        _, usages[name] = go(backends[name])

    with mean_steps(target) as verify, mean_steps(draft) as guess:
        work = {name: partial(turn, name) for name in backends}
        seconds = alternate(work, rounds=SUPPLIED_ROUNDS)

    def round_of(k: int, n: int) -> float:  # seconds
        return k * guess(n) + verify(n * (k + 1))

    def predicted(k: int) -> float:
        rounds = [usage.rounds for usage in usages[str(k)]]
        live = [sum(n > i for n in rounds) for i in range(max(rounds))]
        return TOKENS * verify(branches) / sum(round_of(k, n) for n in live)

    def nominal(k: int) -> float:
        tokens = (1 - rate ** (k + 1)) / (1 - rate)
        return tokens * verify(branches) / round_of(k, branches)

    best = min((seconds[str(k)], k) for k in LENGTHS)
    fastest = min(best[0], seconds["plain"])  # no guess is a fixed length, too
    for k in LENGTHS:
        row = f"a = {rate}, {branches} branches, k = {k}: speed-up against predicted"
        got, said, ideal = seconds["plain"] / seconds[str(k)], predicted(k), round(nominal(k), 2)
        report("speculation", row, got, said, got / said, "x", nominal=ideal, bar=">= 0.9")
    row = f"a = {rate}, {branches} branches: control against the best fixed length ({best[1]})"
    ours = seconds["plain"] / seconds["auto"]
    theirs = seconds["plain"] / fastest
    guessing = round(best[0] / seconds["auto"], 3)
    report(
        "speculation",
        row,
        ours,
        theirs,
        ours / theirs,
        "x",
        against_the_best_that_guesses=guessing,
        bar=">= 0.97",
    )


# --- schedules


def tree_rows() -> None:
    """Branches of one prompt under every schedule."""
    large = trained_or_shipped("L")
    large = large if (large / "model.safetensors").exists() else trained_or_shipped("M")
    prompts = [
        prompt_of(draw("word_problem", i, split="validation", difficulty=6).question)
        for i in range(6)
    ]
    stop = Stop(300)
    with (
        load(large, tokenizer=tokenizer_path(), device="cpu", dtype="bfloat16") as target,
        load("nano-draft", device="cpu", dtype="bfloat16") as draft,
    ):
        steps = _counted(target)
        for branches in (3, 8):
            rounds = {
                "batched": Rounds(),
                "first come": Rounds(schedule="first_come"),
                "plain": Plain(),
            }
            work: dict[str, Callable[[], object]] = {
                name: partial(_go, target, draft, decoder, prompts, branches, stop)
                for name, decoder in rounds.items()
            }
            # one branch after another: what it is to speculate without a schedule
            work["serial"] = partial(_serial, target, draft, prompts, branches, stop)
            seconds = alternate(work, rounds=3)
            for name, one in work.items():
                steps.clear()
                tokens = one()
                row = f"{branches} branches of nano {large.name}, {name}"
                speed = seconds["plain"] / seconds[name]
                per_token = round(len(steps) / float(str(tokens)), 4)
                report(
                    "speculation",
                    row,
                    seconds[name],
                    seconds["plain"],
                    speed,
                    "s",
                    target_steps_per_token=per_token,
                )


def _go(
    target: LocalBackend,
    draft: LocalBackend,
    decoder: Decoder,
    prompts: Sequence[str],
    branches: int,
    stop: Stop,
) -> int:
    backend = DecodingBackend(target, decoder, draft)
    return sum(map(len, run(backend, prompts, branches, HOT, stop)[0]))


def _serial(
    target: LocalBackend, draft: LocalBackend, prompts: Sequence[str], branches: int, stop: Stop
) -> int:
    backend, total = DecodingBackend(target, Rounds(), draft), 0
    for prompt in prompts:
        root = backend.open(prompt, seed=1)
        for child in root.fork(branches):
            total += len(backend.extend(child, HOT, stop).future.result().tokens)
            child.free()
        root.free()
    return total


def _counted(backend: LocalBackend) -> list[int]:
    """Grows by one entry for each step of the backend's runner."""
    steps, step = list[int](), backend.runner.step

    def counting(chunks: Sequence[Chunk]) -> Logits:
        steps.append(len(chunks))
        return step(chunks)

    backend.runner.step = counting
    return steps


def main() -> None:
    """The rows that were asked for, or all."""
    torch.set_num_threads(1)
    asked = sys.argv[1:] or ["nano", "supplied", "trees"]
    for name in asked:
        {"nano": nano_pair, "supplied": supplied_rows, "trees": tree_rows}[name]()


if __name__ == "__main__":
    main()
