"""The house stands: every package ships, every room imports only from below, and the door is light."""

import ast
import importlib
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GROUND = (
    "langchain_pareto.errors",
    "langchain_pareto.budget",
    "langchain_pareto.ledger",
    "langchain_pareto.sharing",
)
DEVICES = ("torch", "transformers", "llama_cpp")
LANGCHAIN = ("langchain", "langchain_core", "langchain_tests", "langgraph", "langsmith")

# room: (which of our modules it may import, which libraries it may not)
WALLS = {
    "langchain_pareto.errors": ((), (*DEVICES, *LANGCHAIN)),
    "langchain_pareto.budget": (GROUND[:1], (*DEVICES, *LANGCHAIN)),
    "langchain_pareto.ledger": ((*GROUND[:2], GROUND[3]), (*DEVICES, *LANGCHAIN)),
    "langchain_pareto.sharing": ((), (*DEVICES, *LANGCHAIN)),
    "langchain_pareto.backends": (GROUND, LANGCHAIN),
    "langchain_pareto.strategies": (
        (*GROUND, "langchain_pareto.backends"),
        (*DEVICES, *LANGCHAIN),
    ),
    "langchain_pareto.forms": (
        (*GROUND, "langchain_pareto.backends", "langchain_pareto.strategies"),
        DEVICES,
    ),
    "langchain_pareto.planning": (
        (
            *GROUND,
            "langchain_pareto.rates",  # prices
            "langchain_pareto.backends",
            "langchain_pareto.strategies",
        ),
        (*DEVICES, *LANGCHAIN),
    ),
}


def setuptools_table() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def modules() -> dict[str, Path]:
    """Every module of the package, by the name that it imports as."""
    found = {}
    for package, folder in setuptools_table()["package-dir"].items():
        for path in (ROOT / folder).glob("*.py"):
            found[package if path.stem == "__init__" else f"{package}.{path.stem}"] = path
    return found


def within(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def imports(source: str) -> Iterator[str]:
    """Everything that a file imports, anywhere in it; `from langchain_pareto import x` is the module x."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module="langchain_pareto", names=names):
                yield from (f"langchain_pareto.{alias.name}" for alias in names)
            case ast.ImportFrom(module=str() as module, level=0):
                yield module
            case ast.ImportFrom(level=level) if level > 0:
                yield "a relative import"
            case ast.Call(func=func, args=[ast.Constant(value=str() as name), *_]):
                called = getattr(func, "id", None) or getattr(func, "attr", None)
                if called in {"import_module", "__import__"}:
                    yield name


def breaches(room: str, module: str, source: str) -> list[str]:
    """The imports of one file that go through a wall."""
    ours, closed = WALLS[room]
    return [
        f"{module} imports {name}"
        for name in imports(source)
        if name == "a relative import"
        or within(name, closed)
        or (within(name, ("langchain_pareto",)) and not within(name, (room, *ours)))
    ]


def test_every_package_is_listed() -> None:
    """A folder with __init__.py that pyproject.toml does not list would be missing from the wheel without an error."""
    table = setuptools_table()
    found = {
        str(path.parent.relative_to(ROOT))
        for top in ("plugin", "backends", "strategies")
        for path in (ROOT / top).rglob("__init__.py")
    }
    assert found == {table["package-dir"][name] for name in table["packages"]}
    assert set(table["packages"]) == set(table["package-dir"])


@pytest.mark.parametrize("room", WALLS)
def test_a_room_imports_only_from_rooms_below(room: str) -> None:
    """No file of a room imports a room above it, or a library that the room must not know."""
    files = {name: path for name, path in modules().items() if within(name, (room,))}
    found = [
        breach
        for name, path in files.items()
        for breach in breaches(room, name, path.read_text(encoding="utf-8"))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import torch",
        "import torch.nn.functional as F",
        "from transformers import AutoModel",
        "def late():\n    import llama_cpp",
        "from langchain_core.messages import AIMessage",
        "from langchain_pareto import ChatPareto",
        "import langchain_pareto",
        "from langchain_pareto.planning.pool import Pool",
        "from ..planning import pool",
        "import importlib\nimportlib.import_module('torch')",
    ],
)
def test_a_hole_in_the_wall_is_found(source: str) -> None:
    """The check above sees an import in each of its forms."""
    assert breaches("langchain_pareto.strategies", "x", source) != []


@pytest.mark.parametrize(
    "source",
    [
        "from langchain_pareto.backends.base import Sampling",
        "from langchain_pareto import errors, budget",
        "from langchain_pareto.strategies.search import Search",
        "import torchless",
    ],
)
def test_a_door_is_no_hole(source: str) -> None:
    """What a strategy may import passes the check."""
    assert breaches("langchain_pareto.strategies", "x", source) == []


@pytest.mark.parametrize(
    "package", ["langchain_pareto", "langchain_pareto.strategies", "langchain_pareto.backends.nano"]
)
def test_the_door_is_light(package: str) -> None:
    """An import loads no device library: only what is used is paid for."""
    code = f"import sys, {package}; print(*({set(DEVICES)!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


@pytest.mark.parametrize("package", setuptools_table()["packages"])
def test_public_names_are_sorted_and_exist(package: str) -> None:
    """`__all__` is sorted as ruff sorts it (constants, classes, the rest), and each name is there."""
    module = importlib.import_module(package)
    names = list(getattr(module, "__all__", ()))
    assert names == sorted(
        names, key=lambda name: (not name.isupper(), not name[0].isupper(), name)
    )
    assert [name for name in names if not hasattr(module, name)] == []


def test_the_bundled_models_ship() -> None:
    """Weights, tokenizer and card lie where the package says, whether it is installed or linked."""
    nano = importlib.import_module("langchain_pareto.backends.nano")
    for folder in (nano.policy_path(), nano.draft_path()):
        assert {"config.json", "model.safetensors"} <= {path.name for path in folder.iterdir()}
    assert (nano.tokenizer_path() / "tokenizer.json").is_file()
    assert (nano.policy_path().parent / "README.md").is_file()
