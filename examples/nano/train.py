"""
Trains one model of the family from scratch, on two CPU cores or on a GPU, as recipes.py says.

    cd examples
    python -m nano.train M

A run that was stopped resumes with the same command. It writes work/M.pt, the checkpoint, and work/M.jsonl, one line per report:
tokens seen, loss of training (of all that is learned) and of held-out problems (of what the model is for), tokens a second. When it is
done, work/M has the weights. All commands of the family, in their order, are in README.md.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from nano.data import IGNORED, LENGTHS, Batch, Stream, batches, solutions
from nano.judgements import both_tasks, held_out_of_both, judgements, puzzles_first
from nano.lookups import Lookups
from nano.models import grown, new_model
from nano.muon import Muon
from nano.paths import WORK, trained_or_shipped
from nano.recipes import RECIPES, Recipe

MICRO_BATCH = {"cpu": 2048, "cuda": 8192}  # tokens: what stays in a core's cache, or fills a GPU
BATCH = 8192  # tokens a step
MUON_RATE, ADAM_RATE = 0.02, 3e-3
WARM_UP = 100  # steps in which the rates grow
DECAY = 0.75  # the last share of the tokens, in which they fall linearly to zero
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

    def __init__(self, name: str, model: LlamaForCausalLM, recipe: Recipe) -> None:
        self.name, self.model, self.recipe = name, model, recipe
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        model.to(self.device).train()  # type: ignore[arg-type]  # transformers wraps it without types
        # On a CPU plain matrix products beat the fused attention's backward pass twice over on rows this short.
        model.set_attn_implementation("eager" if self.device == "cpu" else "sdpa")
        named = list(model.named_parameters())
        matrices = [p for n, p in named if p.ndim == 2 and "embed" not in n]
        others = [p for n, p in named if p.ndim != 2 or "embed" in n]
        self.lookups = Lookups(recipe.size.width).to(self.device) if recipe.lookups else None
        if self.lookups is not None:
            others += self.lookups.parameters()
        self.muon = Muon(matrices, MUON_RATE)
        self.adam = torch.optim.AdamW(others, ADAM_RATE, betas=(0.9, 0.95), weight_decay=0.0)
        # One graph per length, forward and backward, and some to spare; of one layer, which all layers share: to compile the whole
        # model takes many times as long, and what comes of it is no faster.
        torch._dynamo.config.recompile_limit = 4 * len(LENGTHS)  # noqa: SLF001
        for layer in model.model.layers:
            layer.compile(dynamic=False)
        self.at = Position()
        if self.checkpoint.exists():
            self._load()

    @property
    def checkpoint(self) -> Path:
        """Where the run goes on from."""
        return WORK / f"{self.name}.pt"

    def loss(
        self, ids: torch.Tensor, targets: torch.Tensor, lookups: Lookups | None = None
    ) -> torch.Tensor:
        """Mean cross-entropy of what is learned, and with it that of `lookups`."""
        ids, targets = ids.to(self.device), targets.to(self.device)
        with torch.autocast(self.device, dtype=torch.bfloat16):
            out = self.model(
                input_ids=ids, use_cache=False, output_hidden_states=lookups is not None
            )
        loss = cross_entropy(
            out.logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED
        )
        return loss if lookups is None else loss + lookups(out.hidden_states, ids)

    def go(self, stream: Stream, held_out: Stream) -> None:
        """Trains to the end of the tokens."""
        size = MICRO_BATCH[self.device]
        feed = batches(stream, size, window=self.at.window, skip=self.at.done)
        fixed = list(islice(batches(held_out, size), HELD_OUT))
        began, before = time.monotonic(), self.at.seconds
        losses = list[torch.Tensor]()  # since the last report
        while self.at.tokens < self.recipe.tokens:
            losses.append(self._step(feed, BATCH // size))
            self.at.seconds = before + time.monotonic() - began
            done = self.at.tokens >= self.recipe.tokens
            if done or self.at.step % REPORT == 0:
                self._report(float(torch.stack(losses).mean()), self._held_out(fixed))
                losses.clear()
            if done or self.at.step % SAVE == 0:
                self._save()
        # half: what is shipped is what was measured, in every format
        self.model.half().save_pretrained(WORK / self.name)  # type: ignore[no-untyped-call]

    def _step(self, feed: Iterator[Batch], parts: int) -> torch.Tensor:
        """One update; the mean loss before it."""
        scale = self.recipe.rate * min(1.0, (self.at.step + 1) / WARM_UP)
        scale *= min(1.0, (1 - self.at.tokens / self.recipe.tokens) / DECAY)
        self.muon.param_groups[0]["lr"] = MUON_RATE * scale
        self.adam.param_groups[0]["lr"] = ADAM_RATE * scale
        total = torch.zeros(())
        for _ in range(parts):
            batch = next(feed)
            self.at.window, self.at.done = batch.window, batch.done
            loss = self.loss(batch.ids, batch.targets, self.lookups) / parts
            loss.backward()
            total += loss.detach().cpu()
            self.at.tokens += batch.ids.numel()
        self.muon.step()
        self.adam.step()
        self.muon.zero_grad()
        self.adam.zero_grad()
        self.at.step += 1
        return total

    def _held_out(self, fixed: list[Batch]) -> float:
        # With gradients: another mode would compile every graph again.
        return sum(self.loss(batch.ids, batch.targets).item() for batch in fixed) / len(fixed)

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
            "recipe": asdict(self.recipe),
            "model": self.model.state_dict(),
            "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(),
            "lookups": None if self.lookups is None else self.lookups.state_dict(),
            "at": vars(self.at),
        }
        unfinished = self.checkpoint.with_suffix(".tmp")
        torch.save(state, unfinished)
        unfinished.replace(self.checkpoint)

    def _load(self) -> None:
        state = torch.load(self.checkpoint, map_location=self.device)
        if state["recipe"] != asdict(self.recipe):
            raise ValueError(
                f"{self.checkpoint} is of another recipe, {state['recipe']}: delete it to begin again"
            )
        self.model.load_state_dict(state["model"])
        self.muon.load_state_dict(state["muon"])
        self.adam.load_state_dict(state["adam"])
        if self.lookups is not None:
            self.lookups.load_state_dict(state["lookups"])
        self.at = Position(**state["at"])


def begun(recipe: Recipe) -> LlamaForCausalLM:
    """The model that a recipe begins with."""
    if recipe.start is None:
        return new_model(recipe.size)
    folder = trained_or_shipped(recipe.start)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if recipe.size.layers != model.config.num_hidden_layers:
        model = grown(model, recipe.size)
    return model


def streams(name: str, recipe: Recipe) -> tuple[Stream, Stream]:
    """What a model learns, and what it is held against."""
    if name == "PRM-puzzles":
        return puzzles_first(), judgements("validation")
    if name == "PRM":
        return both_tasks(), held_out_of_both()
    learned = solutions() if recipe.start is None else solutions(curriculum=0)
    return learned, solutions("validation", curriculum=0)


def main() -> None:
    """Reads the command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("name", choices=RECIPES)
    name = parser.parse_args().name
    recipe = RECIPES[name]
    torch.manual_seed(0)
    Run(name, begun(recipe), recipe).go(*streams(name, recipe))


if __name__ == "__main__":
    main()
