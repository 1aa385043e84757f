"""
What came of a step: draws and named log-probabilities for everybody at once, handed back chunk by chunk.

Knows logits and what each program wanted of them; knows no schedule and no money. What is wrong with one program's rows, its
constraint or its settings is that program's alone.
"""

from __future__ import annotations

import itertools
import math

import torch

from langchain_pareto.backends.base import Runner
from langchain_pareto.backends.coupling import fitted
from langchain_pareto.backends.draws import Guess, Row
from langchain_pareto.backends.logit_passes import named_logprobs
from langchain_pareto.backends.programs import Draw, Drawn, Named, Result
from langchain_pareto.backends.sampling import Sampler
from langchain_pareto.backends.scheduler import Step
from langchain_pareto.backends.sequences import Sequence as TokenSequence
from langchain_pareto.errors import NumericalError, SettingError

_MISTAKES = (SettingError, TypeError, ValueError, OverflowError)  # in what a program says may come


class Results:
    """Draws and looks up for one engine, whose thread holds its scratch memory."""

    def __init__(self) -> None:
        self._samplers = dict[int, Sampler]()

    def forget(self, runner: Runner) -> None:
        """The runner is closing."""
        self._samplers.pop(id(runner), None)

    def collect(self, step: Step) -> dict[int, Result | Exception]:
        """The result of each chunk that gives rows: one batched draw, one batched look-up of named tokens, one copy of each."""
        out = dict[int, Result | Exception]()
        draws, named = dict[int, list[Row]](), dict[int, tuple[int, ...]]()
        for k, ((running, i), chunk) in enumerate(zip(step.items, step.chunks, strict=True)):
            want = running.works[i].want
            if chunk.rows == 0:
                continue
            if isinstance(want, Named):
                named[k] = want.tokens
                continue
            try:
                draws[k] = _rows(want, chunk.sequence, chunk.rows)
            except Exception as error:  # noqa: BLE001 - a constraint belongs to its program alone
                out[k] = error
        if not draws and not named:
            step.runner.synchronize()
        try:
            out |= self._draw(step, draws)
        except _MISTAKES:  # of one of them: each draws the same alone
            for k, rows in draws.items():
                out[k] = self._draw_alone(step, k, rows)
        return out | self._look_up(step, named)

    def _draw_alone(self, step: Step, k: int, rows: list[Row]) -> Result | Exception:
        """What one program draws, up to where it cannot: behind a guess, where it may never come."""
        found: Result | Exception = []
        good, tried = 0, len(rows)
        failed = len(rows) + 1  # fewest rows that are known to fail
        while good + 1 < failed:
            try:
                found = self._draw(step, {k: rows[:tried]})[k]
                good = tried
            except _MISTAKES as error:
                failed = tried
                if failed == 1:
                    return error
            tried = (good + failed) // 2
        return found

    def _draw(self, step: Step, drawable: dict[int, list[Row]]) -> dict[int, Result | Exception]:
        if not drawable:
            return {}
        sampler = self._samplers.setdefault(id(step.runner), Sampler())
        draws = {k: _filled(part, step.chunks[k].rows) for k, part in drawable.items()}
        wants = {k: _want(step, k) for k in draws}
        stats = any(want.stats for want in wants.values())
        widths = {k: want.keep for k, want in wants.items() if want.keep}
        rows = [row for part in draws.values() for row in part]
        host = sampler.draw(step.rows(draws), rows, stats=stats).to_host()
        nan = [math.nan] * len(rows)
        judges = any(want.judged for want in wants.values())
        judged = self._judged(step, draws) if judges else nan
        told = (host.logprobs, host.entropies, host.top_logprobs, host.peaks)
        columns = [column or nan for column in told]
        kept = self._kept(step, draws, widths, sampler) if widths else itertools.repeat(None)
        drawn, finite = map(Drawn, host.tokens, *columns, judged, kept), iter(host.finite)
        out = dict[int, Result | Exception]()
        for k, part in draws.items():
            ok = [*itertools.islice(finite, len(part)), False]
            result = list(itertools.islice(drawn, len(part)))
            # behind a guess what fails may never be needed: who comes there asks again
            good = min(ok.index(False), len(drawable[k]))
            out[k] = result[:good] or _not_finite(step.runner)
        return out

    def _judged(self, step: Step, draws: dict[int, list[Row]]) -> list[float]:
        """Log-probabilities of the tokens that the sequences hold where something is drawn."""
        ids = list[int]()
        for k, part in draws.items():
            tokens = step.chunks[k].sequence.tokens
            ids += [tokens[r.position] if r.position < len(tokens) else 0 for r in part]
        with torch.inference_mode():
            logits = step.rows(draws)
            return named_logprobs(logits, torch.tensor(ids, device=logits.device)).tolist()

    def _kept(
        self, step: Step, draws: dict[int, list[Row]], widths: dict[int, int], sampler: Sampler
    ) -> list[torch.Tensor | None]:
        """The distribution behind each draw that is to keep it, over so many ids."""
        with torch.inference_mode():
            p = sampler.distribution(step.rows(widths), [r for k in widths for r in draws[k]])
            fits = {width: fitted(p, width).unbind() for width in set(widths.values())}
        out, at = list[torch.Tensor | None](), itertools.count()
        for k, part in draws.items():
            out += [fits[widths[k]][next(at)] if k in widths else None for _ in part]
        return out

    def _look_up(
        self, step: Step, named: dict[int, tuple[int, ...]]
    ) -> dict[int, Result | Exception]:
        if not named:
            return {}
        with torch.inference_mode():
            rows = step.rows(named)
            ids = torch.tensor(
                [token for tokens in named.values() for token in tokens], device=rows.device
            )
            if len(ids) > len(rows):  # several tokens of a row
                rows = rows.index_select(0, _repeated(step, named).to(rows.device))
            logprobs = iter(named_logprobs(rows, ids).tolist())
        out = dict[int, Result | Exception]()
        for k, tokens in named.items():
            part = list(itertools.islice(logprobs, len(tokens)))
            out[k] = _not_finite(step.runner) if any(map(math.isnan, part)) else part
        return out


