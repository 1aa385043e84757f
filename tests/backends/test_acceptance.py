"""Which guesses stay, against exact probabilities: both rules leave the distribution as it is, and "max" keeps as many guesses as any rule can."""

import itertools
import math

import pytest
import torch

from langchain_pareto.backends import coupling, drafts, results
from langchain_pareto.backends.base import Logits, ModelSpec, Sampling, Stop, Usage
from langchain_pareto.backends.decoders import Rounds, Speculative
from langchain_pareto.backends.decoding import DecodingBackend
from langchain_pareto.backends.draft_length import FixedLength
from langchain_pareto.backends.draws import Guess, Row
from langchain_pareto.backends.engine import Engine
from langchain_pareto.backends.keys import guess_key
from langchain_pareto.backends.local import LocalBackend
from langchain_pareto.backends.sampling import Sampler
from langchain_pareto.backends.slot_runner import SlotRunner
from langchain_pareto.errors import NumericalError

WAIT = 120  # seconds
HOT = Sampling(temperature=1.0)
STATES = 5  # tokens of the toy
LENGTH = 4  # tokens of each text
TEXTS = 200
SAMPLINGS = [
    HOT,
    Sampling(temperature=0.5),
    Sampling(temperature=1.0, top_k=3),
    Sampling(temperature=0.5, top_p=0.8),
]


class TableRunner(SlotRunner):
    """A model whose next token depends on the last one alone: `table` has a row of logits for each token."""

    def __init__(self, table):
        super().__init__(slots=20_000)
        self.table = table
        states, vocabulary = table.shape
        self.spec = ModelSpec(
            "table", "float32", "cpu", vocabulary, 1, 1, 1, 1, (None,), states, states, 1, 1000
        )

    def step(self, chunks):
        with self._slots_for(chunks):
            last = [t for c in chunks for t in c.sequence.tokens[: c.sequence.cached][-c.rows :]]
        return Logits(self.table[last], 0)

    def synchronize(self):
        """There is no device."""

    def trim(self):
        """There is no scratch memory."""

    def close(self):
        """Nothing to give back."""


def table(seed, states=STATES, vocabulary=STATES):
    """A random one."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(states, vocabulary, generator=generator) * 1.5


TARGET = table(1)
WRONG = torch.nn.functional.one_hot(TARGET.argmin(1), STATES) * 6.0
QUALITY = {"unlike": table(2), "wrong": WRONG, "uniform": torch.zeros_like(TARGET), "same": TARGET}


@pytest.fixture
def toys(tokenizer):
    """`toys(target, draft, decoder)`: a backend that decodes so, closed after the test."""
    engines = []

    def make(target, draft, decoder):
        engines.append(Engine("test"))
        models = [
            LocalBackend(name, TableRunner(of), tokenizer, engines[-1])
            for name, of in (("target", target), ("draft", draft))
        ]
        return DecodingBackend(models[0], decoder, models[1])

    yield make
    for engine in engines:
        engine.close()


def drawn(backend, branches, *, sampling=HOT, stop=None, seed=0, prompt=(0,), **more):
    """The extensions of so many branches of one prompt."""
    root = backend.open(list(prompt), seed=seed)
    children = root.fork(branches)
    stop = stop or Stop(LENGTH, eos=False)
    tasks = [backend.extend(child, sampling, stop, **more) for child in children]
    found = [task.future.result(WAIT) for task in tasks]
    for child in children:
        child.free()
    root.free()
    return found


def exact(logits, sampling):
    """The distribution of each row after every warper, the obvious way."""
    p = (logits.double() / sampling.temperature).softmax(-1)
    values, ids = p.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k:
        values[:, sampling.top_k :] = 0
    values /= values.sum(-1, keepdim=True)
    values[values.cumsum(-1) - values >= sampling.top_p] = 0
    kept = torch.zeros_like(p).scatter(1, ids, values)
    return kept / kept.sum(-1, keepdim=True)


def chi_square(counts, p):
    """Statistic and degrees of freedom of counts that should follow `p`; cells that expect less than 5 are merged."""
    if counts[p == 0].any():
        return math.inf, 1
    n = counts.sum().item()
    cells = sorted(zip((p * n).tolist(), counts.tolist(), strict=True))
    merged = [[0.0, 0.0]]
    for expected, count in cells:
        if merged[-1][0] >= 5:
            merged.append([0.0, 0.0])
        merged[-1][0] += expected
        merged[-1][1] += count
    if len(merged) > 1 and merged[-1][0] < 5:
        rest = merged.pop()
        merged[-1] = [a + b for a, b in zip(merged[-1], rest, strict=True)]
    return sum((count - e) ** 2 / e for e, count in merged), len(merged) - 1


def p_values(texts, p, start=0):
    """One for each place: of its tokens, given all that came before them, against the exact probabilities of a table."""
    out = []
    for at in range(LENGTH):
        statistic, freedom = 0.0, 0
        keyed = sorted(texts, key=lambda text: text[:at])
        for before, some in itertools.groupby(keyed, key=lambda text: text[:at]):
            counts = torch.bincount(torch.tensor([text[at] for text in some]), minlength=p.shape[1])
            more = chi_square(counts.double(), p[before[-1] if before else start])
            statistic, freedom = statistic + more[0], freedom + more[1]
        if freedom:
            halves = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
            out.append(torch.special.gammaincc(*halves).item())
    return out


def uniform(values):
    """The Kolmogorov-Smirnov test's p-value for numbers that should be uniform in [0, 1]."""
    n, ordered = len(values), sorted(values)
    most = max(max((i + 1) / n - v, v - i / n) for i, v in enumerate(ordered))
    scaled = (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n)) * most
    terms = ((-1) ** (j - 1) * math.exp(-2 * (j * scaled) ** 2) for j in range(1, 101))
    return min(1.0, max(0.0, 2 * sum(terms)))


