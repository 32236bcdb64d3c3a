"""`jacobinerf annotate` and what it reads of a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import tyro
from PIL import Image
from test_annotations import two_labels
from tiny import tiny_capture, tiny_config

from jacobinerf_ns.annotations import changes as changes
from jacobinerf_ns.annotations.schema import Annotations, Box, Click, Edit, Label, Mask, Scribble
from jacobinerf_ns.annotations.store import read_annotations, write_annotations
from jacobinerf_ns.cli.annotate import Annotate
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.run.opened import read_capture


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """The config.yml of a run on a capture that it reads at half size; there is no checkpoint."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny_config(tiny_capture(folder / "data"), folder / "out")
    config.pipeline.datamanager.dataparser.downscale_factor = 2  # pyright: ignore[reportAttributeAccessIssue]
    config.save_config()
    return config.get_base_dir() / "config.yml"


@pytest.fixture
def run(trained: Path) -> Path:
    (trained.parent / "annotations.json").unlink(missing_ok=True)
    return trained


def annotate(run: Path | None, *arguments: str) -> Annotations:
    start = [] if run is None else ["--load-config", str(run)]
    return tyro.cli(Annotate, args=[*start, *arguments]).main()


@pytest.fixture
def image(run: Path) -> str:
    return read_capture(run).filenames[1].name


IN_IMAGE = {"width": 24, "height": 18}


def test_the_capture_is_read_without_a_model_and_at_its_original_size(run: Path):
    capture = read_capture(run)
    assert capture.annotations == run.parent / "annotations.json"
    assert len(capture.filenames) == 4
    assert capture.sizes == [(24, 18)] * 4
    assert all(path.parent.name == "images" for path in capture.filenames)


def test_seeds_of_every_kind(run: Path, image: str, tmp_path: Path, capsys):
    values = np.zeros((18, 24), dtype=np.uint8)
    values[3:6, 4:9] = 7
    Image.fromarray(values).save(tmp_path / "ids.png")
    annotate(run, "--label", "chair", "--image", image, "--click", "23", "17", "--click", "0", "4")
    annotate(run, "--label", "table", "--colour", "1", "2", "3", "--image", image, "--box", "9", "8", "2", "3")
    points = ["1", "1", "5", "5", "9", "2"]
    annotate(run, "--label", "chair", "--negative", "--image", Path(image).stem, "--scribble", *points)
    found = annotate(run, "--label", "table", "--image", image, "--mask", str(tmp_path / "ids.png"), "--value", "7")
    assert found == read_annotations(run.parent / "annotations.json")
    assert [(label.id, label.name) for label in found.labels] == [(1, "chair"), (2, "table")]
    assert found.label(2).colour == (1, 2, 3)
    common = {"image": image, **IN_IMAGE}
    assert found.seeds == (
        Click(label=1, pixel=(23, 17), **common),
        Click(label=1, pixel=(0, 4), **common),
        Box(label=2, corner=(9, 8), opposite=(2, 3), **common),
        Scribble(label=1, points=((1, 1), (5, 5), (9, 2)), negative=True, **common),
        Mask(label=2, file="masks/ids.png", value=7, **common),
    )
    assert (run.parent / "masks" / "ids.png").read_bytes() == (tmp_path / "ids.png").read_bytes()
    capsys.readouterr()
    assert annotate(run) == found
    printed = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in printed.splitlines() if "│" in line]
    assert [row[:2] + row[3:] for row in rows] == [["1", "chair", "2", "1"], ["2", "table", "2", "0"]]
    assert "1 2 3" in rows[1][2]
    assert str(run.parent / "annotations.json") in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--click 24 0", r"pixel \(24, 0\) is outside of .*, which is 24x18 pixels .*: expected x in 0..23 and y in"),
        ("--click -1 0", r"pixel \(-1, 0\) is outside"),
        ("--box 0 0 5 18", r"pixel \(5, 18\) is outside"),
        ("--scribble 0 0 5", "--scribble has 3 numbers: expected pairs x y"),
        ("--scribble 0 0 --radius -1", "radius: expected greater than or equal to 0, found -1"),
        ("--mask nowhere.png", r"no such file: nowhere\.png: give --mask an index PNG"),
        ("--click 1 1 --box 0 0 1 1", "one change at a time: found --click and --box: give them in two commands"),
        ("--click 1 1 --delete", "one change at a time"),
    ],
)
def test_bad_seeds_change_nothing(run: Path, image: str, arguments: str, message: str):
    with pytest.raises(UserError, match=message):
        annotate(run, "--label", "chair", "--image", image, *arguments.split())
    assert not (run.parent / "annotations.json").exists()


