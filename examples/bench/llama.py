"""
llama.cpp with forked sequences against llama.cpp as it comes: `python examples/bench/llama.py [cpu | cuda]`. Needs the extra llama-cpp, built
for CUDA if it is to run there; then all layers of both contenders are on the GPU.

A random 100M Llama in Q8_0, one thread for each contender, both warm. `n branches of one prompt`: the tokens of n samples of one
prompt a second; `Llama` generates them one after another, and finds the prompt in its cache. `n requests over two prompts`: prompts
alternate, so that its single prefix misses. `without flash attention`: ours so, against what llama.cpp chooses. `best of 16`: one
call of ours on the bundled policy against 16 invocations of a chat model over `Llama`; `within llama_decode` is how much of ours nothing
but llama.cpp itself could make faster. `same greedy text`: questions to which the bundled policy says the same on torch and on llama.cpp.
"""

import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import llama_cpp
import torch
from _measure import LLAMA_100M, alternate, extend, report
from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.language_models import SimpleChatModel
from langchain_core.messages import BaseMessage
from llama_cpp import Llama

from langchain_pareto import BestOfN, ChatPareto
from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.loading import load
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.nano import policy_path, tokenizer_path
from langchain_pareto.backends.nano.gguf import Precision, nano_gguf, write_gguf

sys.path.insert(0, str(Path(__file__).parents[1]))
from nano.tasks import DIFFICULTIES, TASKS, draw
from nano.tokenizer import prompt_of

HOT = Sampling(temperature=0.8)
DEVICE = "cuda" if sys.argv[1:] == ["cuda"] else "cpu"
THREADS = {"n_threads": 1, "n_threads_batch": 1, "n_gpu_layers": 0 if DEVICE == "cpu" else -1}
BENCH = "llama" if DEVICE == "cpu" else "llama on a GPU"
TOKENS = 32  # of each sample
QUESTIONS = 500
ROWS = (  # tokens of a prompt, different prompts, requests, bar
    (256, 1, 8, 1.1),
    (256, 1, 32, 1.8),
    (1024, 2, 8, 2.5),
    (1024, 2, 32, 5.0),
)
FLASH_ROWS = ((256, 1, 8), (3000, 1, 8), (512, 8, 8))
PRECISIONS: tuple[tuple[Precision, float], ...] = (("f32", 0.99), ("f16", 0.97))


def gguf_100m(folder: Path) -> Path:
    """The random model as a file."""
    LLAMA_100M.model().half().save_pretrained(folder / "model")
    path = folder / "100m.gguf"
    write_gguf(folder / "model", tokenizer_path(), path, "q8_0")
    return path


def prompt(length: int, seed: int) -> list[int]:
    """Random tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 400, (length,), generator=generator).tolist()


def theirs(llama: Llama, prompts: list[list[int]]) -> None:
    """One completion after another."""
    for tokens in prompts:
        for i, _ in enumerate(llama.generate(tokens, temp=0.8, top_k=40), 1):
            if i == TOKENS:
                break


def ours(backend: LocalBackend, prompts: list[list[int]]) -> None:
    """Branches of each distinct prompt, all at once."""
    roots, branches = [], []
    for tokens, n in Counter(map(tuple, prompts)).items():
        root = backend.open(tokens)
        roots.append(root)
        branches += root.fork(n)
    extend(backend, branches, TOKENS, HOT)
    for branch in (*roots, *branches):
        branch.free()


def throughput_rows(path: Path) -> None:
    """Tokens a second against `Llama`."""
    llama = Llama(str(path), n_ctx=4096, verbose=False, **THREADS)
    with load(path, model_kwargs={"n_threads": 1}, device=DEVICE) as backend:
        for length, different, n, bar in ROWS:
            kinds = [prompt(length, seed) for seed in range(different)]
            prompts = [kinds[i % different] for i in range(n)]
            s = alternate(
                {
                    "ours": partial(ours, backend, prompts),
                    "theirs": partial(theirs, llama, prompts),
                },
                rounds=3,
            )
            mine, other = (n * TOKENS / s[k] for k in ("ours", "theirs"))
            name = (
                f"{n} branches of one prompt"
                if different == 1
                else f"{n} requests over two prompts"
            )
            report(BENCH, name, mine, other, mine / other, "tokens/s", bar=f">= {bar}")
    llama.close()


def flash_rows(path: Path) -> None:
    """Plain attention against llama.cpp's own choice, which on a processor is the flash kind."""
    with (
        load(path, model_kwargs={"n_threads": 1}, device=DEVICE) as chosen,
        load(path, model_kwargs={"n_threads": 1, "flash_attn": False}, device=DEVICE) as plain,
    ):
        for length, different, n in FLASH_ROWS:
            prompts = [prompt(length, seed % different) for seed in range(n)]
            s = alternate(
                {"plain": partial(ours, plain, prompts), "chosen": partial(ours, chosen, prompts)},
                rounds=3,
            )
            mine, other = (n * TOKENS / s[k] for k in ("plain", "chosen"))
            kind = "branches of one prompt" if different == 1 else "unrelated prompts"
            name = f"without flash attention, {n} {kind} of {length}"
            report(BENCH, name, mine, other, mine / other, "tokens/s")


