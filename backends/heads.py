"""
Which models are reward models with a head in place of words, by their config.json.

Knows the names of architectures, and of those that are published with code of their own what their heads score; loads nothing.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from langchain_pareto.errors import CapabilityError

Judges = Literal["steps", "answers"]


@dataclass(frozen=True, slots=True)
class Published:
    """A head that is published with code of its own: what it was made to score, its labels, and the name of its weights."""

    judges: Judges
    labels: int
    weights: Literal["score", "v_head"]


PUBLISHED = {
    "Qwen2ForProcessRewardModel": Published("steps", 2, "score"),
    "Qwen2ForRewardModel": Published("answers", 1, "score"),
    "Qwen2ForPrmModel": Published("steps", 1, "v_head"),
}
_OURS = re.compile(r"For(Token|Sequence)Classification$")
_FOREIGN = re.compile(r"^(?!.*ForCausalLM).*(Reward|P[Rr][Mm])")


def find_head(folder: Path, name: str) -> str | None:
    """The architecture of a reward model with a head, None for any other model; CapabilityError for a head that is not known."""
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"][0]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # whoever loads it says what is wrong
    if not isinstance(found, str):
        return None
    if found in PUBLISHED or _OURS.search(found):
        return found
    if _FOREIGN.search(found):
        msg = (
            f"{name} is a reward model with a head of its own ({found}), whose code is not run here"
        )
        hint = f"Known are models of transformers for token or sequence classification, and {', '.join(PUBLISHED)}."
        raise CapabilityError(msg, hint=hint)
    return None


def check_writes(model: str | Path, revision: str | None = None) -> None:
    """Raises CapabilityError for a reward model with a head, which writes nothing; looks only at what is on this machine."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        from huggingface_hub import try_to_load_from_cache

        try:
            config = try_to_load_from_cache(str(model), "config.json", revision=revision)
        except ValueError:  # no id of the hub either
            return
        if not isinstance(config, str):
            return
        folder = Path(config).parent
    if (found := find_head(folder, str(model))) is not None:
        raise writes_nothing(str(model), found)


def writes_nothing(name: str, what: str) -> CapabilityError:
    """That a reward model was asked to write; `what` tells which kind it is."""
    msg = f"{name} is a reward model ({what}): it scores texts, and writes none"
    hint = 'Name it in a role, ChatPareto(roles={"scorer": ...}), and take scorer=OutcomeReward() or ProcessReward(format=...).'
    return CapabilityError(msg, hint=hint)
