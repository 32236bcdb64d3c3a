"""The browser harness itself, on nerfstudio's viewer as it is: what the screen shows is what the model rendered."""

from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest
from browser import Browser, Tab
from tiny import start, tiny_capture, tiny_config
from viewer_process import ViewerProcess

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())]

HEIGHT, WIDTH = 48, 64


@pytest.fixture(scope="module")
def viewer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ViewerProcess]:
    folder = tmp_path_factory.mktemp("viewer")
    trainer = start(tiny_config(tiny_capture(folder / "room"), folder / "out"))
    trainer.train()
    with ViewerProcess.view(trainer.base_dir / "config.yml", folder) as process:
        yield process


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with Browser() as found:
        yield found


@pytest.fixture
def tab(viewer: ViewerProcess, chromium: Browser) -> Iterator[Tab]:
    found = chromium.open(viewer.url)
    found.fit_canvas(HEIGHT, WIDTH)
    viewer.ask("max_res", value=WIDTH)
    found.choose("Output type", "rgb")
    yield found
    found.close()


@pytest.fixture
def armed(viewer: ViewerProcess, tab: Tab) -> Iterator[None]:
    """Python waits for a click in the scene, and does so no longer afterwards, whatever has become of the test."""
    viewer.ask("arm")
    try:
        tab.wait_until(lambda: tab.pointer == "click", "the pointer")
        yield
    finally:
        viewer.ask("disarm")
    tab.wait_until(lambda: tab.pointer is None, "the pointer to be the camera's again")


def look_at_photo(viewer: ViewerProcess, index: int) -> None:
    """Puts the camera of the newest tab where a photograph was taken."""
    camera = viewer.ask("training_camera", index=index)
    viewer.ask("look", camera_to_world=camera["camera_to_world"], fov=camera["fov"])


def wait_until_shown(viewer: ViewerProcess, tab: Tab, folder: Path) -> None:
    """Waits until the screen shows what the model renders for the tab's camera, pixel for pixel.

    That a large frame comes says nothing: the first one may still be of the camera's old place, before small ones.
    """
    path = folder / "outputs.npz"

    def shown() -> bool:
        viewer.ask("render", path=str(path))
        with np.load(path) as outputs:
            return np.array_equal(tab.frame(), (outputs["rgb"] * 255).astype(np.uint8))

    tab.wait_for_frame()
    tab.wait_until(shown, "the picture of this camera")


def test_the_frame_in_the_browser_is_what_the_model_renders(viewer: ViewerProcess, tab: Tab, tmp_path: Path):
    look_at_photo(viewer, 1)
    camera, found = viewer.ask("training_camera", index=1), viewer.ask("camera")
    assert np.allclose(found["camera_to_world"], camera["camera_to_world"], atol=1e-6)
    assert found["fov"] == pytest.approx(camera["fov"], abs=1e-6)
    wait_until_shown(viewer, tab, tmp_path)
    assert tab.heard.frame_size() == (HEIGHT, WIDTH)
    assert not viewer.tracebacks()


def test_controls_reach_the_server_and_both_tabs(viewer: ViewerProcess, chromium: Browser, tab: Tab):
    other = chromium.open(viewer.url)
    before = tab.frames_seen
    tab.set_number("Train Util", 0.35)
    tab.choose("Output type", "depth")
    other.wait_for_gui("Train Util", value=0.35)
    other.wait_for_gui("Output type", value="depth")
    shown = tab.wait_for_frame(after=before, min_size=(HEIGHT, WIDTH))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 1
    other.check("Enable", True, folder="Split Screen")
    tab.wait_for_gui("Split percentage", visible=True)
    tab.wait_for_gui("Enable", folder="Split Screen", value=True)
    tab.check("Enable", False, folder="Split Screen")
    tab.press("Hide Train Cams")
    other.wait_for_gui("Show Train Cams", visible=True)
    assert "Resolution" in tab.markdown("Step")
    assert len(viewer.ask("clients")) == 2
    other.close()
    assert not viewer.tracebacks()


def test_a_place_on_the_page_is_the_pixel_of_the_frame(viewer: ViewerProcess, tab: Tab, armed: None):
    """The ray that the page sends for a click, against the ray that the pixel was rendered from.

    Of a small frame the same pixel is none: to click there would only be a long wait.
    """
    look_at_photo(viewer, 0)
    row, col = 11, 50
    with pytest.raises(AssertionError, match="beside the scene"):
        tab.click_pixel(row, col, (30, 39))
    tab.click_pixel(row, col, (HEIGHT, WIDTH))
    click = tab.wait_until(lambda: viewer.ask("clicked"), "the click")
    camera = viewer.ask("camera")
    focal = HEIGHT / 2 / np.tan(camera["fov"] / 2)
    inside = np.array([(col + 0.5 - WIDTH / 2) / focal, -(row + 0.5 - HEIGHT / 2) / focal, -1.0])
    expected = np.array(camera["camera_to_world"])[:, :3] @ inside
    assert np.allclose(click["direction"], expected / np.linalg.norm(expected), atol=2e-3)
    assert not viewer.tracebacks()


def test_the_camera_is_dragged(viewer: ViewerProcess, tab: Tab, tmp_path: Path):
    look_at_photo(viewer, 0)
    before = viewer.ask("camera")["camera_to_world"]
    tab.drag_scene(0.4, 0.5, 0.6, 0.5)
    tab.wait_until(lambda: viewer.ask("camera")["camera_to_world"] != before, "the camera to move")
    wait_until_shown(viewer, tab, tmp_path)
