"""Keys of roots and children."""

from langchain_pareto.backends.keys import MASK64, child_key, guess_key, root_key, uniforms

UNIFORMS = [0.12963278020319852, 0.8806628002561669, 0.5865299701884961, 0.5865299701884961]
GUESSES = [7179163421162001120, 4715090397978304109]


def test_keys() -> None:
    """Keys are 64 bits, and depend on the seed, its sign, the tokens and their order."""
    roots = {root_key(s, t) for s in (0, 1, -1, 2**70) for t in ([1, 2], [2, 1], [1], [])}
    assert len(roots) == 16
    assert root_key(0, [1, 2]) == root_key(0, (1, 2))
    children = {child_key(root, i) for root in roots for i in range(100)}
    assert len(children) == 1600
    assert all(0 <= key <= MASK64 for key in roots | children)


def test_tests_and_guesses_are_fixed_for_ever() -> None:
    """What a guess is tested with, and the keys of guesses, are part of a seed's text: changing them must fail a test."""
    u = uniforms([1, 1, 2**64 + 2, 2], [0, 7, 7, 7])
    assert u.tolist() == UNIFORMS
    assert [guess_key(1, length) for length in (0, 9)] == GUESSES
    many = uniforms([5] * 10_000, range(10_000))
    assert 0 < many.min() < 1e-3
    assert 1 - 1e-3 < many.max() < 1
    assert abs(many.mean() - 0.5) < 3 * (12 * 10_000) ** -0.5
