"""
HTML that cannot be broken by what it holds: tags whose texts are always escaped.

Knows HTML's rules for text; knows nothing of reports.
"""

from __future__ import annotations

import html
from collections.abc import Mapping

# what HTML cannot hold, or nobody could see: pictures of control characters, and U+FFFD
_VISIBLE = (
    {code: 0x2400 + code for code in range(0x20) if code not in (0x09, 0x0A)}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
    | dict.fromkeys(range(0x202A, 0x202F), 0xFFFD)  # would turn the letters after them round
    | dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)
    | dict.fromkeys(range(0xFDD0, 0xFDF0), 0xFFFD)
    | {plane + end: 0xFFFD for plane in range(0, 0x110000, 0x10000) for end in (0xFFFE, 0xFFFF)}
)
_VOID = frozenset("br col hr link meta".split())


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: str) -> Markup:
    """Any text as HTML, with control characters made visible."""
    if isinstance(text, Markup):
        return text
    return Markup(html.escape(text.replace("\r\n", "\n").translate(_VISIBLE)))


def tag(name: str, /, *children: str, **attributes: str | float | bool | None) -> Markup:
    """An element; texts are escaped unless they are Markup, and attributes always.

    An attribute that is None or False is left out, and True is its name alone; `class_` is `class`, and `aria_label` is `aria-label`.
    """
    written = "".join(
        f" {_name(key)}" if value is True else f' {_name(key)}="{html.escape(_plain(str(value)))}"'
        for key, value in attributes.items()
        if value is not None and value is not False
    )
    inside = "".join(map(escape, children))
    return Markup(f"<{name}{written}>{inside}" + ("" if name in _VOID else f"</{name}>"))


def pairs(known: Mapping[str, str | None], *, class_: str | None = None) -> Markup:
    """A list of names and what is known of each; what is None or empty is left out."""
    parts = [
        part
        for name, value in known.items()
        if value
        for part in (tag("dt", name), tag("dd", value))
    ]
    return tag("dl", *parts, class_=class_)


def _name(key: str) -> str:
    return key.rstrip("_").replace("_", "-")


def _plain(text: str) -> str:
    return text.translate(_VISIBLE)
