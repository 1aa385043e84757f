"""Draft and verify, on both runners: the same tokens as plain decoding, from guesses of any quality."""

import time
from dataclasses import replace

import pytest
import torch

from langchain_pareto.backends import speculation
from langchain_pareto.backends.base import Logits, Sampling, Stop, Usage
from langchain_pareto.backends.decoders import BigLittle, Lookup, Plain, Rounds, Speculative
from langchain_pareto.backends.decoding import DecodingBackend
from langchain_pareto.backends.draft_length import FixedLength, Look
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.programs import Drawn
from langchain_pareto.backends.tokens import HFTokenizer
from langchain_pareto.errors import (
    CapabilityError,
    EngineClosedError,
    SettingError,
    VocabularyMismatchError,
)

WAIT = 120
GREEDY = Sampling(temperature=0.0)
HOT = Sampling(temperature=1.0)
SAMPLINGS = {
    "greedy": GREEDY,
    "sampled": HOT,
    "warped": Sampling(temperature=0.7, top_k=40, top_p=0.9),
    "penalised": Sampling(temperature=0.8, repetition_penalty=1.3, presence_penalty=0.2),
}
PROMPT = [5, 9, 13, 200, 7, 7, 31, 18]
NOISE = {"same": 0.0, "like": 6.0, "unlike": 1e4}  # added to the draft's logits: of any quality


@pytest.fixture
def pair(make_backend):
    """`pair(noise, architecture=..., slots=...)`: a target, and a draft on the same engine whose logits are noisy."""

    def make(noise=0.0, architecture="llama", **settings):
        engine = Engine("test")
        target = make_backend(architecture, engine=engine, **settings)
        draft = make_backend("llama", engine=engine, **settings)
        step, generator = draft.runner.step, torch.Generator().manual_seed(3)

        def noisy(chunks):
            logits = step(chunks)
            noise_ = torch.randn(logits.rows.shape, generator=generator) * noise
            return Logits(logits.rows + noise_, logits.union)

        draft.runner.step = noisy
        return target, draft

    return make


def drawn(backend, *, branches=1, sampling=HOT, stop=None, seed=0, prompt=PROMPT, **more):
    """The extensions of so many branches of one prompt."""
    root = backend.open(prompt, seed=seed)
    children = root.fork(branches)
    stop = stop or Stop(24, eos=False)
    tasks = [backend.extend(child, sampling, stop, **more) for child in children]
    found = [task.future.result(WAIT) for task in tasks]
    for extension, child in zip(found, children, strict=True):
        assert list(child.tokens) == prompt + extension.tokens
        child.free()
    root.free()
    return found


def ids(extensions):
    """Their tokens."""
    return [extension.tokens for extension in extensions]


def held(*backends):
    """Slots that sequences hold, once the engine is idle."""
    return [
        backend.engine.call(lambda pool=backend.runner.pool: pool.live).result(WAIT)
        for backend in backends
    ]


@pytest.mark.parametrize("noise", list(NOISE))
@pytest.mark.parametrize("sampling", list(SAMPLINGS))
def test_tokens_are_those_of_plain_decoding(pair, noise, sampling):
    """Whatever the draft guesses, in chains of 1 to 8, for 1 to 16 branches, under every schedule: same seed, same tokens."""
    target, draft = pair(NOISE[noise])
    warp = SAMPLINGS[sampling]
    for branches in (1, 5, 16):
        wanted = ids(drawn(target, branches=branches, sampling=warp, seed=branches))
        for decoder in (
            Speculative(draft_tokens=1),
            Speculative(draft_tokens=8),
            Speculative(confidence=0.3),
            Rounds(schedule="first_come"),
            Rounds(schedule="batched"),
            Lookup(draft_tokens=3, shortest=1),
            Lookup(),
        ):
            backend = DecodingBackend(target, decoder, draft)
            got = ids(drawn(backend, branches=branches, sampling=warp, seed=branches))
            assert got == wanted, decoder
    assert held(target, draft) == [0, 0]


@pytest.mark.parametrize(
    "architecture", ["mamba2", "lfm2", "mamba", "qwen3_next", "gemma3", "qwen3"]
)
def test_any_architecture_can_be_the_target(pair, architecture):
    """Windowed, recurrent and hybrid targets go back to what was verified."""
    target, draft = pair(NOISE["like"], architecture)
    wanted = ids(drawn(target, branches=4))
    for decoder in (Speculative(draft_tokens=4), Rounds(schedule="first_come"), Lookup(shortest=1)):
        assert ids(drawn(DecodingBackend(target, decoder, draft), branches=4)) == wanted
    assert held(target, draft) == [0, 0]


@pytest.mark.parametrize("architecture", ["mamba2", "lfm2"])
def test_recurrent_models_draft(make_backend, architecture):
    """A draft with a state goes back to a kept one, too."""
    engine = Engine("test")
    target, draft = (make_backend(kind, engine=engine) for kind in ("llama", architecture))
    wanted = ids(drawn(target, branches=3))
    draft.spec = replace(draft.spec, state_bytes_per_sequence=1000)
    decoded = DecodingBackend(target, Speculative(draft_tokens=3), draft)
    assert ids(drawn(decoded, branches=3)) == wanted
    assert decoded.spec.state_bytes_per_sequence == 1000  # the target has none
    assert decoded.estimate(_request(5, 4))[1] >= 1000


