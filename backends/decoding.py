"""
A backend that decodes in another way than token by token: the same branches, prices and answers, other programs.

Knows which guesser and which length a decoder's settings mean; `speculation.py` knows how guesses are verified. What a strategy does is
the same with every decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial

from langchain_pareto.backends import cost, speculation
from langchain_pareto.backends.base import (
    Branch,
    ModelSpec,
    Request,
    Runner,
    Sampling,
    Stop,
)
from langchain_pareto.backends.constraint import Constraint
from langchain_pareto.backends.decoders import (
    Accept,
    BigLittle,
    Decoder,
    Guessing,
    Lookup,
    Plain,
    Rounds,
    Speculative,
)
from langchain_pareto.backends.draft_length import DraftLength, FixedLength
from langchain_pareto.backends.drafts import Guesser, LookupGuesser, ModelGuesser, WrittenBefore
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.local_branch import LocalBranch
from langchain_pareto.backends.programs import Continuation, Draw, Program, Turn
from langchain_pareto.backends.running import Running
from langchain_pareto.backends.wrapper import BackendWrapper
from langchain_pareto.errors import CapabilityError, SettingError, VocabularyMismatchError


class DecodingBackend(BackendWrapper):
    """`target` under a decoder; `draft` is the backend of the small model, if the decoder has one. Closes neither."""

    def __init__(
        self, target: LocalBackend, decoder: Decoder, draft: LocalBackend | None = None
    ) -> None:
        """Raises SettingError without the draft that the decoder needs, CapabilityError and VocabularyMismatchError for one that does not fit."""
        if decoder.drafts:
            if draft is None:
                msg = f'the decoder "{decoder.kind}" needs a draft model'
                raise SettingError(msg, hint="Name one with draft=, or take another decoder.")
            _check_pair(target, draft)
        super().__init__(target)
        self.decoder = decoder
        self.draft = draft if decoder.drafts else None

    @cached_property
    def spec(self) -> ModelSpec:
        """The target's shape; a token takes memory in both caches, and so does a recurrent state."""
        spec = self.target.spec
        if self.draft is None:
            return spec
        small = self.draft.spec
        return replace(
            spec,
            kv_bytes_per_token=spec.kv_bytes_per_token + small.kv_bytes_per_token,
            state_bytes_per_sequence=spec.state_bytes_per_sequence + small.state_bytes_per_sequence,
        )

    def open(self, prompt: str | Sequence[int], *, seed: int = 0) -> Branch:
        """A new root, on the draft as well: so what forks of it have in common is read once by both."""
        branch = self.target.open(prompt, seed=seed)
        if self.draft is not None:
            assert isinstance(branch, LocalBranch)
            self.target.post(partial(self._begin, branch, self.draft))
        return branch

    def extend(
        self,
        branch: Branch,
        sampling: Sampling,
        stop: Stop,
        *,
        stats: bool = False,
        deadline: float | None = None,
        constraint: Constraint | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Running:
        """Draws into `branch` until `stop`, as the decoder says."""
        if self.draft is not None:
            self.draft.check_open()
        return self.target.extend(
            branch,
            sampling,
            stop,
            stats=stats,
            deadline=deadline,
            constraint=constraint,
            on_text=on_text,
            decoding=None if isinstance(self.decoder, Plain) else self,
        )

    def estimate(self, request: Request) -> tuple[int, int]:
        """Worst-case FLOPs, every guess wrong, and the bytes of both caches."""
        most = self.decoder.most
        # each round gives one token at least
        drawn = request.max_tokens + self.decoder.most_wrong(request.max_tokens)
        worst = replace(request, max_tokens=drawn)
        flops = cost.worst_flops(self.target.spec, worst)
        memory = cost.kv_bytes(
            self.target.spec, replace(request, max_tokens=request.max_tokens + most)
        )
        if self.draft is None:
            return flops, memory
        # the draft reads the whole prompt, and catches up with at most two tokens a round
        known = request.context + request.prefill
        drafted = Request(0, known, request.n, drawn + 2 * request.max_tokens)
        flops += cost.worst_flops(self.draft.spec, drafted)
        kept = Request(0, known, request.n, request.max_tokens + most)
        return flops, memory + cost.kv_bytes(self.draft.spec, kept)

    def close(self) -> None:
        """Nothing: whoever opened the models closes them."""

    # --- on the engine's thread

    def _begin(self, root: LocalBranch, draft: LocalBackend) -> None:
        if not (root.sequence.freed or draft.runner.closed):
            root.follow(draft)

    @property
    def drafter(self) -> Runner | None:
        """The runner of the small model."""
        return None if self.draft is None else self.draft.runner

    def program(
        self, running: Running, branch: LocalBranch, draw: Draw, out: Continuation
    ) -> Program:
        """What draws into the branch; raises EngineClosedError where the draft has been closed meanwhile."""
        if self.draft is not None:
            self.draft.check_open()
            self.draft.runner.run_beside()
        runner, decoder = self.target.runner, self.decoder
        target = speculation.Target(
            runner,
            branch.sequence,
            running.count,
            lambda: self.target.engine.sharing(runner),
        )
        if isinstance(decoder, BigLittle):
            policy = speculation.Thresholds(
                decoder.fallback,
                decoder.rollback,
                decoder.longest,
                decoder.verify_tail or decoder.rollback == 0,
            )
            # what it writes at the end of a text may stay unseen by the target
            little = self._model(branch, draw, decoder.fallback, stats=draw.stats)
            return speculation.big_little(target, draw, out, little, policy, "together")
        turn: Turn = "together"
        if isinstance(decoder, Rounds) and decoder.schedule == "first_come":
            turn = "alone"
        guesser: Guesser
        if isinstance(decoder, Lookup):
            lengths = decoder.ngram, decoder.shortest
            shared = branch.shared(("written", *lengths), lambda: WrittenBefore(*lengths))
            assert isinstance(shared, WrittenBefore)
            guesser, turn = LookupGuesser(shared, branch.sequence), "now"
        else:
            guesser = self._model(branch, draw, self._confidence, keep=self._accept == "max")
        length = self._length(branch)
        return speculation.speculate(target, draw, out, guesser, length, turn, decoder.most_wrong)

    @property
    def _accept(self) -> Accept:
        """How guesses are verified."""
        decoder = self.decoder
        return decoder.accept if isinstance(decoder, Speculative | Rounds) else "draw"

    @property
    def _confidence(self) -> float:
        """Below which a guess ends."""
        return self.decoder.confidence if isinstance(self.decoder, Speculative) else 0.0

    def _model(
        self,
        branch: LocalBranch,
        draw: Draw,
        confidence: float,
        *,
        keep: bool = False,
        stats: bool = False,
    ) -> ModelGuesser:
        assert self.draft is not None
        sequence = branch.follow(self.draft)
        return ModelGuesser(
            self.draft.runner,
            sequence,
            draw,
            vocabulary=self.target.spec.vocabulary,
            context=self.draft.capabilities.context_length,
            known=self.draft.spec.vocabulary,
            confidence=confidence,
            keep=keep,
            stats=stats,
        )

    def _length(self, branch: LocalBranch) -> speculation.Length:
        """The length of guesses of the branch's tree."""
        decoder = self.decoder
        assert isinstance(decoder, Guessing | Rounds)
        if decoder.draft_tokens is not None:
            return FixedLength(decoder.draft_tokens)
        engine, runner = self.target.engine, self.target.runner
        source = self.drafter if self.drafter is not None else Lookup
        pair = engine.acceptance(runner, source, self._accept, self._confidence)

        def make() -> DraftLength:
            times = None if self.drafter is None else engine.times(self.drafter)
            return DraftLength(decoder.most, engine.times(runner), times, pair)

        length = branch.shared(("length", source, decoder), make)
        assert isinstance(length, DraftLength)
        return length


def _check_pair(target: LocalBackend, draft: LocalBackend) -> None:
    if target.engine is not draft.engine:
        msg = f"the draft {draft.name} is on {draft.engine.name} and the target {target.name} on {target.engine.name}: one engine must run both"
        raise CapabilityError(msg, hint="Load both on the same device.")
    if target.runner is draft.runner:
        msg = f"{target.name} cannot draft for itself"
        raise SettingError(msg, hint='Name a smaller model, or take the decoder "lookup".')
    if draft.capabilities.context_length < 2:
        msg = f"the draft {draft.name} has no room for a sequence"
        raise CapabilityError(msg, hint="Give it more memory.")
    ours, theirs = target.tokenizer, draft.tokenizer
    names = f"the draft {draft.name} and the target {target.name}"
    hint = 'Take a draft of the same family, or the decoder "lookup", which needs none.'
    if theirs.vocabulary < ours.vocabulary:
        msg = (
            f"{names} have different vocabularies: {theirs.vocabulary} and {ours.vocabulary} tokens"
        )
        raise VocabularyMismatchError(msg, hint=hint)
    if ours.fingerprint == theirs.fingerprint:
        return
    common = min(ours.vocabulary, theirs.vocabulary)
    other = next((t for t in range(common) if ours.piece(t) != theirs.piece(t)), None)
    if other is not None:
        msg = f"{names} have different vocabularies: token {other} is {theirs.piece(other)!r} in the draft and {ours.piece(other)!r} in the target"
        raise VocabularyMismatchError(msg, hint=hint)
    if ours.end_tokens.isdisjoint(theirs.end_tokens) and ours.end_tokens:
        msg = f"{names} end a text with different tokens: {sorted(theirs.end_tokens)} and {sorted(ours.end_tokens)}"
        raise VocabularyMismatchError(msg, hint=hint)
