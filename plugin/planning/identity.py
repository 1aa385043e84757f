"""
What tells one model in use from another: its weights, without reading all of them, its tokenizer, and the settings of its draws.

Knows files, and settings as JSON; knows no library that loads a model.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from pydantic import BaseModel

from langchain_pareto.backends.nano import bundled, tokenizer_path

_PIECE = 1 << 16  # bytes, at the beginning, in the middle and at the end of each file
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json")
_TOKENIZER = ("tokenizer*", "vocab*", "merges.txt", "*.jinja")  # with the chat template
_DRAWS: Mapping[str, float] = {  # what a model's own draws may set, and what changes nothing
    "temperature": 1.0,
    "top_k": 0,
    "top_p": 1.0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}
_ADDRESS = re.compile(r" at 0x[0-9A-Fa-f]+")
_SHOWN = 60  # characters of a setting
_ROLE = "roles."
_WORDS = {"weights": "other weights", "tokenizer": "another tokenizer or chat template"}


def key_of(*parts: object) -> str:
    """A short hash of whatever tells one thing from another."""
    return _short(repr(parts).encode())


def use_of(model: object, /, **settings: object) -> str:
    """A model and all that its answers depend on, as one line of JSON by which `differences` says what two uses have not in common.

    Settings within settings have names with dots. What JSON does not know is `described`. A `tokenizer` among them is in place of the
    model's own.
    """
    known = {"weights": fingerprint(model), "tokenizer": tokenizer_fingerprint(model)}
    return json.dumps({**known, **dict(_flat("", settings))}, sort_keys=True)


def differences(was: str, now: str) -> list[str]:
    """In which ways a model was used otherwise than it is now, in words; nothing where it was not."""
    if was == now:
        return []
    old, new = _settings(was), _settings(now)
    if old is None or new is None:
        told = f"was {_short_text(was)}, and is {_short_text(now)}"
        return [f"{told}: other weights, or other settings of draws or scorer"]
    return [
        _told(name, old.get(name), new.get(name))
        for name in {**old, **new}
        if old.get(name) != new.get(name)
    ] or ["other settings"]


def fingerprint(model: object) -> str:
    """A short hash of a model's files, or of what it is called where there are none on this machine.

    Of each file the length and three pieces count: a model that was trained on differs in all of them.
    """
    folder = _folder(model)
    return _short(_called(model).encode()) if folder is None else _hashed(folder, _WEIGHTS)


def tokenizer_fingerprint(model: object) -> str:
    """The same of the files of its tokenizer and chat template; of a GGUF file they are part of the weights."""
    if bundled(model) is not None:
        return _hashed(tokenizer_path(), _TOKENIZER)
    folder = _folder(model)
    if folder is None:
        own = getattr(getattr(model, "tokenizer", None), "fingerprint", None)
        return _short(str(own or _called(model)).encode())
    return _hashed(folder, _TOKENIZER)


def given_tokenizer(tokenizer: object) -> str:
    """The same of a tokenizer that comes beside its model: a folder, a hub id, or an object."""
    folder = _folder(tokenizer)
    if folder is not None:
        return _hashed(folder, _TOKENIZER)
    own = getattr(tokenizer, "fingerprint", None)
    size = getattr(tokenizer, "vocab_size", None)
    template = getattr(tokenizer, "template", None) or getattr(tokenizer, "chat_template", None)
    return _short(f"{own or _called(tokenizer)} {size} {template}".encode())


def own_draws(model: object) -> dict[str, float]:
    """How a model draws where a call does not say: what its generation config, or the Backend, sets otherwise than to no effect.

    Nothing for a bundled model, whose weights tell all of it, and where there are no files on this machine.
    """
    if bundled(model) is not None:
        return {}
    chosen = getattr(model, "sampling", None) or getattr(model, "generation_config", None)
    folder = _folder(model)
    if folder is not None:
        found = _generation_config(folder)
    else:
        found = {name: getattr(chosen, name, None) for name in _DRAWS}
    return {
        name: value
        for name, neutral in _DRAWS.items()
        if isinstance(value := found.get(name), int | float) and value != neutral
    }


def described(value: object) -> str:
    """`repr` without addresses, which no other process has; of what says no more than its class, with the settings it was made with."""
    said = _ADDRESS.sub("", repr(value))
    if type(value).__repr__ is not object.__repr__:
        return said
    settings = {name: _called_or_said(part) for name, part in _made_with(value).items()}
    return f"{said} {settings}" if settings else said


def _called_or_said(value: object) -> str:
    """A function or class by its whole name, all else as it shows itself."""
    name = getattr(value, "__qualname__", None)
    return f"{value.__module__}.{name}" if name else _ADDRESS.sub("", repr(value))


def _made_with(thing: object) -> dict[str, object]:
    """What an object was given when it was made, as it stands on it; all that is public where that does not show.

    Counts and caches, which change from call to call, are no settings.
    """
    own: dict[str, object] = getattr(thing, "__dict__", {})
    try:
        given = list(inspect.signature(type(thing)).parameters)
    except (TypeError, ValueError):  # made in C
        given = []
    names = {name: name if name in own else f"_{name}" for name in given}
    if all(place in own for place in names.values()):
        return {name: own[place] for name, place in names.items()}
    return {name: value for name, value in own.items() if not name.startswith("_")}


def _generation_config(folder: Path) -> Mapping[str, object]:
    """The file of that name, empty where there is none to read."""
    try:
        found = json.loads((folder / "generation_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _folder(model: object) -> Path | None:
    """Where a model's files lie on this machine."""
    folder = bundled(model)
    if folder is None and isinstance(model, str | Path) and Path(model).exists():
        folder = Path(model)
    return folder


def _hashed(place: Path, patterns: tuple[str, ...]) -> str:
    found = sorted(set(_files(place, patterns)))
    return _of_files(tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in found))


@lru_cache(maxsize=64)
def _of_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, size, _ in files:
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            for start in (0, size // 2, max(0, size - _PIECE)):
                file.seek(start)
                digest.update(file.read(_PIECE))
    return digest.hexdigest()[:16]


def _files(place: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    for pattern in patterns:
        yield from (path for path in place.glob(pattern) if path.is_file())


def _called(model: object) -> str:
    """Its name and shape, where its weights are in memory only."""
    name = getattr(model, "name", None) or getattr(model, "name_or_path", None)
    spec = getattr(model, "spec", None)
    return model if isinstance(model, str) else f"{name or type(model).__name__} {spec}"


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _flat(prefix: str, settings: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """Settings by their names with dots."""
    for name, value in settings.items():
        known = _plain(value)
        if isinstance(known, dict) and known:
            yield from _flat(f"{prefix}{name}.", known)
        else:
            yield f"{prefix}{name}", known


def _plain(value: object) -> object:
    """A setting as JSON has it."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value if value is None or isinstance(value, str | int | float) else described(value)


def _settings(use: str) -> dict[str, object] | None:
    """What `use_of` wrote; None for anything else."""
    try:
        found = json.loads(use)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _told(name: str, was: object, now: object) -> str:
    if name in _WORDS:
        return _WORDS[name]
    if name.startswith(_ROLE):
        return f"another model in the role {name.removeprefix(_ROLE)!r}"
    old, new = (_short_text(value) for value in (was, now))
    if old == new:
        return f"another {name}"
    before = f"{name} not set" if was is None else f"{name} {old}"
    return f"{before}, not set in this call" if now is None else f"{before}, this call has {new}"


def _short_text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