@pytest.mark.parametrize("noise", ["same", "like"])
def test_a_stop_inside_a_guess_ends_the_branch_exactly_there(pair, noise):
    """End tokens, stop strings and the limit: the same text, tokens, finish and figures as plain."""
    target, draft = pair(NOISE[noise])
    decoded = DecodingBackend(target, Speculative(draft_tokens=6), draft)
    [plain] = drawn(target, stop=Stop(40, eos=False), stats=True)
    text = plain.text
    token = plain.tokens[17]
    for stop in (
        Stop(40, strings=(text[10:13],), eos=False),
        Stop(40, strings=(text[12:14],), eos=False, keep=True),
        Stop(40, tokens=frozenset({token}), eos=False),
        Stop(7, eos=False),
        Stop(1, eos=False),
    ):
        [wanted], [got] = (drawn(b, stop=stop, stats=True) for b in (target, decoded))
        assert (got.tokens, got.text, got.finish, got.stop) == (
            wanted.tokens,
            wanted.text,
            wanted.finish,
            wanted.stop,
        )
        assert got.logprobs == pytest.approx(wanted.logprobs, abs=1e-3)
        assert got.usage.new_tokens == len(got.tokens)


class Even:
    """A constraint: even tokens only, and 250 once three tokens were drawn."""

    def __init__(self, count=0):
        self.count = count

    def allowed(self):
        return list(range(250, 252, 2)) if self.count == 3 else list(range(0, 256, 2))

    def advance(self, token):
        assert token in self.allowed()
        self.count += 1

    def rollback(self, n):
        self.count -= n

    def fork(self):
        return Even(self.count)


def test_constraints_advance_by_accepted_tokens_only(pair):
    """Guesses are checked against the constraint, and what is verified obeys it at every place."""
    target, draft = pair(NOISE["like"])
    for decoder in (Speculative(draft_tokens=5), Lookup(shortest=1, draft_tokens=4)):
        backend = DecodingBackend(target, decoder, draft)
        plain, guided = Even(), Even()
        [wanted] = drawn(target, constraint=plain)
        [got] = drawn(backend, constraint=guided)
        assert got.tokens == wanted.tokens
        assert (guided.count, got.tokens[3]) == (24, 250)


class Cliff:
    """A constraint with nothing to say after a token that is one more than a multiple of `steep`."""

    def __init__(self, fails, steep):
        self.fails, self.steep, self.tokens = fails, steep, []

    def allowed(self):
        if not self.tokens or self.tokens[-1] % self.steep != 1:
            return range(256)
        if self.fails == "raises":
            raise ZeroDivisionError(self.tokens)
        return {"allows nothing": [], "allows what is none": [3, 10_000], "allows no ids": ["a"]}[
            self.fails
        ]

    def advance(self, token):
        if self.fails == "refuses" and token % self.steep == 1:
            raise ZeroDivisionError(self.tokens)
        self.tokens.append(token)

    def rollback(self, n):
        del self.tokens[len(self.tokens) - n :]

    def fork(self):
        raise NotImplementedError


@pytest.mark.parametrize(
    "fails", ["raises", "allows nothing", "allows what is none", "allows no ids", "refuses"]
)
def test_a_constraint_that_fails_behind_a_wrong_guess_fails_nobody(pair, fails):
    """Text, branch, error and figures are those of plain decoding, which never comes there; and where it does come, it fails alike."""
    target, draft = pair(NOISE["like"])

    def outcome(backend, steep, seed):
        branch, heard = backend.open(PROMPT, seed=seed), []
        constraint, stop = Cliff(fails, steep), Stop(16, eos=False)
        task = backend.extend(branch, HOT, stop, constraint=constraint, on_text=heard.append)
        error = task.future.exception(WAIT)
        branch.free()
        drawn = list(branch.tokens)[len(PROMPT) :]
        return repr(error), drawn, "".join(heard), constraint.tokens, task.usage.new_tokens

    failed = 0
    for steep, seed in ((17, 0), (17, 1), (40, 2)):
        wanted = outcome(target, steep, seed)
        failed += wanted[0] != "None"
        for decoder in (
            Speculative(draft_tokens=5),
            Lookup(shortest=1, draft_tokens=4),
            BigLittle(rollback=0, fallback=0),
        ):
            assert outcome(DecodingBackend(target, decoder, draft), steep, seed) == wanted
    assert 0 < failed < 3
    assert held(target, draft) == [0, 0]


def test_a_constraint_need_not_know_what_comes_after_the_end(pair):
    """Nothing does: it is not asked for it, and if it is, its error is nobody's."""

    class Ended(Cliff):
        def allowed(self):
            if 256 in self.tokens:
                raise ZeroDivisionError
            return range(257)

    target, draft = pair(0.0)
    bias = Sampling(logit_bias=((256, 9.0),))
    for decoder in (Speculative(draft_tokens=5), BigLittle(fallback=0, verify_tail=True)):
        backend = DecodingBackend(target, decoder, draft)
        [found] = drawn(backend, sampling=bias, stop=Stop(60), constraint=Ended("", 1))
        assert found.finish == "eos"
        assert found.usage.accepted > 0


