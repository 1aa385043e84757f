"""Profiles as files: whole or not at all, read back or refused with the field, and what they say to other models."""

import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from profiles import OPTIONS, cells, profile

from langchain_pareto.backends.nano import policy_path, tokenizer_path
from langchain_pareto.budget import Budget
from langchain_pareto.errors import CertificateRefused, SettingError
from langchain_pareto.planning.catalogue import Option, roles_of
from langchain_pareto.planning.certificates import Guarantee
from langchain_pareto.planning.files import write
from langchain_pareto.planning.identity import differences, tokenizer_fingerprint, use_of
from langchain_pareto.planning.planner import Planner
from langchain_pareto.planning.profile import Cells, Family, Profile, load_profile
from langchain_pareto.rates import Rates
from langchain_pareto.strategies import BestOfN, Cascade, Rebase, Single, Vote

HERE = "Abacus"
GUARANTEE = Guarantee(kind="agree", risk=0.9, delta=0.9)  # what two questions can certify


def small() -> Profile:
    """Few budgets and questions; a cascade, a tree that was not measured, cells in seconds and a family."""
    options = (
        OPTIONS[0],
        OPTIONS[1],
        Option(Cascade(n=4), {"policy": "small", "large": "large"}),
        Option(Rebase(n=4), {"policy": "large"}, drawn=False),
    )
    few = cells(questions=2)
    tables = [x[:, :2].copy() for x in (few.right, few.mean, few.p90)]
    for table in tables:
        table[3] = np.nan
    by = {
        name: Cells(few.budgets[:2] * scale, *tables)
        for name, scale in (("tokens", 1), ("seconds", 1e-3))
    }
    none = np.zeros((2, 2), bool)
    return Profile(
        name="small",
        options=options,
        cells=by,
        keys={"small": "s", "large": "l"},
        devices={"small": HERE, "large": HERE},
        made="2026-01-10",
        prompt=20.0,
        family=Family(2, (1, 0), none, none),
    )


def saved(path: Path) -> dict[str, object]:
    small().save(path)
    found = json.loads(path.read_text())
    assert isinstance(found, dict)
    return found


