"""A replay is what a real run over the same recorded answers would have been, and never takes more than it may."""

import asyncio
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings, strategies as st

from langchain_pareto.backends.base import ModelSpec, Sampling
from langchain_pareto.backends.recorded import RecordedBackend
from langchain_pareto.budget import Budget
from langchain_pareto.errors import BudgetError, ContextLengthError, NotRecorded, SettingError
from langchain_pareto.ledger import Account
from langchain_pareto.planning.pool import NO_ANSWER, Pool
from langchain_pareto.planning.recording import LinearTiming, RecordedScores, Recording
from langchain_pareto.planning.replay import Played, Replayer
from langchain_pareto.planning.replay_search import ReplaySearch
from langchain_pareto.planning.scorer_cost import ScorerCost, Work
from langchain_pareto.strategies import (
    Auto,
    Beam,
    BestOfN,
    Cascade,
    FirstFinish,
    Knockout,
    Refine,
    Single,
    Vote,
    WeightedVote,
)
from langchain_pareto.strategies.run import run
from langchain_pareto.strategies.search import Search
from langchain_pareto.strategies.settings import Role, Settings

SAMPLES = 144  # as many as the deepest of strategies below may want
USD = 3.7e-7  # per token


def spec(**fields) -> ModelSpec:
    shape = {
        "name": "small",
        "dtype": "float32",
        "device": "cpu",
        "vocabulary": 10,
        "hidden": 2,
        "heads": 1,
        "kv_heads": 1,
        "head_dim": 2,
        "windows": (None, 7),
        "matmul_parameters": 100,
        "weight_bytes": 400,
        "kv_bytes_per_token": 16,
        "context_length": 80,
        "state_bytes_per_sequence": 5,
    }
    return ModelSpec(**(shape | fields))


def pool(seed: int, model="small", *, questions=3, samples=SAMPLES, longest=60) -> Pool:
    """Random samples, with ties in lengths, scores and likelihoods."""
    rng = np.random.default_rng(seed)
    shape = (questions, samples)
    answers = rng.integers(-1, 4, shape)
    return Pool(
        model=model,
        questions=tuple(f"q{i}" for i in range(questions)),
        answers=answers,
        tokens=rng.integers(1, longest, shape),
        prompts=rng.integers(0, 9, questions),
        right=answers == 0,
        scores=rng.integers(0, 5, shape) / 4,
        logprobs=-rng.integers(1, 9, shape) / 7,
    )


async def real(recordings, strategy, question, budget, *, seed, max_tokens, clock=None):
    """The outcome of a real run; with a `clock`, whose time it then has, backends draw step by step."""
    pools = {role: recording.pool for role, recording in recordings.items()}
    backends = {
        role: RecordedBackend(r.pool, r.spec, manual=clock is not None)
        for role, r in recordings.items()
    }
    name = pools["policy"].questions[question]

    def player(backend):
        encode = backend.tokenizer.encode_prompt
        return Role(backend, Sampling(), lambda: encode(name), encode)

    roles = {role: player(backend) for role, backend in backends.items() if role != "policy"}
    account = Account(budget) if clock is None else Account(budget, clock=clock.monotonic)
    scores, usd = RecordedScores(pools), recordings["policy"].usd_per_token
    how = Settings(Sampling(), max_tokens=max_tokens, scorer=scores, roles=roles, usd_per_token=usd)
    running = asyncio.ensure_future(
        run(
            strategy,
            backends["policy"],
            name,
            question=name,
            account=account,
            settings=how,
            seed=seed,
        )
    )
    if clock is not None:
        await clock.drive(running, list(backends.values()))
    outcome = await running
    assert outcome.spent.tokens == sum(b.meter.new_tokens for b in backends.values())
    assert outcome.spent.flops == sum(b.meter.flops for b in backends.values())
    assert [(b.branches, b.live) for b in backends.values()] == [(0, [])] * len(backends)
    assert account.spent.memory == 0
    return outcome