def found_p_values(toys, accept, quality, samplings=SAMPLINGS, target=TARGET):
    """Of every draft and sampling, each with a seed of its own."""
    out = []
    for draft in quality:
        backend = toys(target, draft, Speculative(draft_tokens=3, accept=accept))
        for sampling in samplings:
            seed = 2 * len(out) + (accept == "max")
            texts = [tuple(e.tokens) for e in drawn(backend, TEXTS, sampling=sampling, seed=seed)]
            out += p_values(texts, exact(target, sampling))
    return out


@pytest.mark.parametrize("accept", ["draw", "max"])
def test_tokens_follow_the_target(toys, accept):
    """Whatever the draft and the warpers, each token, given those before it, has the target's probabilities: p-values are uniform."""
    assert uniform(found_p_values(toys, accept, QUALITY.values())) > 0.01


WIDER = torch.cat([table(3), torch.ones(STATES, 2)], 1)  # two tokens that the target does not have
NARROWER = table(4, vocabulary=STATES - 1)


def test_vocabularies_may_be_padded_differently(toys):
    """Guesses that the target does not have, and tokens that the draft does not have, leave the distribution as it is."""
    assert uniform(found_p_values(toys, "max", [WIDER, NARROWER])) > 0.01


@pytest.mark.parametrize("accept", ["draw", "max"])
def test_what_overflows_behind_a_wrong_guess_is_never_asked(toys, accept):
    """A target that breaks after a token which it never draws works as well as without guesses; one that draws it is named."""
    broken = TARGET.clone()
    broken[:, 3] = -1e9
    broken[3] = math.nan
    always = torch.zeros_like(TARGET)
    always[:, 3] = 1e9
    backend = toys(broken, always, Speculative(draft_tokens=3, accept=accept))
    [plain] = drawn(backend.target, 1)
    [found] = drawn(backend, 1)
    assert found.usage.drafted > 0
    assert len(found.tokens) == LENGTH
    if accept == "draw":
        assert found.tokens == plain.tokens
    broken[0, 3] = 1e9
    branch = backend.open([0])
    task = backend.extend(branch, HOT, Stop(LENGTH, eos=False))
    with pytest.raises(NumericalError, match="NaN"):
        task.future.result(WAIT)
    assert list(branch.tokens) == [0, 3]
    assert task.usage.new_tokens == 1


class Varying(FixedLength):
    """A length of guesses that depends on what became of the last ones."""

    def note(self, drafted, accepted, *, first=False, unsure=False):
        self._length = 3 if accepted == drafted else accepted


def test_lengths_may_depend_on_what_was_accepted(toys, monkeypatch):
    """A controlled length, which may be 0, too, leaves the distribution as it is."""
    monkeypatch.setattr(DecodingBackend, "_length", lambda self, branch: Varying(2))
    assert uniform(found_p_values(toys, "max", [QUALITY["unlike"], QUALITY["uniform"]])) > 0.01


