"""Stop strings: the same as a naive search, however the text arrives."""

import pytest
from hypothesis import given, settings, strategies as st

from langchain_pareto.backends.stops import StopStrings
from langchain_pareto.errors import SettingError


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    found = [(text.find(stop), -len(stop), stop) for stop in stops if stop in text]
    return (min(found)[0], min(found)[2]) if found else None


@given(
    pieces=st.lists(st.text("ab", max_size=4), max_size=12),
    stops=st.lists(st.text("ab", min_size=1, max_size=5), max_size=4),
)
@settings(max_examples=500, deadline=None)
def test_stops_equal_a_naive_search_after_each_piece(pieces, stops):
    """Match and safe text equal `str.find` and the longest held prefix, searched anew after each piece."""
    watch, seen, emitted = StopStrings(stops), "", ""
    for piece in pieces:
        seen += piece
        safe, matched = watch.feed(piece)
        emitted += safe
        expected = first_stop(seen, stops)
        if expected is not None:
            assert (emitted, matched) == (seen[: expected[0]], expected[1])
            return
        held = max((k for s in stops for k in range(len(s)) if seen.endswith(s[:k])), default=0)
        assert (emitted, matched) == (seen[: len(seen) - held], None)
    assert emitted + watch.flush() == seen


def test_a_stop_spans_pieces_and_text_is_cut_before_it():
    """A stop across three pieces is found; text before it comes out as soon as it is safe."""
    watch = StopStrings(["\nEND"])
    assert [watch.feed(p) for p in ("one\n", "E", "X\nE", "ND two")] == [
        ("one", None),
        ("", None),
        ("\nEX", None),
        ("", "\nEND"),
    ]
    assert watch.feed("more") == ("", "\nEND")


def test_of_two_stops_the_earlier_then_the_longer_counts():
    """Within one piece the stop that starts first wins, and the longer of two that start together."""
    assert StopStrings(["bc", "abcd"]).feed("xabcd") == ("x", "abcd")
    assert StopStrings(["ab", "abc"]).feed("xabc") == ("x", "abc")
    assert StopStrings("stop").feed("a stop") == ("a ", "stop")
    assert StopStrings().feed("text") == ("text", None)


def test_an_empty_stop_is_refused():
    """An empty string would stop everything."""
    with pytest.raises(SettingError, match="empty"):
        StopStrings(["x", ""])
