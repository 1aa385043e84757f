"""
JSON as models write it, read so that it can be written again.

Knows JSON; knows no schema and no call.
"""

from __future__ import annotations

import json
import math
import sys

from langchain_pareto.forms.validity import TOO_DEEP


def read_json(text: str) -> object:
    """The value that a text is, raw line ends in its strings allowed; raises ValueError.

    A number beyond floats is the largest of them, and half of a surrogate pair the replacement character: neither could be written
    as JSON again.
    """
    try:
        value: object = json.loads(
            text, strict=False, parse_float=_finite, parse_constant=_refuse_constant
        )
        return _text_only(value) if "\\u" in text else value
    except RecursionError:
        raise ValueError(TOO_DEEP) from None


def without_surrogates(text: str) -> str:
    """The text with the replacement character for halves of surrogate pairs, which are not text."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else math.copysign(sys.float_info.max, value)


def _refuse_constant(name: str) -> object:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def _text_only(value: object) -> object:
    if isinstance(value, str):
        return without_surrogates(value)
    if isinstance(value, list):
        return [_text_only(one) for one in value]
    if isinstance(value, dict):
        return {_text_only(key): _text_only(one) for key, one in value.items()}
    return value