# the draft gives half to a token that never comes: by the noise of that guess the third token, which it does not have, would follow too often
SKEWED = torch.tensor([0.0, 0.75, 0.25]).log().expand(3, 3)
SKEWED_DRAFT = torch.tensor([0.5, 0.5, 0.0]).log().expand(3, 3)


def test_guesses_have_a_noise_of_their_own(toys, monkeypatch):
    """What replaces a wrong guess is independent of it; with the branch's key for both, the p-values would tell."""
    common = {"quality": 6 * [SKEWED_DRAFT], "samplings": [HOT], "target": SKEWED}
    assert uniform(found_p_values(toys, "max", **common)) > 0.01
    monkeypatch.setattr(drafts, "guess_key", lambda key, length: key)
    assert uniform(found_p_values(toys, "max", **common)) < 1e-4


WRONG_RULES = {
    "accepts with p": (coupling, "kept", lambda p, q, guesses, u: u < p.gather(1, guesses)),
    "draws from p": (coupling, "residual", lambda p, q: p.log()),
    "counts the padding": (results, "fitted", lambda q, vocab: q[:, :vocab]),
}


@pytest.mark.parametrize("wrong", list(WRONG_RULES))
def test_a_wrong_rule_is_noticed(toys, monkeypatch, wrong):
    """The same p-values give away a wrong acceptance, a wrong residual, and a padding that counts."""
    monkeypatch.setattr(*WRONG_RULES[wrong])
    quality = (
        [WIDER, WIDER] if wrong == "counts the padding" else [QUALITY["unlike"], QUALITY["uniform"]]
    )
    assert uniform(found_p_values(toys, "max", quality)) < 1e-4


def test_as_many_guesses_stay_as_any_rule_can_keep(toys):
    """A guess stays with probability sum of min(p, q) by "max", and of 1 / sum over s of max(p(s) / p(t), q(s) / q(t)) for each t by "draw"."""
    n, p = 800, exact(TARGET, HOT)[0]
    gained = {}
    for name in ("unlike", "uniform", "same"):
        draft = QUALITY[name]
        q = exact(draft, HOT)[0]
        worst = torch.maximum(p[None] / p[:, None], q[None] / q[:, None])  # (t, s)
        expected = {
            "draw": (1 / worst.sum(1)).sum().item(),
            "max": torch.minimum(p, q).sum().item(),
        }
        rates = {}
        for accept, rate in expected.items():
            backend = toys(TARGET, draft, Speculative(draft_tokens=1, accept=accept))
            found = drawn(backend, n, stop=Stop(2, eos=False), seed=11)
            usage = sum((f.usage for f in found), Usage())
            assert (usage.drafted, usage.new_tokens) == (n, 2 * n)
            rates[accept] = usage.accepted / n
            error = math.sqrt(max(0.0, rate * (1 - rate)) / n)
            assert abs(rates[accept] - rate) <= 3 * error + 1e-9
        assert expected["max"] >= expected["draw"] - 1e-9
        gained[name] = rates["max"] - rates["draw"]
    assert gained["same"] == 0
    assert gained["uniform"] > 0.03  # 0.08 expected


def share(tokens, p):
    """The chi-square test's p-value of one token a row."""
    statistic, freedom = chi_square(torch.bincount(tokens, minlength=len(p)).double(), p.double())
    halves = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return torch.special.gammaincc(*halves).item()


@pytest.mark.parametrize("vocab", [8, 5000])
def test_rows_with_a_guess_follow_p(vocab):
    """Vocabularies of any size: tokens follow p, guesses stay as often as they can, and only what p has more of takes their place."""
    n, key = 4000, 7
    logits, other = torch.randn(2, vocab, generator=torch.manual_seed(vocab))
    p, q = logits.softmax(0), other.softmax(0)
    sampler = Sampler()

    guesses, got = [], []
    for positions in torch.arange(n).split(500):
        rows = [Row(guess_key(key, 0), i, HOT) for i in positions.tolist()]
        guesses.append(sampler.draw(other.expand(500, -1), rows).tokens)
        rows = [
            Row(key, row.position, HOT, guess=Guess(x, q))
            for row, x in zip(rows, guesses[-1].tolist(), strict=True)
        ]
        got.append(sampler.draw(logits.expand(500, -1), rows).tokens)
    guesses, got = torch.cat(guesses), torch.cat(got)
    order = p.argsort()
    place = torch.empty_like(order).scatter_(0, order, torch.arange(vocab)) * 8 // vocab
    shares = torch.zeros(8).scatter_add_(0, place, p)
    assert share(place[got], shares) > 0.01
    stayed = got == guesses
    rate = torch.minimum(p, q).sum().item()
    assert abs(stayed.double().mean().item() - rate) < 3 * math.sqrt(rate * (1 - rate) / n)
    assert bool((p > q)[got[~stayed]].all())


