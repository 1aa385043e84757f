"""Keys of roots and children."""

from langchain_pareto.backends.keys import MASK64, child_key, root_key


def test_keys() -> None:
    """Keys are 64 bits, and depend on the seed, its sign, the tokens and their order."""
    roots = {root_key(s, t) for s in (0, 1, -1, 2**70) for t in ([1, 2], [2, 1], [1], [])}
    assert len(roots) == 16
    assert root_key(0, [1, 2]) == root_key(0, (1, 2))
    children = {child_key(root, i) for root in roots for i in range(100)}
    assert len(children) == 1600
    assert all(0 <= key <= MASK64 for key in roots | children)
