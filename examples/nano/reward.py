"""What the process reward model says of each line of a solution. Knows how the PRM is read; does not know what is right."""

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from nano.data import padded
from nano.judgements import of_lines
from nano.problem import written_lines
from nano.tokenizer import BAD, GOOD, SPECIAL

BATCH = 16_384  # tokens of one forward pass


@torch.inference_mode()
def step_scores(
    prm: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    solutions: Sequence[tuple[str, str, bool]],
) -> list[list[float]]:
    """P(good) / (P(good) + P(bad)) after each line of each (question, solution, whether it came to its end).

    The last one is the score of the outcome; an empty solution has no line.
    """
    encoder = tokenizer.backend_tokenizer
    examples = []
    for question, solution, ended in solutions:
        lines = written_lines(solution)
        # the verdicts stand for nothing: only their places are used
        examples.append(of_lines(encoder, question, lines, [True] * len(lines), ended=ended))
    scores: list[list[float]] = [[] for _ in examples]
    order = sorted(range(len(examples)), key=lambda i: len(examples[i].ids))
    longest = max((len(e.ids) for e in examples), default=1)
    size = max(1, BATCH // longest)  # rows of one forward pass
    for at in range(0, len(order), size):
        rows = order[at : at + size]
        ids, targets = padded([examples[i] for i in rows], len(examples[rows[-1]].ids))
        logits = prm(input_ids=ids.to(prm.device)).logits.float().cpu()  # (rows, length, vocab)
        good = logits[..., SPECIAL.index(GOOD)] - logits[..., SPECIAL.index(BAD)]
        for i, p, judged in zip(rows, good.sigmoid(), targets >= 0, strict=True):
            scores[i] = p[judged].tolist()
    return scores
