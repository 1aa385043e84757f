"""
Puts the trained models where they ship from, in half precision, each with the sampling that was chosen on validation problems.

    cd examples && python -m nano.export

S, M and the PRM go into the package (backends/nano/draft, policy and prm), L to nano/weights/L. GGUF files are not kept: they are
made of the same numbers when they are wanted.
"""

import json
import shutil
from pathlib import Path

from nano.report import chosen
from nano.tokenizer import FOLDER, WORK

HERE = Path(__file__).parent
PACKAGE = HERE.parents[1] / "backends/nano"
HOMES = {
    "S": PACKAGE / "draft",
    "M": PACKAGE / "policy",
    "PRM": PACKAGE / "prm",
    "L": HERE / "weights/L",
}


def export(name: str, home: Path) -> None:
    """One model: weights, configuration, and how to sample."""
    home.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(WORK / name / file, home / file)
    generation = json.loads((WORK / name / "generation_config.json").read_text())
    if name != "PRM":
        sampling = chosen(name)
        generation |= {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
    (home / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def main() -> None:
    """Exports what has been trained."""
    shutil.copytree(FOLDER, PACKAGE / "tokenizer", dirs_exist_ok=True)
    for name, home in HOMES.items():
        if (WORK / name / "model.safetensors").exists():
            export(name, home)
            print(f"{name}: {home.relative_to(HERE.parents[1])}")


if __name__ == "__main__":
    main()
