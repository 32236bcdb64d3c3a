"""Pictures of the panel for the docs: `JACOBINERF_SCREENSHOTS=docs/images pytest tests/test_panel_pictures.py`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import browser
import pytest
import torch
from browser import Browser
from panel_user import User, shared_room, user_of
from trained_room import Room
from viewer_process import ViewerProcess

from jacobinerf_ns.evaluation.one_click import centre_pixel
from jacobinerf_ns.panel.texts import NEW_LABEL

FOLDER = os.environ.get("JACOBINERF_SCREENSHOTS")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(browser.missing()), reason=browser.missing()),
    pytest.mark.skipif(FOLDER is None, reason="JACOBINERF_SCREENSHOTS is not set: no pictures are wanted"),
]
THINGS = {"chair green": (40, 170, 90), "sofa": (90, 140, 240), "table wooden": (240, 150, 50)}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    folder = tmp_path_factory.mktemp("viewer")
    room = shared_room(tmp_path_factory.getbasetemp())
    with looking_at(room, room.copy(folder / "run"), folder) as found:
        yield found


@pytest.fixture(scope="module")
def user_of_words(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    folder = tmp_path_factory.mktemp("viewer_words")
    room = shared_room(tmp_path_factory.getbasetemp())
    with looking_at(room, room.copy_that_knows_words(folder / "run"), folder) as found:
        yield found


@contextmanager
def looking_at(room: Room, config: Path, folder: Path) -> Iterator[User]:
    """A person who looks at a run, without the pictures of its cameras."""
    with (
        ViewerProcess.view(config, folder) as viewer,
        Browser() as chromium,
        user_of(room, config, viewer, chromium) as found,
    ):
        found.tab.press("Hide Train Cams")
        found.see(240, 320)
        yield found


def take(user: User, name: str) -> None:
    """The page as a picture of the docs."""
    assert FOLDER is not None
    user.tab.page.mouse.move(1, 1)
    user.tab.page.wait_for_timeout(800)
    user.tab.screenshot(Path(FOLDER) / name)


def test_a_picture_of_words_for_the_docs(user_of_words: User):
    user = user_of_words
    user.look_at(user.room.best_view("chair green").view)
    user.tab.fill("Words", "chair green")
    user.tab.press("Find")
    user.wait_for_status("found **chair green** at ")
    user.wait_until_shown("selection_overlay")
    take(user, "viewer_words.png")
    assert user.viewer.tracebacks() == []


def test_pictures_for_the_docs(user: User):
    view = user.room.best_view("chair green").view
    user.look_at(view)
    for number, (thing, colour) in enumerate(THINGS.items()):
        where = user.room.truth(view) == user.room.best_view(thing).instance
        if number:
            user.tab.choose("Label", NEW_LABEL)
            user.wait_for_status("click on what it stands for")
        assert "answers in" in user.click_at(*centre_pixel(torch.from_numpy(where)))
        if number == 0:
            take(user, "viewer_panel.png")
        user.tab.fill("Name", thing)
        user.wait_until_saved(lambda saved, thing=thing: thing in [label["name"] for label in saved["labels"]])
        user.tab.pick_colour("Colour", colour, folder="Labels")
    user.tab.press("Propagate")
    user.wait_until_shown("labels_overlay")
    take(user, "viewer_labels.png")
    user.tab.choose("Label", "chair green")
    user.tab.pick_colour("New colour", (200, 60, 220))
    user.tab.press("Edit", "Recolour")
    user.wait_for_status("Recolour")
    user.wait_until_shown("edited")
    take(user, "viewer_edit.png")
    assert user.viewer.tracebacks() == []
