"""
How thoughts are drawn: in waves that the budget holds, each draw reserved, run, paid and written into the tree.

Knows branches and requests; knows no strategy, no scorer and no offer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

from langchain_pareto.backends.base import Branch, Extension
from langchain_pareto.backends.closing import Closing
from langchain_pareto.backends.constraint import Constraint
from langchain_pareto.errors import CapabilityError, SettingError
from langchain_pareto.strategies.desk import Desk
from langchain_pareto.strategies.marks import decode_after, encode_after, split_at_end
from langchain_pareto.strategies.record import finished
from langchain_pareto.strategies.settings import Settings
from langchain_pareto.strategies.sizing import Sizing
from langchain_pareto.strategies.thoughts import Thought
from langchain_pareto.strategies.until import ANSWER, STEP, Ends, Until, before_stop, ends, joined


@dataclass(frozen=True, slots=True)
class Drawing:
    """Draws below thoughts of one model."""

    desk: Desk
    settings: Settings
    root: Thought
    sizing: Sizing

    async def drawn(
        self, thoughts: Sequence[Thought], until: Until
    ) -> AsyncGenerator[list[Thought], None]:
        """A continuation of each that has room for a token, as they finish, those that finish together in one list, the shortest first;
        leaving early cancels the rest.

        They are drawn in waves: as many side by side as the room holds at their likely length, at least one (wide waves on a
        tight budget only cut each other off). A wave starts when the one before it has ended, so what is drawn does not depend on
        which of its samples ended first.
        """
        if isinstance(until, int) and until < 1:
            msg = f"a draw takes at least 1 token, got until={until}"
            raise SettingError(msg)
        rest = [thought for thought in thoughts if self.sizing.cap(thought)]
        await self._prefill(rest)
        refused = False
        while rest and not refused:
            width = self.sizing.width(rest, until)
            wave, rest = rest[:width], rest[width:]
            async with aclosing(self._wave(wave, until)) as draws:
                async for ended in draws:
                    refused = refused or None in ended
                    # of those that are seen at once, the shortest ended first
                    yield sorted(filter(None, ended), key=lambda t: (len(t.tokens), t.number))

    def append(self, thought: Thought, text: str) -> Thought | None:
        """Text of the host's after that of `thought`, instead of what was drawn beyond it; None where the context is too short."""
        if self.settings.grammar is not None:
            msg = "this strategy adds text of its own to the model's, and the answer of this call must follow a grammar"
            hint = "Take a strategy that only samples, or ask for plain text."
            raise CapabilityError(msg, hint=hint)
        assert thought.branch is not None
        tokenizer, tokens = self.desk.backend.tokenizer, thought.branch.tokens
        above = tokens[: len(tokens) - len(thought.tokens)]
        kept, rest = split_at_end(tokenizer, above, thought)
        before = [*above, *kept]
        added = encode_after(tokenizer, rest + text)
        if len(before) + len(added) >= self.desk.backend.capabilities.context_length:
            return None
        branch = self.desk.fork(thought.branch)
        branch.truncate(len(before))
        branch.append(added)
        written = self._placed(thought)
        written.text = decode_after(tokenizer, before, added)[len(rest) :]
        written.tokens, written.given, written.branch = added, True, branch
        written.known = min(len(before), thought.paid)
        self._publish(written)
        return written

    async def _prefill(self, thoughts: Sequence[Thought]) -> None:
        """Computes and pays for a shared prefix once, before many branches continue it."""
        for thought in dict.fromkeys(thoughts):
            if thought.computed or thoughts.count(thought) == 1:
                continue
            assert thought.branch is not None
            if await self.desk.prefill(thought.branch, thought.paid):
                thought.computed = True

    async def _wave(
        self, thoughts: Sequence[Thought], until: Until
    ) -> AsyncGenerator[list[Thought | None], None]:
        """A continuation of each, as they finish, or None for what did not fit."""
        share = self.sizing.share(len(thoughts))
        draws = [self._draw(self._placed(thought), until, share) for thought in thoughts]
        flying = {asyncio.create_task(draw) for draw in draws}
        try:
            while flying:
                done, flying = await asyncio.wait(flying, return_when=asyncio.FIRST_COMPLETED)
                if errors := [e for task in done if (e := task.exception()) is not None]:
                    raise errors[0]
                yield [task.result() for task in done]
        finally:
            for task in flying:
                task.cancel()
            if flying:
                await asyncio.gather(*flying, return_exceptions=True)

    async def _draw(self, thought: Thought, until: Until, share: int) -> Thought | None:
        """Draws one placed thought; None when nothing fits."""
        above = thought.parent
        assert above is not None
        assert above.branch is not None
        tokenizer, cap = self.desk.backend.tokenizer, self.sizing.cap(above)
        end = ends(until, above, cap, settings=self.settings, tokenizer=tokenizer)
        branch = self.desk.fork(above.branch)
        reservation = self.sizing.reservation(above, until, end.tokens, share)
        rest = min(cap, share) if share else cap  # of the whole text, however many draws it takes
        drawn, memory = await self._extended(branch, thought, end, reservation, rest)
        if drawn is None:
            branch.free()
            return None
        self._note_limits(above, drawn, end, until)
        thought.branch, thought.memory = branch, memory
        thought.mark = end.mark(drawn)
        if thought.mark is not None:
            drawn.finish = "step"
        above.computed = thought.computed = True
        self._write(thought, drawn, end)
        self._learn(thought, until)
        self._publish(thought)
        return thought

    async def _extended(
        self, branch: Branch, thought: Thought, end: Ends, reservation: tuple[int, int], rest: int
    ) -> tuple[Extension | None, int]:
        """What is drawn into the branch, None where nothing fits; and the bytes of cache that it left.

        A step that turns out longer than was likely reserves again and goes on. A text with a form ends within `rest` tokens.
        """
        above, (most, least) = thought.parent, reservation
        assert above is not None
        parts, memory, left, known = list[Extension](), 0, end.tokens, above.paid
        constraint = self._constraint(above)
        pending = len(branch.tokens) - known if above.given else 1
        while left and (not parts or parts[-1].finish == "length"):
            price = partial(self.desk.price, len(branch.tokens), known=known)
            wanted = min(most, left)
            lease = await self.desk.lease(price, wanted, min(wanted, least))
            if lease is None:
                break
            if constraint is not None and not parts:
                room = lease.amount if end.text else rest
                tokenizer, deadline = self.desk.backend.tokenizer, self.desk.account.deadline
                constraint = Closing(constraint, tokenizer, room, deadline=deadline)
            start = partial(
                self.desk.backend.extend,
                branch,
                self.settings.sampling,
                end.stop(lease.amount, parts),
                stats=True,
                deadline=self.desk.account.deadline,
                constraint=constraint,
                on_text=self.settings.on_text if thought.number == 1 else None,
            )
            paid = self.desk.start(start, lease, pending=pending)
            part = await finished(paid)
            assert isinstance(part, Extension)
            parts.append(part)
            memory += paid.held
            left -= len(part.tokens)
            known, pending = len(branch.tokens) - 1, 1
            if end.text:
                break
        return joined(parts) if parts else None, memory

    def _constraint(self, above: Thought) -> Constraint | None:
        """What holds a continuation of `above` to the grammar of the answer, where there is one."""
        if self.settings.grammar is None:
            return None
        constraint = self.settings.grammar()
        if constraint is not None:
            for thought in above.path:
                for token in thought.tokens:
                    constraint.advance(token)
        return constraint

    def _note_limits(self, above: Thought, drawn: Extension, end: Ends, until: Until) -> None:
        """What cut a draw off, where something did."""
        if drawn.finish == "deadline":
            self.desk.record.limited_by = "seconds"
        elif drawn.finish == "length" and end.text and len(drawn.tokens) < end.tokens:
            self.sizing.lengths.cut += len(drawn.tokens) if until == ANSWER else 0
            self.desk.note_limit(self.sizing.price(above, end.tokens))

    def _placed(self, above: Thought) -> Thought:
        """A thought below another at its place in the order of drawing, to be filled when it is drawn."""
        thoughts = self.desk.record.thoughts
        thought = Thought(self.root.question, above, number=len(thoughts) + 1)
        thought.role, thought.aside = self.root.role, self.root.aside
        thoughts.append(thought)
        return thought

    def _write(self, thought: Thought, drawn: Extension, end: Ends) -> None:
        """Writes one draw into the tree."""
        assert thought.parent is not None
        thought.text = before_stop(thought.parent, drawn)
        thought.tokens, thought.finish, thought.usage = drawn.tokens, drawn.finish, drawn.usage
        thought.logprobs, thought.entropies = drawn.logprobs, drawn.entropies
        thought.top_logprobs = drawn.top_logprobs
        thought.find_origin()
        logprobs = [x for t in thought.path for x in t.logprobs]
        thought.mean_logprob = sum(logprobs) / len(logprobs) if logprobs else None
        thought.whole = end.is_whole(drawn)
        if thought.finished and not thought.aside:
            thought.answer = self.settings.answers.extract(thought.whole_text)

    def _learn(self, thought: Thought, until: Until) -> None:
        """The lengths of steps and texts that came to their end."""
        if until == STEP and thought.whole:
            self.desk.record.steps.add(len(thought.tokens))
        if thought.finished:
            self.sizing.lengths.add(thought.length)

    def _publish(self, thought: Thought) -> None:
        if self.desk.record.on_thought is not None:
            self.desk.record.on_thought(thought)
