"""
What whole calls of one model take on one device, and how far such a prediction may be off.

Knows the costs of steps, prices and errors that were found; measures nothing (`device.py` does), and fits nothing (`fitting.py` does).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import ConfigDict, TypeAdapter, ValidationError

from langchain_pareto.backends.base import ModelSpec
from langchain_pareto.budget import Cost
from langchain_pareto.errors import SettingError
from langchain_pareto.planning.step_cost import PrefillCost, Sharing, StepCost
from langchain_pareto.rates import Rates

UNCALIBRATED = 0.35  # sigma of what was only reckoned
Z95 = 1.64  # sigmas that 95 of 100 stay below
_MOMENT = 0.1  # sigma of a device's speed from one moment to another, which no calibration of a minute sees
_ROUGH = 0.25  # of a held-out run: from here on margins double


@dataclass(frozen=True)
class Key:
    """What a cost model is valid for."""

    device: str = ""
    driver: str = ""
    backend: str = ""
    version: str = ""
    model: str = ""
    weights: str = ""
    dtype: str = ""
    threads: int = 0
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class CostModel:
    """All coefficients of one model on one device, and how far they are off.

    `sigma` is that of log(measured / predicted) for single runs that were not fitted, `error` the median of its size; None where nothing was
    measured. `call` and `draw` are what a call, and each draw of it, take beside the steps.
    """

    __pydantic_config__ = ConfigDict(allow_inf_nan=False)

    key: Key
    decode: StepCost
    prefill: PrefillCost
    sigma: float = UNCALIBRATED
    error: float | None = None
    call: float = 0.0
    draw: float = 0.0
    busy: float = 1.0  # device seconds of a second of drawing
    watts: float | None = None  # that the device drew on average, where it tells
    measured: str = ""  # when, ISO 8601; empty where it was only reckoned

    @property
    def rough(self) -> bool:
        """Whether it is so far off that margins double, or was never measured."""
        return self.error is None or self.error > _ROUGH

    @property
    def margin(self) -> float:
        """What a prediction is multiplied by so that one call in twenty takes longer, before any call has shown how long it takes."""
        margin = math.exp(Z95 * math.hypot(self.sigma, _MOMENT))
        return 2 * margin - 1 if self.rough and self.error is not None else margin

    def batch_seconds(self, lengths: Sequence[int], prompt: int, cached: int = 0) -> float:
        """Seconds of a call that reads a prompt, of which `cached` tokens are known, and draws so many tokens into each fork of it."""
        return self._opening(lengths, prompt, cached) + self.decode.drawing(lengths, prompt)

    def drawn_by(
        self, lengths: Sequence[int], prompt: int, seconds: float, cached: int = 0
    ) -> list[int]:
        """How many tokens of each are drawn when the time is up."""
        left = seconds - self._opening(lengths, prompt, cached)
        reached = self.decode.drawn(lengths, prompt, left)
        return [min(length, reached) for length in lengths]

    def guessing(self, draft: CostModel | None, *, guesses: int, acceptance: float) -> CostModel:
        """The cost of the same draws with a draft's guesses; as in `StepCost.guessing`."""
        own = None if draft is None else draft.decode
        return replace(
            self, decode=self.decode.guessing(own, guesses=guesses, acceptance=acceptance)
        )

    def cost(self, seconds: float, rates: Rates, tokens: int = 0) -> Cost:
        """What a call of so many seconds and drawn tokens takes of every resource that has a price.

        Joules are those of `rates.watts`, which a budget is charged, or of what the device drew while it was measured.
        """
        watts = self.watts if rates.watts is None else rates.watts
        timed = replace(rates, watts=watts).of_time(seconds * self.busy)
        return timed + Cost.of(usd=tokens * rates.usd_per_token) + Cost(tokens=tokens, calls=1)

    def to_json(self) -> str:
        """As text that `from_json` reads."""
        return _ADAPTER.dump_json(self, indent=1).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> CostModel:
        """Raises SettingError for what is no cost model."""
        hint = "Measure the device again with `pareto calibrate device`."
        try:
            found = _ADAPTER.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"])) or "its text"
            msg = f"this is no cost model: {place}: {first['msg']}"
            raise SettingError(msg, hint=hint) from None
        if found.batch_seconds([1], 2) <= 0:
            raise SettingError("this is no cost model: by it a token takes no time", hint=hint)
        return found

    def _opening(self, lengths: Sequence[int], prompt: int, cached: int) -> float:
        """Seconds until the first step that draws."""
        draws = len(lengths) - lengths.count(0)
        # the last token of the prompt is computed by the first step
        return self.call + self.draw * draws + self.prefill.seconds(prompt - 1 - cached, cached)


_ADAPTER = TypeAdapter(CostModel)


# --- before anything is measured


@dataclass(frozen=True, slots=True)
class Speed:
    """What a device reads and computes a second at best."""

    bytes: float
    flops: float


def prior(
    spec: ModelSpec,
    speed: Speed,
    *,
    key: Key | None = None,
    sharing: Sharing = "none",
    padded: bool = False,
) -> CostModel:
    """What a model should take: weights at 0.7 of the device's bandwidth and 1 ms, contexts at 0.75 of it, rows at its peak.

    These shares are those of measured kernels of models of 8B and more. Its sigma is 0.35.
    """
    a = spec.weight_bytes / (0.7 * speed.bytes) + 1e-3
    c = spec.kv_bytes_per_token / (0.75 * speed.bytes)
    row = 2 * (spec.matmul_parameters + spec.hidden * spec.vocabulary) / speed.flops
    attention = 4 * spec.layers * spec.heads * spec.head_dim / speed.flops
    read = PrefillCost(a, 2 * spec.matmul_parameters / speed.flops, attention)
    return CostModel(
        key or Key(model=spec.name), StepCost(a, row, c, sharing=sharing, padded=padded), read
    )