def test_a_draft_with_fewer_tokens_is_told_of_those_that_it_has(pair):
    """A bias or a constraint that names others, padding rows of the target, is no mistake."""
    target, draft = pair(0.0)
    step = draft.runner.step
    draft.spec = replace(draft.spec, vocabulary=258)

    def fewer(chunks):
        logits = step(chunks)
        return Logits(logits.rows[:, :258], logits.union)

    draft.runner.step = fewer

    class All(Cliff):
        def allowed(self):
            return range(1, 260)

    bias = Sampling(logit_bias=((259, -100.0), (7, 1.0)))
    backend = DecodingBackend(target, Speculative(draft_tokens=3), draft)
    for settings in ({"sampling": bias}, {"constraint": All("", 1)}):
        [wanted] = drawn(target, **settings)
        [found] = drawn(backend, **settings)
        assert found.tokens == wanted.tokens
        assert found.usage.accepted > 0


def test_a_token_in_the_place_of_a_wrong_guess_is_charged(pair):
    """Whoever computes it first pays, as in plain decoding: the guess that was computed there is another token."""
    target, draft = pair(NOISE["unlike"])
    first = target.open(PROMPT)
    plain = target.extend(first, HOT, Stop(6, eos=False)).future.result(WAIT)
    stop = Stop(24, eos=False, tokens=frozenset(plain.tokens[5:]))
    first.free()

    def read(backend):
        target.engine.call(target.runner.forget).result(WAIT)
        branch = backend.open(PROMPT)
        assert backend.extend(branch, HOT, stop).future.result(WAIT).tokens == plain.tokens
        branch.append(list(range(20)))
        task = target.prefill(branch)
        task.future.result(WAIT)
        branch.free()
        return task.usage.prompt_tokens, task.usage.flops, task.usage.replayed_tokens

    wanted = read(target)
    assert read(DecodingBackend(target, Speculative(draft_tokens=6), draft)) == wanted


def test_a_perfect_draft_is_accepted_whole(pair):
    """With the target's own distribution every guess stays: 4 tokens a round with 3 guesses."""
    target, draft = pair(0.0)
    backend = DecodingBackend(target, Speculative(draft_tokens=3), draft)
    [found] = drawn(backend, stop=Stop(32, eos=False))
    usage = found.usage
    assert (usage.new_tokens, usage.rounds) == (32, 8)
    assert usage.drafted == usage.accepted == 24


def test_usage_adds_up_to_the_meter(pair):
    """What the requests report is what the engine counted; guesses are no new tokens, and the draft's reading is no prompt."""
    target, draft = pair(NOISE["like"])
    backend = DecodingBackend(target, Speculative(draft_tokens=4), draft)
    found = drawn(backend, branches=6)
    total = sum((f.usage for f in found), Usage())
    meter = target.engine.call(lambda: target.engine.meter).result(WAIT)
    for name in ("new_tokens", "drafted", "accepted", "rounds", "forward_tokens", "flops"):
        assert getattr(total, name) == getattr(meter, name), name
    assert total.new_tokens == 6 * 24
    assert 0 < total.accepted < total.drafted
    assert total.prompt_tokens == len(PROMPT) - 1 + 6  # the pending token is each branch's own


def test_no_request_costs_more_than_its_worst_case(pair):
    """FLOPs and bytes of target and draft stay below what was estimated beforehand, whatever is guessed."""
    for noise in NOISE.values():
        target, draft = pair(noise)
        for decoder in (Speculative(draft_tokens=4), BigLittle(longest=5), Lookup()):
            backend = DecodingBackend(target, decoder, draft)
            [found] = drawn(backend, prompt=[3, 1, 4, 1, 5])
            [plain] = drawn(target, prompt=[2, 7, 1, 8, 2])
            flops, memory = backend.estimate(_request(5, 24))
            least, kept = target.estimate(_request(5, 24))
            assert plain.usage.flops <= least <= flops
            assert found.usage.flops <= flops
            assert memory >= kept


def _request(prompt, tokens):
    from langchain_pareto.backends.base import Request

    return Request(0, prompt, 1, tokens)


@pytest.mark.parametrize("decoder", [Speculative(draft_tokens=4), Lookup(shortest=1), BigLittle()])
def test_what_is_interrupted_keeps_verified_tokens_only(pair, decoder):
    """Cancelled at any moment, a branch holds a beginning of the plain text, and nothing leaks."""
    target, draft = pair(NOISE["like"])
    backend = DecodingBackend(target, decoder, draft)
    [whole] = drawn(
        DecodingBackend(target, decoder, draft) if isinstance(decoder, BigLittle) else target,
        stop=Stop(400, eos=False),
    )
    for pause in (0.0, 0.01, 0.03, 0.08):
        branch = backend.open(PROMPT)
        task = backend.extend(branch.fork(1)[0], HOT, Stop(400, eos=False))
        time.sleep(pause)
        task.cancel()
        got = task.future.result(WAIT)
        assert got.finish in ("cancelled", "length")
        if decoder.lossless:
            assert got.tokens == whole.tokens[: len(got.tokens)]
        branch.free()
    deadline = time.monotonic() + 0.05
    [late] = drawn(backend, stop=Stop(4000, eos=False), deadline=deadline)
    assert late.finish == "deadline"


