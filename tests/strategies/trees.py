"""Trees of texts by hand, for tests of step-level searches: a model that says them, scores that stand in them, and what was drawn."""

from collections import Counter

from langchain_pareto.backends.scripted import ScriptedBackend


def tree(children: dict[str, list[str]]) -> ScriptedBackend:
    """A model that says below each text, in turn, one of its `children`."""
    said = Counter[str]()

    def answers(text: str, _: int) -> str:
        path = text.removeprefix("2+2?")
        if path not in children:  # a step that is drawn in pieces goes on
            whole = [above + step for above, steps in children.items() for step in steps]
            return next(text for text in whole if text.startswith(path)).removeprefix(path)
        said[path] += 1
        return children[path][(said[path] - 1) % len(children[path])]

    return ScriptedBackend(answers)


class Told:
    """The score is the second word of the last line."""

    async def score(self, thoughts) -> list[float]:
        return [float(t.whole_text.strip().split("\n")[-1].split()[1]) for t in thoughts]


def nodes(outcome) -> list[tuple[int, str]]:
    """(parent, text) of each thought, in order of drawing."""
    return [(t.parent.number, t.text) for t in outcome.thoughts]
