"""
How thoughts are drawn: in waves that the budget holds, each draw reserved, run, paid and written into the tree.

Knows branches, money and lengths; knows no strategy, no scorer and no offer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from langchain_pareto.backends.base import Extension, Stop
from langchain_pareto.budget import Cost, Limits
from langchain_pareto.errors import SettingError
from langchain_pareto.strategies.desk import Desk
from langchain_pareto.strategies.marks import Before, decode_after, encode_after, split_at_end
from langchain_pareto.strategies.record import Lengths, finished
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.thoughts import Thought

_WIDEST = 256  # draws side by side: beyond, setting them up takes longer than a step
_STEP = 64  # tokens that a step is reserved at first, while no length is known

ANSWER: Literal["answer"] = "answer"
STEP: Literal["step"] = "step"
Until = Literal["answer", "step"] | int | Before


@dataclass(frozen=True, slots=True)
class Drawing:
    """Draws below thoughts of one model."""

    desk: Desk
    settings: Settings
    root: Thought

    async def drawn(self, thoughts: Sequence[Thought], until: Until) -> AsyncIterator[Thought]:
        """A continuation of each that has room for a token, as they finish; leaving early cancels the rest.

        They are drawn in waves: as many side by side as the room holds at their likely length, at least one (wide waves on a
        tight budget only cut each other off). A wave starts when the one before it has ended, so what is drawn
        does not depend on which of its samples ended first.
        """
        if isinstance(until, int) and until < 1:
            msg = f"a draw takes at least 1 token, got until={until}"
            raise SettingError(msg)
        thoughts = [thought for thought in thoughts if self.cap(thought)]
        for thought in dict.fromkeys(thoughts):
            if not thought.computed and thoughts.count(thought) > 1:
                await self._prefill(thought)
        started, refused = 0, False
        while started < len(thoughts) and not refused:
            rest = thoughts[started:]
            width = min(self._width(rest, until), len(rest), _WIDEST)
            started += width
            tokens = self.desk.account.room().unspent.tokens
            share = 0 if tokens is None else tokens // width  # no draw need be shorter than this
            draws = [self._draw(thought, until, self._number(), share) for thought in rest[:width]]
            flying = {asyncio.create_task(draw) for draw in draws}
            try:
                while flying:
                    done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                    if errors := [e for task in done if (e := task.exception()) is not None]:
                        raise errors[0]
                    results = [task.result() for task in done]
                    refused = refused or None in results
                    # of those that are seen at once, the shortest ended first
                    for drawn in sorted(
                        filter(None, results), key=lambda t: (len(t.tokens), t.number)
                    ):
                        yield drawn
            finally:
                for task in flying:
                    task.cancel()
                if flying:
                    await asyncio.gather(*flying, return_exceptions=True)

    @property
    def limited(self) -> bool:
        """Whether any resource that a draw takes has a limit."""
        return replace(self.desk.account.room().unspent, calls=None) != Limits()

    @property
    def _lengths(self) -> Lengths:
        """Of whole texts, answers or asides."""
        record = self.desk.record
        return record.asides if self.root.aside else record.lengths

    def _number(self) -> int:
        # its place, filled when it finishes
        self.desk.record.thoughts.append(Thought(self.root.question))
        return len(self.desk.record.thoughts)

    def _price(self, thought: Thought, tokens: int) -> Cost:
        """The worst case of one draw of up to `tokens` tokens."""
        assert thought.branch is not None
        length = len(thought.branch.tokens)
        return self.desk.price(length, tokens, known=self._known(thought))

    def append(self, thought: Thought, text: str) -> Thought | None:
        """Text of the host's after that of `thought`, instead of what was drawn beyond it; None where the context is too short."""
        assert thought.branch is not None
        tokenizer, tokens = self.desk.backend.tokenizer, thought.branch.tokens
        before = tokens[: len(tokens) - len(thought.tokens)]
        kept, rest = split_at_end(tokenizer, before, thought)
        before = [*before, *kept]
        added = encode_after(tokenizer, rest + text)
        if len(before) + len(added) >= self.desk.backend.capabilities.context_length:
            return None
        branch = self.desk.fork(thought.branch)
        branch.truncate(len(before))
        branch.append(added)
        number = self._number()
        written = self.desk.record.thoughts[number - 1]
        written.parent, written.number = thought, number
        written.role, written.aside = self.root.role, self.root.aside
        written.text = decode_after(tokenizer, before, added)[len(rest) :]
        written.tokens, written.given, written.branch = added, True, branch
        written.known = min(len(before), self._known(thought))
        if self.desk.record.on_thought is not None:
            self.desk.record.on_thought(written)
        return written

    def _known(self, thought: Thought) -> int:
        """Tokens of the thought's branch that are paid for."""
        assert thought.branch is not None
        return len(thought.branch.tokens) - 1 if thought.computed else thought.known

    def cap(self, thought: Thought) -> int:
        """The most tokens that a draw may take by the model and the caller, who means whole texts."""
        assert thought.branch is not None
        room = self.desk.backend.capabilities.context_length - len(thought.branch.tokens)
        most = self.settings.max_tokens
        # a prompt that fills the context is the backend's to refuse
        least = 1 if thought.parent is None else 0
        return max(least, room if most is None else min(room, most - thought.length))

    def _likely(self, thought: Thought, until: Until) -> int | None:
        """A length that few such draws exceed, None while nothing is known."""
        if isinstance(until, int):
            return until
        if isinstance(until, Before):
            return None
        lengths = self._lengths if until == ANSWER else self.desk.record.steps
        if lengths.q95 is None:
            return _STEP if until == STEP else None
        return max(1, lengths.q95 - (thought.length if until == ANSWER else 0))

    def _width(self, thoughts: Sequence[Thought], until: Until) -> int:
        """How many draws may run side by side."""
        n = len(thoughts)
        if not self.limited:
            return n
        unspent = self.desk.account.room().unspent
        thought = max(thoughts, key=lambda t: t.length)  # the dearest
        cap, likely = self.cap(thought), self._likely(thought, until)
        if likely is None:
            return n if _times(unspent, self._price(thought, cap)) >= n else 1
        return min(n, max(1, _times(unspent, self._price(thought, min(likely, cap)))))

    def steps_in_half(self, thought: Thought, n: int) -> int:
        """How many of `n` steps below a thought half of the room holds, at their likely length."""
        cap = self.cap(thought)
        if not self.limited or not cap:
            return n
        price = self._price(thought, min(self._likely(thought, STEP) or _STEP, cap))
        held = _times(self.desk.account.room().unspent, price) // 2
        if held < n:
            self.desk.note_limit(_multiple(price, 2 * n))
        return min(n, held)

    async def _draw(
        self, thought: Thought, until: Until, number: int, share: int
    ) -> Thought | None:
        """Reserve, run, commit; None when nothing fits. A step that turns out longer than was likely reserves again and goes on."""
        assert thought.branch is not None
        branch = self.desk.fork(thought.branch)
        settings = self.settings
        cap = self.cap(thought)
        if until == STEP and settings.steps.tokens is not None:
            cap = min(cap, settings.steps.tokens)
        if isinstance(until, int):
            cap = min(cap, until)
        wanted, least = self._reservation(thought, until, cap, share)
        strings, special = () if isinstance(until, int) else settings.stop, dict[int, str]()
        if isinstance(until, Before):
            strings += until.words(self.desk.backend.tokenizer)
            special = until.special(self.desk.backend.tokenizer)
        text = until == ANSWER or isinstance(until, Before)
        step = settings.steps.end if until == STEP else None
        parts, before = list[Extension](), _end(thought, strings)
        known, left, held = self._known(thought), cap, 0
        pending = len(branch.tokens) - known if thought.given else 1
        while left and (not parts or parts[-1].finish == "length"):
            wanted = min(wanted, left)
            price = partial(self.desk.price, len(branch.tokens), known=known)
            lease = await self.desk.account.reserve(price, wanted, min(wanted, least))
            if lease is None:
                self.desk.note_limit(price(min(wanted, least)))
                break
            if self.desk.record.ended:
                lease.cancel()
                break
            start = partial(
                self.desk.backend.extend,
                branch,
                settings.sampling,
                Stop(
                    lease.amount,
                    strings,
                    frozenset(special),
                    step=step,
                    keep=not text,
                    before=before + "".join(part.text for part in parts),
                ),
                stats=True,
                deadline=self.desk.account.deadline,
                on_text=settings.on_text if number == 1 else None,
            )
            bill = self.desk.start(start, lease, pending=pending)
            extension = await finished(bill)
            assert isinstance(extension, Extension)
            held += bill.held
            parts.append(extension)
            left -= len(extension.tokens)
            known, pending = len(branch.tokens) - 1, 1
            if text:
                break
        if not parts:
            branch.free()
            return None
        whole = _joined(parts)
        if whole.finish == "deadline":
            self.desk.record.limited_by = "seconds"
        elif whole.finish == "length" and left and text:
            self._lengths.cut += len(whole.tokens) if until == ANSWER else 0
            self.desk.note_limit(self._price(thought, cap))
        mark = special.get(whole.tokens[-1], whole.stop) if whole.tokens else None
        if isinstance(until, Before) and mark in until.marks:
            whole.finish = "step"
        else:
            mark = None
        drawn = self._note(thought, whole, until, number, reached=not left)
        drawn.branch, drawn.memory, drawn.mark = branch, held, mark
        return drawn

    def _reservation(self, thought: Thought, until: Until, cap: int, share: int) -> tuple[int, int]:
        """The most and the least tokens that are reserved for a draw at a time."""
        likely = self._likely(thought, until)
        if likely is None or not self.limited:
            return cap, 1
        if until != ANSWER:
            return min(cap, likely), 1
        wanted = min(cap, max(share, likely))
        return wanted, max(1, min(wanted, self._lengths.q25 - thought.length))

    def _note(
        self, parent: Thought, drawn: Extension, until: Until, number: int, *, reached: bool
    ) -> Thought:
        """Writes one draw into the tree; `reached` says that it has all the tokens that it could have."""
        thought = self.desk.record.thoughts[number - 1]
        thought.parent = parent
        thought.role, thought.aside = self.root.role, self.root.aside
        thought.text = drawn.text
        if drawn.stop is not None:  # a step keeps its end, an answer does not
            begun = _end(parent, (drawn.stop,))
            thought.text = (begun + drawn.text).partition(drawn.stop)[0][len(begun) :]
        thought.tokens, thought.finish = drawn.tokens, drawn.finish
        thought.logprobs, thought.entropies = drawn.logprobs, drawn.entropies
        thought.top_logprobs = drawn.top_logprobs
        logprobs = [x for t in thought.path for x in t.logprobs]
        thought.mean_logprob = sum(logprobs) / len(logprobs) if logprobs else None
        thought.usage = drawn.usage
        thought.number = number
        counted = isinstance(until, int) or (
            until == STEP and self.settings.steps.tokens is not None
        )
        thought.whole = drawn.finish in ("eos", "stop", "step") or (
            drawn.finish == "length" and reached and counted
        )
        thought.computed = parent.computed = True
        if until == STEP and thought.whole:
            self.desk.record.steps.add(len(drawn.tokens))
        if thought.finished:
            self._lengths.add(thought.length)
        if thought.finished and not thought.aside:
            thought.answer = self.settings.answers.extract(thought.whole_text)
        if self.desk.record.on_thought is not None:
            self.desk.record.on_thought(thought)
        return thought

    async def _prefill(self, thought: Thought) -> None:
        """Computes and pays for a shared prefix once, before many branches continue it."""
        assert thought.branch is not None
        if await self.desk.prefill(thought.branch, self._known(thought)):
            thought.computed = True


