"""The annotation model: what it refuses, and in which words."""

import json
from pathlib import Path

import pytest

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.schema import (
    MAX_ID,
    PALETTE,
    Annotations,
    Box,
    Click,
    Edit,
    Label,
    Mask,
    Scribble,
    SpaceClick,
    ViewSettings,
)
from jacobinerf_ns.annotations.store import read_annotations, write_annotations
from jacobinerf_ns.core.propagation import PropagationConfig
from jacobinerf_ns.errors import UserError, plain_errors

IMAGE = {"image": "0003.png", "width": 24, "height": 18}


def click(label: int = 1, x: int = 0, y: int = 0, negative: bool = False) -> Click:
    return Click(label=label, pixel=(x, y), negative=negative, **IMAGE)


def two_labels() -> Annotations:
    annotations, _ = changes.add_label(Annotations(), "chair")
    annotations, _ = changes.add_label(annotations, "table")
    annotations = changes.add_seed(annotations, click(1, 2, 3))
    annotations = changes.add_seed(annotations, click(2, 4, 5))
    annotations = changes.add_edit(annotations, Edit(kind="remove", label=1))
    return changes.select(annotations, 1)


def every_kind() -> Annotations:
    annotations = two_labels()
    for seed in (
        Scribble(label=1, points=((0, 0), (5, 5)), radius=2, **IMAGE),
        Box(label=1, corner=(0, 0), opposite=(23, 17), negative=True, **IMAGE),
        Mask(label=2, file="masks/a.png", value=3, **IMAGE),
        SpaceClick(label=2, origin=(0.1, -2.5, 3e7), direction=(0.0, 0.6, -0.8)),
    ):
        annotations = changes.add_seed(annotations, seed)
    return changes.set_view(annotations, propagation=PropagationConfig(space="3d", threshold=0.25))


def test_json_keeps_everything():
    annotations = every_kind()
    assert Annotations.model_validate_json(annotations.model_dump_json()) == annotations
    assert [type(seed) for seed in annotations.seeds] == [Click, Click, Scribble, Box, Mask, SpaceClick]


def refused(content: dict) -> str:
    with pytest.raises(UserError) as caught, plain_errors("a.json"):
        Annotations.model_validate(content)
    assert "\n" not in str(caught.value)
    return str(caught.value)


CHAIR = {"id": 1, "name": "chair", "colour": [1, 2, 3]}
IN_IMAGE = {"label": 1, **IMAGE}
PIXEL = {"kind": "click", **IN_IMAGE, "pixel": [0, 0]}