def test_the_target_steps_as_often_as_the_schedule_says(pair, gate):
    """Steps of the target for the same tokens: verified together at most as many as one by one, and those at most as many as serially."""

    def steps(schedule, *, serial=False):
        target, draft = pair(NOISE["like"])
        gated = gate(target)
        backend = DecodingBackend(target, Rounds(schedule=schedule), draft)
        if serial:
            found = [t for k in range(6) for t in ids(drawn(backend, seed=k))]
        else:
            roots = [backend.open(PROMPT, seed=k) for k in range(6)]
            stop = Stop(24, eos=False)
            tasks = [backend.extend(root.fork(1)[0], HOT, stop) for root in roots]
            found = [task.future.result(WAIT).tokens for task in tasks]
        return len(gated.steps), found

    together, one = steps("batched")
    in_turn, two = steps("first_come")
    alone, three = steps("first_come", serial=True)
    assert one == two == three
    assert together < in_turn <= alone


@pytest.mark.parametrize("sampling", ["greedy", "sampled", "warped"])
def test_big_little_with_rollback_0_is_the_target(pair, sampling):
    """The parity mode: what the target would not have drawn is taken back, so the text is its own."""
    warp = SAMPLINGS[sampling]
    for noise in NOISE.values():
        target, draft = pair(noise)
        backend = DecodingBackend(target, BigLittle(rollback=0, fallback=0.1), draft)
        wanted = ids(drawn(target, branches=4, sampling=warp))
        assert ids(drawn(backend, branches=4, sampling=warp)) == wanted


def test_what_is_so_likely_that_it_rounds_to_certain_stays_only_where_it_is_the_draw():
    """At rollback 0 the text is the target's, whatever the little model says."""
    drawn_otherwise = Drawn(7, 0.0, 0.0, 0.0, judged=-0.0)
    assert speculation._likely([5], [drawn_otherwise], 0.0) == 0
    assert speculation._likely([7], [drawn_otherwise], 0.0) == 1
    assert speculation._likely([5], [drawn_otherwise], 0.1) == 1


def test_what_siblings_were_given_instead_is_their_own(make_backend):
    """Branches go back behind their fork and are each given another token there: the little model keeps them apart, too."""

    def texts(which):
        engine = Engine("test")
        target, draft = (make_backend(kind, engine=engine) for kind in ("llama", "qwen3"))
        backend = DecodingBackend(target, BigLittle(fallback=0.0, rollback=1e6), draft)
        root = backend.open(PROMPT)
        backend.extend(root, GREEDY, Stop(16, eos=False)).future.result(WAIT)
        children = root.fork(4)
        length = len(root.tokens) - 6
        for i, child in enumerate(children):
            child.truncate(length)
            child.append([20 + 50 * i, 3])
        tasks = [backend.extend(children[i], GREEDY, Stop(20, eos=False)) for i in which]
        return ids([task.future.result(WAIT) for task in tasks])

    assert texts(range(4)) == [texts([i])[0] for i in range(4)]


@pytest.mark.parametrize(
    "decoder", [Speculative(draft_tokens=3), BigLittle(fallback=0.0, rollback=1e6)]
)
def test_a_draft_reads_what_branches_have_in_common_once(pair, decoder):
    """Forks of a root that has drawn nothing are one tree on the draft as well: a step of all reads their prompt once."""
    target, draft = pair()
    read, step = [], draft.runner.step

    def reading(chunks):
        logits = step(chunks)
        read.append((len(chunks), logits.union))
        return logits

    draft.runner.step = reading
    drawn(DecodingBackend(target, decoder, draft), branches=4, prompt=PROMPT * 20)
    together = [union for branches, union in read if branches == 4]
    assert together
    assert max(together) < 2 * len(PROMPT) * 20
    assert held(target, draft) == [0, 0]


def test_what_a_draft_finds_in_its_cache_is_no_part_of_the_prompt(pair):
    """Cached tokens are those of plain decoding."""
    target, draft = pair()
    cached = []
    for backend in (target, target, DecodingBackend(target, Speculative(draft_tokens=4), draft)):
        for _ in range(2):
            found = drawn(backend, branches=4, prompt=PROMPT * 20)
        cached.append(sum(extension.usage.cached_tokens for extension in found))
    assert len(set(cached)) == 1