def summary(outcome) -> dict:
    """An outcome in the words of a replay."""
    answer = outcome.answer
    thought = None if answer is None else answer.thought
    return {
        "answer": NO_ANSWER if thought is None or thought.answer is None else int(thought.answer),
        "score": None if thought is None else thought.score,
        "share": None if answer is None else answer.share,
        "tokens": outcome.spent.tokens,
        "flops": outcome.spent.flops,
        "usd": outcome.spent.usd,
        "memory": outcome.spent.memory,
        "samples": len(outcome.thoughts),
        "stopped_by": outcome.stopped_by,
        "finished": thought is not None and thought.finished,
        "role": "policy" if thought is None else thought.role,
        "sample": thought.tokens[0] if thought is not None and thought.tokens else None,
    }


def of(played: Played, wanted: dict) -> dict:
    return {name: getattr(played, name) for name in wanted}


LEAVES = st.sampled_from([Single(), Single(), Single(temperature=0.5)])


def votes(of=LEAVES, most=12):
    return st.builds(
        Vote,
        n=st.integers(1, most),
        adaptive=st.booleans(),
        threshold=st.sampled_from([0.8, 0.95, 1.0]),
        wave=st.none() | st.integers(1, 5),
        of=of,
    )


def flat(of=LEAVES, most=12):
    """Strategies over one kind of leaf."""
    n = st.integers(1, most)
    agreement, score = st.sampled_from([None, 0.5, 1.0]), st.sampled_from([None, None, 0.9])
    return st.one_of(
        votes(of, most),
        st.builds(WeightedVote, n=n, of=of),
        st.builds(BestOfN, n=n, of=of),
        st.builds(
            BestOfN,
            n=n,
            threshold=st.sampled_from([-0.5, 0.7]),
            wave=st.none() | st.integers(1, 5),
            of=of,
        ),
        st.builds(Cascade, n=n, n_large=n, agreement=agreement, score=score, of=of),
    )


PLAIN = st.one_of(LEAVES, flat(), st.builds(Auto, most=st.integers(1, 12)))
NESTED = flat(st.one_of(flat(LEAVES, 4), st.builds(Auto, most=st.integers(1, 4))), 4)
DEEP = flat(flat(st.one_of(flat(LEAVES, 3), LEAVES), 2), 3)
ONE = {"tokens": 30, "flops": 20_000.0, "usd": 30 * USD, "memory": 700}  # about one sample


@st.composite
def budgets(draw, most=3):
    """Limits in up to so many resources, from less than one sample's to all that is wanted."""
    names = draw(st.lists(st.sampled_from([*ONE, "calls"]), max_size=most, unique=True))
    times = st.sampled_from([0.1, 0.7, 1.5, 2.5, 4, 6, 9, 14, 25, 60])
    limits = {name: draw(times) * draw(st.floats(0.8, 1.2)) for name in names}
    whole = {"tokens": int, "memory": int, "calls": lambda _: 1}
    return Budget(
        **{name: whole.get(name, float)(n * ONE.get(name, 1)) for name, n in limits.items()}
    )


def worlds(seed, context):
    """A small and a large model for the same questions."""
    small, large = spec(context_length=context), spec(name="large", matmul_parameters=900)
    return {
        "policy": Recording(pool(seed), small, LinearTiming(0.01), USD),
        "large": Recording(pool(seed + 1, "large"), large, LinearTiming(0.03), USD),
    }


def same(strategy, budget, seed, context, max_tokens) -> None:
    """Asserts that a replay and a real run agree in everything."""
    recordings = worlds(seed, context)
    if seed % 3 == 0:
        del recordings["large"]  # the policy plays that role then
    options = {"seed": seed, "max_tokens": max_tokens}
    question = seed % 3
    wanted = summary(asyncio.run(real(recordings, strategy, question, budget, **options)))
    played = Replayer(recordings, max_tokens=max_tokens).play(strategy, question, budget, seed=seed)
    assert of(played, wanted) == wanted


CASES = {
    "budget": budgets(),
    "seed": st.integers(0, 10**6),
    "context": st.sampled_from([10, 30, 80]),
    "max_tokens": st.none() | st.integers(1, 70),
}
often = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@often
@given(strategy=PLAIN, **CASES)
def test_a_replay_is_the_real_run(strategy, budget, seed, context, max_tokens):
    """The same winner, share, score, samples and reason, and the same of every exact resource, whatever is limited."""
    same(strategy, budget, seed, context, max_tokens)