def test_an_empty_residual_is_no_residual():
    """Where p and q are equal up to rounding and the guess goes nevertheless, p itself is drawn."""
    n, p = 4000, exact(TARGET, HOT)[0].float()
    guesses = torch.multinomial(p, n, replacement=True, generator=torch.manual_seed(0)).tolist()
    rows = [Row(8, i, HOT, guess=Guess(x, 2 * p)) for i, x in enumerate(guesses)]  # half of them go
    draws = Sampler().draw(TARGET[:1].expand(n, -1), rows, stats=True).to_host()
    assert 0 < sum(map(int.__eq__, draws.tokens, guesses)) < n
    assert not any(map(math.isnan, draws.logprobs))
    assert share(torch.tensor(draws.tokens), p) > 0.01


# --- on models


@pytest.fixture
def pair(make_backend):
    """A target, and a draft on the same engine that is less sure of everything."""
    engine = Engine("test")
    target, draft = make_backend(engine=engine), make_backend(engine=engine)
    step = draft.runner.step

    def unsure(chunks):
        logits = step(chunks)
        return Logits(logits.rows * 0.5, logits.union)

    draft.runner.step = unsure
    return target, draft


PROMPT = (5, 9, 13, 200, 7, 7, 31, 18)
WARPED = Sampling(
    temperature=0.8, top_k=40, top_p=0.95, repetition_penalty=1.3, logit_bias=((3, 2.0),)
)
MOST = Stop(24, eos=False)


def ids(extensions):
    """Their tokens."""
    return [extension.tokens for extension in extensions]


def test_greedy_text_is_that_of_plain_decoding(pair):
    """At temperature 0 both distributions are one token: the text is the target's, for every schedule and length."""
    target, draft = pair
    greedy = Sampling(temperature=0.0)
    wanted = ids(drawn(target, 3, sampling=greedy, stop=MOST, prompt=PROMPT))
    for decoder in (
        Speculative(draft_tokens=1, accept="max"),
        Speculative(draft_tokens=5, accept="max"),
        Speculative(accept="max"),
        Rounds(schedule="first_come", accept="max"),
        Rounds(schedule="batched", accept="max"),
    ):
        decoded = DecodingBackend(target, decoder, draft)
        assert ids(drawn(decoded, 3, sampling=greedy, stop=MOST, prompt=PROMPT)) == wanted


@pytest.mark.parametrize("sampling", [HOT, WARPED])
def test_a_seed_and_a_length_fix_the_text(pair, sampling):
    """With one length of guesses the text depends neither on the schedule nor on who shares the batch, and is not that of plain decoding."""
    target, draft = pair
    common = {"sampling": sampling, "stop": MOST, "prompt": PROMPT}
    plain = ids(drawn(target, 8, **common))
    found = []
    for decoder in (
        Speculative(draft_tokens=3, accept="max"),
        Rounds(schedule="first_come", accept="max"),
        Rounds(schedule="batched", accept="max"),
    ):
        decoded = DecodingBackend(target, decoder, draft)
        found += [drawn(decoded, branches, **common) for branches in (8, 3)]
    assert all(ids(some) == ids(found[0])[: len(some)] for some in found)
    assert ids(found[0]) != plain
    usage = sum((one.usage for some in found for one in some), Usage())
    assert 0 < usage.accepted < usage.drafted
    assert usage.new_tokens == 24 * 33


