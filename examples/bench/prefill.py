"""
A prompt of 8192 tokens, against transformers' own forward: `python examples/bench/prefill.py`.

A random Llama of 10M parameters in float32. `seconds`: the engine's prefill and first token against one forward with a cache; `ratio` is
ours by theirs. `memory`: the most that either takes at once beyond the model and the prompt's keys and values, each in a process of
its own (VmHWM of /proc/self/status, from the moment when the model is loaded and warm).
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from _measure import LLAMA_10M, alternate, backend_of, extend, report
from transformers import DynamicCache, LlamaForCausalLM

from langchain_pareto.backends.local import LocalBackend

PROMPT = 8192


def prompt(n: int = PROMPT) -> list[int]:
    """Random tokens."""
    return torch.randint(LLAMA_10M.vocabulary, (n,)).tolist()


def ours(backend: LocalBackend, tokens: list[int]) -> None:
    """The prompt and its first token through the engine; nothing of it is kept."""
    branch = backend.open(tokens)
    extend(backend, [branch], 1)
    branch.free()


def theirs(model: LlamaForCausalLM, tokens: list[int]) -> None:
    """The same in one forward."""
    with torch.inference_mode():
        cache = DynamicCache(config=model.config)
        ids = torch.tensor([tokens])
        model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits.argmax(-1)


def memory(side: str) -> None:
    """Prints the extra bytes of one side's prefill."""
    torch.set_num_threads(1)
    model = LLAMA_10M.model()
    tokens = prompt()
    if side == "ours":
        with backend_of(model, PROMPT + 1024) as backend:
            kv = backend.spec.kv_bytes_per_token * PROMPT
            peak = _peak(lambda tokens: ours(backend, tokens), tokens)
    else:
        config = LLAMA_10M
        kv = 2 * 4 * PROMPT * config.layers * config.kv_heads * config.hidden // config.heads
        peak = _peak(lambda tokens: theirs(model, tokens), tokens)
    print(json.dumps({"extra": peak - kv, "kv": kv}))


def _peak(run: Callable[[list[int]], None], tokens: list[int]) -> int:
    run(tokens[:64])
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # VmHWM starts anew
    run(tokens)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise KeyError(name)


def main() -> None:
    """Times both sides, then measures the memory of each."""
    torch.set_num_threads(1)
    model = LLAMA_10M.model()
    twin = LLAMA_10M.twin(model)
    with backend_of(model, PROMPT + 1024) as backend:
        ours(backend, prompt(512))
        theirs(twin, prompt(512))
        seconds = alternate(
            {"ours": lambda: ours(backend, prompt()), "theirs": lambda: theirs(twin, prompt())},
            warm=0,
        )
    ratio = seconds["ours"] / seconds["theirs"]
    report("prefill", "8k prompt", *seconds.values(), ratio, "s", bar="<= 1.2")
    extra = dict[str, float]()
    for side in ("ours", "theirs"):
        command = [sys.executable, __file__, side]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603
        extra[side] = json.loads(out)["extra"] / 1e6
    ratio = extra["ours"] / extra["theirs"]
    report("prefill", "extra memory at 8k", *extra.values(), ratio, "MB", bar="< 500 MB")


if __name__ == "__main__":
    if sys.argv[1:]:
        memory(sys.argv[1])
    else:
        main()
