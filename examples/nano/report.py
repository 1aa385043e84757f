"""
What the family can do on held-out problems: `make nano-report`.

    cd examples
    python -m nano.report sample S     # 32 samples and a greedy one of every problem; the same command again resumes
    python -m nano.report sample M     # the models may be sampled side by side
    python -m nano.report sample L
    python -m nano.report              # scores them with the PRM, then writes the report

Writes nano/report/report.json and report.md, the curves as nano/report/curves.png, and nano/pools. Puts together what the modules
beside it measure.
"""

import argparse
import json
import math
import os
from collections import defaultdict
from itertools import combinations, pairwise

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from langchain_pareto.backends.base import Sampling
from langchain_pareto.backends.loading import load
from nano import choice, growing, measures, sample_pools
from nano.agreement import greedy_agreement, step_auc
from nano.bands import all_problems, by_band, pooled_problems
from nano.comparisons import gains, larger_over_smaller
from nano.figure import COUNTS, draw_curves, write_table
from nano.paths import REPORT, SAMPLES, TOKENIZER, trained_or_shipped
from nano.reward import step_scores
from nano.sample_pools import Pool, equal_answers, pool_of
from nano.samples import ProblemRef, Samples, read_all, weights_of, write
from nano.tasks import TASKS
from nano.word_problems import facts_needed

POLICIES = ("S", "M", "L")
N = 32  # samples of a problem
GREEDY = Sampling(temperature=0.0)


def sample(name: str) -> None:
    """Chooses how to sample, then samples."""
    folder = trained_or_shipped(name)
    with load(folder, tokenizer=TOKENIZER) as backend:
        choice.sample_grid(name, folder, backend)
        best = choice.chosen(name)
        print(f"{name}: temperature {best.temperature}, top-p {best.top_p}", flush=True)
        write(SAMPLES / f"{name}.greedy.jsonl", folder, backend, all_problems(name), 1, GREEDY)
        write(SAMPLES / f"{name}.test.jsonl", folder, backend, pooled_problems(name), N, best)


