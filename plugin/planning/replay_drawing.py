"""
How whole answers are drawn from a pool: the same widths, reservations and prices as those of `Drawing`, in the same order.

Knows one question put to one model, and what is left to pay with; knows no strategy, no scorer and no offer.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from langchain_pareto.backends.base import Usage
from langchain_pareto.backends.recorded_samples import CUT, text_of
from langchain_pareto.planning.allowance import Allowance, Charge
from langchain_pareto.planning.draws import Draw, Tree
from langchain_pareto.planning.play import Play, Race
from langchain_pareto.strategies.sizing import WIDEST, reserved, widest
from langchain_pareto.strategies.thoughts import Thought


class ReplayDrawing:
    """Draws below the root of one search."""

    def __init__(
        self, play: Play, tree: Tree, root: Thought, allowance: Allowance, max_tokens: int | None
    ) -> None:
        self._play, self._tree = play, tree
        self._root, self._allowance = root, allowance
        room = tree.player.room(play.row)
        self.cap = max(1, room if max_tokens is None else min(room, max_tokens))  # tokens

    async def drawn(self, n: int) -> list[Thought]:
        """Up to `n` samples, in order of drawing; fewer when no more can be paid for."""
        await self._prefill(n)
        out = list[Thought]()
        while n > 0:
            width = self._width(n)
            draws = await self._begin(width)
            self._play.batch += draws
            await self._turn(2)
            self._play.pass_time()
            out += [self._settle(draw) for draw in draws]
            if len(draws) < width:
                break
            await self._turn(2)
            n -= width
        return out

    async def as_they_end(self, n: int) -> AsyncGenerator[list[Thought], None]:
        """Up to `n` samples, the shortest first, those that end together in one list; leaving early ends the others."""
        await self._prefill(n)
        while n > 0:
            width = self._width(n)
            draws = await self._begin(width)
            race = Race(self._play, draws)
            try:
                await self._turn(2)
                for group in race.ended():
                    yield [self._settle(draw) for draw in group]
            finally:
                race.leave()
            if len(draws) < width:
                break
            await self._turn(2)
            n -= width

    async def _turn(self, n: int) -> None:
        """Lets others run as often as they do while the real search waits, so that they draw in the same order."""
        if self._play.turns:
            for _ in range(n):
                await asyncio.sleep(0)

    async def _prefill(self, n: int) -> None:
        """Pays for the prompt before several draws continue it."""
        tree, play, player = self._tree, self._play, self._tree.player
        if n < 2 or tree.prompt == 1 or self._root.computed:
            return
        last = tree.prompt - 1
        price = (0, player.flops(0, last, 1), 0, player.kv * last + player.state)
        if (reason := play.lack(self._allowance, price)) is not None:
            play.limited_by = reason
            return
        read = 1 if tree.computed else last
        tree.computed = True
        memory = min(price[3], player.kv * read + player.state)
        play.pay(self._allowance, (0, player.flops(last - read, last, 1), 0, memory))
        await self._turn(2)
        self._root.computed = True

    def _width(self, n: int) -> int:
        """How many of `n` draws run side by side."""
        allowance = self._allowance
        if not allowance.pots:
            return min(n, WIDEST)
        fits = lambda tokens: allowance.times(self._price(tokens), n)  # noqa: E731 - of this moment
        width = widest(n, self._play.lengths.q95, self.cap, fits)
        self._play.bound |= width < min(n, WIDEST)
        return width

    async def _begin(self, width: int) -> list[Draw]:
        """Draws that are reserved and paid in their order, as if all time had passed; fewer where no more fit."""
        play, allowance = self._play, self._allowance
        tokens = allowance.left(0)
        share = 0 if tokens is None else tokens // width
        number, play.placed = play.placed, play.placed + width
        await self._turn(1)
        most, least, likely = self.cap, 1, play.lengths.q95
        if likely is not None and allowance.pots:
            most, least = reserved(self.cap, likely, share, play.lengths.q25)
        draws = list[Draw]()
        while len(draws) < width:
            amount = self._reserve(most, least)
            if amount is None:
                break
            number += 1
            draws.append(self._draw(number, amount))
        return draws

    def _draw(self, number: int, amount: int) -> Draw:
        """The next sample, up to so many tokens."""
        tree, play, player = self._tree, self._play, self._tree.player
        sample = tree.next_sample(play.question)
        length = player.lengths[play.row][sample]
        play.bound |= amount < min(length, self.cap)
        before = 0 if self._root.computed else tree.prompt - 1
        most = player.kv * (before + amount) + player.state
        draw = Draw(tree, self._allowance, number, sample, length, most, not tree.computed)
        tree.computed = True
        play.take(draw, min(length, amount))
        return draw

    def _reserve(self, most: int, least: int) -> int | None:
        """The most tokens that can be paid for, None where not even the least can."""
        play, allowance = self._play, self._allowance
        if (reason := play.lack(allowance, self._price(least))) is not None:
            play.limited_by = reason
            return None
        if allowance.lack(self._price(most)) is None:
            return most
        while least + 1 < most:
            middle = (least + most) // 2
            fits = allowance.lack(self._price(middle)) is None
            least, most = (middle, most) if fits else (least, middle)
        return least

    def _price(self, tokens: int) -> Charge:
        """The worst case of one draw."""
        if not self._allowance.dear:
            return tokens, 0, 0, 0
        player, last = self._tree.player, self._tree.prompt - 1
        flops = player.flops(last, last + tokens, tokens)
        before = 0 if self._root.computed else last
        if before:
            flops += player.flops(0, last, 0)
        memory = player.kv * (before + tokens) + player.state
        return tokens, flops, player.nanodollars(tokens), memory

    def _settle(self, draw: Draw) -> Thought:
        """What is known once a draw has ended."""
        play, player, finish = self._play, self._tree.player, draw.finish
        if finish == "deadline":
            play.limited_by = "seconds"
        elif finish == "length" and draw.drawn < self.cap:
            play.lengths.cut += draw.drawn
            play.limited_by = play.lack(self._allowance, self._price(self.cap)) or play.limited_by
        self._root.computed = True
        said = player.answers[play.row][draw.sample]
        whole = finish == "eos"
        if whole:
            play.lengths.add(draw.drawn)
        logprobs = player.logprobs if draw.drawn else None
        thought = Thought(
            play.question,
            self._root,
            text_of(said) if whole else CUT,
            range(draw.sample, draw.sample + draw.drawn),
            finish,
            None if logprobs is None else logprobs[play.row][draw.sample],
            player.said(said) if whole else None,
            whole=whole,
            role=self._root.role,
            usage=Usage(new_tokens=draw.drawn),
            number=draw.number,
        )
        play.thoughts.append(thought)
        return thought
