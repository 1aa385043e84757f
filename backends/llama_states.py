"""
llama.cpp models with a recurrent state.

Knows that a lane is one of llama.cpp's sequences, whose state is copied when it is next written. Only whole-lane operations are used:
llama.cpp's own partial rollback (n_rs_seq) covers the last batch alone, once, and reaches siblings that share the state.
"""

from __future__ import annotations

from langchain_pareto.backends.llama_runner import LlamaRunner
from langchain_pareto.backends.states import StateLanes, StateRunner


class LlamaStateRunner(StateRunner, LlamaRunner[StateLanes]):
    """One recurrent or hybrid model."""

    def _make_lanes(self) -> StateLanes:
        return StateLanes(self.context, self.pool, self.context.lanes)
