"""
Maximal coupling: a row draws what another model guessed as often as any rule may that leaves the row's distribution as it is.

Leviathan, Kalman and Matias 2023 (arXiv 2211.17192), algorithm 1: a guess x ~ q is drawn if u <= p(x) / q(x), else a token of the
residual norm(max(p - q, 0)); so p is drawn, and x with probability sum of min(p, q). p and q are what target and draft draw from after
every warper. Knows such tensors; nothing of keys, settings and branches.

Each row is coupled for itself, and draws its guess or something else: who looks at the rows up to the first that does not draw its
guess, which is all that anybody may look at, sees the published algorithm, and a row after the last guess draws from p. For p to be
drawn, three noises must be independent: that of the guess, u, and that of the residual. The last two are the branch's own at the row's
position, each with its own salt. Guesses have a key for each round, since a guess behind a wrong one is thrown away and its place
guessed again: whatever hung on it, such as how many tokens are guessed next, says nothing about the new one.

The two vocabularies may be padded differently. A guess that the target does not have is none: the round ends before it, so a guess
that is looked at was drawn from q given that the target has it, and `fitted` makes q that. Where there is no guess p is drawn: p both
ways.
"""

import torch
from torch import Tensor
from torch.nn import functional


def fitted(q: Tensor, vocab: int) -> Tensor:
    """A draft's distributions given that the target, of so many tokens, has the token: (rows, own vocab) -> (rows, vocab)."""
    if q.shape[1] <= vocab:
        return functional.pad(q, (0, vocab - q.shape[1]))
    known = q[:, :vocab]
    return known / known.sum(-1, keepdim=True)


def kept(p: Tensor, q: Tensor, guesses: Tensor, u: Tensor) -> Tensor:
    """Whether the row draws its guess: u < p / q, of (rows, vocab) twice, (rows, 1) and u in (0, 1) (rows, 1), float64."""
    return u * q.gather(1, guesses) < p.gather(1, guesses)


def residual(p: Tensor, q: Tensor) -> Tensor:
    """ln max(p - q, 0), what a row that does not draw its guess is drawn from, up to a constant a row: (rows, vocab).

    Nothing but -inf where p and q are equal up to rounding: then p itself is as good.
    """
    return torch.sub(p, q).clamp_(min=0.0).log_()
