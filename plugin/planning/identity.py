"""
What tells one model from another: its weights, without reading all of them.

Knows files; knows no library that loads them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from langchain_pareto.backends.nano import bundled

_PIECE = 1 << 16  # bytes, at the beginning, in the middle and at the end of each file
_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf", "config.json")


def fingerprint(model: object) -> str:
    """A short hash of a model's files, or of what it is called where there are none on this machine.

    Of each file the length and three pieces count: a model that was trained on differs in all of them.
    """
    folder = bundled(model)
    if folder is None and isinstance(model, str | Path) and Path(model).exists():
        folder = Path(model)
    if folder is None:
        return _short(_called(model).encode())
    found = sorted(_files(folder))
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


def _files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    for pattern in _WEIGHTS:
        yield from place.glob(pattern)


def _called(model: object) -> str:
    """Its name and shape, where its weights are in memory only."""
    name = getattr(model, "name", None) or getattr(model, "name_or_path", None)
    spec = getattr(model, "spec", None)
    return model if isinstance(model, str) else f"{name or type(model).__name__} {spec}"


def _short(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]
