"""What the process reward model says of each line of a solution. Knows how the PRM is read; knows no truth."""

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nano.data import of_judgements, padded
from nano.problem import written_lines
from nano.tokenizer import BAD, GOOD, SPECIAL

BATCH = 16_384  # tokens of one forward pass


@torch.inference_mode()
def step_scores(
    prm: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    asked: Sequence[tuple[str, str]],
) -> list[list[float]]:
    """P(good) against P(bad) after each line, for pairs of question and solution; an empty solution has no line.

    The last one is the score of the outcome.
    """
    examples = []
    for question, solution in asked:
        lines = written_lines(solution)
        examples.append(
            of_judgements(
                tokenizer.backend_tokenizer, question, lines, [True] * len(lines), ended=True
            )
        )
    scores: list[list[float]] = [[] for _ in asked]
    order = sorted(range(len(asked)), key=lambda i: len(examples[i].ids))
    for at in range(0, len(order), step := BATCH // max(1, len(examples[order[-1]].ids))):
        rows = order[at : at + step]
        ids, targets = padded([examples[i] for i in rows], max(len(examples[i].ids) for i in rows))
        logits = (
            prm(input_ids=ids.to(prm.device)).logits.float().cpu()
        )  # (rows, length, vocabulary)
        good = logits[..., SPECIAL.index(GOOD)] - logits[..., SPECIAL.index(BAD)]
        for i, p, judged in zip(rows, good.sigmoid(), targets >= 0, strict=True):
            scores[i] = p[judged].tolist()
    return scores
