"""The panel while the field is really being trained: two people click about, nothing breaks, and training goes on."""

from collections.abc import Iterator

import browser
import numpy as np
import pytest
from browser import Browser
from panel_user import User
from restless import Reader, Restless, user_of_a_training
from trained_room import HEIGHT, WIDTH

from jacobinerf_ns.annotations.store import read_annotations

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())]

INTERACTIONS = 36


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture(scope="module")
def user(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    with user_of_a_training(tmp_path_factory.mktemp("training"), chromium) as found:
        yield found


def test_many_interactions_while_training(user: User, chromium: Browser, monkeypatch: pytest.MonkeyPatch):
    other = chromium.open(user.viewer.url)  # a page takes longer than what people in it are given for one thing
    monkeypatch.setattr(browser, "TIMEOUT", 4.0)
    people = [Restless(user.tab, seed=0), Restless(other, seed=1)]
    for tab in (user.tab, other):
        tab.page.get_by_text("Edit", exact=True).first.click()
        tab.page.set_default_timeout(4000)
    reader, begun = Reader(user.file), user.viewer.ask("step")
    reader.start()
    steps = [begun]
    for turn in range(INTERACTIONS):
        people[turn % 2].act()
        if turn % 30 == 29:
            steps.append(user.viewer.ask("step"))
    reader.enough.set()
    reader.join()
    missed = [what for person in people for what in person.too_late]
    assert len(missed) <= INTERACTIONS // 10, missed
    assert reader.problems == []
    assert len(reader.versions) >= 12
    assert steps == sorted(set(steps)), "training stood still"
    assert read_annotations(user.file).labels is not None
    assert user.viewer.tracebacks() == []
    assert user.tab.errors == other.errors == []
    assert user.viewer.ask("drawing")
    other.close()


def test_resonance_follows_the_weights(user: User):
    """The camera rests, and the view changes, since training goes on; the click is kept."""
    user.begin_anew()
    user.click_at(HEIGHT // 2, WIDTH // 2)
    user.tab.choose("Show", "Resonance")
    frame, step = user.tab.wait_for_frame(min_size=user.size), user.viewer.ask("step")
    camera = user.viewer.ask("camera")["camera_to_world"]

    def moved_on() -> bool:
        found = user.tab.frame()
        return user.viewer.ask("step") > step + 20 and found.shape == frame.shape and not np.array_equal(found, frame)

    user.tab.wait_until(moved_on, "a frame of new weights")
    assert user.viewer.ask("camera")["camera_to_world"] == camera
    assert len(user.saved()["seeds"]) == 1
    assert user.viewer.tracebacks() == []