class LlamaChat(SimpleChatModel):
    """How a chat model over `Llama` is usually written: one completion a call."""

    llama: Any

    @property
    def _llm_type(self) -> str:
        return "llama"

    def _call(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,  # noqa: ARG002 - the base class's name
        **kwargs: Any,
    ) -> str:
        chat = [{"role": "user", "content": str(m.content)} for m in messages]
        told = self.llama.create_chat_completion(chat, temperature=0.8, stop=stop, **kwargs)
        return str(told["choices"][0]["message"]["content"])


def best_of_row() -> None:
    """Best of 16 on the bundled policy."""
    question = draw("countdown", 0, split="validation", difficulty=4).question
    path = nano_gguf()
    llama = Llama(str(path), n_ctx=2048, verbose=False, **THREADS)
    chat = LlamaChat(llama=llama)
    pareto = ChatPareto(model=str(path), device=DEVICE, temperature=0.8, strategy=BestOfN(n=16))
    s = alternate(
        {
            "ours": lambda: pareto.invoke(question),
            "theirs": lambda: [chat.invoke(question) for _ in range(16)],
        }
    )
    report(BENCH, "best of 16", s["ours"], s["theirs"], s["theirs"] / s["ours"], "s", bar=">= 5")
    floor = decoding(lambda: pareto.invoke(question))
    told = "best of 16, within llama_decode"
    report(BENCH, told, floor, s["theirs"], s["theirs"] / floor, "s")
    pareto.close()
    llama.close()


def decoding(call: Callable[[], object], rounds: int = 5) -> float:
    """Seconds of a call within llama.cpp's decode, the median of some."""
    taken = list[float]()

    def timed(*args: Any) -> int:
        began = time.perf_counter()
        code: int = decode(*args)
        taken[-1] += time.perf_counter() - began
        return code

    decode = llama_cpp.llama_decode
    with patch.object(llama_cpp, "llama_decode", timed):
        for _ in range(rounds):
            taken.append(0.0)
            call()
    return statistics.median(taken)


def greedy_rows() -> None:
    """The same greedy text on torch and on llama.cpp, in float32 and float16."""
    asked = [
        prompt_of(draw(task, i, split="validation", difficulty=levels[i % len(levels)]).question)
        for i in range(QUESTIONS // 2)
        for task, levels in ((t, DIFFICULTIES[t]) for t in TASKS)
    ]
    with load("nano", device="cpu") as backend:
        wanted = greedy_texts(backend, asked)
    for precision, bar in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "nano.gguf"
            write_gguf(policy_path(), tokenizer_path(), path, precision)
            kwargs = {"kv_type": precision, "flash_attn": False}
            with load(path, device=DEVICE, model_kwargs=kwargs) as backend:
                got = greedy_texts(backend, asked)
        same = sum(a == b for a, b in zip(got, wanted, strict=True))
        name = f"same greedy text, {precision}"
        report(BENCH, name, same, len(asked), same / len(asked), "texts", bar=f">= {bar}")


def greedy_texts(backend: LocalBackend, asked: list[str]) -> list[str]:
    """One text a prompt."""
    branches = [backend.open(text) for text in asked]
    tasks = [backend.extend(b, Sampling(temperature=0.0), Stop(400)) for b in branches]
    return [task.future.result().text for task in tasks]


def main() -> None:
    """All rows."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        path = gguf_100m(Path(folder))
        throughput_rows(path)
        flash_rows(path)
    best_of_row()
    greedy_rows()


if __name__ == "__main__":
    main()
