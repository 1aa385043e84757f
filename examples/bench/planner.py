"""
The planner on recorded answers: `python examples/bench/planner.py [POOLS]`.

POOLS is a folder of `DATASET.MODEL.jsonl.gz`; without one, the pools of the nano family. Calibrates on some questions, judges on the others,
over 100 random splits: the regret against the best fixed (model, n) chosen on the judged questions themselves, the fixed plan that the
same calibration prefers, a random one; what the lean rule and the adaptive stop save; how much of a hard budget a vote uses; overruns.
The same as `pareto bench planner`.
"""

import json
import sys
from pathlib import Path

from langchain_pareto.bench import rows, sets_of

NANO = Path(__file__).parents[1] / "nano/pools"
CALIBRATED = {"math500": 100, "gpqa_diamond": 50}  # questions; of other sets 200, or half


def main() -> None:
    """One JSON line a figure."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else NANO
    for dataset, pools in sets_of(folder).items():
        questions = len(next(iter(pools.values())).questions)
        seen = CALIBRATED.get(dataset, min(200, questions // 2))
        for row in rows(dataset, pools, calibrated=seen):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
