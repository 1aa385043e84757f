"""
Does this model, run by our runner, still compute what its authors wrote? Asked once at load, in about a second.

Two questions. Of the real weights: does a token's distribution depend on its own sequence alone, however it was prefilled, appended,
forked, cut back or batched? And of a shrunken random copy of the configuration: do our logits equal the model's own eager attention?
The copy has strong weights and a window of 8, so that an ignored window, soft-cap or sink shows. Knows no text and no engine.
"""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Iterator, Sequence

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from langchain_pareto.backends.sequences import Chunk, Sequence as TokenSequence
from langchain_pareto.backends.torch_attention import IMPLEMENTATION
from langchain_pareto.backends.torch_runner import TorchRunner
from langchain_pareto.backends.torch_states import torch_runner
from langchain_pareto.errors import CapabilityError

SLOTS = 128  # what a runner must have for `check_runner`
LANES = 8  # and for how many states, where sequences have one

# root mean square of the difference of two rows of logits, over the standard deviation of the row; noise is a tenth of it, or less
_TOLERANCE = {torch.float32: 2e-3, torch.float16: 5e-2, torch.bfloat16: 1.5e-1}
_SHRUNKEN_TOLERANCE = 1e-3
_SHRUNKEN_TOKENS = (
    280  # more than two stretches of 128, from where the runner attends without a mask tensor
)
_WINDOW = 8
_VOCABULARY = 128

_passed = set[str]()  # hashes of shrunken configurations
_passed_lock = threading.Lock()


def check_runner(runner: TorchRunner) -> None:
    """Runs both checks on a runner of at least SLOTS free slots; raises CapabilityError with the error that was measured."""
    _check_steps(runner)
    model = runner.model
    assert isinstance(model, PreTrainedModel), (
        "transformers' models are the only ones that are loaded"
    )
    try:
        small = shrink(model.config.get_text_config())
        text = f"{type(model).__qualname__} {small.to_json_string()}"
    except Exception:  # noqa: BLE001 - a configuration may forbid anything
        _check_real(runner, model)
        return
    key = hashlib.sha256(text.encode()).hexdigest()
    with _passed_lock:
        if key in _passed:
            return
    error = _against_eager(model, small)
    if error is None:
        _check_real(runner, model)
        return
    if not error < _SHRUNKEN_TOLERANCE:  # NaN fails too
        raise _wrong(runner, "its own attention", error, _SHRUNKEN_TOLERANCE)
    with _passed_lock:
        _passed.add(key)


# --- the real weights


def _check_steps(runner: TorchRunner) -> None:
    """Six forwards of at most 20 tokens: append, batch, fork and truncate against prefill."""
    start, more, other = _tokens(runner, 11, 0), _tokens(runner, 4, 1), _tokens(runner, 6, 2)
    whole = _prefill(runner, start + more, rows=5)  # after `start`, and after each token of `more`
    whole_other = _prefill(runner, start + other[:4], rows=1)
    alone = _prefill(runner, other, rows=1)
    trunk, second = runner.open(start), runner.open(other)
    sequences = [trunk, second]
    try:
        rows = _step(runner, [(trunk, 1), (second, 1)])
        _compare(runner, "batching", rows[:1], whole[:1])
        _compare(runner, "batching", rows[1:], alone)
        one, four, twin = (runner.fork(trunk) for _ in range(3))
        sequences += [one, four, twin]
        runner.append(one, more[:1])
        runner.append(four, more)
        runner.append(twin, other[:4])
        rows = _step(runner, [(one, 1), (four, 4), (twin, 1)])
        _compare(runner, "appending one token", rows[:1], whole[1:2])
        _compare(runner, "appending four tokens", rows[1:5], whole[1:])
        _compare(runner, "forking", rows[5:], whole_other)
        runner.truncate(twin, len(start))
        runner.append(twin, more[:2])
        _compare(runner, "truncating", _step(runner, [(twin, 1)]), whole[2:3])
    finally:
        for sequence in sequences:
            runner.free(sequence)


