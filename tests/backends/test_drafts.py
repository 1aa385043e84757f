"""What was written before: guesses from the branches of one tree, as they are now."""

import pytest

from langchain_pareto.backends.base import Sampling, Stop
from langchain_pareto.backends.decoders import Lookup
from langchain_pareto.backends.decoding import DecodingBackend
from langchain_pareto.backends.drafts import WrittenBefore
from langchain_pareto.backends.sequences import Sequence

WAIT = 120


def test_what_is_freed_is_forgotten_in_the_end():
    """A tree that frees its branches holds a few of them at a time, and its living ones whole."""
    written = WrittenBefore(3, 1, room=100)
    root = Sequence.root(list(range(20)))
    for k in range(50):
        child = root.fork()
        child.tokens.extend(range(1000 * k, 1000 * k + 20))
        written.read(child)
        assert written.goes_on([3, 4, 5], 4) == [6, 7, 8, 9]
        child.freed = True
        assert len(written._places) <= 400
        assert len({id(sequence) for sequence, _ in written._places.values()}) <= 8
    assert written.goes_on(list(range(49000, 49010)), 2) == [49010, 49011]  # not yet


def test_a_tree_of_many_living_branches_is_not_read_again_and_again(monkeypatch):
    """The room grows with what is alive."""
    written, released = WrittenBefore(2, 1, room=10), []
    release = written._release
    monkeypatch.setattr(written, "_release", lambda: (released.append(1), release()))
    root = Sequence.root([0])
    for k in range(1, 200):
        child = root.fork()
        child.tokens.extend(range(100 * k, 100 * k + 10))
        written.read(child)
    assert len(released) < 12
    assert written.goes_on([100, 101], 2) == [102, 103]


def test_a_truncated_branch_is_read_anew():
    """What came in the place of what was cut off is guessed, and what was cut off is not."""
    written = WrittenBefore(2, 1)
    sequence = Sequence.root([1, 2, 3, 4, 5, 6])
    written.read(sequence)
    sequence.truncate(3)
    sequence.part()
    sequence.tokens.extend([7, 8, 9])
    assert written.goes_on([0, 4], 3) == []
    assert written.goes_on([4, 5], 3) == []
    sequence.tokens.extend([2, 3])
    written.read(sequence)
    assert written.goes_on([2, 3], 3) == [7, 8, 9]


@pytest.mark.parametrize("length", [3, 8])
def test_look_up_after_a_truncation_reads_what_is_there(make_backend, length):
    """Through a branch: cut back and continued otherwise, the index of its tree holds the new text alone."""
    target = make_backend()
    backend = DecodingBackend(target, Lookup(draft_tokens=2, shortest=2, ngram=2))
    branch = backend.open([1, 2, 3, 4, 5, 6, 7, 8])
    stop = Stop(6, eos=False)
    backend.extend(branch, Sampling(), stop).future.result(WAIT)
    branch.truncate(length)
    branch.append([200, 201, 202, 203, 204, 205, 206, 207])
    backend.extend(branch, Sampling(), stop).future.result(WAIT)
    written = branch.shared(("written", 2, 2), None)
    for at in range(2, length + 8):
        assert written.goes_on(branch.tokens[:at], 1) == [branch.tokens[at]]