def report(names: list[str]) -> dict[str, object]:
    """Scores, measures and keeps everything; what report.json says. Every share comes with its 95 % interval."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(TOKENIZER)
    prm = LlamaForCausalLM.from_pretrained(trained_or_shipped("PRM"), dtype=torch.float32)
    problems = {name: all_problems(name) for name in names}
    pooled = {name: pooled_problems(name) for name in names}
    drawn = {name: read_all(SAMPLES / f"{name}.test.jsonl", pooled[name]) for name in names}
    greedy = {name: read_all(SAMPLES / f"{name}.greedy.jsonl", problems[name]) for name in names}
    classes = equal_answers(drawn.values())
    found = {
        name: pool_of(
            drawn[name],
            _outcome_scores(name, drawn[name], prm, tokenizer),
            classes=classes,
        )
        for name in names
    }
    for name in names:
        sample_pools.keep(name, drawn[name], found[name])
        places = {ref: i for i, ref in enumerate(pooled[name])}
        found[name] = found[name].part([places[ref] for ref in problems[name]])
    return {
        "problems": {
            name: {band: len(rows) for band, rows in by_band(problems[name])} for name in names
        },
        "models": {
            name: _model(name, problems[name], pool_of(greedy[name]), found[name]) for name in names
        },
        "mean sample": {task: _compared(task, problems, found) for task in TASKS},
        "step AUC": step_auc(prm, tokenizer, drawn["M"]),
        "greedy agreement": {
            f"{small} with {large}": greedy_agreement(small, large, greedy[large], tokenizer)
            for small, large in combinations(names, 2)
        },
    }


def _compared(
    task: str, problems: dict[str, list[ProblemRef]], found: dict[str, Pool]
) -> dict[str, list[float]]:
    """Each model with the next smaller one, on the problems of a task that both were sampled on."""
    places = {name: {ref: i for i, ref in enumerate(refs)} for name, refs in problems.items()}
    compared = dict[str, list[float]]()
    for small, large in pairwise(found):
        both = [p for p in problems[large] if p in places[small] and p.task == task]
        parts = {name: found[name].part([places[name][p] for p in both]) for name in (small, large)}
        compared |= larger_over_smaller(parts)
    return compared


def _model(name: str, problems: list[ProblemRef], greedy: Pool, pool: Pool) -> dict[str, object]:
    """Everything about one policy."""
    sampling = choice.chosen(name)
    levels: dict[str, list[int]] = defaultdict(list)
    for i, ref in enumerate(problems):
        levels[f"{ref.task} {ref.difficulty}"].append(i)
        if ref.task == "word_problem":
            levels[f"{ref.task}, {facts_needed(ref.problem)} facts needed"].append(i)
    return {
        "sampling": {"temperature": sampling.temperature, "top_p": sampling.top_p},
        "bands": {
            band: figures(greedy.part(rows), pool.part(rows))
            | gains(greedy.part(rows), pool.part(rows))
            for band, rows in by_band(problems)
        },
        "greedy": {level: percent(greedy.right[rows, 0]) for level, rows in sorted(levels.items())},
    }


def _outcome_scores(
    name: str, samples: list[Samples], prm: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> list[list[float]]:
    """The PRM's score of every outcome, kept in a file that resumes; an empty solution has 0."""
    path = SAMPLES / f"{name}.scores.jsonl"
    judge = weights_of(trained_or_shipped("PRM"))
    judged = growing.header(SAMPLES / f"{name}.test.jsonl")
    done = growing.resume(path, {"prm": judge, "samples": judged})
    with path.open("a") as file:
        for one in samples[done:]:
            question = one.problem.question
            written = list(zip(one.texts, one.ended, strict=True))
            once = list(dict.fromkeys(written))  # many samples of an easy problem are one text
            steps = step_scores(prm, tokenizer, [(question, text, end) for text, end in once])
            of = {w: round(s[-1], 4) if s else 0.0 for w, s in zip(once, steps, strict=True)}
            file.write(json.dumps([of[w] for w in written]) + "\n")
    return growing.rows(path)


def figures(greedy: Pool, pool: Pool) -> dict[str, object]:
    """What one model does on one band, in per cent of problems."""
    assert pool.scores is not None
    found: dict[str, object] = {
        "greedy": percent(greedy.right[:, 0]),
        "mean sample": percent(pool.right.mean(1)),
        "tokens a sample": round(float(pool.tokens.mean()), 1),
    }
    for k in COUNTS:
        found[f"pass@{k}"] = percent(measures.pass_at(pool.right, k))
        found[f"maj@{k}"] = percent(measures.vote(pool.right, pool.answers, k))
        found[f"best of {k}"] = percent(measures.best_of(pool.right, pool.scores, k))
        weighted = measures.vote(pool.right, pool.answers, k, weights=pool.scores)
        found[f"weighted vote of {k}"] = percent(weighted)
    return found


def _plain(value: object) -> object:
    """The same without NaN, which JSON has not: a share of a gap that is none."""
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def percent(values: npt.NDArray[np.float64] | npt.NDArray[np.bool_]) -> list[float]:
    """Mean, and the ends of its interval, in per cent."""
    shares = values.astype(np.float64)
    return [round(100 * x, 1) for x in (float(shares.mean()), *measures.interval(shares))]


def main() -> None:
    """Reads the command line of the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("command", nargs="?", choices=["sample"])
    parser.add_argument("name", nargs="?", choices=POLICIES)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if options.command == "sample":
        for name in [options.name] if options.name else POLICIES:
            sample(name)
        return
    results = report([name for name in POLICIES if (SAMPLES / f"{name}.test.jsonl").exists()])
    REPORT.mkdir(exist_ok=True)
    (REPORT / "report.json").write_text(json.dumps(_plain(results), indent=1) + "\n")
    write_table(results, REPORT / "report.md")
    draw_curves(results, REPORT / "curves.png")


if __name__ == "__main__":
    main()