def _check_real(runner: TorchRunner, model: PreTrainedModel) -> None:
    """The real model against its own eager attention, where no small copy of it can be made."""
    tokens = _tokens(runner, 24, 3)
    ours = _prefill(runner, tokens, rows=24)
    try:
        model.set_attn_implementation("eager")
        eager = _eager(model, tokens)
    except Exception as error:
        msg = f"{runner.spec.name} has no eager attention that the engine's could be compared with: {error}"
        raise CapabilityError(
            msg, hint="Load it with self_check=False at your own risk."
        ) from error
    finally:
        model.set_attn_implementation(IMPLEMENTATION)
    _compare(runner, "its own attention", ours, eager)


def _tokens(runner: TorchRunner, n: int, salt: int) -> list[int]:
    """Tokens all over the vocabulary; no random state is touched."""
    return [(7919 * (i + 1) + 104_729 * salt) % runner.spec.vocabulary for i in range(n)]


def _prefill(runner: TorchRunner, tokens: Sequence[int], rows: int) -> torch.Tensor:
    sequence = runner.open(tokens)
    try:
        return _step(runner, [(sequence, rows)])
    finally:
        runner.free(sequence)


def _step(runner: TorchRunner, work: Sequence[tuple[TokenSequence, int]]) -> torch.Tensor:
    """One step over all that is pending, and its rows of logits."""
    if runner.recurrent:  # where a fork goes on from a snapshot, if it is told to
        for sequence, rows in work:
            runner.reuse(sequence, rows)
    assert runner.can_step(sum(sequence.pending for sequence, _ in work)), (
        "the check needs more slots"
    )
    return runner.step([Chunk(sequence, sequence.pending, rows) for sequence, rows in work]).rows


def _compare(runner: TorchRunner, what: str, got: torch.Tensor, expected: torch.Tensor) -> None:
    """Raises CapabilityError when two blocks of logits differ by more than rounding."""
    got, expected = got.double(), expected.double()
    spread = expected.std(dim=-1).clamp_min(1e-6)
    error = float(((got - expected).square().mean(dim=-1).sqrt() / spread).max())
    tolerance = _TOLERANCE.get(runner.dtype, max(_TOLERANCE.values()))
    if not error <= tolerance:  # NaN fails too
        raise _wrong(runner, what, error, tolerance)


def _wrong(runner: TorchRunner, what: str, error: float, tolerance: float) -> CapabilityError:
    msg = f"the engine does not compute what {type(runner.model).__name__} does: {what} changes the logits by {error:.2g} of their scale"
    hint = f"Rounding in {runner.spec.dtype} explains at most {tolerance:g}. Please report this model; self_check=False skips the check."
    return CapabilityError(msg, hint=hint)


