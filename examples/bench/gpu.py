"""
On a GPU: `python examples/bench/gpu.py [decode | guesses | nano]`.

`decode`: random Llamas of 8B and 0.5B in bfloat16, tokens a second of 1, 4, 16 and 64 branches of one prompt, and the share of the roofline
bound: the bytes that a step must read over the bandwidth of a large copy on the same device. Against transformers' `generate` with as many
return sequences. `guesses`: the 0.5B drafts for the 8B, whose guesses are taken from a recorded plain run with probability a while the draft
still runs. `nano`: the bundled models and the large policy of examples/nano, as `speculation.py nano` has them on a CPU.
"""

import sys
from collections.abc import Callable
from functools import partial

import torch
from _measure import Shape, Supplied, alternate, backend_of, report
from speculation import HOT, nano_pair, run
from transformers import GenerationConfig, LlamaForCausalLM

from langchain_pareto.backends import cost
from langchain_pareto.backends.base import Stop
from langchain_pareto.backends.decoders import Speculative
from langchain_pareto.backends.decoding import DecodingBackend
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.hardware import probe
from langchain_pareto.backends.local import LocalBackend

LLAMA_8B = Shape(4096, 32, 32, 8, 14336, 128256, 8192)
LLAMA_HALF_B = Shape(1024, 24, 16, 4, 4096, 128256, 8192)
PROMPT, TOKENS, SLOTS = 512, 96, 40_000
BRANCHES = (1, 4, 16)
LENGTHS = (2, 4)
ROUNDS, WARM = 2, 2  # the first runs compile kernels, and capture steps


def main() -> None:
    """The rows that were asked for, or all."""
    if not torch.cuda.is_available():
        print("There is no CUDA device.")
        return
    told = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name in sys.argv[1:] or ["decode", "guesses", "nano"]:
        {"decode": decode_rows, "guesses": guess_rows, "nano": nano_rows}[name](told)


def random_model(shape: Shape) -> LlamaForCausalLM:
    """In bfloat16, made on the device."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("cuda"):
            return shape.model()
    finally:
        torch.set_default_dtype(before)


def a_prompt() -> list[int]:
    """The same one always."""
    drawn = torch.randint(10, 400, (PROMPT,), generator=torch.Generator().manual_seed(0))
    return [int(token) for token in drawn]


def decode_rows(told: dict[str, str]) -> None:
    """Plain decoding against what the memory allows, and against transformers."""
    speed, _ = probe("cuda")  # bytes a second of a large copy, read and written
    for name, shape in (("8B", LLAMA_8B), ("0.5B", LLAMA_HALF_B)):
        engine = Engine()
        model = random_model(shape)
        twin = shape.twin(model)
        backend = backend_of(model, SLOTS, engine)
        spec, stop = backend.spec, Stop(TOKENS, eos=False)
        for branches in (*BRANCHES, 64):
            go = partial(run, backend, [a_prompt()], branches, HOT, stop)
            first = partial(run, backend, [a_prompt()], branches, HOT, Stop(1, eos=False))
            seconds = alternate({"ours": go, "first": first}, rounds=3, warm=WARM)
            generate(twin, branches, 8)
            seconds |= alternate({"hf": partial(generate, twin, branches)}, rounds=1, warm=0)
            union = PROMPT + branches * TOKENS / 2
            bound = cost.forward_bytes(spec, int(union), branches, branches) / speed
            step = (seconds["ours"] - seconds["first"]) / (TOKENS - 1)
            rate = {name: branches * TOKENS / seconds[name] for name in ("ours", "hf")}
            report(
                "gpu",
                f"{name} bfloat16, {branches} branches of one prompt of {PROMPT}",
                rate["ours"],
                rate["hf"],
                rate["ours"] / rate["hf"],
                "tokens/s",
                step_ms=round(1e3 * step, 2),
                bound_ms=round(1e3 * bound, 2),
                of_the_roofline=round(bound / step, 3),
                **told,
            )
        backend.close()
        engine.close()
        del model, twin, backend
        torch.cuda.empty_cache()


def generate(model: LlamaForCausalLM, branches: int, tokens: int = TOKENS) -> None:
    """As many sampled sequences of one prompt, by transformers."""
    settings = GenerationConfig(
        do_sample=True,
        temperature=HOT.temperature,
        top_k=0,
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        num_return_sequences=branches,
        pad_token_id=0,
    )
    model.generate(torch.tensor([a_prompt()], device="cuda"), generation_config=settings)
    torch.cuda.synchronize()


def guess_rows(told: dict[str, str]) -> None:
    """Speculation with guesses of a known quality."""
    engine = Engine()
    target = backend_of(random_model(LLAMA_8B), SLOTS, engine)
    draft = backend_of(random_model(LLAMA_HALF_B), SLOTS, engine)
    supplied, stop = Supplied(draft), Stop(TOKENS, eos=False)
    for branches in BRANCHES:
        prompt = a_prompt()
        for tokens in run(target, [prompt], branches, HOT, stop)[0]:
            supplied.record(prompt, tokens)
        for rate in (0.5, 0.7, 0.9):
            supplied.rate = rate
            backends: dict[str, LocalBackend | DecodingBackend] = {"plain": target}
            for k in LENGTHS:
                backends[f"k = {k}"] = DecodingBackend(target, Speculative(draft_tokens=k), draft)
            backends["auto"] = DecodingBackend(target, Speculative(), draft)
            work: dict[str, Callable[[], object]] = {
                name: partial(run, backend, [prompt], branches, HOT, stop)
                for name, backend in backends.items()
            }
            seconds = alternate(work, rounds=ROUNDS, warm=WARM)
            for name in [*(f"k = {k}" for k in LENGTHS), "auto"]:
                ours, plain = (branches * TOKENS / seconds[n] for n in (name, "plain"))
                row = f"0.5B for 8B, a = {rate}, {branches} branches, {name}"
                report("gpu", row, ours, plain, ours / plain, "tokens/s", **told)
    for backend in (target, draft):
        backend.close()
    engine.close()


def nano_rows(told: dict[str, str]) -> None:
    """The bundled draft for the trained policies."""
    nano_pair("cuda", bench="gpu", **told)


if __name__ == "__main__":
    main()
