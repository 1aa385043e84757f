"""
Token slots and reference counts: which rows of the KV pool are in use, and by whom.

Knows slot numbers only, no tensor and no token. A slot holds one token's keys and values in every layer (page size 1), so a fork
copies integers and a rollback gives some back. A slot is *live* while a sequence refers to it, *cached* while only the prefix
index keeps it, else free. Slot 0 is never handed out: padding rows write there.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from langchain_pareto.errors import CapacityError

Slots = npt.NDArray[np.int32]


class SlotPool:
    """A fixed number of slots with reference counts; every operation is O(slots named)."""

    def __init__(self, size: int, on_free: Callable[[Slots], None] = lambda _: None) -> None:
        """`on_free` is told which slots nobody holds any more."""
        assert size >= 2, "a pool needs the padding slot and one more"
        self.size = size
        self._references = np.zeros(size, np.int32)  # by sequences
        self._indexed = np.zeros(size, np.bool_)  # kept by the prefix index
        # a stack: low slots are handed out first
        self._free = np.arange(size - 1, 0, -1, dtype=np.int32)
        self._top = size - 1
        self.live = 0
        self.peak = 0
        self._on_free = on_free

    @property
    def capacity(self) -> int:
        """Slots that a sequence can use: all but the padding slot."""
        return self.size - 1

    @property
    def free(self) -> int:
        """Slots that nobody holds."""
        return self._top

    @property
    def cached(self) -> int:
        """Slots that only the prefix index keeps, and would give back."""
        return self.capacity - self._top - self.live

    @property
    def live_slots(self) -> Slots:
        """The slots that sequences hold."""
        return np.flatnonzero(self._references).astype(np.int32)

    def can_allocate(self, n: int) -> bool:
        """Whether `n` slots are free now."""
        return n <= self._top

    def allocate(self, n: int) -> Slots:
        """Hands out `n` free slots, each with one reference; raises CapacityError and changes nothing when there are fewer."""
        if n > self._top:
            msg = f"{n} token slots are needed and {self._top} of {self.capacity} are free"
            raise CapacityError(
                msg,
                needed=n,
                free=self._top,
                kind="slots",
                hint="Give the pool more memory (memory=...), or ask for fewer or shorter branches.",
            )
        slots = self._free[self._top - n : self._top][::-1].copy()
        self._top -= n
        self._references[slots] = 1
        self._add_live(n)
        return slots

    def retain(self, slots: Slots) -> None:
        """Adds one reference to each of `slots`, which must be distinct and not free."""
        before = self._references[slots]
        self._references[slots] = before + 1
        self._add_live(int(np.count_nonzero(before == 0)))

    def release(self, slots: Slots) -> None:
        """Takes one reference from each of `slots`; those that nobody keeps become free."""
        after = self._references[slots] - 1
        assert after.size == 0 or int(after.min()) >= 0, (
            "a slot was released more often than retained"
        )
        self._references[slots] = after
        gone = slots[after == 0]
        self.live -= gone.size
        self._push(gone[~self._indexed[gone]])

    def index(self, slots: Slots) -> None:
        """Marks `slots` as kept by the prefix index."""
        self._indexed[slots] = True

    def unindex(self, slots: Slots) -> int:
        """The prefix index lets go of `slots`; returns how many became free."""
        self._indexed[slots] = False
        gone = slots[self._references[slots] == 0]
        self._push(gone)
        return int(gone.size)

    def referenced(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Which of `slots` a sequence holds."""
        held: npt.NDArray[np.bool_] = self._references[slots] > 0
        return held

    def shared(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Which of `slots` stay in use when one reference is taken from each."""
        kept: npt.NDArray[np.bool_] = (self._references[slots] > 1) | self._indexed[slots]
        return kept

    def _push(self, slots: Slots) -> None:
        self._free[self._top : self._top + slots.size] = slots[::-1]
        self._top += int(slots.size)
        if slots.size:
            self._on_free(slots)

    def _add_live(self, n: int) -> None:
        self.live += n
        self.peak = max(self.peak, self.live)
