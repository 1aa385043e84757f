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

from langchain_pareto.errors import CertificateRefused
from langchain_pareto.planning.catalogue import Option
from langchain_pareto.planning.certificates import Kind
from langchain_pareto.planning.files import write
from langchain_pareto.planning.identity import differences
from langchain_pareto.planning.profile_file import FORMAT, TERMS, CellsFile, read_profile

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


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
        options, budgets = right.shape[:2]
        each = self.costs[:, :, rows].reshape(options, budgets, -1, len(TERMS))
        p90 = np.quantile(each, 0.9, axis=2).astype(np.float64)
        return Cells(self.budgets, right, each.mean(2, dtype=np.float64), p90)


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

    `keys` tells each model from any other: weights, precision, sampling, template and scorer. `devices` is where the seconds of each model
    were measured, and has no model of which nobody knows what it takes.
    `labelled` is False where nobody said who is right, and the answer of most samples of all models stood in: then plans are ranked,
    and no accuracy is known.
    """

    name: str
    options: tuple[Option, ...]
    cells: Mapping[str, Cells]
    keys: Mapping[str, str] = field(default_factory=dict)
    devices: Mapping[str, str] = field(default_factory=dict)
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
        found = dict[str, list[str]]()
        for model, key in keys.items():
            if model in wanted:
                known = self.keys.get(model)
                told = (
                    ["how it was used is not known"] if known is None else differences(known, key)
                )
                for difference in told:
                    found.setdefault(difference, []).append(model)
        return reasons + [f"{', '.join(models)}: {what}" for what, models in found.items()]

    def save(self, path: Path) -> None:
        """Writes it as JSON, whole or not at all."""
        write(path, json.dumps(self._as_dict(), separators=(",", ":"), allow_nan=False) + "\n")

    def _as_dict(self) -> dict[str, object]:
        return {
            "format": FORMAT,
            "name": self.name,
            "made": self.made,
            "labelled": self.labelled,
            "prompt": self.prompt,
            "keys": dict(self.keys),
            "devices": dict(self.devices),
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


def load_profile(path: Path) -> Profile:
    """A profile that `save` wrote; SettingError for anything else."""
    found = read_profile(path)
    family = found.family
    return Profile(
        name=found.name,
        options=tuple(Option(o.strategy, o.roles, o.drawn) for o in found.options),
        cells={name: _arrays(cells) for name, cells in found.cells.items()},
        keys=found.keys,
        devices=found.devices,
        labelled=found.labelled,
        made=found.made,
        prompt=found.prompt,
        family=None
        if family is None
        else Family(
            family.reference,
            tuple(family.options),
            np.array(family.differs, bool),
            None if family.lost is None else np.array(family.lost, bool),
        ),
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


def _nested(values: Floats) -> object:
    """Nested lists of four digits; JSON has no NaN."""
    if values.ndim:
        return [_nested(part) for part in values]
    return None if np.isnan(values) else float(f"{float(values):.4g}")


def _arrays(cells: CellsFile) -> Cells:
    return Cells(
        *(np.array(x, np.float64) for x in (cells.budgets, cells.right, cells.mean, cells.p90))
    )