def test_all_rules_share_an_engine(pair):
    """Programs that guess by either rule, with any sampling, or not at all, do not change each other's tokens."""
    target, draft = pair
    backends = [
        target,
        DecodingBackend(target, Speculative(draft_tokens=3), draft),
        DecodingBackend(target, Speculative(draft_tokens=2, accept="max"), draft),
        DecodingBackend(target, Rounds(schedule="first_come", accept="max"), draft),
        draft,
    ]
    asked = [(backend, sampling) for backend in backends for sampling in (HOT, WARPED)]
    common = {"stop": MOST, "prompt": PROMPT}
    alone = [drawn(b, 2, sampling=s, seed=i, **common) for i, (b, s) in enumerate(asked)]
    tasks = [
        b.extend(child, s, MOST)
        for i, (b, s) in enumerate(asked)
        for child in b.open(PROMPT, seed=i).fork(2)
    ]
    found = [task.future.result(WAIT).tokens for task in tasks]
    assert found == [tokens for some in alone for tokens in ids(some)]


def test_usage_adds_up_to_the_meter(pair):
    """Each verification gives the guesses that stay and one token more, and requests report what the engine counted."""
    target, draft = pair
    decoded = DecodingBackend(target, Speculative(draft_tokens=4, accept="max"), draft)
    found = drawn(decoded, 5, stop=MOST, prompt=PROMPT)
    total = sum((f.usage for f in found), Usage())
    meter = target.engine.call(lambda: target.engine.meter).result(WAIT)
    for name in ("new_tokens", "drafted", "accepted", "rounds", "forward_tokens", "flops"):
        assert getattr(total, name) == getattr(meter, name), name
    assert total.new_tokens == 5 * 24
    # a last token may be drawn without a guess
    assert 0 <= total.new_tokens - total.accepted - total.rounds <= 5


def test_stops_inside_what_is_accepted(pair):
    """End tokens and strings end the text in the middle of a guess, with the figures of the target."""
    target, draft = pair
    decoded = DecodingBackend(target, Speculative(draft_tokens=6, accept="max"), draft)
    common = {"stats": True, "prompt": PROMPT}
    [whole] = drawn(decoded, 1, stop=MOST, **common)
    [raw] = target.score(target.open(PROMPT), [whole.tokens]).future.result(WAIT)
    assert whole.logprobs == pytest.approx(raw, abs=1e-3)
    for at in (3, 9, 14):
        token = whole.tokens[at]
        [got] = drawn(decoded, 1, stop=Stop(24, tokens=frozenset({token}), eos=False), **common)
        end = whole.tokens.index(token) + 1
        assert (got.tokens, got.finish) == (whole.tokens[:end], "stop")
        assert got.usage.new_tokens == end
    text = whole.text[5:8]
    [got] = drawn(decoded, 1, stop=Stop(24, strings=(text,), eos=False), **common)
    assert (got.text, got.stop) == (whole.text[: whole.text.index(text)], text)


class Even:
    """A constraint: even tokens only."""

    def __init__(self):
        self.seen = []

    def allowed(self):
        return range(0, 256, 2)

    def advance(self, token):
        self.seen.append(token)

    def rollback(self, n):
        del self.seen[-n:]

    def fork(self):
        raise NotImplementedError


def test_constraints_hold_for_guesses_and_for_what_replaces_them(pair):
    """Draft and target are constrained alike, and the constraint sees the tokens of the text alone."""
    target, draft = pair
    decoded = DecodingBackend(target, Speculative(draft_tokens=4, accept="max"), draft)
    constraint = Even()
    [got] = drawn(decoded, 1, stop=MOST, prompt=PROMPT, constraint=constraint)
    assert constraint.seen == got.tokens
    assert not any(token % 2 for token in got.tokens)
    assert 0 < got.usage.accepted < got.usage.drafted


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_what_is_cancelled_keeps_verified_tokens(pair, gate, steps):
    """Cancelled after some verifications, a branch holds a beginning of the whole text, and no slot leaks."""
    target, draft = pair
    decoded = DecodingBackend(target, Speculative(draft_tokens=4, accept="max"), draft)
    stop, gated = Stop(60, eos=False), gate(target)
    gated.stop_at(steps)
    child = decoded.open(PROMPT).fork()[0]
    task = decoded.extend(child, HOT, stop)
    gated.wait()
    task.cancel()
    gated.open()
    got = task.future.result(WAIT)
    assert got.finish == "cancelled"
    assert 0 < len(got.tokens) < 60
    assert list(child.tokens) == [*PROMPT, *got.tokens]
    child.free()
    [whole] = drawn(decoded, 1, stop=stop, prompt=PROMPT)
    assert got.tokens == whole.tokens[: len(got.tokens)]
    live = [target.engine.call(lambda m=m: m.runner.pool.live) for m in pair]
    assert [future.result(WAIT) for future in live] == [0, 0]