def test_big_little_thresholds_move_what_stays(pair):
    """A stricter rollback takes more of the draft's tokens back, and a higher fallback hands over earlier, as published."""
    target, draft = pair(NOISE["like"])

    def totals(**thresholds):
        policy = BigLittle(longest=6, verify_tail=True, **thresholds)
        found = drawn(
            DecodingBackend(target, policy, draft), branches=8, sampling=GREEDY, seed=1
        ) + drawn(DecodingBackend(target, policy, draft), branches=8, seed=2)
        return sum((f.usage for f in found), Usage())

    taken_back = [
        (usage.drafted - usage.accepted) / usage.drafted
        for usage in (totals(rollback=r, fallback=0) for r in (0.1, 2, 6, 40))
    ]
    assert taken_back == sorted(taken_back, reverse=True)
    assert taken_back[0] > taken_back[-1] == 0
    drafted = [totals(rollback=40, fallback=f).drafted for f in (0, 0.5, 0.9, 1)]
    assert drafted == sorted(drafted, reverse=True)
    assert drafted[0] > drafted[-1]


@pytest.mark.parametrize("architecture", ["llama", "mamba2"])
def test_caches_are_right_after_rollbacks(pair, architecture, assert_close):
    """After a text with many rollbacks, the next logits are those of a fresh prefill."""
    target, draft = pair(NOISE["like"], architecture)
    for decoder in (
        BigLittle(fallback=0, rollback=2, verify_tail=True),
        Speculative(draft_tokens=5),
    ):
        backend = DecodingBackend(target, decoder, draft)
        branch = backend.open(PROMPT)
        task = backend.extend(branch, HOT, Stop(30, eos=False))
        task.future.result(WAIT)
        tokens = list(branch.tokens)
        continued = target.score(branch, [[1, 2, 3]]).future.result(WAIT)
        target.engine.call(target.runner.forget).result(WAIT)
        branch.free()
        target.engine.call(target.runner.forget).result(WAIT)
        fresh = target.score(target.open(tokens), [[1, 2, 3]]).future.result(WAIT)
        assert_close(torch.tensor(continued), torch.tensor(fresh), 1e-3)


def test_forks_share_what_the_draft_has_read(pair):
    """Children of a branch that has speculated begin with its draft's cache: the draft reads nothing twice."""
    target, draft = pair(0.0)
    backend = DecodingBackend(target, Speculative(draft_tokens=3), draft)
    branch = backend.open(list(range(100)))
    backend.extend(branch, HOT, Stop(10, eos=False)).future.result(WAIT)
    before = target.engine.meter.forward_tokens
    children = branch.fork(4)
    for task in [backend.extend(child, HOT, Stop(4, eos=False)) for child in children]:
        task.future.result(WAIT)
    assert target.engine.meter.forward_tokens - before <= 4 * (4 + 5) * 2


def test_memory_grows_with_own_tokens_only(pair):
    """Sixteen branches hold their prompt once on each model, and their own tokens beside it."""
    target, draft = pair(0.0)
    backend = DecodingBackend(target, Speculative(draft_tokens=3), draft)
    root = backend.open(list(range(200)))
    children = root.fork(16)
    for task in [backend.extend(c, HOT, Stop(8, eos=False)) for c in children]:
        task.future.result(WAIT)
    on_target, on_draft = held(target, draft)
    assert on_target <= 200 + 16 * 9
    assert on_draft <= 200 + 16 * 12


def test_pools_too_small_for_all_branches_still_give_the_same_tokens(pair):
    """When slots run out programs give way and go on later, with guesses too."""
    target, draft = pair(NOISE["like"], slots=120)
    wanted = ids(drawn(target, branches=8))
    backend = DecodingBackend(target, Speculative(draft_tokens=4), draft)
    assert ids(drawn(backend, branches=8)) == wanted


def test_plain_and_speculative_programs_share_an_engine(pair):
    """Neither changes the other's tokens."""
    target, draft = pair(NOISE["like"])
    backend = DecodingBackend(target, Rounds(schedule="first_come"), draft)
    wanted = ids(drawn(target, branches=3, seed=5)) + ids(drawn(target, branches=3, seed=6))
    one, two = target.open(PROMPT, seed=5).fork(3), target.open(PROMPT, seed=6).fork(3)
    stop = Stop(24, eos=False)
    tasks = [target.extend(b, HOT, stop) for b in one] + [backend.extend(b, HOT, stop) for b in two]
    assert [task.future.result(WAIT).tokens for task in tasks] == wanted


def test_only_what_decodes_shares_the_steps(pair, gate):
    """Draft lengths go by the branches that draw: what is scored, prefilled or waits for others' trees is none."""
    target, draft = pair(NOISE["like"])
    backend, shared = DecodingBackend(target, Speculative(draft_tokens=2), draft), []
    gated = gate(target)
    gated.before = lambda _: shared.append(target.engine.sharing(target.runner))
    gated.stop_at(0)
    root, stop = backend.open(PROMPT), Stop(12, eos=False)
    tasks = [backend.extend(child, HOT, stop) for child in root.fork(3)]
    tasks += [target.score(root, [[1, 2], [3]]) for _ in range(5)]
    tasks.append(target.prefill(target.open(list(range(100)))))
    gated.open()
    for task in tasks:
        task.future.result(WAIT)
    assert max(shared) == 3

    target.runner.max_roots = 1
    shared.clear()
    roots = [target.open([k, *range(40)], seed=k) for k in range(3)]
    for task in [target.extend(one, HOT, stop) for one in roots]:
        task.future.result(WAIT)
    assert max(shared) == 1


