"""
Files of JSON lines that grow over hours: the first line says what they are of, and a line cut off in the middle is written again.

Knows files; knows nothing of what they hold.
"""

import json
from pathlib import Path
from typing import Any


def resume(path: Path, header: dict[str, object]) -> int:
    """Makes `path` ready to be appended to, and returns how many rows it has; ValueError where it is of something else."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    lines = _lines(path)
    if not lines:
        path.write_text(json.dumps(header) + "\n")
        return 0
    found = json.loads(lines[0])
    if found != header:
        raise ValueError(
            f"{path} is of {found}, not of {header}: delete it to begin again, or go on with what it is of"
        )
    return len(lines) - 1


def header(path: Path) -> Any:
    """What the file is of."""
    return json.loads(_lines(path)[0])


def rows(path: Path) -> list[Any]:
    """What has been written so far, without the header; nothing where there is no file yet."""
    return [json.loads(line) for line in _lines(path)[1:]]


def _lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.exists() else []
