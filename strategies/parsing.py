"""
How a strategy or a scorer is read: from its name, its JSON, or a dict with a `kind`. Knows pydantic; knows none of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from langchain_pareto.errors import SettingError

_T = TypeVar("_T")


def parse(value: object, adapter: TypeAdapter[_T], what: str, names: Iterable[str]) -> _T:
    """One of a union that `kind` tells apart; raises SettingError that names each mistake."""
    plural = f"{what.removesuffix('y')}ies" if what.endswith("y") else f"{what}s"
    known = f"known {plural}: {', '.join(sorted(names))}"
    try:
        if isinstance(value, dict):
            return adapter.validate_python(value)
        if isinstance(value, str) and value.lstrip().startswith("{"):
            return adapter.validate_json(value)
        if isinstance(value, str) and value in names:
            return adapter.validate_python({"kind": value})
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        msg = f"cannot read the {what} {value!r}: {problems}"
        raise SettingError(msg, hint=known) from None
    msg = f"there is no {what} {value!r}; {known}"
    hint = (
        f"A {what} is made of a class: {value.__name__}(...)." if isinstance(value, type) else None
    )
    raise SettingError(msg, hint=hint)
