"""The report for people: a table, and the curves over the number of samples. Knows the report's JSON; knows no model."""

from pathlib import Path
from typing import Any

CURVES = {
    "pass@{k}": ("pass@k", "#0072B2"),
    "best of {k}": ("best of k, PRM", "#009E73"),
    "weighted vote of {k}": ("weighted vote, PRM", "#E69F00"),
    "maj@{k}": ("majority vote", "#D55E00"),
}  # colours that colour-blind readers tell apart (Okabe and Ito)
COUNTS = (1, 2, 4, 8, 16, 32)  # samples
ROWS = (
    "greedy",
    "mean sample",
    "maj@16",
    "weighted vote of 16",
    "best of 16",
    "pass@16",
    "pass@32",
)


def write_table(results: dict[str, Any], path: Path) -> None:
    """One row per model and band: per cent of held-out problems with their 95 % intervals."""
    lines = [
        "| model | problems | " + " | ".join(ROWS) + " | tokens |",
        "|---|---|" + "---|" * (len(ROWS) + 1),
    ]
    for name, model in results["models"].items():
        for band, figures in model["bands"].items():
            cells = [f"{v[0]:.0f} ({v[1]:.0f}-{v[2]:.0f})" for v in (figures[row] for row in ROWS)]
            lines.append(
                f"| {name} | {band} | {' | '.join(cells)} | {figures['tokens a sample']:.0f} |"
            )
    path.write_text("\n".join(lines) + "\n")


def draw_curves(results: dict[str, Any], path: Path) -> None:
    """A grid of models and bands of difficulty; 95 % intervals around every curve."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    models = results["models"]
    bands = list(next(iter(models.values()))["bands"])
    figure, grid = plt.subplots(
        len(models),
        len(bands),
        figsize=(3 * len(bands), 2.6 * len(models)),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for row, (name, model) in zip(grid, models.items(), strict=True):
        for axes, band in zip(row, bands, strict=True):
            _draw(axes, model["bands"][band])
            axes.set_title(f"{name}: {band}", fontsize=9)
    for axes in grid[-1]:
        axes.set_xlabel("samples a problem", fontsize=8)
    figure.supylabel("right, per cent of held-out problems", fontsize=10)
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(axes: Any, figures: dict[str, Any]) -> None:
    for key, (label, colour) in CURVES.items():
        values = [figures[key.format(k=k)] for k in COUNTS]
        means, lows, highs = zip(*values, strict=True)
        axes.plot(COUNTS, means, color=colour, marker="o", markersize=3, label=label)
        axes.fill_between(COUNTS, lows, highs, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(figures["greedy"][0], color="#555555", linestyle="--", linewidth=1, label="greedy")
    axes.set_xscale("log", base=2)
    axes.set_xticks(COUNTS, [str(k) for k in COUNTS])
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=8)
