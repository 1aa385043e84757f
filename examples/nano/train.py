"""
Trains one model of the family: the recipe, from nothing, on two CPU cores or on a GPU.

    cd examples
    python -m nano.tokenizer
    python -m nano.train S --tokens 200
    python -m nano.train M --tokens 150
    python -m nano.train L --tokens 60 --from M
    python -m nano.train PRM --tokens 30 --from M

A run that is stopped goes on where it was: the same command again. It writes work/NAME.pt, the checkpoint, and work/NAME.jsonl, one
line a report: tokens seen, loss of training and of held-out problems, tokens a second. When it is done, work/NAME has the weights.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from nano.data import IGNORED, LENGTHS, WARM_UP, Stream, batches, solutions
from nano.models import SIZES, found, grown, new_model
from nano.muon import Muon
from nano.tokenizer import WORK

MICRO_BATCH = {"cpu": 2048, "cuda": 8192}  # tokens: what stays in a core's cache, or fills a GPU
BATCH = 8192  # tokens a step
MUON_RATE, ADAM_RATE = 0.02, 3e-3
WARM_UP_STEPS, DECAY = 100, 0.75  # the last share of the tokens, linear to zero
REPORT, SAVE = 500, 500  # steps
HELD_OUT = 40  # micro-batches


@dataclass
class Position:
    """How far a run has come."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    window: int = 0
    done: int = 0  # batches of the window


class Run:
    """One model on its way through its tokens."""

    def __init__(self, name: str, model: LlamaForCausalLM, budget: float, rate: float) -> None:
        self.name, self.model, self.budget, self.rate = name, model, budget, rate
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(self.device).train()
        # On a CPU plain matrix products beat the fused attention's backward pass twice over on rows this short.
        model.set_attn_implementation("eager" if self.device == "cpu" else "sdpa")
        named = list(model.named_parameters())
        matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in named if p.ndim != 2 or "embed" in n]
        self.muon = Muon(matrices, MUON_RATE)
        self.adam = torch.optim.AdamW(others, ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
        torch._dynamo.config.recompile_limit = 4 * len(LENGTHS)  # noqa: SLF001  # one graph a length
        self.forward = torch.compile(
            lambda ids: model(input_ids=ids, use_cache=False).logits, dynamic=False
        )
        self.at = Position()
        if self.checkpoint.exists():
            self._load()

    @property
    def checkpoint(self) -> Path:
        """Where the run goes on from."""
        return WORK / f"{self.name}.pt"

    def loss(self, ids: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Mean cross-entropy of what is learned."""
        with torch.autocast(self.device, dtype=torch.bfloat16):
            logits = self.forward(ids.to(self.device))
        return cross_entropy(
            logits.float().flatten(0, 1), targets.to(self.device).flatten(), ignore_index=IGNORED
        )

    def go(self, stream: Stream, held_out: Stream) -> None:
        """Trains to the end of the tokens."""
        size = MICRO_BATCH[self.device]
        feed = batches(stream, size, window=self.at.window, skip=self.at.done)
        judged = batches(held_out, size)
        fixed = [next(judged)[2:] for _ in range(HELD_OUT)]
        began, before, total = time.monotonic(), self.at.seconds, torch.zeros(())
        while self.at.tokens < self.budget:
            total += self._step(feed, BATCH // size)
            self.at.seconds = before + time.monotonic() - began
            if self.at.step % REPORT == 0:
                self._report(total.item() / REPORT, self._held_out(fixed))
                total.zero_()
            if self.at.step % SAVE == 0:
                self._save()
        self._save()
        # half: what is shipped is what was measured, in every format
        self.model.half().save_pretrained(WORK / self.name)

    def _step(
        self, feed: Iterator[tuple[int, int, torch.Tensor, torch.Tensor]], parts: int
    ) -> torch.Tensor:
        """One update; the mean loss before it."""
        scale = self.rate * min(1, (self.at.step + 1) / WARM_UP_STEPS)
        scale *= min(1, (1 - self.at.tokens / self.budget) / DECAY)
        self.muon.param_groups[0]["lr"] = MUON_RATE * scale
        self.adam.param_groups[0]["lr"] = ADAM_RATE * scale
        total = torch.zeros(())
        for _ in range(parts):
            self.at.window, self.at.done, ids, targets = next(feed)
            loss = self.loss(ids, targets) / parts
            loss.backward()
            total += loss.detach().cpu()
            self.at.tokens += ids.numel()
        self.muon.step()
        self.adam.step()
        self.model.zero_grad()
        self.at.step += 1
        return total

    def _held_out(self, fixed: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
        # With gradients: another mode would compile every graph again.
        return sum(self.loss(ids, targets).item() for ids, targets in fixed) / len(fixed)

    def _report(self, loss: float, held_out: float) -> None:
        at = self.at
        line = {
            "step": at.step,
            "tokens": at.tokens,
            "minutes": round(at.seconds / 60, 1),
            "loss": round(loss, 4),
            "held_out": round(held_out, 4),
            "tokens_per_second": round(at.tokens / at.seconds),
        }
        print(json.dumps(line), flush=True)
        with (WORK / f"{self.name}.jsonl").open("a") as log:
            log.write(json.dumps(line) + "\n")

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "at": vars(self.at),
        }
        unfinished = self.checkpoint.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.replace(self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device)
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        self.at = Position(**state["at"])


def main() -> None:
    """Reads the command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("name", help="S, M, L or PRM; another name needs --size")
    parser.add_argument("--size", choices=SIZES, help="by default the name; M for PRM")
    parser.add_argument("--tokens", type=float, required=True, help="millions, padding included")
    parser.add_argument("--rate", type=float, default=1.0, help="times the usual learning rates")
    parser.add_argument(
        "--from", dest="start", help="a trained model to begin with, or to grow from"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    size = SIZES[options.size or ("M" if options.name == "PRM" else options.name)]
    if options.start:
        model = LlamaForCausalLM.from_pretrained(found(options.start), dtype=torch.float32)
        if size.layers != model.config.num_hidden_layers:
            model = grown(model, size)
    else:
        model = new_model(size)
    if options.name == "PRM":
        from nano.samples import judgements

        stream, held_out = judgements("train"), judgements("validation")
    else:
        stream = solutions(warm_up=0 if options.start else WARM_UP)
        held_out = solutions("validation", warm_up=0)
    run = Run(options.name, model, options.tokens * 1e6, options.rate)
    run.go(stream, held_out)


if __name__ == "__main__":
    main()