def test_how_many_share_the_steps_is_known_from_the_first_token_on(pair, gate):
    """Branches that come together all ask with all of them, and not each with those before it."""
    target, draft = pair()
    shared = []

    class Noting(FixedLength):
        def next(self, branches):
            shared.append(branches)
            return 0

    gated, stop = gate(target), Stop(3, eos=False)
    gated.stop_at(0)
    first = target.extend(target.open(PROMPT), HOT, stop)  # holds the engine until all are there
    backend = with_length(target, draft, Noting(0))
    root = backend.open(PROMPT)
    tasks = [backend.extend(child, HOT, stop) for child in root.fork(5)]
    gated.open()
    for task in [first, *tasks]:
        task.future.result(WAIT)
    assert shared[:5] == [6] * 5


class Once(FixedLength):
    """Guesses one token in one round, and never else."""

    def __init__(self, at):
        super().__init__(0)
        self._at = at

    def next(self, branches):
        self._at -= 1
        return int(self._at == -1)


class Looking(FixedLength):
    """Never guesses, and looks back in every so many rounds."""

    def __init__(self, back, every):
        super().__init__(0)
        self._back, self._every, self._drawn = back, every, 0
        self.found = {}  # by place
        self.first = []

    def look(self, branches, drawn):
        self._drawn = drawn
        return Look(self._back, ahead=2) if drawn and (drawn + 1) % self._every == 0 else None

    def note_look(self, right, *, first=False):
        places = range(self._drawn - len(right), self._drawn)
        self.first.append((first, 0 in places))
        self.found |= dict(zip(places, right, strict=True))


def with_length(target, draft, length):
    """A backend that guesses as long as it is told."""
    backend = DecodingBackend(target, Speculative(), draft)
    backend._length = lambda _: length
    return backend


@pytest.mark.parametrize("sampling", list(SAMPLINGS))
@pytest.mark.parametrize(("back", "every", "places"), [(1, 1, 11), (4, 4, 11), (16, 5, 9)])
def test_a_look_back_finds_what_guesses_would_have_been(pair, sampling, back, every, places):
    """Of each token that it looks at, whether the draft would have guessed it."""
    target, draft = pair()
    step = draft.runner.step
    spread = 4 * torch.randn(target.spec.vocabulary, generator=torch.Generator().manual_seed(1))

    def leaning(chunks):
        logits = step(chunks)
        return Logits(logits.rows + spread, logits.union)

    draft.runner.step = leaning
    told = {"sampling": SAMPLINGS[sampling], "stop": Stop(12, eos=False)}
    length = Looking(back, every)
    [looked] = drawn(with_length(target, draft, length), **told)
    assert looked.tokens == drawn(target, **told)[0].tokens
    assert looked.usage.drafted == looked.usage.rounds == 0
    assert all(first == begins for first, begins in length.first)
    right = {}
    for at in range(places):
        [one] = drawn(with_length(target, draft, Once(at)), **told)
        assert one.usage.drafted == 1
        right[at] = one.usage.accepted == 1
    assert length.found == right
    assert len(set(right.values())) == 2
    assert held(target, draft) == [0, 0]


@pytest.mark.parametrize("architecture", ["llama", "mamba2", "lfm2"])
def test_branches_that_look_together_stay_in_step(make_backend, architecture):
    """The target steps as often as without looks, and the draft once a look."""
    engine = Engine("test")
    target = make_backend("llama", engine=engine)
    draft = make_backend(architecture, engine=engine)
    steps = dict.fromkeys((target.runner, draft.runner), 0)
    for runner in steps:

        def counting(chunks, runner=runner, step=runner.step):
            steps[runner] += 1
            return step(chunks)

        runner.step = counting
    drawn(target, branches=5)  # from now on the prompt is cached
    steps[target.runner] = 0
    plain = drawn(target, branches=5)
    alone, steps[target.runner] = steps[target.runner], 0
    backend, lengths = DecodingBackend(target, Speculative(), draft), []

    def length(_):
        lengths.append(Looking(8, 8))
        return lengths[-1]

    backend._length = length
    looked = drawn(backend, branches=5)
    assert ids(looked) == ids(plain)
    assert steps[target.runner] == alone
    # a recurrent draft reads what comes before the rows by itself, and the prompt is read for all
    assert 3 <= steps[draft.runner] <= (6 if draft.runner.recurrent else 4)
    assert all(len(one.found) == 7 + 8 + 8 for one in lengths)


@pytest.mark.parametrize("how", ["confidence", "max", "constraint", "lookup"])
def test_where_nothing_tells_without_guessing_a_look_guesses(pair, how):
    """A guess that depends on more than the branch's key, or on no model at all."""
    target, draft = pair()
    decoder = {
        "confidence": Speculative(confidence=0.01),
        "max": Speculative(accept="max"),
        "lookup": Lookup(ngram=1, shortest=1),
    }.get(how, Speculative())
    backend = DecodingBackend(target, decoder, draft)
    length = Looking(8, 4)
    backend._length = lambda _: length
    [found] = drawn(backend, constraint=Even() if how == "constraint" else None)
    assert not length.found
    assert found.usage.drafted > 0 or how == "lookup"