def content(**parts) -> dict:
    return {"version": 1, "labels": [CHAIR], **parts}


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"labels": [CHAIR, {**CHAIR, "name": "table"}]}, "a.json: two labels have the id 1: expected every id once"),
        ({"labels": [CHAIR, {**CHAIR, "id": 2}]}, "a.json: two labels have the name chair: expected every name once"),
        ({"labels": [{**CHAIR, "id": 0}]}, "a.json: labels[0].id: expected greater than or equal to 1, found 0"),
        (
            {"labels": [{**CHAIR, "id": MAX_ID + 1}]},
            "a.json: labels[0].id: expected less than or equal to 65535, found 65536",
        ),
        (
            {"labels": [{**CHAIR, "colour": [0, 0, 256]}]},
            "a.json: labels[0].colour[2]: expected less than or equal to 255, found 256",
        ),
        ({"labels": [{"id": 1, "name": "chair"}]}, "a.json: labels[0].colour: this entry is missing"),
        ({"labels": [{**CHAIR, "shape": 1}]}, "a.json: labels[0].shape: unknown entry"),
        ({"seeds": [{**PIXEL, "label": 2}]}, "a.json: a seed, edit or selection names label 2, which is not in the"),
        ({"edits": [{"kind": "remove", "label": 7}]}, "names label 7, which is not in the list of labels"),
        ({"view": {"selected": 9}}, "names label 9, which is not in the list of labels"),
        (
            {"seeds": [{**PIXEL, "pixel": [24, 0]}]},
            "a.json: seeds[0]: pixel (24, 0) is outside of 0003.png, which is 24x18 pixels (width x height): "
            "expected x in 0..23 and y in 0..17",
        ),
        ({"seeds": [PIXEL, {**PIXEL, "pixel": [0.5, 0]}]}, "a.json: seeds[1].pixel[0]: expected a valid integer"),
        ({"seeds": [{**PIXEL, "kind": "lasso"}]}, "a.json: seeds[0]: "),
        (
            {"seeds": [{"kind": "box", **IN_IMAGE, "corner": [0, 0], "opposite": [3, 18]}]},
            "pixel (3, 18) is outside of 0003.png",
        ),
        ({"seeds": [{"kind": "scribble", **IN_IMAGE, "points": []}]}, "a.json: seeds[0].points: "),
        (
            {"seeds": [{"kind": "mask", **IN_IMAGE, "file": "../a.png", "value": 1}]},
            "mask file ../a.png is not inside the annotation file's folder",
        ),
        (
            {"seeds": [{"kind": "space", "label": 1, "origin": [0, 0, 0], "direction": [0, 0, 0]}]},
            "the direction of a click in space is zero",
        ),
        (
            {"seeds": [{"kind": "space", "label": 1, "origin": [0, 0, float("nan")], "direction": [0, 0, 1]}]},
            "a.json: seeds[0].origin[2]: expected a finite number",
        ),
        (
            {"edits": [{"kind": "remove", "label": 1, "strength": 1.5}]},
            "edits[0].strength: expected less than or equal to 1",
        ),
        ({"view": {"propagation": {"threshold": 2}}}, "view.propagation: threshold is 2.0, expected 0..1"),
        ({"view": {"propagation": {"step": 0}}}, "view.propagation: step is 0.0, expected 1e-06..1000"),
        ({"view": {"propagation": {"temperature": float("nan")}}}, "temperature is nan, expected"),
        ({"view": {"propagation": {"clusters": 0}}}, "clusters is 0, expected 1..65535"),
        ({"view": {"propagation": {"treshold": 0.5}}}, "view.propagation: unknown setting 'treshold'"),
        ({"view": {"propagation": {"space": "4d"}}}, "view.propagation.space: expected '2d' or '3d', found '4d'"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(parts: dict, message: str):
    assert message in refused(content(**parts))


def test_every_propagation_number_has_a_range():
    """A new setting of the propagation must get a range too, or damaged files reach the mathematics."""
    for name, value in vars(PropagationConfig()).items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            damaged = PropagationConfig()
            object.__setattr__(damaged, name, float("nan"))  # as a file would; the constructor's types are checked here
            with pytest.raises(UserError, match=f"{name} is nan"), plain_errors():
                ViewSettings(propagation=damaged)


def test_a_long_wrong_value_is_cut():
    assert len(refused(content(view={"opacity": "x" * 10_000}))) < 250


def test_new_labels_get_the_next_id_and_an_unused_colour():
    annotations = Annotations()
    for number in range(len(PALETTE) + 1):
        annotations, label = changes.add_label(annotations, f"label {number}")
        assert (label.id, label.colour) == (number + 1, PALETTE[number % len(PALETTE)])
    annotations = changes.remove_label(annotations, 3)
    annotations, label = changes.add_label(annotations, "new")
    assert (label.id, label.colour) == (len(PALETTE) + 2, PALETTE[2])
    annotations, label = changes.add_label(annotations, " trimmed ", colour=(0, 0, 0), id=3)
    assert annotations.label(3) == Label(id=3, name="trimmed", colour=(0, 0, 0))


def test_ids_end_in_gaps_and_then_in_an_error():
    assert changes.next_id([]) == 1
    assert changes.next_id([1, 2, MAX_ID]) == 3
    with pytest.raises(UserError, match="all 65535 label ids are in use"):
        changes.next_id(range(1, MAX_ID + 1))


def test_a_removed_label_takes_everything_of_its_own_along():
    annotations = changes.remove_label(two_labels(), 1)
    assert [label.name for label in annotations.labels] == ["table"]
    assert annotations.seeds == (click(2, 4, 5),)
    assert annotations.edits == ()
    assert annotations.view.selected is None
    kept = changes.remove_label(two_labels(), 2)
    assert kept.view.selected == 1
    assert kept.seeds == (click(1, 2, 3),)


def test_small_changes():
    annotations = two_labels()
    assert changes.rename_label(annotations, 2, "desk").label(2).name == "desk"
    assert changes.recolour_label(annotations, 2, (9, 8, 7)).label(2).colour == (9, 8, 7)
    assert changes.remove_seed(annotations, 0).seeds == (click(2, 4, 5),)
    assert changes.remove_seed(annotations, -1).seeds == (click(1, 2, 3),)
    assert changes.remove_edit(annotations, 0).edits == ()
    assert changes.select(annotations, None).view.selected is None
    assert changes.set_view(annotations, opacity=0.25).view.opacity == 0.25
    assert changes.label_named(annotations, "table").id == 2
    assert annotations == two_labels()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: changes.add_label(a, "chair"), "two labels have the name chair"),
        (lambda a: changes.add_label(a, "new", id=2), "two labels have the id 2"),
        (lambda a: changes.add_label(a, "  "), "label '  ': name: "),
        (lambda a: changes.rename_label(a, 1, "table"), "two labels have the name table"),
        (lambda a: changes.rename_label(a, 1, ""), "label 'chair': name: "),
        (lambda a: changes.recolour_label(a, 1, (0, 0, 999)), "label 'chair': colour.2.: .*found 999"),
        (lambda a: changes.rename_label(a, 5, "x"), "no label has the id 5"),
        (lambda a: changes.remove_label(a, 5), "no label has the id 5"),
        (lambda a: changes.add_seed(a, click(5)), "names label 5"),
        (lambda a: changes.select(a, 5), "names label 5"),
        (lambda a: changes.remove_seed(a, 2), "there is no seed at position 2: found 2"),
        (lambda a: changes.remove_edit(a, -2), "there is no edit at position -2: found 1"),
        (lambda a: changes.set_view(a, opacity=2.0), "view: opacity: "),
        (lambda a: changes.label_named(a, "chiar"), "no label 'chiar' among 2 labels: did you mean chair"),
        (lambda a: changes.label_named(Annotations(), "x"), "no label 'x' among 0 labels: there are no labels yet"),
    ],
)
def test_changes_refuse(change, message: str):
    with pytest.raises(UserError, match=message):
        change(two_labels())


