"""The plot of a profile: what is drawn on its axes, in which files, and what it says where it cannot be drawn."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from profiles import BUDGETS, OPTIONS, RIGHT, profile

from langchain_pareto.errors import SettingError
from langchain_pareto.plot import check_plot, draw_profile, figure_of


def test_every_option_and_the_planned_line_are_drawn() -> None:
    """A mark for each at its tokens and accuracy without a limit, a line over all budgets that never falls, and their names."""
    pytest.importorskip("matplotlib")
    [axes] = figure_of(profile()).axes
    assert axes.get_xlabel().startswith("tokens: what a plan takes on average")
    assert axes.get_ylabel() == "right, %"
    assert axes.get_title() == "by-hand: 2000 questions"
    assert axes.get_xscale() == "log"
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert len(drawn) == len(OPTIONS)
    assert [float(line.get_xdata()[0]) for line in drawn] == [50, 400, 150, 1200]
    for line, right in zip(drawn, RIGHT, strict=True):
        assert float(line.get_ydata()[0]) == pytest.approx(100 * right[-1], abs=1)
    [planned] = [line for line in axes.lines if line.get_label() == "planned, at this budget"]
    budgets, quality = list(planned.get_xdata()), list(planned.get_ydata())
    assert (budgets[0], budgets[-1]) == pytest.approx((BUDGETS[0], BUDGETS[-1]))
    assert quality[0] == pytest.approx(50, abs=1)
    assert quality[-1] == pytest.approx(90, abs=1)
    assert all(later > earlier - 1 for earlier, later in pairwise(quality))
    legend = axes.get_legend()
    assert legend is not None
    names = {text.get_text() for text in legend.get_texts()}
    assert names == {"planned, at this budget", "small", "large", "one sample", "adaptive vote"}


def test_without_labels_no_accuracy_is_claimed() -> None:
    """The axis says what stood in."""
    pytest.importorskip("matplotlib")
    [axes] = figure_of(replace(profile(), labelled=False)).axes
    assert axes.get_ylabel() == "as most samples say, %"


@pytest.mark.parametrize(
    ("name", "begins"),
    [("p.png", b"\x89PNG"), ("P.PNG", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.pdf", b"%PDF")],
)
def test_the_name_says_the_format(tmp_path: Path, name: str, begins: bytes) -> None:
    """And the picture is not empty; drawing again writes over it."""
    pytest.importorskip("matplotlib")
    for _ in range(2):
        draw_profile(profile(), tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(begins)
    assert (tmp_path / name).stat().st_size > 4000


def test_a_png_has_marks_and_not_only_paper(tmp_path: Path) -> None:
    """The two models' colours and the black line are in it."""
    image = pytest.importorskip("matplotlib.image")
    draw_profile(profile(), tmp_path / "p.png")
    pixels = image.imread(tmp_path / "p.png")[:, :, :3].reshape(-1, 3)
    blue = (pixels[:, 2] > pixels[:, 0] + 0.3).sum()
    orange = (pixels[:, 0] > pixels[:, 2] + 0.3).sum()
    assert blue > 100
    assert orange > 100
    assert (pixels.max(1) < 0.1).sum() > 100


@pytest.mark.parametrize("name", ["x", "x.unknown", "nodir/x.png", "folder.png"])
def test_what_cannot_be_written_is_refused_before_it_is_drawn(tmp_path: Path, name: str) -> None:
    """For its name, for want of a folder, or since it is one."""
    pytest.importorskip("matplotlib")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(SettingError) as caught:
        check_plot(tmp_path / name)
    assert caught.value.hint


def test_without_matplotlib_it_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it is asked, and nothing is written."""
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    for ask in (
        lambda: check_plot(tmp_path / "p.png"),
        lambda: draw_profile(profile(), tmp_path / "p.png"),
        lambda: figure_of(profile()),
    ):
        with pytest.raises(SettingError, match="matplotlib") as caught:
            ask()
        assert caught.value.hint == 'pip install "langchain-pareto[plot]"'
    assert not list(tmp_path.iterdir())