def test_nobody_waits_for_a_look_to_verify_guesses(pair, gate):
    """While the draft reads a long prompt for a look in one tree, another tree's guesses are verified."""
    target, draft = pair(slots=12_000)
    long = [(i * 37) % 250 for i in range(3000)]
    assert target.prefill(target.open(long)).future.result(WAIT)  # the draft alone has to read it
    events = []
    gate(draft).before = lambda chunks: events.extend(["read"] * (max(c.n for c in chunks) > 99))
    gate(target).before = lambda chunks: events.extend(
        ["verify"] * (max(c.rows for c in chunks) > 1)
    )
    looking, guessing = target.open(long), target.open(PROMPT)
    speculative = DecodingBackend(target, Speculative(draft_tokens=1), draft)
    tasks = [
        with_length(target, draft, Looking(4, 2)).extend(looking, HOT, Stop(6, eos=False)),
        speculative.extend(guessing, HOT, Stop(30, eos=False)),
    ]
    for task in tasks:
        task.future.result(WAIT)
    reads = [i for i, event in enumerate(events) if event == "read"]
    assert len(reads) > 1
    assert "verify" in events[reads[0] : reads[-1]]


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_look_that_is_interrupted_loses_nothing(pair, gate, how):
    """What was drawn before it is there and paid for, and no more."""
    target, draft = pair()
    gated = gate(draft)
    gated.stop_at(0)
    backend = with_length(target, draft, Looking(4, 4))
    root = backend.open(PROMPT)
    deadline = time.monotonic() + 1.0 if how == "deadline" else None
    task = backend.extend(root, HOT, Stop(12, eos=False), deadline=deadline)
    gated.wait()
    if how == "cancel":
        task.cancel()
    else:
        time.sleep(1.1)
    gated.open()
    found = task.future.result(WAIT)
    assert found.finish == ("cancelled" if how == "cancel" else how)
    assert found.usage.new_tokens == len(found.tokens) >= 3
    assert list(root.tokens) == PROMPT + found.tokens
    other = target.open(PROMPT)
    plain = target.extend(other, HOT, Stop(12, eos=False)).future.result(WAIT)
    assert found.tokens == plain.tokens[: len(found.tokens)]
    root.free()
    other.free()
    assert held(target, draft) == [0, 0]


def test_a_draft_that_is_never_sure_is_asked_seldom(pair, gate):
    """With a confidence threshold that it does not reach, it would take a step a round for nothing."""
    target, draft = pair()
    gated = gate(draft)
    step = draft.runner.step

    def flat(chunks):
        logits = step(chunks)
        return Logits(0.01 * logits.rows, logits.union)

    draft.runner.step = flat
    backend = DecodingBackend(target, Speculative(confidence=0.9), draft)
    stop = Stop(120, eos=False)
    [found] = drawn(backend, stop=stop)
    assert found.tokens == drawn(target, stop=stop)[0].tokens
    assert found.usage.drafted == 0
    assert 2 <= len(gated.steps) < 30


def test_a_step_does_not_look_at_all_programs_for_each_of_them(pair):
    """Sixteen branches are gone through no oftener a step than four."""

    class Watched(list):
        looks = 0

        def __iter__(self):
            self.looks += 1
            return super().__iter__()

    def looks(branches):
        target, draft = pair(0.0)
        engine, live = target.engine, Watched()
        engine._live.programs = engine._scheduler._live = live
        backend = DecodingBackend(target, Speculative(draft_tokens=1), draft)
        drawn(backend, branches=branches)
        return live.looks / engine.steps

    assert looks(16) < 1.5 * looks(4)


def test_a_draft_is_never_shown_a_token_that_it_does_not_have(pair, gate):
    """Padding rows of the target's vocabulary may be drawn; where the draft has fewer of them, the target goes on alone."""
    target, draft = pair(0.0)
    draft.spec = replace(draft.spec, vocabulary=258)
    shown = []
    gate(draft).before = lambda chunks: shown.extend(max(c.sequence.tokens) for c in chunks)
    bias = Sampling(logit_bias=((259, 1e4),))
    plain = drawn(target, sampling=bias, stop=Stop(6, eos=False))
    backend = DecodingBackend(target, Speculative(draft_tokens=2), draft)
    assert ids(drawn(backend, sampling=bias, stop=Stop(6, eos=False))) == ids(plain) == [[259] * 6]
    assert all(token < 258 for token in shown)


def test_a_draft_with_a_short_context_guesses_as_far_as_it_reaches(make_backend):
    """Beyond the draft's context the target goes on alone, to the same tokens."""
    engine = Engine("test")
    target = make_backend(engine=engine)
    draft = make_backend(engine=engine, max_context=20)
    decoded = DecodingBackend(target, Speculative(draft_tokens=3), draft)
    [plain], [found] = drawn(target), drawn(decoded)
    assert found.tokens == plain.tokens
    assert 0 < found.usage.drafted <= 20
    whole = DecodingBackend(target, BigLittle(fallback=0), draft)
    assert len(drawn(whole)[0].tokens) == 24


