"""What a draw costs beside the model's step, on one CPU thread: `python examples/bench/draw.py`.

A random model of the shape of Qwen2.5-0.5B in bfloat16 decodes one token for 16 rows over a cache
of 64. Prints one line of JSON: milliseconds, medians of 5 rounds in which every variant takes its
turn. `draw` has temperature 0.8 and no filter.
"""

import json
import statistics
import time
from collections.abc import Callable

import torch
from transformers import DynamicCache, Qwen2Config, Qwen2ForCausalLM

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.draws import Row
from langchain_pareto.backends.sampling import Sampler

ROWS, CONTEXT, VOCAB, ROUNDS = 16, 64, 151_936, 5


def model() -> Qwen2ForCausalLM:
    """Random weights in the shape of Qwen2.5-0.5B."""
    config = Qwen2Config(
        vocab_size=VOCAB,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    net = Qwen2ForCausalLM(config)
    net.train(mode=False)
    torch.set_default_dtype(torch.float32)
    return net


def main() -> None:
    """Times the step and each kind of draw in turn."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, cache, sampler = model(), DynamicCache(), Sampler()

    def step(tokens: int) -> torch.Tensor:
        ids = torch.randint(0, VOCAB, (ROWS, tokens))
        output = net(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    with torch.inference_mode():
        step(CONTEXT)
        flat = step(1)  # random weights: close to uniform, the worst case of top-p
    peaked = flat.clone()  # a trained model's: most of the mass on some fifty tokens
    peaked[:, 1000:1050] += torch.linspace(16, 8, 50).bfloat16()

    def draw(
        logits: torch.Tensor, *, stats: bool = False, **settings: float
    ) -> Callable[[], object]:
        sampling = Sampling(**{"temperature": 0.8, **settings})  # type: ignore[arg-type]
        rows = [Row(i, CONTEXT, sampling) for i in range(ROWS)]
        return lambda: sampler.draw(logits, rows, stats=stats).to_host()

    variants: dict[str, Callable[[], object]] = {
        "step": lambda: step(1),
        "draw": draw(flat),
        "draw_stats": draw(flat, stats=True),
        "greedy": draw(flat, temperature=0.0),
        "top_k_50": draw(peaked, top_k=50),
        "top_p_95": draw(peaked, top_p=0.95),
        "top_p_95_flat": draw(flat, top_p=0.95),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    with torch.inference_mode():
        for turn in range(ROUNDS + 1):  # the first warms up
            for name, variant in variants.items():
                began = time.perf_counter()
                variant()
                if turn:
                    seconds[name].append(time.perf_counter() - began)
    milliseconds = {k: round(1e3 * statistics.median(v), 2) for k, v in seconds.items()}
    share = round(milliseconds["draw"] / milliseconds["step"], 3)
    line = {"rows": ROWS, "vocab": VOCAB, "ms": milliseconds, "draw_per_step": share}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
