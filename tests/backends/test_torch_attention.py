"""What is gathered for attention is the same whether it is kept between steps or not, and what is kept has a bound."""

import pytest
import torch
from test_step_plan import CPU, HEADS, Trees

from langchain_pareto.backends import torch_attention
from langchain_pareto.backends.torch_attention import Form, LayerPool, Stage, attend

LAYERS, KV_HEADS, WIDTH = 12, 3, 4
FORM = Form(0.5, None, None, None)


def decode(steps: int) -> tuple[list[torch.Tensor], int, set[tuple[int, ...]]]:
    """Forks of several prompts of unlike lengths: outputs of every layer and step, bytes of scratch memory in the end, columns of each step's calls."""
    trees, rng = Trees(), torch.Generator().manual_seed(1)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    pools = {
        i: LayerPool(some(KV_HEADS, 60_001, WIDTH), some(KV_HEADS, 60_001, WIDTH))
        for i in range(LAYERS)
    }
    stage, outputs, sizes = Stage(pools=pools), list[torch.Tensor](), set[tuple[int, ...]]()
    roots = [trees.open(n) for n in (5, 300, 1200)]

    def step(sequences) -> None:
        stage.plan = trees.step(*trees.all_of(*sequences))
        sizes.add(tuple(call.columns.numel() for call in stage.plan.calls))
        rows = stage.plan.tokens.shape[1]
        for layer in range(LAYERS):
            query = some(rows, KV_HEADS * HEADS, WIDTH)
            key, value = some(KV_HEADS, rows, WIDTH), some(KV_HEADS, rows, WIDTH)
            outputs.append(attend(stage, layer, query, key, value, FORM))

    step(roots)
    branches = [trees.fork(root) for root in roots for _ in range(3)]
    for i in range(steps):
        if i == steps // 2:  # another plan, of fewer
            branches = branches[::2]
        for branch in branches:
            trees.append(branch)
        step(branches)
    assert len(stage.plan.calls) > 1
    return outputs, sum(held.nbytes for held in stage.workspace.values()), sizes


@pytest.mark.parametrize("kept", [0, 3 << 10, 64 << 10])
def test_what_is_kept_changes_nothing(monkeypatch, kept):
    """By plans whose calls are kept together, by some that are too large for that, and by none: the same numbers."""
    assert CPU.type == "cpu"
    wanted, most, _ = decode(24)
    monkeypatch.setattr(torch_attention, "_KEPT", kept)
    found, least, _ = decode(24)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert least <= most


def test_scratch_memory_has_a_bound(monkeypatch):
    """However many calls a step has, and whichever plans came before: what is kept, and one call's columns of one layer beside it.

    Each call by itself would fit: it is all of them together that do not.
    """
    *_, sizes = decode(24)
    column = KV_HEADS * WIDTH * 4  # bytes of one in one layer
    widest = max(max(calls, default=0) for calls in sizes)
    kept = LAYERS * widest * column
    assert any(sum(calls) > widest for calls in sizes)
    monkeypatch.setattr(torch_attention, "_KEPT", kept)
    _, held, _ = decode(24)
    assert 0 < held <= 2 * (kept + widest * column)
