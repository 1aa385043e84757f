"""Where the family's files lie. Knows no model."""

from pathlib import Path

from langchain_pareto.backends import nano

_HERE = Path(__file__).parent
WORK = _HERE / "work"  # of one training: checkpoints, logs, weights
SAMPLES = WORK / "samples"
REPORT = _HERE / "report"
POOLS = _HERE / "pools"
TOKENIZER = nano.tokenizer_path()
_PACKAGE = _HERE.parents[1] / "backends/nano"  # in the source tree, whatever is installed
SHIPPED = {  # the folder that a model ships from
    "S": _PACKAGE / nano.draft_path().name,
    "M": _PACKAGE / nano.policy_path().name,
    "PRM": _PACKAGE / nano.prm_path().name,
    "L": _HERE / "weights/L",
}


def trained_or_shipped(name: str) -> Path:
    """The folder of a model as it was trained here, else as it ships; FileNotFoundError where it does neither."""
    trained = WORK / name
    if (trained / "model.safetensors").exists():
        return trained
    if name not in SHIPPED:
        ships = ", ".join(SHIPPED)
        raise FileNotFoundError(
            f"{trained} has no weights. {ships} ship; any other of the recipes is trained first: python -m nano.train {name}"
        )
    return SHIPPED[name]
