"""What is made in the panel is kept: in the file, over reloads and crashes, in `ns-render`, and as files of results."""

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest
from browser import Browser
from panel_user import Picture, User, iou, shared_room, user_of
from PIL import Image
from trained_room import HEIGHT, WIDTH, Room
from viewer_process import ViewerProcess, clean_environment

from jacobinerf_ns.panel.texts import NEW_LABEL

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())]

CHAIR, TABLE = "chair green", "table wooden"
"""Both are seen best in one view."""
ORANGE = (250, 130, 10)
MASKS = ["mask_chair_green", "mask_table_wooden"]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return shared_room(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def user(room: Room, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    """One afternoon: the tests go on where the one before has ended."""
    folder = tmp_path_factory.mktemp("viewer")
    config = room.copy(folder / "run")
    viewer = ViewerProcess.view(config, folder)
    with Browser() as chromium, user_of(room, config, viewer, chromium) as found:
        yield found
        found.viewer.stop()


@pytest.fixture(autouse=True)
def nothing_is_raised(user: User) -> Iterator[None]:
    yield
    assert user.viewer.tracebacks() == []
    assert user.tab.errors == []


def name(user: User, text: str) -> None:
    user.tab.fill("Name", text)
    user.wait_until_saved(lambda saved: text in [label["name"] for label in saved["labels"]])


def test_labels_are_named_recoloured_and_propagated(user: User):
    chair, table = user.room.best_view(CHAIR), user.room.best_view(TABLE)
    assert chair.view == table.view
    user.look_at(chair.view)
    user.click_on(chair)
    name(user, CHAIR)
    user.tab.choose("Label", NEW_LABEL)
    user.wait_for_status("click on what it stands for")
    user.click_on(table)
    name(user, TABLE)
    user.tab.pick_colour("Colour", ORANGE, folder="Labels")
    user.wait_until_saved(lambda saved: [label["colour"] for label in saved["labels"]][1] == list(ORANGE))
    user.tab.press("Propagate")
    overlay = user.wait_until_shown("labels_overlay")
    assert iou(user.show_mask(MASKS[0]), chair.mask) >= 0.8
    assert iou(user.show_mask(MASKS[1]), table.mask) >= 0.8
    plain = user.rendered("rgb")
    changed = (overlay != plain).any(-1)
    assert changed[chair.pixel]
    assert changed[table.pixel]
    # Void is what no label is sure of: it keeps its colours.
    assert changed.mean() < 0.6
    user.tab.choose("Label", CHAIR)
    user.wait_for_status("gets the clicks now")
    user.tab.press("Propagate")
    rows = user.tab.markdown("in view").splitlines()
    assert re.fullmatch(r"\| \*\*chair green\*\* \| 1 \| 0 \| \d+ % \|", rows[2])
    assert re.fullmatch(r"\| table wooden \| 1 \| 0 \| \d+ % \|", rows[3])


def counts(user: User) -> str:
    """The table of labels without the shares of the view."""
    return re.sub(r"[\d.]+ %|–", "", user.tab.markdown("in view"))


def test_labels_marks_and_settings_outlive_the_page_and_the_server(user: User):
    user.tab.set_number("Opacity", 0.4)
    user.tab.set_number("Threshold", 0.25)
    saved = user.wait_until_saved(
        lambda saved: (saved["view"]["opacity"], saved["view"]["propagation"]["strictness"]) == (0.4, 0.25)
    )
    marks = user.marks()
    assert [shape for shape, _ in marks] == ["sphere", "sphere"]
    table = counts(user)

    def is_there() -> None:
        user.tab.wait_until(lambda: user.tab.gui("Label")["value"] == CHAIR, "the selected label")
        assert list(user.tab.gui("Label")["options"]) == [CHAIR, TABLE, NEW_LABEL]
        assert (user.tab.gui("Opacity")["value"], user.tab.gui("Threshold")["value"]) == (0.4, 0.25)
        user.look_at(user.room.best_view(CHAIR).view)
        user.tab.wait_until(lambda: user.marks() == marks, "the marks", 20)
        user.tab.wait_until(lambda: counts(user) == table, "the table", 20)
        assert user.saved() == saved

    user.tab.reload()
    user.see(HEIGHT, WIDTH)
    is_there()
    before = user.show_mask(MASKS[0])
    connections = user.tab.connections
    user.viewer.kill()
    user.viewer = ViewerProcess.view(user.run / "config.yml", user.run, port=user.viewer.port)
    user.tab.wait_for_reconnection(connections)
    user.see(HEIGHT, WIDTH)
    is_there()
    assert np.array_equal(user.show_mask(MASKS[0]), before)


def ns_render(user: User, names: list[str], folder: Path) -> list[Picture]:
    """Stock `ns-render camera-path` of the camera that the tab looks through: one picture for each output."""
    camera, size = user.viewer.ask("camera"), user.size
    pose = [*np.ravel(camera["camera_to_world"]).tolist(), 0.0, 0.0, 0.0, 1.0]
    step = {"camera_to_world": pose, "fov": float(np.degrees(camera["fov"])), "aspect": size[1] / size[0]}
    path = {"camera_type": "perspective", "render_height": size[0], "render_width": size[1], "seconds": 1, "fps": 1}
    file = folder / "path.json"
    file.write_text(json.dumps({**path, "crop": None, "camera_path": [step]}))
    command = ["ns-render", "camera-path", "--load-config", user.run / "config.yml", "--camera-path-filename", file]
    command += ["--output-path", folder / "out.mp4", "--output-format", "images", "--image-format", "png"]
    command += ["--rendered-output-names", *names]
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=folder, env=clean_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (picture,) = folder.rglob("*.png")
    return np.split(np.array(Image.open(picture).convert("RGB")), len(names), axis=1)


def test_ns_render_gives_the_masks_on_the_screen(user: User, tmp_path: Path):
    user.look_at(user.room.best_view("sofa").view)
    shown = [user.show_mask(output) for output in (*MASKS, "selection")]
    rendered = ns_render(user, [*MASKS, "selection"], tmp_path)
    for mask, picture in zip(shown, rendered, strict=True):
        assert mask.any()
        assert np.array_equal(picture, np.repeat(255 * mask[..., None], 3, -1))


def test_edits_are_shown_saved_and_taken_back(user: User):
    chair = user.room.best_view(CHAIR)
    user.look_at(chair.view)
    plain = user.rendered("rgb").astype(int)
    user.tab.pick_colour("New colour", (255, 0, 255))
    user.tab.press("Edit", "Recolour")
    user.wait_until_saved(lambda saved: [edit["kind"] for edit in saved["edits"]] == ["recolour"])
    user.wait_for_status("Recolour: **chair green**")
    assert user.tab.gui("Show")["value"] == "Edited"
    pink = user.wait_until_shown("edited").astype(int)
    user.tab.set_number("Strength", 0.2)
    user.wait_until_saved(lambda saved: saved["edits"][0]["strength"] == 0.2)
    pale = user.wait_until_shown("edited").astype(int)
    for picture, other in ((pink, pale), (pale, plain)):
        assert (other[..., 1] - picture[..., 1])[chair.mask].mean() > 5
    assert abs(pink - plain)[~chair.mask].mean() < 0.2 * abs(pink - plain)[chair.mask].mean()
    user.tab.press("Edit", "None")
    user.wait_until_saved(lambda saved: not saved["edits"])
    assert np.array_equal(user.wait_until_shown("edited"), plain)
    user.tab.press("Edit", "Remove")
    user.wait_until_saved(lambda saved: [edit["kind"] for edit in saved["edits"]] == ["remove"])
    gone = user.wait_until_shown("edited").astype(int)
    assert abs(gone - plain)[chair.mask].mean() > 20
    user.tab.press("Edit", "None")
    user.wait_until_saved(lambda saved: not saved["edits"])
    user.tab.press("Edit", "Extract")
    user.wait_until_saved(lambda saved: [edit["kind"] for edit in saved["edits"]] == ["extract"])
    alone = user.wait_until_shown("edited").astype(int)
    assert abs(alone - plain)[chair.mask].mean() < 0.3 * abs(alone - plain)[~chair.mask].mean()
    assert "extract **chair green**" in user.tab.markdown("extract")
    user.tab.press("Edit", "None")
    user.wait_until_saved(lambda saved: not saved["edits"])
    assert np.array_equal(user.wait_until_shown("edited"), plain)


def test_masks_of_all_photos_are_cancelled_and_made(user: User):
    user.tab.press("Save masks")
    user.tab.wait_for_gui("Cancel", visible=True)
    user.tab.wait_for_gui("Export part", disabled=True)
    user.tab.wait_for_markdown("starting", folder="JacobiNeRF")
    user.tab.press("Cancel")
    user.tab.wait_for_markdown("cancelled", folder="JacobiNeRF")
    user.tab.press("Save masks")
    user.tab.wait_until(
        lambda: re.search(r": [1-9]\d* %", user.tab.markdown("photos", folder="JacobiNeRF")), "progress"
    )
    user.tab.wait_for_markdown("done, in", folder="JacobiNeRF")
    assert "done, in" in user.status()
    listed = json.loads((user.run / "propagated/propagation.json").read_text())["files"]
    assert listed
    assert all((user.run / "propagated" / file).exists() for file in listed)
    user.tab.wait_for_gui("Cancel", visible=False)


def test_the_selected_label_is_exported(user: User):
    user.viewer.ask("points_of_parts", count=3000)
    user.tab.press("Export part")
    user.tab.wait_for_markdown("Part chair green: ", folder="JacobiNeRF")
    user.tab.wait_for_gui("Cancel", visible=False, timeout=240)
    assert "Part chair green: done, in" in user.tab.markdown("Part chair green", folder="JacobiNeRF")
    assert {path.suffix for path in (user.run / "parts/1").iterdir()} >= {".ply"}
