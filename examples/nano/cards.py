"""
A card for every model of the family that was trained here, all in one form: `cd examples && python -m nano.cards`.

Takes what it says from the recipe, the configuration, the log of the training and the report; writes README.md beside the weights.
"""

import json
from typing import Any

from safetensors.numpy import load_file

from nano.data import LENGTHS
from nano.paths import REPORT, SHIPPED, WORK
from nano.recipes import RECIPES

ROLES = {
    "S": "the draft, and the smallest policy",
    "M": "the policy: the default model",
    "L": "the large policy",
    "PRM": "the process reward model",
}
JUDGEMENTS = (
    "samples of M at temperature 1 on training problems of both tasks, attempts at others by rules that fail as M does (`attempts.py`, "
    "`misreadings.py`), and exercises in looking up; each line judged exactly, and the numbers of good ones learned as well"
)
SOLUTIONS = (
    "training problems of both tasks, drawn at random by `examples/nano/tasks.py`, with one solution each; only the tokens of "
    "solutions are learned; no text was taken from anywhere"
)
PROBLEMS = """Per cent of {count:,} held-out problems each, with 95 % intervals. A problem of n facts was drawn with n linked ones; \
its answer may need fewer.
"""
LINES = """Area under the ROC curve of good against bad lines, on samples of M, with 95 % intervals. Most lines after a bad one are bad, \
and at the end the number that was made is the target or is not, so it is told for fewer lines too; of M's first errors on word \
problems most are sums with somebody else's number.
"""
FORM = """# Nano {name}: {role}

| | |
|---|---|
| architecture | Llama (RMSNorm, rotary embeddings, SwiGLU, tied embeddings): {layers} layers × {width}, {heads} heads, feed-forward {hidden} |
| parameters | {parameters:,} |
| weights | float16, {megabytes:.1f} MB |
| tokenizer | byte-level BPE, {vocabulary} ids, single digits, chat template; shared by the family |
| context | {context} positions, trained on rows of up to {longest} tokens |
| data | {data} |
| tokens seen | {tokens:.0f} million, padding included{start} |
| held-out loss | {loss:.4f} nats a {unit} |
| command | {command}; the commands before it are in `examples/nano/README.md` |
| sampling | {sampling} |
| licence | MIT, as the rest of the project |

## Held-out accuracy

{accuracy}

Knows these two tasks and nothing else: no language beyond these sentences, no facts, no instructions. Made for tests,
demonstrations and measurements of search, voting, verification and speculation.
"""


def card(name: str, results: dict[str, Any]) -> str:
    """The text of one card."""
    folder = SHIPPED[name]
    config = json.loads((folder / "config.json").read_text())
    log = [json.loads(line) for line in (WORK / f"{name}.jsonl").read_text().splitlines()]
    weights = folder / "model.safetensors"
    return FORM.format(
        name=name,
        role=ROLES[name],
        layers=config["num_hidden_layers"],
        width=config["hidden_size"],
        heads=config["num_attention_heads"],
        hidden=config["intermediate_size"],
        parameters=sum(tensor.size for tensor in load_file(weights).values()),
        megabytes=weights.stat().st_size / 1e6,
        vocabulary=config["vocab_size"],
        context=config["max_position_embeddings"],
        longest=LENGTHS[-1],
        data=JUDGEMENTS if name == "PRM" else SOLUTIONS,
        tokens=log[-1]["tokens"] / 1e6,
        start=_starts(name),
        loss=log[-1]["held_out"],
        unit="judgement" if name == "PRM" else "token",
        command=f"`python -m nano.train {name}`",
        sampling=_sampling(name, results),
        accuracy=_judging(results) if name == "PRM" else _solving(name, results),
    )


def _starts(name: str) -> str:
    """The models whose weights it began with, the last one first."""
    starts = []
    while start := RECIPES[name].start:
        starts.append(start)
        name = start
    return f", after those of {' and '.join(starts)}" if starts else ""


def _sampling(name: str, results: dict[str, Any]) -> str:
    if name == "PRM":
        return "none: P(`<|good|>`) against P(`<|bad|>`) after each line; that of the last one is the outcome's"
    chosen = results["models"][name]["sampling"]
    by = "as M" if name == "L" else "chosen on validation problems"
    return f"temperature {chosen['temperature']}, top-p {chosen['top_p']}, {by}"


def _judging(results: dict[str, Any]) -> str:
    areas = results["step AUC"]
    kinds = list(dict.fromkeys(kind for area in areas.values() for kind in area))
    rows = [
        f"| {band} | {' | '.join(_area(area.get(kind)) for kind in kinds)} |"
        for band, area in areas.items()
    ]
    columns = ("greedy", "maj@16", "best of 16", "weighted vote of 16", "pass@16")
    bands = results["models"]["M"]["bands"]
    gains = [
        f"| {band} | {' | '.join(str(figures[c][0]) for c in columns)} |"
        for band, figures in bands.items()
    ]
    return "\n".join(
        [
            LINES,
            f"| problems | {' | '.join(kinds)} |",
            "|---|" + "---|" * len(kinds),
            *rows,
            "\nWhat it is worth on 16 samples of M, per cent of problems:\n",
            "| problems | greedy | majority of 16 | best of 16 | weighted vote of 16 | pass@16 |",
            "|---|---|---|---|---|---|",
            *gains,
        ]
    )


def _area(told: list[float] | None) -> str:
    return "-" if told is None else "{:.3f} ({:.3f}-{:.3f})".format(*told)


def _solving(name: str, results: dict[str, Any]) -> str:
    rows = []
    for band, figures in results["models"][name]["bands"].items():
        columns = (figures[c] for c in ("greedy", "mean sample", "maj@16", "pass@16"))
        cells = [f"{mean} ({low}-{high})" for mean, low, high in columns]
        rows.append(f"| {band} | {' | '.join(cells)} | {figures['tokens a sample']:.0f} |")
    return "\n".join(
        [
            PROBLEMS.format(count=min(results["problems"][name].values())),
            "| problems | greedy | mean sample | majority of 16 | pass@16 | tokens a sample |",
            "|---|---|---|---|---|---|",
            *rows,
        ]
    )


def main() -> None:
    """Writes the cards of all models whose training left its log."""
    results = json.loads((REPORT / "report.json").read_text())
    for name in ROLES:
        measured = name in results["models"] or name == "PRM"
        if measured and (WORK / f"{name}.jsonl").exists():
            path = SHIPPED[name] / "README.md"
            path.write_text(card(name, results))
            print(path)


if __name__ == "__main__":
    main()
