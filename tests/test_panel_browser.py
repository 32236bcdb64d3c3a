"""The panel in a real browser, on a real `ns-viewer` of the trained room: clicks, sliders, and what may go wrong."""

from collections.abc import Iterator

import browser
import numpy as np
import pytest
from browser import Browser, Tab
from panel_user import User, iou, shared_room, user_of
from trained_room import CLICKED, TEST_VIEWS, VIEWS, Room
from viewer_process import ViewerProcess

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())]

CHAIR = "chair green"


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Room:
    return shared_room(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def someone(room: Room, chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    folder = tmp_path_factory.mktemp("viewer")
    config = room.copy_that_knows_words(folder / "run")
    with ViewerProcess.view(config, folder) as viewer, user_of(room, config, viewer, chromium) as found:
        yield found


@pytest.fixture
def someone_else(someone: User, chromium: Browser) -> Iterator[User]:
    """In a second tab, which the test closes."""
    config = someone.run / "config.yml"
    with user_of(someone.room, config, someone.viewer, chromium) as found:
        yield found


@pytest.fixture
def new_tab(someone: User, chromium: Browser) -> Iterator[Tab]:
    """Just opened."""
    found = chromium.open(someone.viewer.url)
    yield found
    found.close()


@pytest.fixture
def user(someone: User) -> Iterator[User]:
    """Without annotations, where the chair is seen best; nothing else may be raised in the viewer meanwhile."""
    before = len(someone.viewer.tracebacks())
    someone.begin_anew()
    someone.look_at(someone.room.best_view(CHAIR).view)
    yield someone
    assert [told for told in someone.viewer.tracebacks()[before:] if "asked to fail" not in told] == []
    assert someone.tab.errors == []


def test_a_click_tints_and_outlines_the_thing_and_is_saved_within_a_second(user: User):
    chair = user.room.best_view(CHAIR)
    answer = user.click_on(chair)
    user.tab.wait_until(user.file.exists, "annotations.json", timeout=1.0)
    assert "**object 1** answers in" in answer
    assert user.tab.gui("Output type")["value"] == "selection_overlay"
    assert user.tab.gui("Show")["value"] == "Selection"
    assert user.tab.pointer is None
    saved = user.saved()
    assert [(seed["kind"], seed["label"], seed["negative"]) for seed in saved["seeds"]] == [("space", 1, False)]
    user.wait_for_marks("sphere")
    assert user.marks() == [("sphere", tuple(saved["labels"][0]["colour"]))]
    shown, plain = user.wait_until_shown("selection_overlay"), user.rendered("rgb").astype(int)
    selected, line = user.numbers("selection")[..., 0], (shown == 255).all(-1)
    assert iou(selected, chair.mask) >= 0.8
    # A line around the thing, its colours pulled to the label's, and the rest of the picture a little darker.
    assert (line & ~selected).sum() > 0.5 * np.sqrt(selected.sum())
    rest = ~selected & ~line
    np.testing.assert_allclose(shown[rest], 0.7 * plain[rest], atol=2)
    assert 10 < abs(shown.astype(int) - plain)[selected].mean() < 80
    user.tab.choose("Show", "Resonance")
    user.tab.wait_until(lambda: user.is_heat_map_of(chair), "the heat map")
    assert "| **object 1** | 1 | 0 |" in user.tab.markdown("in view")


@pytest.mark.parametrize("name", CLICKED)
def test_one_click_selects_the_object_that_is_there(user: User, name: str):
    thing = user.room.best_view(name)
    user.look_at(thing.view)
    user.click_on(thing)
    found = user.show_mask()
    assert iou(found, thing.mask) >= (0.8 if name == CHAIR else 0.75)


def test_words_select_the_thing_that_they_name(user: User):
    chair = user.room.best_view(CHAIR)
    user.tab.fill("Words", "absent 3")
    user.tab.press("Find")
    user.wait_for_status("nothing like **absent 3** here")
    user.tab.fill("Words", CHAIR)
    user.tab.press("Find")
    assert "Only a part of it? Press **Larger**" in user.wait_for_status(f"found **{CHAIR}** at ")
    saved = user.wait_until_saved(lambda saved: saved["seeds"])
    assert [(label["name"], seed["kind"]) for label, seed in zip(saved["labels"], saved["seeds"], strict=True)] == [
        (CHAIR, "text")
    ]
    assert user.tab.gui("Output type")["value"] == "selection_overlay"
    assert iou(user.show_mask(), chair.mask) >= 0.7
    relevancy = user.numbers("relevancy")[..., 0]
    assert relevancy[chair.mask].mean() > relevancy[~chair.mask].mean() + 0.4
    user.tab.choose("Show", "Relevancy")
    user.tab.wait_until(lambda: user.is_heat_map_of(chair), "the heat map")
    user.click_on(user.room.best_view("table wooden"), button="Not this")
    assert [seed["negative"] for seed in user.saved()["seeds"]] == [False, True]
    user.tab.press("Propagate")
    user.wait_until_shown("labels_overlay")


def test_sliders_change_the_view_without_asking_the_field_again(user: User):
    user.click_on(user.room.best_view(CHAIR))
    wide = user.show_mask()
    asked = user.viewer.ask("queried")
    user.tab.set_number("Threshold", 0.5)
    user.wait_until_saved(lambda saved: saved["view"]["propagation"]["strictness"] == 0.5)
    narrow = user.wait_until_shown("selection")[..., 0] > 127
    assert 0 < narrow.sum() < wide.sum()
    assert not (narrow & ~wide).any()
    user.tab.choose("Show", "Selection")
    strong = user.wait_until_shown("selection_overlay")
    user.tab.set_number("Opacity", 0.1)
    user.wait_until_saved(lambda saved: saved["view"]["opacity"] == 0.1)
    faint = user.wait_until_shown("selection_overlay")
    assert np.array_equal((faint != strong).any(-1) & ~narrow, np.zeros_like(narrow))
    assert (faint != strong).any(-1)[narrow].mean() > 0.9
    user.tab.choose("Output type", "selection")
    user.tab.choose("Responses", "3D")
    user.wait_until_saved(lambda saved: saved["view"]["propagation"]["space"] == "3d")
    assert not np.array_equal(user.wait_until_shown("selection")[..., 0] > 127, narrow)
    assert user.viewer.ask("queried") == asked


def test_seeds_are_added_subtracted_undone_and_cleared(user: User):
    chair, table = user.room.best_view(CHAIR), user.room.best_view("table wooden")
    user.tab.press("Not this")
    assert "press **Click**" in user.wait_for_status("takes away from a label")
    user.click_on(chair)
    one = user.show_mask()
    user.click_on(table)
    both = user.show_mask()
    assert iou(both, chair.mask | table.mask) > iou(one, chair.mask | table.mask)
    user.tab.press("Seeds", "Undo")
    user.wait_until_saved(lambda saved: len(saved["seeds"]) == 1)
    assert np.array_equal(user.show_mask(), one)
    user.click_on(table, button="Not this")
    user.wait_for_marks("cube", "sphere")
    assert not (user.show_mask() & table.mask)[table.pixel]
    for button, count, said in (("Undo", 1, "Undone"), ("Redo", 2, "Done again"), ("Clear", 0, "are gone")):
        user.tab.press("Seeds", button)
        user.wait_until_saved(lambda saved, count=count: len(saved["seeds"]) == count)
        user.wait_for_status(said)
    user.wait_for_marks()
    assert not user.show_mask().any()
    user.tab.press("Seeds", "Clear")
    user.wait_for_status("has no seeds to clear")
    user.tab.press("Seeds", "Undo")
    user.wait_for_marks("cube", "sphere")


def test_smaller_and_larger_are_on_the_screen_and_in_the_file(user: User):
    user.viewer.ask("levels", thresholds=[0.95, 0.7, 0.1])
    try:
        user.click_on(user.room.best_view(CHAIR))
        middle = user.show_mask()
        sizes = {}
        for said in ("larger: 3 of 3", "smaller: 2 of 3", "smaller: 1 of 3"):
            user.tab.press(said.split(":")[0].title())
            user.wait_for_status(said)
            sizes[said[-6]] = user.show_mask()
        assert np.array_equal(sizes["2"], middle)
        assert sizes["1"].sum() < middle.sum() < sizes["3"].sum()
        assert user.saved()["labels"][0]["grow"] == -1
        user.tab.wait_for_gui("Smaller", disabled=True)
        user.tab.wait_for_gui("Larger", disabled=False)
        user.tab.press("Seeds", "Undo")
        user.wait_until_saved(lambda saved: saved["labels"][0]["grow"] == 0)
        assert np.array_equal(user.wait_until_shown("selection")[..., 0] > 127, middle)
    finally:
        user.viewer.ask("levels", thresholds=None)


def test_a_page_begins_where_a_photo_was_taken_and_keeps_its_camera_then(someone: User, new_tab: Tab):
    photos = [someone.viewer.ask("training_camera", index=view) for view in range(VIEWS - TEST_VIEWS)]

    def camera() -> dict:
        return someone.viewer.ask("camera")

    def at_a_photo() -> list[dict]:
        found = camera()
        pose = np.array(found["camera_to_world"])
        return [photo for photo in photos if is_there(photo, found["fov"], pose)]

    def is_there(photo: dict, fov: float, pose: np.ndarray) -> bool:
        # A page's horizon is level, the photo's almost.
        return np.abs(pose - np.array(photo["camera_to_world"])).max() < 0.02 and abs(fov - photo["fov"]) < 1e-3

    new_tab.wait_until(at_a_photo, "a photo", 20)
    new_tab.drag_scene(0.4, 0.5, 0.6, 0.5)
    new_tab.wait_until(lambda: not at_a_photo(), "the camera to move", 20)
    new_tab.wait_for_frame(after=new_tab.frames_seen)
    assert not at_a_photo()


def test_a_box_selects_what_is_in_it(user: User):
    chair = user.room.best_view(CHAIR)
    row, col = ((place + 0.5) / size for place, size in zip(chair.pixel, user.size, strict=True))
    user.arm("Box")
    user.tab.drag_scene(col - 0.05, row - 0.08, col + 0.05, row + 0.04)
    assert "answers in" in user.answer()
    assert [seed["kind"] for seed in user.saved()["seeds"]] == ["space_box"]
    user.wait_for_marks("sphere")
    assert iou(user.show_mask(), chair.mask) >= 0.8


def test_the_pointer_is_kept_until_stop_and_then_moves_the_camera(user: User):
    chair, table = user.room.best_view(CHAIR), user.room.best_view("table wooden")
    user.tab.check("Keep clicking", True)
    user.arm()
    for count, thing in enumerate((chair, table), start=1):
        user.click_pixel(*thing.pixel)
        user.wait_until_saved(lambda saved, count=count: len(saved["seeds"]) == count)
    before = user.viewer.ask("camera")["camera_to_world"]
    user.wait_for_marks("sphere", "sphere")
    assert user.tab.pointer == "click"
    user.tab.press("Stop")
    user.wait_for_status("the camera moves again")
    user.tab.check("Keep clicking", False)
    assert user.tab.pointer is None
    assert np.allclose(user.viewer.ask("camera")["camera_to_world"], before, atol=1e-6)
    user.tab.drag_scene(0.4, 0.5, 0.6, 0.5)
    user.tab.wait_until(lambda: user.viewer.ask("camera")["camera_to_world"] != before, "the camera to move")
    assert len(user.saved()["seeds"]) == 2


def test_pictures_of_the_training_cameras_do_not_take_clicks(user: User):
    assert user.viewer.ask("train_cameras_shown")
    before = user.viewer.ask("camera")["camera_to_world"]
    user.arm()
    assert not user.viewer.ask("train_cameras_shown")
    user.click_pixel(*user.room.best_view(CHAIR).pixel)
    assert "answers in" in user.answer()
    user.tab.wait_until(lambda: user.viewer.ask("train_cameras_shown"), "them to be shown again")
    user.tab.press("Hide Train Cams")
    user.click_on(user.room.best_view("table wooden"))
    assert not user.viewer.ask("train_cameras_shown")
    user.tab.press("Show Train Cams")
    user.tab.wait_until(lambda: user.viewer.ask("train_cameras_shown"), "them to be shown again")
    assert np.allclose(user.viewer.ask("camera")["camera_to_world"], before, atol=1e-6)


def test_a_click_on_nothing_says_so_and_leaves_nothing(user: User):
    chair = user.room.best_view(CHAIR)
    far = user.viewer.ask("far_plane", distance=0.06)
    try:
        assert "no surface there" in user.click_on(chair)
        assert user.wait_until_saved(lambda saved: not saved["seeds"])["labels"]
        user.wait_for_marks()
    finally:
        user.viewer.ask("far_plane", distance=far)
    assert "answers in" in user.click_on(chair)
    assert iou(user.show_mask(), chair.mask) >= 0.8


def test_an_exception_in_rendering_costs_a_frame(user: User):
    before = len(user.viewer.tracebacks())
    chair = user.room.best_view(CHAIR)
    user.click_on(chair)
    user.viewer.ask("fail_once")
    camera = user.viewer.ask("training_camera", index=user.room.best_view("sofa").view)
    user.viewer.ask("look", camera_to_world=camera["camera_to_world"], fov=camera["fov"])
    user.wait_for_status("asked to fail")
    assert [told.splitlines()[-1] for told in user.viewer.tracebacks()[before:]] == ["RuntimeError: asked to fail"]
    assert user.viewer.ask("drawing")
    user.look_at(chair.view)
    assert "answers in" in user.click_on(chair)
    assert iou(user.show_mask(), chair.mask) >= 0.8


def test_two_tabs_show_the_same_and_one_may_leave_at_any_moment(user: User, someone_else: User):
    chair = user.room.best_view(CHAIR)
    someone_else.look_at(chair.view)
    user.click_on(chair)
    someone_else.tab.wait_for_markdown("answers in")
    assert someone_else.tab.gui("Output type")["value"] == "selection_overlay"
    someone_else.wait_for_marks("sphere")
    someone_else.tab.set_number("Threshold", 0.5)
    user.tab.wait_for_gui("Threshold", value=0.5)
    user.show_mask()
    someone_else.wait_until_shown("selection")
    someone_else.arm()
    user.tab.wait_until(lambda: user.tab.pointer == "click", "the pointer")
    user.click_pixel(*user.room.best_view("table wooden").pixel)
    someone_else.tab.wait_until(lambda: someone_else.tab.pointer is None, "the pointer")
    someone_else.wait_for_marks("sphere", "sphere")
    drawn = someone_else.tab.frames_seen
    user.viewer.ask("max_res", value=512)
    # Two small frames, and then the large one that is not finished before the tab is closed.
    someone_else.tab.wait_until(lambda: someone_else.tab.frames_seen >= drawn + 2, "small frames", 20)
    someone_else.tab.close()
    user.viewer.ask("max_res", value=user.size[1])
    user.tab.wait_until(lambda: len(user.viewer.ask("clients")) == 1, "the tab to be gone")
    user.look_at(user.room.best_view("sofa").view)
    user.click_on(user.room.best_view("sofa"))
    user.show_mask()


def test_nerfstudios_own_list_may_show_the_mask_of_a_label_that_is_deleted(user: User):
    chair = user.room.best_view(CHAIR)
    user.click_on(chair)
    user.tab.fill("Name", CHAIR)
    user.wait_until_saved(lambda saved: saved["labels"][0]["name"] == CHAIR)
    user.tab.wait_until(lambda: "mask_chair_green" in user.tab.gui("Output type")["options"], "the mask's name")
    assert iou(user.show_mask("mask_chair_green"), chair.mask) >= 0.8
    assert user.tab.gui("Show")["value"] == "Other output"
    user.tab.press("Delete label")
    user.wait_until_saved(lambda saved: not saved["labels"])
    user.tab.wait_until(lambda: "mask_chair_green" not in user.tab.gui("Output type")["options"], "the mask to go")
    shown = user.tab.gui("Output type")["value"]
    assert shown in user.tab.gui("Output type")["options"]
    user.tab.choose("Output type", "rgb")
    user.wait_until_shown("rgb")
    user.tab.press("Seeds", "Undo")
    user.wait_until_saved(lambda saved: saved["labels"])
    assert iou(user.show_mask("mask_chair_green"), chair.mask) >= 0.8