@often
@given(strategy=NESTED, **CASES)
def test_strategies_of_strategies_are_replayed_in_the_same_order(
    strategy, budget, seed, context, max_tokens
):
    """Runs side by side meet the same samples as in the real run, and pay in the same order."""
    same(strategy, budget, seed, context, max_tokens)


@settings(often, max_examples=60)
@given(strategy=DEEP, **CASES)
def test_three_levels_deep(strategy, budget, seed, context, max_tokens):
    """The order holds however deep they nest."""
    same(strategy, budget, seed, context, max_tokens)


@often
@given(strategy=st.one_of(PLAIN, NESTED), times=st.sampled_from([1.01, 1.5, 3, 10, 1e4]), **CASES)
def test_a_run_that_no_limit_touched_is_the_same_with_more(
    strategy, times, budget, seed, context, max_tokens
):
    """Whatever is limited, time too: where a limit had no say in a run, larger limits give the same one."""
    replayer = Replayer(worlds(seed, context), max_tokens=max_tokens)
    question, timed = seed % 3, seed % 2
    limits = budget.model_dump(exclude_none=True, exclude={"on_limit", "calls"})
    limits |= {"seconds": 0.4} if timed else {}
    played = replayer.play(strategy, question, Budget(**limits), seed=seed)
    whole = {"tokens", "memory"}
    more = {name: int(x * times) if name in whole else x * times for name, x in limits.items()}
    event(f"free: {played.free}")
    if played.free:
        assert replayer.play(strategy, question, Budget(**more), seed=seed) == played


