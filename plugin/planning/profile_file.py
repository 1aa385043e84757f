"""
The file of a profile: what it may hold, checked before anybody plans by it.

Knows JSON and its mistakes, and names the field of each; knows no arrays and no planner.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from langchain_pareto.errors import SettingError
from langchain_pareto.planning.catalogue import roles_of
from langchain_pareto.strategies import AnyStrategy

FORMAT = 2
TERMS = ("tokens", "flops", "seconds", "samples", "steps")  # what a run took
_LIMITED = ("tokens", "flops", "seconds")  # resources that cells may be by
_HINT = "Make it anew with `pareto calibrate quality`."

_T = TypeVar("_T")
_Share = Annotated[float, Field(ge=0, le=1)]
_Amount = Annotated[float, Field(ge=0, le=1e24)]
_Limit = Annotated[float, Field(gt=0, le=1e24)]
_Name = Annotated[str, Field(min_length=1)]
_STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class OptionFile(BaseModel):
    """A plan: its strategy, and the model of each role that it names."""

    model_config = _STRICT

    strategy: AnyStrategy
    roles: dict[_Name, _Name]
    drawn: bool

    @model_validator(mode="after")
    def _check_roles(self) -> Self:
        if missing := roles_of(self.strategy) - set(self.roles):
            raise ValueError(f"roles: nobody plays {_listed(missing)}")
        return self


class CellsFile(BaseModel):
    """Tables by option, budget, and question or term; null is what was not measured."""

    model_config = _STRICT

    budgets: list[_Limit] = Field(min_length=1)
    right: list[list[list[_Share | None]]]
    mean: list[list[list[_Amount | None]]]
    p90: list[list[list[_Amount | None]]]

    @property
    def questions(self) -> set[int]:
        """How many each cell has; one number, where all is well."""
        return {len(cell) for row in self.right for cell in row}

    @model_validator(mode="after")
    def _check_tables(self) -> Self:
        if not all(a < b for a, b in pairwise(self.budgets)):
            raise ValueError("budgets: they do not ascend")
        tables = {"right": self.right, "mean": self.mean, "p90": self.p90}
        for name, table in tables.items():
            if len(table) != len(self.right) or {len(row) for row in table} - {len(self.budgets)}:
                raise ValueError(f"{name}: it has not one cell for each option and budget")
        for name in ("mean", "p90"):
            if {len(cell) for row in tables[name] for cell in row} - {len(TERMS)}:
                raise ValueError(f"{name}: a cell has not one number for each of {_listed(TERMS)}")
        if len(self.questions) != 1 or 0 in self.questions:
            raise ValueError("right: its cells have not all the same questions")
        for cells in zip(*(_all_cells(table) for table in tables.values()), strict=True):
            if len({value is None for cell in cells for value in cell}) > 1:
                raise ValueError("right, mean, p90: a cell was measured in part")
        return self


class FamilyFile(BaseModel):
    """What certificates are made of."""

    model_config = _STRICT

    reference: int = Field(ge=0)
    options: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    differs: list[list[bool]]
    lost: list[list[bool]] | None


class ProfileFile(BaseModel):
    """A whole profile."""

    model_config = _STRICT

    format: int
    name: str
    made: str
    labelled: bool
    prompt: _Amount
    keys: dict[_Name, str]
    devices: dict[_Name, _Name]
    terms: tuple[str, ...]
    options: list[OptionFile] = Field(min_length=1)
    cells: dict[str, CellsFile]
    family: FamilyFile | None

    @model_validator(mode="after")
    def _check_options(self) -> Self:
        told = [option.model_dump_json() for option in self.options]
        if len(set(told)) < len(told):
            raise ValueError("options: one of them is there twice")
        return self

    @model_validator(mode="after")
    def _check_cells(self) -> Self:
        if unknown := set(self.cells) - set(_LIMITED):
            raise ValueError(f"cells: {_listed(unknown)} is none of {_listed(_LIMITED)}")
        if "tokens" not in self.cells:
            raise ValueError("cells: there are none by tokens")
        for name, cells in self.cells.items():
            if len(cells.right) != len(self.options):
                raise ValueError(f"cells.{name}: it has not one row for each option")
            if cells.questions != self.cells["tokens"].questions:
                raise ValueError(f"cells.{name}: it has other questions than cells.tokens")
        if all(cell[0] is None for cell in _all_cells(self.cells["tokens"].right)):
            raise ValueError("cells.tokens: nothing was measured")
        return self

    @model_validator(mode="after")
    def _check_devices(self) -> Self:
        models = {model for option in self.options for model in option.roles.values()}
        if "seconds" in self.cells and (missing := models - set(self.devices)):
            raise ValueError(f"devices: where were the seconds of {_listed(missing)} measured?")
        return self

    @model_validator(mode="after")
    def _check_family(self) -> Self:
        if self.family is None:
            return self
        family = self.family
        if not all(i < len(self.options) for i in (family.reference, *family.options)):
            raise ValueError("family: it names an option that is not there")
        if len({family.reference, *family.options}) <= len(family.options):
            raise ValueError("family: it names an option twice")
        if family.lost is not None and not self.labelled:
            raise ValueError("family.lost: without labels nobody knows what was lost")
        shape = (len(family.options), self.cells["tokens"].questions)
        for name, table in (("differs", family.differs), ("lost", family.lost)):
            if table is not None and (len(table), {len(row) for row in table}) != shape:
                raise ValueError(f"family.{name}: it has not one mark for each plan and question")
        return self


class _Version(BaseModel):
    format: int
    terms: tuple[str, ...]


def read_profile(path: Path) -> ProfileFile:
    """What a profile's file holds; SettingError with the file, the field and what to do where that cannot be."""
    try:
        data = path.read_bytes()
        version = _Version.model_validate_json(data)
        if (version.format, version.terms) == (FORMAT, TERMS):
            return ProfileFile.model_validate_json(data)
    except OSError as error:
        msg = f"there is no profile {path}: {error.strerror or error}"
        hint = "Make one with `pareto calibrate quality`."
        raise SettingError(msg, hint=hint) from None
    except ValidationError as error:
        raise SettingError(f"{path} is no profile: {_first(error)}", hint=_HINT) from None
    raise SettingError(f"the profile {path} is of another version of this package", hint=_HINT)


def check_place(path: Path) -> None:
    """Raises SettingError where a profile's file would take the place of something else: it would be lost."""
    try:
        data = path.read_bytes()
    except OSError:  # there is nothing, or nothing that could be replaced
        return
    if not data.strip():
        return
    try:
        _Version.model_validate_json(data)
    except ValidationError:
        msg = f"{path} is there already and is no profile: it would be lost"
        hint = "Give the profile another name, or move that file."
        raise SettingError(msg, hint=hint) from None


def _first(error: ValidationError) -> str:
    """The first mistake, and where it is."""
    fault = error.errors()[0]
    place = ".".join(map(str, fault["loc"]))
    reason = fault["msg"].removeprefix("Value error, ")
    if fault["type"] in {"json_invalid", "value_error", "missing"} or not place:
        return f"{place}: {reason}" if place else reason
    return f"{place}: {reason}, got {_shown(fault['input'])}"


def _shown(value: object) -> str:
    try:
        text = json.dumps(value)
    except (TypeError, ValueError):
        text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"


def _all_cells(table: list[list[_T]]) -> Iterator[_T]:
    return (cell for row in table for cell in row)


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(names))
