"""
Captured steps: the bookkeeping, with graphs that run their work anew on a CPU. `test_cuda.py` has the real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import ENDS, GROUPED, walk
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig

from langchain_pareto.backends import step_graphs, torch_attention
from langchain_pareto.backends.sequences import Chunk
from langchain_pareto.backends.step_graphs import StepGraphs
from langchain_pareto.backends.step_plan import Planner
from langchain_pareto.backends.torch_runner import TorchRunner

CONFIGS = {
    "llama": lambda: LlamaConfig(**GROUPED, **ENDS),
    "mistral": lambda: MistralConfig(**GROUPED, **ENDS, sliding_window=8),
}


class Again:
    """A graph that runs its work anew, over the tensors that it was captured with."""

    def __init__(self, graphs: Graphs, work: Callable[[], None]) -> None:
        self._stage, self._plan, self._work = graphs.stage, graphs.stage.plan, work
        self._graphs = graphs

    def replay(self) -> None:
        given, self._stage.plan = self._stage.plan, self._plan
        step_graphs._forget_derived(self._plan)  # a graph derives masks anew
        self._work()
        self._stage.plan = given
        self._graphs.replays += 1


class Graphs(StepGraphs):
    """Captures on a CPU."""

    def __init__(self, runner: TorchRunner) -> None:
        super().__init__(torch.device("cpu"))
        self.stage, self.replays, self.captures, self.fails = runner._stage, 0, 0, ""

    @contextmanager
    def _aside(self) -> Iterator[None]:
        yield

    def _recorded(self, work: Callable[[], None], scratch: torch.Tensor) -> Again | None:
        self.captures += 1
        if self.fails:
            scratch.zero_()
            self._note_failure(RuntimeError(self.fails))
            return None
        work()
        return Again(self, work)


@pytest.fixture(params=list(CONFIGS))
def runners(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> tuple[TorchRunner, TorchRunner]:
    """One without graphs, and one with them over padded plans, of the same model; neither keeps what it gathers, as on a GPU."""
    monkeypatch.setattr(torch_attention, "_KEPT", -1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(CONFIGS[request.param]()).eval()
    plain, captured = (TorchRunner(model, slots=4000) for _ in range(2))
    for runner in (plain, captured):
        # one line of the mask for all heads, as on a GPU
        runner._planner = Planner(runner.device, runner.dtype, 1, padded=True)
    captured._graphs = Graphs(captured)
    return plain, captured


def test_replayed_steps_are_those_of_before(runners):
    """Plans that grow in a graph's tensors, are made anew, or come again in another shape."""
    plain, captured = runners
    for salt in range(4):
        assert torch.equal(walk(plain, salt), walk(captured, salt))
    graphs = captured._graphs
    assert graphs.replays > 10 * graphs.captures > 0
    assert len(graphs._graphs) == graphs.captures


def test_a_mask_of_one_line_a_row_is_that_of_all_heads(runners):
    """Layers that want a line a head have it made."""
    plain, _ = runners
    own = TorchRunner(plain.model, slots=4000)
    own._planner = Planner(own.device, own.dtype, own._planner._heads, padded=True)
    assert own._planner._heads > 1
    assert torch.equal(walk(plain, 7), walk(own, 7))


def test_logits_stay_as_they_were(runners):
    """The next step overwrites nobody's."""
    _, captured = runners
    sequence = captured.open([1, 2, 3])
    kept = list[tuple[torch.Tensor, torch.Tensor]]()
    for token in range(20):
        rows = captured.step([Chunk(sequence, sequence.pending, 1)]).rows
        kept.append((rows, rows.clone()))
        captured.append(sequence, [token])
    assert captured._graphs.replays
    assert all(torch.equal(now, then) for now, then in kept)


def test_a_shape_is_captured_when_it_has_come_twice(runners):
    """Most shapes of prompts never come again."""
    _, captured = runners
    for n in range(3, 40):
        captured.free(captured.open(list(range(n))))
        sequence = captured.open([n] * n)
        captured.step([Chunk(sequence, n, 1)])
        captured.free(sequence)
    long = captured.open([5] * 1000)
    captured.step([Chunk(long, 1000, 1)])
    assert captured._graphs.captures < 20
    assert all(key[0] < 200 for key in captured._graphs._graphs), "a long prompt is not captured"


def test_the_graphs_used_last_are_kept(runners, monkeypatch):
    """And few shapes are remembered."""
    monkeypatch.setattr(step_graphs, "_MOST", 3)
    monkeypatch.setattr(step_graphs, "_REMEMBERED", 5)
    plain, captured = runners
    for salt in range(2):
        assert torch.equal(walk(plain, salt), walk(captured, salt))
    assert len(captured._graphs._graphs) == 3
    assert len(captured._graphs._seen) <= 5


def test_captures_that_fail_leave_the_steps_results(runners, caplog):
    """After three of them no more are tried; what was captured before goes on."""
    plain, captured = runners
    graphs = captured._graphs
    assert torch.equal(walk(plain, 1), walk(captured, 1))
    before, known = graphs.captures, dict(graphs._graphs)
    graphs.fails = "operation not permitted when stream is capturing"
    for salt in (2, 3, 4):
        graphs._seen.clear()
        graphs._graphs.clear()
        assert torch.equal(walk(plain, salt), walk(captured, salt))
    assert graphs.captures == before + 3
    assert caplog.text.count("was not captured") == 3
    graphs._graphs.update(known)
    replays = graphs.replays
    assert torch.equal(walk(plain, 1), walk(captured, 1))
    assert graphs.replays > replays


def test_without_memory_no_more_is_captured_until_some_is_given_back(runners, caplog):
    """And nothing is said: it is no fault."""
    plain, captured = runners
    graphs = captured._graphs
    graphs.fails = "CUDA error: out of memory"
    for salt in (1, 2):
        assert torch.equal(walk(plain, salt), walk(captured, salt))
    assert graphs.captures == 1
    assert not caplog.text
    graphs.fails = ""
    captured.trim()
    assert torch.equal(walk(plain, 3), walk(captured, 3))
    assert graphs.replays


def test_wide_steps_are_not_captured(runners, monkeypatch):
    """Their arithmetic takes longer than their launches."""
    monkeypatch.setattr(step_graphs, "_WIDEST", 4)
    plain, captured = runners
    assert torch.equal(walk(plain, 1), walk(captured, 1))
    assert not captured._graphs.captures


def test_a_forward_that_raises_changes_nothing(runners, monkeypatch):
    """Neither in a step that is captured nor in one that is replayed; the plan is the caller's again."""
    plain, captured = runners
    sequence = captured.open([1, 2, 3])
    for _ in range(2):
        captured.step([Chunk(sequence, sequence.pending, 1)])
        captured.append(sequence, [7])
    embed = captured._fused._embeddings.weight
    captured._fused._embeddings.weight = torch.nn.Parameter(torch.zeros(1, 1))
    with pytest.raises(IndexError):
        captured.step([Chunk(sequence, 1, 1)])
    captured._fused._embeddings.weight = embed
    assert sequence.pending == 1
    assert captured._stage.plan is None
    captured.free(sequence)
    assert torch.equal(walk(plain, 5), walk(captured, 5))