def test_masks_are_checked_before_they_are_copied(run: Path, image: str, tmp_path: Path):
    Image.fromarray(np.ones((18, 24), dtype=np.uint8)).save(tmp_path / "good.png")
    Image.fromarray(np.ones((9, 12), dtype=np.uint8)).save(tmp_path / "small.png")
    start = ["--label", "chair", "--image", image, "--mask"]
    with pytest.raises(UserError, match=r"good\.png has no pixel of value 2: found 1"):
        annotate(run, *start, str(tmp_path / "good.png"), "--value", "2")
    with pytest.raises(UserError, match=r"small\.png is 12x9 pixels .*, expected 24x18"):
        annotate(run, *start, str(tmp_path / "small.png"))
    assert not any((run.parent / "masks").glob("[gs]*.png"))


def test_unknown_images_are_answered_with_the_closest(run: Path, image: str):
    with pytest.raises(UserError, match=rf"no image 'x{image}' among the 4 training images: did you mean .*{image}"):
        annotate(run, "--label", "chair", "--image", "x" + image, "--click", "0", "0")
    listed = json.loads((read_capture(run).filenames[0].parents[1] / "transforms.json").read_text())
    held_out = Path(listed["test_filenames"][0]).name
    with pytest.raises(UserError, match="among the 4 training images"):
        annotate(run, "--label", "chair", "--image", held_out, "--click", "0", "0")


def test_labels_need_no_run(tmp_path: Path):
    path = tmp_path / "a.json"
    file = ["--file", str(path)]
    assert annotate(None, *file) == Annotations()
    assert not path.exists()
    annotate(None, *file, "--label", "chair")
    annotate(None, *file, "--label", "table", "--colour", "9", "9", "9")
    annotate(None, *file, "--label", "table", "--colour", "8", "8", "8")
    annotate(None, *file, "--label", "table", "--rename", "desk")
    found = annotate(None, *file, "--select", "desk")
    assert [label.name for label in found.labels] == ["chair", "desk"]
    assert (found.label(2).colour, found.view.selected) == ((8, 8, 8), 2)
    found = annotate(None, *file, "--label", "desk", "--delete")
    assert ([label.id for label in found.labels], found.view.selected) == ([1], None)
    assert read_annotations(path) == found


def test_edits_settings_and_taking_back(tmp_path: Path, capsys):
    path = tmp_path / "a.json"
    write_annotations(path, two_labels())
    file = ["--file", str(path)]
    annotate(None, *file, "--label", "table", "--edit", "recolour", "--strength", "0.5", "--colour", "1", "2", "3")
    found = annotate(None, *file, "--label", "chair", "--edit", "extract")
    recolour = Edit(kind="recolour", label=2, strength=0.5, colour=(1, 2, 3))
    assert found.edits == (Edit(kind="remove", label=1), recolour, Edit(kind="extract", label=1))
    assert "edit 2: recolour table, strength 0.5" in capsys.readouterr().out
    found = annotate(None, *file, "--remove-last-edit")
    assert found.edits == (Edit(kind="remove", label=1), recolour)
    assert annotate(None, *file, "--remove-last-edit", "--label", "chair").edits == (recolour,)
    assert annotate(None, *file, "--remove-last-seed", "--label", "chair").seeds == two_labels().seeds[1:]
    assert annotate(None, *file, "--remove-last-seed").seeds == ()
    found = annotate(None, *file, "--threshold", "0.25", "--space", "3d")
    found = annotate(None, *file, "--void-below", "0.125")
    settings = found.view.propagation
    assert (settings.threshold, settings.space, settings.void_below) == (0.25, "3d", 0.125)
    assert "threshold 0.25, what hangs together, space 3d, void below 0.125" in capsys.readouterr().out
    found = annotate(None, *file, "--threshold", "own", "--strictness", "-0.25")
    assert (found.view.propagation.threshold, found.view.propagation.strictness) == ("own", -0.25)
    assert "threshold own moved by -0.25, what hangs together, space 3d" in capsys.readouterr().out


def test_sizes(tmp_path: Path, capsys):
    path = tmp_path / "a.json"
    write_annotations(path, two_labels())
    for grow, words in ((2, "table (2 larger)"), (-1, "table (1 smaller)"), (0, "table ")):
        found = annotate(None, "--file", str(path), "--label", "table", "--grow", str(grow))
        assert [label.grow for label in found.labels] == [0, grow]
        assert words in capsys.readouterr().out


