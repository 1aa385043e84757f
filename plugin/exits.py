"""
How a command ends: what went wrong in words on stderr, and the exit code that goes with it.

Knows errors of ours and exit codes; knows no command.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from langchain_pareto import console
from langchain_pareto.errors import (
    BudgetError,
    CapabilityError,
    CertificateRefused,
    ModelLoadError,
    ParetoError,
    SettingError,
)

# what a user can put right
_USAGE = (BudgetError, SettingError, ModelLoadError, CapabilityError, CertificateRefused)


def code_of(error: Exception) -> int:
    """The exit code that goes with an error: 2 for what a user can put right, else 1."""
    return 2 if isinstance(error, _USAGE) else 1


@contextmanager
def told() -> Iterator[None]:
    """Errors of ours and warnings in words on stderr, and the exit code that goes with an error."""
    console.replace_unknown_signs()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = console.show_warning
            yield
    except ParetoError as error:
        if os.environ.get("PARETO_TRACEBACK") == "1":
            raise
        console.show_error(error)
        raise typer.Exit(code_of(error)) from None
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            raise
        failed = _in_words(error)
        console.show_error(failed)
        raise typer.Exit(code_of(failed)) from None


def _in_words(error: OSError) -> ParetoError:
    """Streams have no name: what has one is a file that an option names."""
    why = error.strerror or error
    if error.filename is None:
        return ParetoError(f"cannot write the answer: {why}")
    msg = f"cannot open {str(error.filename)!r:.200}: {why}"
    return SettingError(msg, hint="Check its name, and who may open it.")
