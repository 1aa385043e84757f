"""
Heads on the middle layers that teach a model to look things up, and are thrown away when it has learned it.

Whether a line is right tells little of whose number should stand in it, so verdicts alone do not teach the PRM to notice somebody else's
(README.md). Told in the middle whom a line is about and whose number comes next, it does (deep supervision, Lee et al. 2015,
https://arxiv.org/abs/1409.5185). Knows word problems' names and tokens.
"""

import torch
from torch.nn.functional import cross_entropy, rms_norm

from nano.data import IGNORED, encoder
from nano.problem import OPERATIONS
from nano.tokenizer import END, PAD, SPECIAL
from nano.word_problems import NAMES

SUBJECT, SOURCE = 2, 3  # after so many layers: whom a line is about, whose number comes next
WEIGHT = 0.3  # of each head's loss


def _token(text: str) -> int:
    return int(encoder().encode(text).ids[-1])


_FIRST = {_token(name): i for i, name in enumerate(NAMES)}  # at the beginning of a line
_WITHIN = {_token(f"x {name}"): i for i, name in enumerate(NAMES)}
_SYMBOLS = {_token(f"x {symbol}") for symbol in OPERATIONS}
_EQUALS, _LINE_END = _token("x ="), _token("\n")
_PAST = {SPECIAL.index(END), SPECIAL.index(PAD)}  # of what is about nobody


class Lookups(torch.nn.Module):
    """Two linear heads over the names, on hidden states behind `SUBJECT` and `SOURCE` layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList(torch.nn.Linear(width, len(NAMES)) for _ in range(2))

    def forward(self, hidden: tuple[torch.Tensor, ...], ids: torch.Tensor) -> torch.Tensor:
        """What the heads have yet to learn of `ids` (rows, length), to be added to the loss; `hidden` is (rows, length, width) each."""
        total = torch.zeros((), device=ids.device)
        for head, layer, told in zip(self.heads, (SUBJECT, SOURCE), labels_of(ids), strict=True):
            known = told != IGNORED
            if known.any():
                states = hidden[layer][known].float()
                total = total + WEIGHT * cross_entropy(
                    head(rms_norm(states, states.shape[-1:])), told[known]
                )
        return total


def labels_of(ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Whom the line of each token is about, and whose number comes next: places in NAMES (rows, length), -100 where nobody.

    In `Wes = Tom + Cal = 32 + 37 = 69` everything is about Wes; Tom's number comes behind the second `=`, Cal's behind the second `+`.
    """
    told = [_labels_of_row(row) for row in ids.tolist()]
    subjects, sources = zip(*told, strict=True)
    return torch.tensor(subjects, device=ids.device), torch.tensor(sources, device=ids.device)


def _labels_of_row(row: list[int]) -> tuple[list[int], list[int]]:
    subjects, sources = [IGNORED] * len(row), [IGNORED] * len(row)
    subject, part, terms = IGNORED, 0, [IGNORED]  # `part`: how many `=` the line has had
    for i, token in enumerate(row):
        if token in _FIRST:
            subject, part, terms = _FIRST[token], 0, [IGNORED]
        elif token in _PAST:
            subject = IGNORED
        subjects[i] = subject
        if token == _LINE_END:
            subject = IGNORED
        if subject == IGNORED:
            continue
        if token == _EQUALS:
            part += 1
            if part == 2:
                sources[i] = terms[0]
        elif token in _SYMBOLS:
            if part == 1:
                terms.append(IGNORED)
            elif part == 2 and len(terms) > 1:
                sources[i] = terms[1]
        elif token in _WITHIN and part == 1:
            terms[-1] = _WITHIN[token]
    return subjects, sources