def _end(thought: Thought, strings: Sequence[str]) -> str:
    """The end of a path's text, as far as one of the strings may begin in it."""
    most = max(map(len, strings), default=0) - 1
    return thought.whole_text[-most:] if most > 0 and not thought.given else ""


def _joined(parts: Sequence[Extension]) -> Extension:
    """Consecutive extensions of one branch as one."""
    first = parts[0]
    for part in parts[1:]:
        first.tokens += part.tokens
        first.text += part.text
        first.logprobs += part.logprobs
        first.entropies += part.entropies
        first.top_logprobs += part.top_logprobs
        first.usage = first.usage + part.usage  # not in place: it is the bill of the first
        first.finish, first.stop = part.finish, part.stop
    return first


def _times(limits: Limits, cost: Cost) -> int:
    """How many times `cost` fits into `limits`."""
    if not limits.hold(cost):
        return 0
    most = 1
    while most < 1 << 16 and limits.hold(_multiple(cost, 2 * most)):
        most *= 2
    step = most
    while step > 1:
        step //= 2
        if limits.hold(_multiple(cost, most + step)):
            most += step
    return most


def _multiple(cost: Cost, n: int) -> Cost:
    return Cost(
        tokens=cost.tokens * n,
        flops=cost.flops * n,
        nanojoules=cost.nanojoules * n,
        nanodollars=cost.nanodollars * n,
        calls=cost.calls * n,
        memory=cost.memory * n,
    )