def places(tree: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every node below the root."""
    children = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for name, child in children:
        yield (*path, name)
        yield from places(child, (*path, name))


def planned(path: Path) -> bool:
    """Whether a file was taken for a profile; then every way to plan by it gives a plan, or an error of ours."""
    try:
        found = load_profile(path)
    except SettingError as error:
        told = f"{error} {error.hint}"
        if path.name not in told or "pareto calibrate quality" not in told:
            pytest.fail(told)
        return False
    planner = Planner(found, here=[HERE], rates=Rates(watts=1.0))
    plans = [
        planner.plan(),
        planner.plan(Budget(tokens=1)),
        planner.plan(Budget(tokens=150, seconds=0.2), need=0.6),
        planner.plan(Budget(joules=9)),
    ]
    with contextlib.suppress(CertificateRefused):
        plans.append(planner.plan(Budget(tokens=150), guarantee=GUARANTEE))
    for plan in plans:
        assert plan.explain()
        json.dumps(plan.as_dict(), allow_nan=False)
    return True


def test_the_small_profile_is_a_profile(tmp_path: Path) -> None:
    """What the next test breaks is whole."""
    saved(tmp_path / "p.json")
    assert planned(tmp_path / "p.json")


BAD = (-1, 0, 0.5, 7, 1e300, float("nan"), "x", "", None, True, [], {})


@pytest.mark.parametrize("bad", [*BAD, "gone", "twice"], ids=repr)
def test_whatever_is_changed_by_hand_is_refused_or_planned_with(tmp_path: Path, bad) -> None:
    """Each value, list and object of a file replaced by each bad value, left out, or there twice: never another error than ours."""
    path = tmp_path / "p.json"
    whole = saved(path)
    taken = refused = 0
    text = json.dumps(whole)
    for place in list(places(whole)):
        tree = json.loads(text)
        node = tree
        for name in place[:-1]:
            node = node[name]
        if bad == "gone":
            del node[place[-1]]
        elif bad == "twice" and isinstance(node, list):
            node.append(node[place[-1]])
        else:
            node[place[-1]] = bad
        path.write_text(json.dumps(tree))
        done = planned(path)
        taken, refused = taken + done, refused + (not done)
    assert refused > taken


@pytest.mark.parametrize(
    ("place", "value", "field"),
    [
        (("cells", "tokens", "budgets", 0), -5, "cells.tokens.budgets.0"),
        (("cells", "tokens", "budgets", 0), 0, "cells.tokens.budgets.0"),
        (("cells", "tokens", "budgets", 0), 200, "budgets"),
        (("cells", "tokens", "right", 0, 0, 0), 1.01, "cells.tokens.right.0.0.0"),
        (("cells", "tokens", "right", 0, 0, 0), None, "in part"),
        (("cells", "tokens", "mean", 1, 0, 2), float("nan"), "cells.tokens.mean.1.0.2"),
        (("cells", "tokens", "p90", 1, 0, 2), -1, "cells.tokens.p90.1.0.2"),
        (("cells",), {}, "none by tokens"),
        (("cells", "joules"), None, "joules"),
        (("options", 0, "roles"), {}, "nobody plays policy"),
        (("options", 2, "roles"), {"policy": "small"}, "nobody plays large"),
        (("options", 0, "drawn"), 1, "options.0.drawn"),
        (
            ("options", 1),
            {"strategy": {"kind": "single"}, "roles": {"policy": "small"}, "drawn": True},
            "options",
        ),
        (("family", "differs", 0), [False] * 3, "family.differs"),
        (("family", "differs"), [[False] * 9] * 2, "family.differs"),
        (("family", "reference"), 4, "family"),
        (("family", "options"), [2, 0], "family"),
        (("labelled",), False, "family.lost"),
        (("devices",), {"small": HERE}, "large"),
        (("prompt",), "many", "prompt"),
    ],
)
def test_what_cannot_be_is_named(tmp_path: Path, place, value, field: str) -> None:
    """The file, the field and what to do are in the error."""
    path = tmp_path / "p.json"
    tree = saved(path)
    node = tree
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = value
    path.write_text(json.dumps(tree))
    with pytest.raises(SettingError) as caught:
        load_profile(path)
    assert field in str(caught.value)
    assert str(path) in str(caught.value)
    assert "pareto calibrate quality" in str(caught.value.hint)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    """Bytes that are no UTF-8, a folder, and brackets without end."""
    path = tmp_path / "p.json"
    for content in (b"\xff\xfe{", b"[" * 100_000, b"{}", b"3", b""):
        path.write_bytes(content)
        with pytest.raises(SettingError, match=r"p\.json"):
            load_profile(path)
    with pytest.raises(SettingError, match="there is no profile"):
        load_profile(tmp_path)


def test_roles_are_those_of_every_cascade_within() -> None:
    """A strategy within another names roles too."""
    assert roles_of(Vote(n=3)) == {"policy"}
    assert roles_of(BestOfN(n=2, of=Cascade(large="huge"))) == {"policy", "huge"}


# --- writing


def test_many_writers_leave_one_whole_file(tmp_path: Path) -> None:
    """Each has a temporary file of its own: what is there is always what one of them wrote, and nothing else stays."""
    path = tmp_path / "deep" / "file.json"
    texts = [f"{i}" * 100_000 for i in range(8)]
    failed = list[BaseException]()

    def work(text: str) -> None:
        try:
            for _ in range(10):
                write(path, text)
                assert path.read_text() in texts
        except BaseException as error:  # noqa: BLE001 - told below
            failed.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A folder in the place of the file, and a file in the place of its folder; nothing is left behind."""
    (tmp_path / "file").write_text("")
    (tmp_path / "p.json").mkdir()
    for path in (tmp_path / "file" / "p.json", tmp_path / "p.json"):
        with pytest.raises(SettingError, match="cannot write"):
            profile().save(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "p.json"]


# --- other models, other settings


def test_a_profile_says_which_setting_differs() -> None:
    """By name, with both values, and the models that it is true of."""
    was = {"temperature": 0.6, "answers": {"kind": "last"}, "stop": ["\n\n"]}
    found = Profile(
        "p", OPTIONS, {"tokens": cells()}, keys={m: use_of(m, **was) for m in ("small", "large")}
    )
    assert found.misfits({m: use_of(m, **was) for m in ("small", "large")}) == []
    now = {m: use_of(m, **was | {"temperature": 0.8}) for m in ("small", "large")}
    assert found.misfits(now) == ["small, large: temperature 0.6, this call has 0.8"]
    other = use_of("small", **was | {"answers": {"kind": "boxed"}, "stop": None})
    assert found.misfits({"small": other}) == [
        "small: answers.kind last, this call has boxed",
        'small: stop ["\\n\\n"], not set in this call',
    ]
    assert differences(use_of("m", a=None), use_of("m", a=1)) == ["a not set, this call has 1"]
    bare = Profile("p", OPTIONS, {"tokens": cells()})
    assert bare.misfits({"small": other}) == ["small: how it was used is not known"]


def test_other_weights_and_another_tokenizer_are_told_apart(tmp_path: Path) -> None:
    """Of a folder, by its files; a chat template is the tokenizer's."""
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"weights")
        (folder / "tokenizer.json").write_text("{}")
    one, two = tmp_path / "one", tmp_path / "two"
    first = use_of(one)
    assert differences(first, use_of(two)) == []
    (two / "chat_template.jinja").write_text("{{ messages }}")
    assert differences(first, use_of(two)) == ["another tokenizer or chat template"]
    (two / "model.safetensors").write_bytes(b"others")
    assert "other weights" in differences(first, use_of(two))
    assert tokenizer_fingerprint(None) == tokenizer_fingerprint("nano-draft")
    assert tokenizer_fingerprint(tokenizer_path()) == tokenizer_fingerprint(None)
    assert use_of(policy_path(), a=1) != use_of(policy_path(), a=2)