# --- the shrunken copy


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """A copy with two layers of each type, few heads, small widths and a window of 8, and every other field as it is."""
    small = copy.deepcopy(config)
    layers: int = config.num_hidden_layers
    kept = list(_layers(getattr(config, "layer_types", None), layers))
    for name, value in vars(config).items():  # whatever is listed layer by layer
        if isinstance(value, list) and len(value) == layers:
            setattr(small, name, [value[i] for i in kept])
    small.num_hidden_layers = len(kept)

    heads: int = getattr(config, "num_attention_heads", 1)
    kv_heads: int = getattr(config, "num_key_value_heads", None) or heads
    head_dim: int = getattr(config, "head_dim", None) or config.hidden_size // heads
    few = min(2, kv_heads)
    _set(small, "num_key_value_heads", few)
    _set(small, "num_attention_heads", few * min(2, heads // kv_heads))
    _set(small, "hidden_size", few * min(2, heads // kv_heads) * head_dim)

    for name in vars(config):
        if name.endswith("intermediate_size") or name in {"ffn_dim", "n_inner"}:
            _at_most(small, name, 64)
    _at_most(small, "vocab_size", _VOCABULARY)
    for name in ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"):
        _at_most(small, name, 4)
    for name in ("num_experts_per_tok", "top_k_experts", "moe_k"):
        _at_most(small, name, 2)
    for name in ("n_group", "topk_group"):
        _at_most(small, name, 1)
    _at_most(small, "sliding_window", _WINDOW)
    if getattr(small, "attn_logit_softcapping", None):
        small.attn_logit_softcapping = 2.0
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(small, name, None) is not None:
            setattr(small, name, 0)
    for name in ("quantization_config", "_name_or_path", "dtype", "_attn_implementation_internal"):
        vars(small).pop(name, None)
    return small


def _layers(types: list[str] | None, layers: int) -> Iterator[int]:
    """The first two layers of each type."""
    seen = dict[str, int]()
    for i, kind in enumerate(types or ["attention"] * layers):
        seen[kind] = seen.get(kind, 0) + 1
        if seen[kind] <= 2:
            yield i


def _set(config: PreTrainedConfig, name: str, value: int) -> None:
    if getattr(config, name, None) is not None:
        setattr(config, name, value)


def _at_most(config: PreTrainedConfig, name: str, most: int) -> None:
    value = getattr(config, name, None)
    if isinstance(value, int) and value > most:
        setattr(config, name, most)


def _against_eager(model: PreTrainedModel, small: PreTrainedConfig) -> float | None:
    """The greatest difference of our logits from the eager ones, over the greatest of these; None when there is no such copy.

    The better of two copies counts: a router of experts that is almost undecided may tip over by rounding.
    """
    error = None
    for seed in range(2):
        try:
            tiny = _random_copy(model, copy.deepcopy(small), seed)
            length = min(
                _SHRUNKEN_TOKENS, getattr(small, "max_position_embeddings", None) or 1 << 20
            )
            tokens = [
                (31 * i * i + 17 * i + 5 * seed) % (small.vocab_size - 1) + 1 for i in range(length)
            ]
            eager = _eager(tiny, tokens)
        except Exception:  # noqa: BLE001 - any model code may fail in any way, on a configuration that nobody trained
            return None
        if not bool(eager.isfinite().all()):
            return None
        try:
            ours = _in_pieces(tiny, tokens)
        except Exception as problem:
            msg = f"the engine cannot run a small {type(model).__name__}: {problem}"
            hint = "Please report this model; self_check=False skips the check."
            raise CapabilityError(msg, hint=hint) from problem
        found = float((ours - eager).abs().max() / eager.abs().max())
        error = found if error is None else min(error, found)
        if error < _SHRUNKEN_TOLERANCE:
            break
    return error


def _random_copy(model: PreTrainedModel, small: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """A CPU model in float32 with strong random weights, from a generator of its own."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    tiny: PreTrainedModel
    with no_init_weights():
        if type(small) is type(model.config):
            tiny = type(model)._from_config(small, **options)  # type: ignore[no-untyped-call]  # noqa: SLF001 - what from_config calls
        else:  # the language model of several
            tiny = AutoModelForCausalLM.from_config(small, **options)  # type: ignore[no-untyped-call]
    tiny.eval()  # type: ignore[no-untyped-call]
    generator = torch.Generator().manual_seed(seed)
    embedding = tiny.get_input_embeddings().weight
    with torch.no_grad():
        for name, p in tiny.named_parameters():
            gain = 1.7 if p is embedding else 2.5 / max(p.shape[-2:]) ** 0.5 if p.ndim > 1 else 0.5
            p.uniform_(-gain, gain, generator=generator)
            if p.ndim < 2 and not name.endswith("bias"):
                p.add_(1.0)  # a norm's weight
    return tiny


def _eager(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """Logits of a plain forward: (tokens, vocabulary)."""
    with torch.inference_mode():
        logits: torch.Tensor = model(
            input_ids=torch.tensor([list(tokens)], device=model.device), use_cache=False
        ).logits[0]
    return logits


def _in_pieces(model: PreTrainedModel, tokens: Sequence[int]) -> torch.Tensor:
    """The same logits from the runner: two long stretches, then eight tokens on a fork beside a twin that goes elsewhere."""
    runner = torch_runner(model, slots=len(tokens) + 64, lanes=LANES)
    half = (len(tokens) - 8) // 2
    sequence = runner.open(tokens[:half])
    rows = [_step(runner, [(sequence, half)])]
    runner.append(sequence, tokens[half:-8])
    rows.append(_step(runner, [(sequence, sequence.pending)]))
    twin = runner.fork(sequence)
    for stretch in (tokens[-8:-1], tokens[-1:]):
        runner.append(sequence, stretch)
        runner.append(twin, [1] * len(stretch))
        rows.append(_step(runner, [(sequence, len(stretch)), (twin, 1)])[: len(stretch)])
    runner.close()
    return torch.cat(rows)
