"""
A card for every model of the family, all in one form: `cd examples && python -m nano.cards`.

Takes what it says from the configuration, from the log of the training and from the report; writes README.md beside the weights.
"""

import json
from pathlib import Path
from typing import Any

from nano.models import home
from nano.report import REPORT
from nano.tokenizer import WORK

ROLES = {
    "S": "the draft, and the smallest policy",
    "M": "the policy: the default model",
    "L": "the large policy",
    "PRM": "the process reward model",
}
COMMANDS = {
    "S": ["python -m nano.train S --tokens 150"],
    "M": ["python -m nano.train M --tokens 90"],
    "L": ["python -m nano.train L --tokens 40 --from M"],
    "PRM": [
        "python -m nano.samples M --split train --problems 12000",
        "python -m nano.samples M --split validation --problems 1000",
        "python -m nano.train PRM --tokens 30 --from M",
    ],
}
DATA = {
    "PRM": "samples of M at temperature 1 on training problems of both tasks, each line judged exactly (`judge` in `tasks.py`)",
}
SOLUTIONS = (
    "training problems of both tasks, drawn at random by `examples/nano/tasks.py`, with one solution each; only the tokens of "
    "solutions are learned; no text was taken from anywhere"
)
FORM = """# Nano {name}: {role}

| | |
|---|---|
| architecture | Llama (RMSNorm, rotary embeddings, SwiGLU, tied embeddings): {layers} layers × {width}, {heads} heads, feed-forward {hidden} |
| parameters | {parameters:,} |
| weights | float16, {megabytes:.1f} MB |
| tokenizer | byte-level BPE, 512 ids, single digits, chat template; shared by the family |
| context | 2048 positions, trained on rows of up to 448 tokens |
| data | {data} |
| tokens seen | {tokens:.0f} million, padding included{start} |
| held-out loss | {loss:.4f} nats a token |
| command | {command} |
| sampling | {sampling} |
| licence | MIT, as the rest of the project |

## Held-out accuracy

{accuracy}

Knows these two tasks and nothing else: no language beyond these sentences, no facts, no instructions. Made for tests,
demonstrations and measurements of search, voting, verification and speculation.
"""


def card(name: str, told: dict[str, Any]) -> str:
    """The text of one card."""
    folder = home(name)
    config = json.loads((folder / "config.json").read_text())
    log = [json.loads(line) for line in (WORK / f"{name}.jsonl").read_text().splitlines()]
    width, hidden, layers = (
        config[key] for key in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    parameters = config["vocab_size"] * width + width
    parameters += layers * (4 * width * width + 3 * width * hidden + 2 * width)
    return FORM.format(
        name=name,
        role=ROLES[name],
        layers=layers,
        width=width,
        heads=config["num_attention_heads"],
        hidden=hidden,
        parameters=parameters,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        data=DATA.get(name, SOLUTIONS),
        tokens=log[-1]["tokens"] / 1e6,
        start=", after those of M" if "--from M" in COMMANDS[name][-1] else "",
        loss=log[-1]["held_out"],
        command="<br>".join(f"`{command}`" for command in COMMANDS[name]),
        sampling=_sampling(name, told),
        accuracy=_accuracy(name, told),
    )


def _sampling(name: str, told: dict[str, Any]) -> str:
    if name == "PRM":
        return "none: P(`<|good|>`) against P(`<|bad|>`) after each line; that of the last one is the outcome's"
    chosen = told[name]["sampling"]
    return f"temperature {chosen['temperature']}, top-p {chosen['top_p']}, chosen on validation problems"


def _accuracy(name: str, told: dict[str, Any]) -> str:
    if name == "PRM":
        auc = told["step AUC of the PRM, samples of M"]
        rows = [f"| {task.replace('_', ' ')} | {value:.3f} |" for task, value in auc.items()]
        best = [
            f"| {band} | {figures['greedy'][0]} | {figures['maj@16'][0]} | {figures['best of 16'][0]} "
            f"| {figures['weighted vote of 16'][0]} | {figures['pass@16'][0]} |"
            for band, figures in told["M"]["bands"].items()
        ]
        return "\n".join(
            [
                "Area under the ROC curve of good against bad lines, on samples of M:\n",
                "| task | step AUC |",
                "|---|---|",
                *rows,
                "\nWhat it is worth on 16 samples of M, per cent of problems:\n",
                "| problems | greedy | majority of 16 | best of 16 | weighted vote of 16 | pass@16 |",
                "|---|---|---|---|---|---|",
                *best,
            ]
        )
    lines = [
        "Per cent of 1,000 held-out problems each, with 95 % intervals:\n",
        "| problems | greedy | mean sample | majority of 16 | pass@16 | tokens a sample |",
        "|---|---|---|---|---|---|",
    ]
    for band, figures in told[name]["bands"].items():
        cells = [
            f"{v[0]} ({v[1]}-{v[2]})"
            for v in (figures[k] for k in ("greedy", "mean sample", "maj@16", "pass@16"))
        ]
        lines.append(f"| {band} | {' | '.join(cells)} | {figures['tokens a sample']:.0f} |")
    return "\n".join(lines)


def main() -> None:
    """Writes the cards of all models that are there."""
    told = json.loads((REPORT / "report.json").read_text())
    for name in ROLES:
        if (home(name) / "config.json").exists() and (name in told or name == "PRM"):
            path: Path = home(name) / "README.md"
            path.write_text(card(name, told))
            print(path)


if __name__ == "__main__":
    main()