def test_merge_joins_names_and_renumbers_ids():
    first = two_labels()
    second = Annotations(
        labels=(
            Label(id=1, name="lamp", colour=(1, 1, 1)),
            Label(id=2, name="chair", colour=(2, 2, 2)),
            Label(id=9, name="rug", colour=(3, 3, 3)),
        ),
        seeds=(click(1, 7, 7), click(2, 2, 3), click(2, 8, 8), click(9, 9, 9)),
        edits=(Edit(kind="remove", label=2), Edit(kind="extract", label=1)),
        view=ViewSettings(selected=9, opacity=0.1),
    )
    merged = changes.merge(first, second)
    assert [(label.id, label.name) for label in merged.labels] == [(1, "chair"), (2, "table"), (10, "lamp"), (9, "rug")]
    assert merged.label(1).colour == first.label(1).colour
    # (2, 3) is a seed of chair in both.
    assert merged.seeds == (*first.seeds, click(10, 7, 7), click(1, 8, 8), click(9, 9, 9))
    assert merged.edits == (Edit(kind="remove", label=1), Edit(kind="extract", label=10))
    assert merged.view == first.view
    assert changes.merge(first, first) == first
    assert changes.merge(first, Annotations()) == first
    assert changes.merge(Annotations(), second).seeds == second.seeds


def test_carry_over_keeps_what_others_changed():
    old = two_labels()
    ours = changes.recolour_label(changes.remove_seed(old, 0), 1, (0, 0, 0))
    theirs = changes.select(changes.add_seed(changes.add_label(old, "lamp")[0], click(3)), 2)
    both = changes.carry_over(theirs, old, ours)
    assert [(label.name, label.colour) for label in both.labels] == [
        ("chair", (0, 0, 0)),
        ("table", old.label(2).colour),
        ("lamp", theirs.label(3).colour),
    ]
    assert both.seeds == (click(2, 4, 5), click(3))
    assert both.view.selected == 2
    assert changes.carry_over(both, ours, old) == theirs
    assert changes.carry_over(old, old, ours) is ours


def test_carry_over_counts_equal_seeds():
    old = two_labels()
    twice = changes.add_seed(old, click(1, 2, 3))
    theirs = changes.add_seed(twice, click(2, 0, 0))
    assert changes.carry_over(theirs, twice, old).seeds.count(click(1, 2, 3)) == 1
    with pytest.raises(UserError, match="names label 1"):
        changes.carry_over(changes.add_seed(old, click(1, 6, 6)), old, changes.remove_label(old, 1))


@pytest.mark.parametrize(
    ("written", "means"),
    [
        ({"propagation": {"threshold": 0.25, "space": "3d"}}, PropagationConfig(threshold=0.25, space="3d")),
        ({"propagation": {"threshold": 0.7, "void_below": 0.5}}, PropagationConfig(void_below=0.5)),
        ({"propagation": {}}, PropagationConfig()),
        ({}, PropagationConfig()),
    ],
    ids=["chosen", "written unasked", "none", "no view settings"],
)
def test_files_of_version_1_keep_the_threshold_that_somebody_chose(tmp_path: Path, written: dict, means):
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content(view=written)))
    found = read_annotations(path)
    assert (found.version, found.view.propagation, found.labels[0].grow) == (2, means, 0)
    write_annotations(path, found)
    assert read_annotations(path) == found
    # Nothing is guessed of version 2: there 0.7 was meant.
    path.write_text(json.dumps({**content(view={"propagation": {"threshold": 0.7}}), "version": 2}))
    assert read_annotations(path).view.propagation.threshold == 0.7


def test_sizes_of_labels():
    grown = changes.set_grow(two_labels(), 2, -3)
    assert [label.grow for label in grown.labels] == [0, -3]
    assert changes.rename_label(grown, 2, "desk").label(2).grow == -3
    assert [label.grow for label in changes.merge(Annotations(), grown).labels] == [0, -3]
    assert changes.grow_all(grown, None) == grown
    assert [label.grow for label in changes.grow_all(grown, 1).labels] == [1, 1]
    with pytest.raises(UserError, match="grow: expected less than or equal to 100, found 101"):
        changes.set_grow(grown, 1, 101)
    with pytest.raises(UserError, match="no label has the id 9"):
        changes.set_grow(grown, 9, 1)