def test_a_run_is_free_only_where_no_limit_had_a_say():
    """Not where one had, be it only that draws were fewer side by side."""
    replayer = Replayer(worlds(1, 80), max_tokens=60)
    strategy = Vote(n=8, adaptive=False)
    wanted = replayer.play(strategy, 0)
    assert wanted.free
    assert replayer.play(strategy, 0, Budget(tokens=8 * 60)).free
    narrow = replayer.play(strategy, 0, Budget(tokens=8 * 60 - 1))
    assert (narrow.tokens, narrow.answer, narrow.free) == (wanted.tokens, wanted.answer, False)
    assert narrow.steps > wanted.steps
    assert not replayer.play(strategy, 0, Budget(tokens=wanted.tokens // 2)).free
    assert not replayer.play(strategy, 0, Budget(seconds=wanted.seconds / 2)).free
    assert replayer.play(strategy, 0, Budget(seconds=2 * wanted.seconds)).free


# --- side by side, step by step


class Steps:
    """Every step takes `step` seconds; the prompt is there at once, as it is with a backend that waits only between steps."""

    def __init__(self, step: float) -> None:
        self.step = step

    def batch_seconds(self, lengths, prompt) -> float:
        return self.step * max(lengths)

    def drawn_by(self, lengths, prompt, seconds) -> list[int]:
        return [min(n, math.ceil(seconds / self.step)) for n in lengths]


class Clock:
    """A clock that goes on with the steps of the backends, once nobody has anything to do before the next one."""

    def __init__(self, step: float) -> None:
        self.step, self.now, self.steps = step, 0.0, 0

    def monotonic(self) -> float:
        return self.now

    async def drive(self, running, backends) -> None:
        while True:
            for _ in range(40):
                await asyncio.sleep(0)
            if running.done():
                return
            before = [(task, task.usage.new_tokens) for b in backends for task in b.live]
            for backend in backends:
                backend.step()
            self.steps += any(task.usage.new_tokens > tokens for task, tokens in before)
            self.now += self.step


RACES = st.builds(FirstFinish, n=st.integers(1, 9), take=st.integers(1, 5))


@settings(often, suppress_health_check=list(HealthCheck))
@given(
    strategy=st.one_of(RACES, flat(st.just(Single()), 9), st.builds(Auto, most=st.integers(1, 9))),
    budget=budgets(most=1),
    seconds=st.none() | st.floats(0.1, 40),
    seed=st.integers(0, 10**6),
    max_tokens=st.none() | st.integers(1, 70),
)
def test_draws_run_side_by_side(monkeypatch, strategy, budget, seconds, seed, max_tokens):
    """Where draws of a real run go on step by step, as an engine's do, a replay has the same winner, costs, steps and time.

    A race is over with the last that it waits for, and a deadline cuts all at the same step.
    """
    timing, clock = Steps(0.25), Clock(0.25)
    recordings = {
        role: Recording(r.pool, r.spec, timing, USD) for role, r in worlds(seed, 80).items()
    }
    budget = budget.model_copy(update={"seconds": seconds})
    with monkeypatch.context() as patch:
        patch.setattr("langchain_pareto.backends.recorded_task.time", clock)
        options = {"seed": seed, "max_tokens": max_tokens}
        outcome = asyncio.run(real(recordings, strategy, 0, budget, **options, clock=clock))
    wanted = summary(outcome) | {"steps": clock.steps}
    if isinstance(strategy, FirstFinish):
        del wanted["memory"]  # what is cancelled after the end is not counted, though it was there
    played = Replayer(recordings, max_tokens=max_tokens).play(strategy, 0, budget, seed=seed)
    assert of(played, wanted) == wanted
    assert played.seconds == pytest.approx(max(clock.steps * 0.25, min(clock.now, seconds or 0)))


@pytest.mark.parametrize(("seconds", "ended"), [(0.75, "seconds"), (0.9, "done"), (1.0, "done")])
def test_who_ends_in_the_last_step_before_a_deadline_wins(monkeypatch, seconds, ended):
    """The deadline is noticed after that step, when the others are cancelled already."""
    timing, clock = Steps(0.25), Clock(0.25)
    recordings = {
        role: Recording(r.pool, r.spec, timing, USD) for role, r in worlds(19, 80).items()
    }
    strategy, budget = FirstFinish(n=5, take=1), Budget(seconds=seconds)
    monkeypatch.setattr("langchain_pareto.backends.recorded_task.time", clock)
    outcome = asyncio.run(
        real(recordings, strategy, 0, budget, seed=19, max_tokens=None, clock=clock)
    )
    wanted = summary(outcome) | {"steps": clock.steps}
    del wanted["memory"]
    played = Replayer(recordings).play(strategy, 0, budget, seed=19)
    assert of(played, wanted) == wanted
    assert played.stopped_by == ended


# --- within its budget


def some_budget(rng) -> Budget:
    """Limits in any resources, from a fraction of a sample to many."""
    top = {"tokens": 900, "flops": 6e5, "usd": 900 * USD, "memory": 12_000, "seconds": 9.0}
    names = rng.choice(list(top), size=rng.integers(1, 4), replace=False)
    limits = {str(name): float(top[name] * (rng.random() ** 3 + 1e-3)) for name in names}
    whole = {"tokens", "memory", "flops"}
    return Budget(**{n: max(1, int(x)) if n in whole else max(x, 1e-8) for n, x in limits.items()})


def some_strategy(rng, depth=2):
    of = some_strategy(rng, depth - 1) if depth and rng.random() < 0.2 else Single()
    n = int(rng.integers(1, 3 if depth < 2 else 9))
    kinds = [
        Single(),
        Auto(most=n),
        Vote(n=n, of=of, adaptive=bool(rng.random() < 0.5)),
        WeightedVote(n=n, of=of),
        BestOfN(n=n, of=of, threshold=-0.5 if rng.random() < 0.5 else None),
        Cascade(n=n, n_large=n, of=of),
        FirstFinish(n=n, take=int(rng.integers(1, 4))),
    ]
    return kinds[rng.integers(len(kinds))]


def test_no_play_ever_overruns():
    """In 3000 plays of all kinds spent stays within every exact limit, and time within one step of its own."""
    rng = np.random.default_rng(0)
    replayers = [
        Replayer(worlds(seed, 80), max_tokens=longest)
        for seed in range(5)
        for longest in (None, 40)
    ]
    ends = dict[str, int]()
    for i in range(3000):
        budget, strategy = some_budget(rng), some_strategy(rng)
        played = replayers[i % 10].play(strategy, i % 3, budget, seed=i)
        for name in ("tokens", "flops", "usd", "memory"):
            limit = getattr(budget, name)
            assert limit is None or getattr(played, name) <= limit
        assert budget.seconds is None or played.seconds <= budget.seconds + 0.03 + 1e-9
        assert min(played.tokens, played.flops, played.memory, played.samples) >= 0
        ends[played.stopped_by] = ends.get(played.stopped_by, 0) + 1
    assert set(ends) == {"done", "length", "tokens", "flops", "usd", "memory", "seconds"}
    assert min(ends.values()) > 50


def known(lengths, answers, **fields) -> Pool:
    """One question whose samples have these lengths and answers; they are met in another order."""
    samples = len(lengths)
    columns = {
        "model": "known",
        "questions": ("q",),
        "answers": np.array([answers]),
        "tokens": np.array([lengths]),
        "prompts": np.array([4]),
        "right": np.array([answers]) == 0,
    }
    assert len(answers) == samples
    return Pool(**(columns | fields))


def test_the_clock_adds_up_batches():
    """A batch takes as long as its longest draw; the prompt is read once."""
    replayer = Replayer({"policy": Recording(known([7] * 9, [0] * 9), timing=LinearTiming(0.5))})
    assert replayer.play(Single(), 0).seconds == 0.5 * 8
    assert replayer.play(Vote(n=9, adaptive=False), 0).seconds == 0.5 * 8
    played = replayer.play(Vote(n=9, wave=2, threshold=0.95), 0)
    assert (played.samples, played.steps, played.seconds) == (4, 14, 0.5 * (1 + 7 + 7))


def test_a_deadline_cuts_all_draws_at_one_step():
    """What has ended by then votes; the step that has begun is ended, and nothing is begun after it."""
    pool = known([3, 8, 8, 8], [2, 1, 1, 1])
    replayer = Replayer({"policy": Recording(pool, timing=LinearTiming(0.5))})
    played = replayer.play(Vote(n=4), 0, Budget(seconds=2.2))
    assert (played.stopped_by, played.tokens, played.answer) == ("seconds", 3 + 3 * 4, 2)
    assert (played.seconds, played.steps, played.samples) == (2.5, 4, 4)
    late = replayer.play(Vote(n=4), 0, Budget(seconds=0.1))
    assert (late.tokens, late.answer, late.finished, late.sample) == (0, NO_ANSWER, False, None)
    assert (late.seconds, late.stopped_by) == (0.5, "seconds")
    in_time = replayer.play(Vote(n=4), 0, Budget(seconds=4.5))
    assert (in_time.stopped_by, in_time.answer, in_time.share) == ("done", 1, 0.75)


EACH_TEXT = ScorerCost(seconds=Work(call=2.0, text=1.0), flops=Work(call=5, text=10, token=3))


def test_scores_take_their_time():
    """They come after the last draw; where the deadline is before that, the answer is that of a vote without them."""
    pool = known([7] * 4, [1, 1, 1, 0], scores=np.array([[0.1, 0.2, 0.3, 0.9]]))
    recording = Recording(pool, timing=LinearTiming(0.5), scoring=EACH_TEXT)
    replayer = Replayer({"policy": recording})
    best = BestOfN(n=4)
    scored = replayer.play(best, 0)
    assert (scored.answer, scored.seconds, scored.stopped_by) == (0, 4.0 + 6.0, "done")
    assert replayer.play(best, 0, Budget(seconds=10.0)) == scored
    assert replayer.play(Vote(n=4, adaptive=False), 0).seconds == 4.0
    late = replayer.play(best, 0, Budget(seconds=9.9))
    assert (late.answer, late.share, late.seconds) == (1, 0.75, 9.9)
    assert (late.stopped_by, late.free) == ("seconds", False)


def test_scores_are_charged():
    """FLOPs of scoring are the call's; a text that the budget has no room for stays without a score, and nothing is overdrawn."""
    pool = known([7] * 4, [1, 1, 1, 0], scores=np.array([[0.1, 0.2, 0.3, 0.9]]))
    free = Replayer({"policy": Recording(pool, spec())})
    replayer = Replayer({"policy": Recording(pool, spec(), scoring=EACH_TEXT)})
    best = BestOfN(n=4)
    drawn, scored = free.play(best, 0), replayer.play(best, 0)
    assert scored.flops == drawn.flops + 5 + 4 * (10 + 3 * 7)
    assert replayer.play(best, 0, Budget(flops=scored.flops)).flops == scored.flops
    for flops in range(drawn.flops, scored.flops, 7):
        short = replayer.play(best, 0, Budget(flops=flops))
        assert short.flops <= flops
        assert short.stopped_by == "flops"
    judged = ScorerCost(drawn=Work(text=4.0))
    judge = Replayer({"policy": Recording(pool, spec(), usd_per_token=USD, scoring=judged)})
    assert judge.play(best, 0).tokens == 4 * (7 + 4)
    cut = judge.play(best, 0, Budget(tokens=4 * 7 + 9))
    assert (cut.tokens, cut.stopped_by) == (4 * 7 + 8, "tokens")


def test_time_is_of_the_model_that_draws():
    """A cascade's models have their own answers, lengths, steps and prices."""
    small = Recording(known([5] * 4, [1, 2, 3, 4]), spec(), LinearTiming(0.5), 1e-6)
    large = Recording(known([9] * 4, [0] * 4), spec(name="large"), LinearTiming(2.0), 1e-5)
    replayer = Replayer({"policy": small, "large": large})
    played = replayer.play(Cascade(n=4, n_large=2), 0)
    assert (played.answer, played.right, played.role, played.share) == (0, True, "large", 2 / 6)
    assert played.seconds == 0.5 * (1 + 5) + 2.0 * (1 + 9)
    assert played.usd == pytest.approx(20 * 1e-6 + 18 * 1e-5)
    alone = Replayer({"policy": small}).play(Cascade(n=2, n_large=2), 0)
    assert (alone.role, alone.seconds) == ("policy", 0.5 * (1 + 5 + 5))


# --- what it says


def test_a_play_depends_on_its_settings_alone():
    """The same again, in another replayer too; another seed meets the samples in another order."""
    strategy = Vote(n=9, of=FirstFinish(n=3, take=2))
    one, other = Replayer(worlds(7, 80)), Replayer(worlds(7, 80))
    plays = [one.play(strategy, 1, Budget(tokens=400), seed=seed) for seed in range(6)]
    again = [other.play(strategy, 1, Budget(tokens=400), seed=seed) for seed in range(5, -1, -1)]
    assert plays == again[::-1]
    assert len({played.tokens for played in plays}) > 1


def test_plans_and_budgets_are_compared_on_the_same_draws():
    """Which sample is met first depends on question and seed, not on strategy, model or budget."""
    replayer = Replayer(worlds(3, 80))
    for seed in range(20):
        first = replayer.play(Single(), 2, seed=seed).sample
        assert replayer.play(Single(), 2, Budget(tokens=30), seed=seed).sample == first
        assert replayer.play(Vote(n=1), 2, Budget(seconds=1), seed=seed).sample == first
        assert replayer.play(Cascade(n=1, n_large=1), 2, seed=seed).sample == first


def test_what_is_cut_off_or_says_nothing_is_wrong():
    """However right the recorded sample was; where nobody judged it, nobody knows."""
    replayer = Replayer({"policy": Recording(known([8], [0]))})
    whole = replayer.play(Single(), 0)
    assert (whole.answer, whole.right, whole.finished) == (0, True, True)
    cut = replayer.play(Single(), 0, Budget(tokens=7))
    assert (cut.answer, cut.right, cut.finished, cut.tokens) == (NO_ANSWER, False, False, 7)
    silent = known([8], [NO_ANSWER], right=np.array([[True]]))
    played = Replayer({"policy": Recording(silent)}).play(Single(), 0)
    assert (played.answer, played.right, played.finished) == (NO_ANSWER, False, True)
    unjudged = Replayer({"policy": Recording(known([8], [0], right=None))})
    assert unjudged.play(Single(), 0).right is None


def test_what_is_not_known_is_none():
    """Without a shape, a clock or a price there are no FLOPs, seconds or usd; a limit on them is refused."""
    replayer = Replayer({"policy": Recording(known([8, 8], [0, 1]))})
    played = replayer.play(Vote(n=2), 0, Budget(tokens=99, calls=1))
    assert (played.flops, played.memory, played.seconds, played.usd) == (None,) * 4
    for limit in ("flops", "memory", "seconds", "usd", "joules"):
        with pytest.raises(BudgetError, match=limit) as caught:
            replayer.play(Single(), 0, Budget(**{limit: 9}))
        assert caught.value.hint


def test_scores_are_the_pools_or_a_scorers():
    """The best by its recorded score; by another scorer, if one is given."""
    pool = known([4] * 3, [1, 2, 3], scores=np.array([[0.1, 0.9, 0.5]]))
    assert Replayer({"policy": Recording(pool)}).play(BestOfN(n=3), 0).answer == 2

    class Backwards:
        async def score(self, thoughts):
            await asyncio.sleep(0)
            return [-float(thought.answer) for thought in thoughts]

    replayer = Replayer({"policy": Recording(pool)}, scorer=Backwards())
    assert replayer.play(BestOfN(n=3), 0).score == -1.0


class Both(Vote):
    """Two samples in tasks of its own."""

    async def run(self, search):
        async with asyncio.TaskGroup() as group:
            parts = [search.child() for _ in range(2)]
            tasks = [group.create_task(part.sample(part.root)) for part in parts]
        return search.best([thought for task in tasks for thought in task.result()])


async def test_strategies_may_have_tasks_of_their_own():
    """Also where the caller has an event loop already."""
    replayer = Replayer(worlds(5, 80))
    assert replayer.play(Vote(n=3, of=BestOfN(n=2), adaptive=False), 0).samples == 6
    assert replayer.play(Both(), 0).samples == 2
    race = FirstFinish(n=5, take=2)
    assert replayer.play(race, 0) == await asyncio.to_thread(replayer.play, race, 0)


@pytest.mark.parametrize(
    ("strategy", "reason"),
    [
        (Beam(n=2), "step"),
        (Refine(), "prompt"),
        (Knockout(n=3), "prompt"),
        (Vote(n=SAMPLES + 1, adaptive=False), f"{SAMPLES} recorded samples"),
        (Vote(n=2, of=Beam(n=2)), "step"),
    ],
)
def test_what_was_not_recorded_is_refused(strategy, reason):
    """Steps, prompts of their own, more samples than there are: an error says so, whoever asks."""
    recordings = {"policy": worlds(1, 80)["policy"]}
    with pytest.raises(NotRecorded, match=reason) as caught:
        Replayer(recordings).play(strategy, 0)
    assert caught.value.hint


def test_everything_that_a_search_offers_is_thought_of():
    """What a replay takes over from the real search needs nothing but what is replayed."""
    offered = {name for name in vars(Search) if not name.startswith("_")}
    assert offered - set(vars(ReplaySearch)) == {
        "ask",
        "asking",
        "best",
        "run",
        "samples",
        "share",
    }


def test_pools_that_cannot_be_replayed_are_refused():
    """No policy, other questions, a question twice, no such question, no scores, a likelihood that is none."""
    one = pool(0)
    with pytest.raises(SettingError, match="policy"):
        Replayer({"large": Recording(one)})
    with pytest.raises(SettingError, match="lacks 1 questions, such as 'q2'"):
        Replayer({"policy": Recording(one), "large": Recording(one.part([0, 1]))})
    with pytest.raises(SettingError, match="twice"):
        Replayer({"policy": Recording(one.part([0, 1, 0]))})
    for question in (-1, 3):
        with pytest.raises(SettingError, match="no question"):
            Replayer({"policy": Recording(one)}).play(Single(), question)
    with pytest.raises(NotRecorded, match="no scores"):
        Replayer({"policy": Recording(known([4], [0]))}).play(BestOfN(n=1), 0)
    with pytest.raises(SettingError, match="inf"):
        Replayer({"policy": Recording(known([4], [0], logprobs=np.array([[-np.inf]])))})
    with pytest.raises(SettingError, match="NaN"):
        Replayer({"policy": Recording(known([4], [0], scores=np.array([[np.nan]])))})
    with pytest.raises(ContextLengthError):
        Replayer({"policy": Recording(known([4], [0]), spec(context_length=4))}).play(Single(), 0)


def test_a_pools_rows_are_found_by_their_questions():
    """The second pool may have its questions in another order."""
    recordings = worlds(4, 80)
    large = recordings["large"]
    turned = Recording(large.pool.part([2, 0, 1]), large.spec, large.timing, large.usd_per_token)
    strategy = Cascade(n=2, n_large=3, agreement=None)
    for question in range(3):
        played = Replayer(recordings).play(strategy, question)
        assert Replayer(recordings | {"large": turned}).play(strategy, question) == played
