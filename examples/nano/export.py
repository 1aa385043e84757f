"""
Puts the trained models where they ship from, in half precision, each with the sampling that was chosen on validation problems.

    cd examples && python -m nano.export

S, M and the PRM go into the package (backends/nano/draft, policy and prm), L to nano/weights/L. GGUF files are not kept: they are
made of the same numbers when they are wanted.
"""

import json
import shutil

from nano.choice import chosen
from nano.paths import SHIPPED, WORK


def export(name: str) -> None:
    """One model: weights, configuration, and how to sample."""
    folder = SHIPPED[name]
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copyfile(WORK / name / file, folder / file)
    generation = json.loads((WORK / name / "generation_config.json").read_text())
    if name != "PRM":
        sampling = chosen(name)
        generation |= {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def main() -> None:
    """Exports what has been trained, of what ships."""
    for name, folder in SHIPPED.items():
        if (WORK / name / "model.safetensors").exists():
            export(name)
            print(f"{name}: {folder}")


if __name__ == "__main__":
    main()
