"""
A profile: how good each plan was at each budget on questions of one kind, and what it took.

Measured on recorded answers, or live where a plan does more than draw answers. Knows options by their place in the catalogue, and
arrays; knows no model and no device.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from langchain_pareto.errors import CertificateRefused, SettingError
from langchain_pareto.planning.catalogue import Option
from langchain_pareto.planning.certificates import Kind
from langchain_pareto.strategies import AnyStrategy

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

TERMS = ("tokens", "flops", "seconds", "samples", "steps")  # what a run took
FORMAT = 1  # of the file


@dataclass(frozen=True, slots=True)
class Cells:
    """What each option did under each budget in one resource.

    `right` (options, budgets, questions) is the share of runs that answered right, `mean` and `p90` (options, budgets, TERMS) are what
    a run took. Budgets ascend. An option that was not measured has NaN.
    """

    budgets: Floats
    right: Floats
    mean: Floats
    p90: Floats

    def part(self, options: Sequence[int]) -> Cells:
        """The cells of some of the options."""
        rows = list(options)
        return Cells(self.budgets, self.right[rows], self.mean[rows], self.p90[rows])

    def cost(self, term: str) -> Floats:
        """The mean of one term; (options, budgets)."""
        column: Floats = self.mean[:, :, TERMS.index(term)]
        return column


@dataclass(frozen=True, slots=True)
class Runs:
    """Every run that cells are made of: `right` and `answers` (options, budgets, questions, runs), `costs` (..., TERMS).

    `answers` are classes of equal answers.
    """

    budgets: Floats
    right: npt.NDArray[np.float32]
    costs: npt.NDArray[np.float32]
    answers: npt.NDArray[np.int32]

    def cells(self, questions: Sequence[int] | npt.NDArray[np.int64] | None = None) -> Cells:
        """The cells of some of the questions, by default of all."""
        rows = slice(None) if questions is None else np.asarray(questions)
        right = self.right[:, :, rows].mean(3, dtype=np.float64)
        costs = self.costs[:, :, rows].astype(np.float64)
        options, budgets = right.shape[:2]
        each = costs.reshape(options, budgets, -1, len(TERMS))
        return Cells(self.budgets, right, each.mean(2), np.quantile(each, 0.9, axis=2))


@dataclass(frozen=True, slots=True)
class Family:
    """Plans from the safest to the cheapest, and where each fails against a reference plan, with nothing limited.

    `differs` and `lost` are (plans, questions); `lost`, where the reference was right and the plan is not, is None without labels.
    """

    reference: int  # places in the profile's options
    options: tuple[int, ...]
    differs: Bools
    lost: Bools | None = None

    def losses(self, kind: Kind) -> Bools:
        """What counts as a failure under a guarantee; CertificateRefused without the labels that it needs."""
        if kind == "agree":
            return self.differs
        if self.lost is None:
            msg = 'the guarantee "error" needs to know which answers are right, and the profile has no labels'
            raise CertificateRefused(
                msg,
                reason="labels",
                questions=int(self.differs.shape[1]),
                hint='Calibrate on questions with known answers, or ask for "agree", which needs none.',
            )
        return self.lost


@dataclass(frozen=True, slots=True)
class Profile:
    """Cells by the resource that was limited, and what they are true of.

    `keys` tells each model from any other: weights, precision, sampling, template and scorer. `device` is that of the cells in seconds.
    `labelled` is False where nobody said who is right, and the answer of most samples of all models stood in: then plans are ranked,
    and no accuracy is known.
    """

    name: str
    options: tuple[Option, ...]
    cells: Mapping[str, Cells]
    keys: Mapping[str, str] = field(default_factory=dict)
    device: str | None = None
    labelled: bool = True
    made: str = ""  # date, ISO 8601
    prompt: float = 0.0  # mean tokens of a question
    family: Family | None = None  # for certificates

    @property
    def questions(self) -> int:
        """How many questions it was measured on."""
        return int(next(iter(self.cells.values())).right.shape[2])

    def misfits(self, keys: Mapping[str, str]) -> list[str]:
        """Why this profile says nothing of these models, nothing where it does."""
        wanted = {model for option in self.options for model in option.roles.values()}
        reasons = [f"it has no {model}" for model in keys if model not in wanted]
        return reasons + [
            f"{model} was {self.keys.get(model, 'not told apart')}, and is {key}: other weights, or other settings of draws or scorer"
            for model, key in keys.items()
            if model in wanted and self.keys.get(model) != key
        ]

    def save(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(self._as_dict(), separators=(",", ":")) + "\n")
        unfinished.replace(path)

    def _as_dict(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "name": self.name,
            "made": self.made,
            "labelled": self.labelled,
            "prompt": self.prompt,
            "keys": dict(self.keys),
            "device": self.device,
            "terms": TERMS,
            "options": [
                {
                    "strategy": option.strategy.model_dump(mode="json"),
                    "roles": dict(option.roles),
                    "drawn": option.drawn,
                }
                for option in self.options
            ],
            "cells": {name: _listed(cells) for name, cells in self.cells.items()},
            "family": None if self.family is None else _family_listed(self.family),
        }


class _Option(BaseModel):
    model_config = ConfigDict(extra="forbid")

    strategy: AnyStrategy
    roles: dict[str, str]
    drawn: bool


class _Cells(BaseModel):
    model_config = ConfigDict(extra="forbid")

    budgets: list[float]
    right: list[list[list[float | None]]]
    mean: list[list[list[float | None]]]
    p90: list[list[list[float | None]]]


class _Family(BaseModel):
    model_config = ConfigDict(extra="forbid")

    reference: int = Field(ge=0)
    options: list[int] = Field(min_length=1)
    differs: list[list[bool]]
    lost: list[list[bool]] | None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    format: int
    name: str
    made: str
    labelled: bool
    prompt: float
    keys: dict[str, str]
    device: str | None
    terms: tuple[str, ...]
    options: list[_Option]
    cells: dict[str, _Cells]
    family: _Family | None


def load_profile(path: Path) -> Profile:
    """A profile that `save` wrote; SettingError for anything else."""
    try:
        found = _File.model_validate_json(path.read_text())
    except OSError as error:
        msg = f"there is no profile {path}: {error.strerror or error}"
        raise SettingError(msg, hint="Make one with `pareto calibrate quality`.") from None
    except (ValidationError, UnicodeDecodeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        msg = f"{path} is no profile: {reason}"
        raise SettingError(msg, hint="Make it anew with `pareto calibrate quality`.") from None
    if (found.format, found.terms) != (FORMAT, TERMS):
        msg = f"the profile {path} is of another version of this package"
        raise SettingError(msg, hint="Make it anew with `pareto calibrate quality`.")
    return Profile(
        name=found.name,
        options=tuple(Option(o.strategy, o.roles, o.drawn) for o in found.options),
        cells={
            name: _arrays(path, cells, len(found.options)) for name, cells in found.cells.items()
        },
        keys=found.keys,
        device=found.device,
        labelled=found.labelled,
        made=found.made,
        prompt=found.prompt,
        family=None if found.family is None else _family(path, found.family, len(found.options)),
    )


def _listed(cells: Cells) -> dict[str, object]:
    return {
        "budgets": cells.budgets.tolist(),
        **{name: _nested(getattr(cells, name)) for name in ("right", "mean", "p90")},
    }


def _family_listed(family: Family) -> dict[str, object]:
    return {
        "reference": family.reference,
        "options": list(family.options),
        "differs": family.differs.tolist(),
        "lost": None if family.lost is None else family.lost.tolist(),
    }


def _family(path: Path, found: _Family, options: int) -> Family:
    tables = [table for table in (found.differs, found.lost) if table is not None]
    shapes = {(len(table), *{len(row) for row in table}) for table in tables}
    known = all(0 <= i < options for i in (found.reference, *found.options))
    if not known or len(shapes) > 1 or len(found.differs) != len(found.options):
        raise _damaged(path)
    differs = np.array(found.differs, bool)
    lost = None if found.lost is None else np.array(found.lost, bool)
    return Family(found.reference, tuple(found.options), differs, lost)


def _damaged(path: Path) -> SettingError:
    msg = f"the profile {path} is damaged: its tables do not fit each other"
    return SettingError(msg, hint="Make it anew with `pareto calibrate quality`.")


def _nested(values: Floats) -> object:
    """Nested lists of four digits; JSON has no NaN."""
    if values.ndim:
        return [_nested(part) for part in values]
    return None if np.isnan(values) else float(f"{float(values):.4g}")


def _arrays(path: Path, cells: _Cells, options: int) -> Cells:
    try:
        found = Cells(
            *(np.array(x, np.float64) for x in (cells.budgets, cells.right, cells.mean, cells.p90))
        )
    except ValueError:
        found = None
    grid = len(cells.budgets)
    if (
        found is None
        or not grid
        or found.right.ndim != 3
        or found.right.shape[:2] != (options, grid)
        or not found.right.shape[2]
        or found.mean.shape != (options, grid, len(TERMS))
        or found.p90.shape != found.mean.shape
        or not (np.diff(found.budgets) > 0).all()
    ):
        raise _damaged(path)
    return found