@pytest.mark.parametrize("make_runner", ["llama-cpp"], indirect=True)
def test_turns_and_a_limit_of_roots_do_not_wait_for_each_other(pair):
    """Where only one tree is worked on at a time, those whose turn it is are of that tree."""
    target, draft = pair(NOISE["like"])
    wanted = [ids(drawn(target, branches=2, seed=k, prompt=[k, *PROMPT])) for k in range(3)]
    target.runner.max_roots = draft.runner.max_roots = 1
    for schedule in ("first_come", "batched"):
        backend = DecodingBackend(target, Rounds(schedule=schedule), draft)
        roots = [backend.open([k, *PROMPT], seed=k).fork(2) for k in range(3)]
        stop = Stop(24, eos=False)
        tasks = [[backend.extend(b, HOT, stop) for b in branches] for branches in roots]
        assert [[t.future.result(WAIT).tokens for t in of] for of in tasks] == wanted


@pytest.mark.parametrize("decoder", [Speculative(draft_tokens=8), BigLittle(rollback=0)])
@pytest.mark.parametrize("call", [1, 4])
def test_what_a_listener_raises_leaves_no_guess_behind(pair, decoder, call):
    """An error of whoever reads the text is the request's own; the branch holds what was drawn until then, and goes on from there."""
    target, draft = pair(0.0)
    backend = DecodingBackend(target, decoder, draft)
    [plain] = drawn(target, sampling=GREEDY)
    calls = []

    def listen(text):
        calls.append(text)
        if len(calls) == call:
            raise ZeroDivisionError

    branch = backend.open(PROMPT)
    task = backend.extend(branch, GREEDY, Stop(24, eos=False), on_text=listen)
    with pytest.raises(ZeroDivisionError):
        task.future.result(WAIT)
    kept = len(branch.tokens) - len(PROMPT)
    assert list(branch.tokens) == PROMPT + plain.tokens[:kept]
    assert task.usage.new_tokens == kept > 0
    rest = backend.extend(branch, GREEDY, Stop(24 - kept, eos=False)).future.result(WAIT)
    assert plain.tokens[kept:] == rest.tokens


def test_a_draft_that_was_closed_is_named(pair):
    """A call after its draft was closed says so, and its branch can be forked, continued plainly and freed."""
    target, draft = pair(0.0)
    backend = DecodingBackend(target, Speculative(draft_tokens=3), draft)
    branch = backend.open(PROMPT)
    backend.extend(branch, HOT, Stop(4, eos=False)).future.result(WAIT)
    draft.close()
    with pytest.raises(EngineClosedError, match="closed"):
        backend.extend(branch, HOT, Stop(4, eos=False))
    [child] = branch.fork(1)
    assert len(target.extend(child, HOT, Stop(4, eos=False)).future.result(WAIT).tokens) == 4
    for one in (child, branch):
        one.free()
    assert held(target) == [0]
    assert target.engine.call(lambda: len(target.engine._acceptance)).result(WAIT) == 0


def test_a_draft_that_is_closed_ends_its_programs(pair):
    """Closing the draft's backend fails what guesses with it, clearly, and the target goes on."""
    target, draft = pair(0.0)
    backend = DecodingBackend(target, Speculative(draft_tokens=3), draft)
    task = backend.extend(backend.open(PROMPT), HOT, Stop(4000, eos=False))
    draft.close()
    with pytest.raises(EngineClosedError, match="closed"):
        task.future.result(WAIT)
    assert len(ids(drawn(target))[0]) == 24


def test_pairs_that_do_not_fit_are_refused(make_backend, tokenizer):
    """No draft, a draft on another engine, and one of another vocabulary each have their error, which says what to do."""
    target, elsewhere = make_backend(), make_backend()
    with pytest.raises(SettingError, match="needs a draft model"):
        DecodingBackend(target, Speculative())
    with pytest.raises(CapabilityError, match="one engine"):
        DecodingBackend(target, Speculative(), elsewhere)
    with pytest.raises(SettingError, match="cannot draft for itself"):
        DecodingBackend(target, Speculative(), target)
    draft = make_backend(engine=target.engine)
    draft.tokenizer = _Shifted(tokenizer)
    with pytest.raises(VocabularyMismatchError, match="different vocabularies: token 0") as caught:
        DecodingBackend(target, Speculative(), draft)
    assert "lookup" in caught.value.hint
    small = make_backend(engine=target.engine)
    small.tokenizer = _Shifted(tokenizer)
    small.tokenizer.vocabulary = 200
    with pytest.raises(VocabularyMismatchError, match="200 and 258 tokens"):
        DecodingBackend(target, Speculative(), small)
    assert DecodingBackend(target, Plain()).draft is None


class _Shifted(HFTokenizer):
    """The same tokens under other numbers."""

    def __init__(self, other):
        self.__dict__.update(other.__dict__, fingerprint="shifted")

    def piece(self, token):
        return super().piece((token + 1) % 256)