def _want(step: Step, k: int) -> Draw:
    """What the program of chunk number `k`, which draws, wants."""
    running, i = step.items[k]
    want = running.works[i].want
    assert isinstance(want, Draw)
    return want


def _rows(want: Draw, sequence: TokenSequence, rows: int) -> list[Row]:
    """The draws that follow the last `rows` tokens of a sequence; all but the first of these are guesses.

    Behind a guess the constraint may fail where the text never comes, since the guess is wrong or ends it: the draws end there.
    """
    tokens, constraint = sequence.tokens, want.constraint
    first = len(tokens) - rows + 1
    out, advanced = list[Row](), 0
    try:
        for position in range(first, first + rows):
            allowed = None if constraint is None else constraint.allowed()
            history = tokens[:position] if want.sampling.penalised else ()
            row = Row(want.key, position, want.sampling, history, want.prompt_length, allowed)
            out.append(row)
            if want.guessed and position < len(tokens):
                row.guess = Guess(tokens[position], want.guessed[position - first])
            if constraint is not None and position < len(tokens):
                if allowed is not None and tokens[position] not in allowed:
                    constraint = None  # a wrong guess: nobody looks at what comes after it
                else:
                    constraint.advance(tokens[position])
                    advanced += 1
    except Exception:
        if not out:
            raise
    finally:
        if want.constraint is not None and advanced:
            want.constraint.rollback(advanced)
    return out


def _filled(part: list[Row], rows: int) -> list[Row]:
    """As many rows as were computed; nobody looks at what is added."""
    return part + [Row(row.key, 0, row.sampling) for row in part[:1] * (rows - len(part))]


def _repeated(step: Step, named: dict[int, tuple[int, ...]]) -> torch.Tensor:
    """The row of each named token."""
    rows, first = list[int](), 0
    for k, tokens in named.items():
        wanted = step.chunks[k].rows
        rows += [first] * len(tokens) if wanted == 1 else range(first, first + wanted)
        first += wanted
    return torch.tensor(rows)


def _not_finite(runner: Runner) -> NumericalError:
    spec = runner.spec
    msg = f"{spec.name} gave NaN or infinite logits in {spec.dtype} on {spec.device}"
    hint = "Load it with another dtype (float32, or bfloat16 instead of float16), or check its weights."
    return NumericalError(msg, hint=hint)