def test_long_settings_are_shown_in_part() -> None:
    """Two prompts that begin alike are another prompt, and no page of text."""
    was, now = (use_of("m", prompt="x" * 500 + end) for end in "ab")
    assert differences(was, now) == ["another prompt"]
    assert len(differences(was, use_of("m", prompt="y" * 500))[0]) < 200
    assert differences("opaque", now)[0].startswith("was opaque, and is {")


# --- other devices


def timed(device: str) -> Profile:
    return Profile(
        "p",
        OPTIONS,
        {"tokens": cells(), "seconds": cells()},
        devices={"small": device, "large": device},
    )


def test_seconds_of_another_device_are_not_planned_with() -> None:
    """Nor joules and hourly prices, which follow from them: the limit is kept, tokens are planned for, and the note says why."""
    planner = Planner(timed("Abacus"), here=["Sundial"], rates=Rates(watts=1.0))
    for budget in (Budget(seconds=400), Budget(joules=400)):
        plan = planner.plan(budget)
        assert (plan.level, plan.expected, plan.quality) == (0, {}, None)
        assert "measured on another device, Abacus" in plan.explain()
        assert "pareto calibrate device" in plan.explain()
    both = planner.plan(Budget(tokens=1600, seconds=1))
    assert (both.level, both.binding) == (1, "tokens")
    assert "seconds" not in both.expected
    assert "another device" in both.explain()
    assert Planner(timed("Abacus"), here=["Abacus"]).plan(Budget(seconds=400)).binding == "seconds"


def test_by_default_a_profile_is_of_this_machine_or_not() -> None:
    """A processor that is not this one is another device."""
    assert Planner(timed("Abacus 3000")).plan(Budget(seconds=400)).level == 0


def test_only_models_that_are_planned_with_count() -> None:
    """A model of another device that this call does not use is no reason."""
    mixed = Profile(
        "p",
        OPTIONS,
        {"tokens": cells(), "seconds": cells()},
        devices={"small": "Abacus", "large": "Sundial"},
    )
    assert Planner(mixed, models=["small"], here=["Abacus"]).plan(Budget(seconds=400)).level == 1
    assert Planner(mixed, here=["Abacus"]).plan(Budget(seconds=400)).level == 0


def test_a_limit_that_rules_a_plan_out_rules_it_out_beside_others() -> None:
    """A vote that is too slow at every budget in seconds is not taken for having tokens enough."""
    slow = cells()
    slow.right[3] = slow.mean[3] = np.nan
    planner = Planner(profile(tables={"tokens": cells(), "seconds": slow}))
    assert planner.plan(Budget(tokens=1600)).strategy == Vote(n=8)
    plan = planner.plan(Budget(tokens=1600, seconds=1600))
    assert (plan.strategy, plan.roles["policy"]) == (Single(), "large")
    assert "not measured here" in plan.explain()
    family = Family(2, (3,), np.zeros((1, 2000), bool))
    tables = {"tokens": cells(), "seconds": slow}
    certified = Planner(profile(tables=tables, family=family)).plan(
        Budget(tokens=1600, seconds=1600), guarantee=GUARANTEE
    )
    assert "it does not hold here" in certified.explain()
    assert certified.quality is None
    json.dumps(certified.as_dict(), allow_nan=False)


def test_a_model_of_which_nobody_knows_the_seconds_is_not_free() -> None:
    """Where only one model was timed, the other is not planned for in seconds."""
    table = cells()
    table.mean[2:, :, 2] = 0.0  # seconds of the large model
    plan = Planner(profile(tables={"tokens": table})).plan(Budget(seconds=0.4))
    assert plan.roles["policy"] == "small"