def test_merge_brings_masks_along(tmp_path: Path):
    mine, theirs = tmp_path / "mine" / "a.json", tmp_path / "theirs" / "b.json"
    write_annotations(mine, two_labels())
    for folder, value in ((mine.parent, 2), (theirs.parent, 1)):
        (folder / "masks").mkdir(parents=True)
        Image.new("L", (24, 18), value).save(folder / "masks" / "m.png")
    contents = [(folder / "masks" / "m.png").read_bytes() for folder in (mine.parent, theirs.parent)]
    other, lamp = changes.add_label(two_labels(), "lamp", id=2000)
    seed = Mask(label=lamp.id, file="masks/m.png", value=1, image="0003.png", width=24, height=18)
    write_annotations(theirs, changes.add_seed(other, seed))
    found = annotate(None, "--file", str(mine), "--merge", str(theirs))
    assert found.seeds == (*two_labels().seeds, seed.model_copy(update={"file": "masks/m-2.png"}))
    assert (mine.parent / "masks" / "m-2.png").read_bytes() == contents[1]
    assert (mine.parent / "masks" / "m.png").read_bytes() == contents[0]
    assert annotate(None, "--file", str(mine), "--merge", str(theirs)) == found
    beside = mine.with_name("c.json")
    write_annotations(beside, changes.add_seed(other, seed))
    assert annotate(None, "--file", str(mine), "--merge", str(beside)).seeds[-1] == seed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--label chair --image a.png --click 0 0", "--click needs --load-config too"),
        ("--image a.png --click 0 0", "--click is about a label: add --label NAME"),
        ("--label chair --click 0 0", "--click is in an image: add --image NAME"),
        ("--label chair --image a.png", "--image belongs to a seed: add --click, --box, --scribble or --mask"),
        ("--label chair --negative", "--negative belongs to a seed"),
        ("--rename x", "--rename is about a label"),
        ("--label chiar --rename x", "no label 'chiar' among 2 labels: did you mean chair"),
        ("--label chair --rename table", "two labels have the name table"),
        ("--delete", "--delete is about a label"),
        ("--grow 0", "--grow is about a label"),
        ("--label chair --grow 1000", "label 'chair': grow: expected less than or equal to 100, found 1000"),
        ("--strictness 2", r"propagation: strictness is 2\.0, expected -1\.\.1"),
        ("--label sofa --edit remove", "no label 'sofa' among 2 labels"),
        ("--label chair --edit remove --strength 2", "edit: strength: expected less than or equal to 1, found 2"),
        ("--colour 1 2 3", "--colour belongs to --label NAME"),
        ("--label chair --delete --colour 1 2 3", "--colour belongs to --label NAME"),
        ("--label new --colour 1 2 300", r"label 'new': colour\[2\]: expected less than or equal to 255, found 300"),
        ("--select sofa", "no label 'sofa'"),
        ("--label chair --select chair", "--select is not about one label: leave --label out"),
        ("--merge nowhere.json", r"no such file: nowhere\.json: give --merge an annotation file"),
        ("--threshold 1.5", r"propagation: threshold is 1\.5, expected 0\.\.1"),
        ("--threshold nan", "propagation: threshold is nan"),
        ("--threshold 0.5 --select chair", "one change at a time: found --select and a setting of propagation"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(tmp_path: Path, arguments: str, message: str):
    path = tmp_path / "a.json"
    write_annotations(path, two_labels())
    with pytest.raises(UserError, match=message) as caught:
        annotate(None, "--file", str(path), *arguments.split())
    assert "\n" not in str(caught.value)
    assert read_annotations(path) == two_labels()


def test_nothing_to_take_back(tmp_path: Path):
    path = tmp_path / "a.json"
    write_annotations(path, Annotations(labels=(Label(id=1, name="chair", colour=(0, 0, 0)),)))
    for kind in ("seed", "edit"):
        with pytest.raises(UserError, match=f"there is no {kind} to remove of label 'chair'"):
            annotate(None, "--file", str(path), f"--remove-last-{kind}", "--label", "chair")


def test_a_damaged_file_stays_as_it_is(run: Path):
    path = run.parent / "annotations.json"
    path.write_text('{"version": 1,')
    for arguments in ([], ["--label", "chair"], ["--merge", str(path)]):
        with pytest.raises(UserError, match="is not valid JSON"):
            annotate(run, *arguments)
    assert path.read_text() == '{"version": 1,'


def test_runs_that_cannot_be_read(run: Path, tmp_path: Path):
    with pytest.raises(UserError, match="no annotations named: give --load-config"):
        annotate(None)
    with pytest.raises(UserError, match=r"nowhere\.yml cannot be read \(No such file"):
        annotate(tmp_path / "nowhere.yml")
    other = tmp_path / "config.yml"
    for text in ("a: 1", "a: [", "!!python/object:no.such.Class {}"):
        other.write_text(text)
        with pytest.raises(UserError, match=r"config\.yml is not a config\.yml that training wrote") as caught:
            annotate(other)
        assert "\n" not in str(caught.value)
    data = read_capture(run).filenames[0].parents[1]
    other.write_text(run.read_text().replace("- data\n", "- gone\n"))
    with pytest.raises(UserError, match=r"no such data folder: .*gone"):
        annotate(other)
    assert data.is_dir()


def test_the_run_can_name_another_file(run: Path, tmp_path: Path):
    """`--file` goes before the run's own, whose images it still uses."""
    image = read_capture(run).filenames[0].name
    other = tmp_path / "other.json"
    annotate(run, "--file", str(other), "--label", "chair", "--image", image, "--click", "1", "2")
    assert len(read_annotations(other).seeds) == 1
    assert not (run.parent / "annotations.json").exists()
