"""A real browser on a real viewer: headless Chromium, steered by playwright, and what the server sends to it.

What is on the screen is read from the websocket: the picture behind the scene comes as a PNG, so its pixels are exactly
those that were rendered, and the elements of the panel come as messages. The page itself is only clicked and typed in.
Nothing sleeps: whatever is waited for is a state, and playwright's loop runs meanwhile.
"""

import importlib.util
import math
import shutil
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from conversation import Conversation

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = [
    "--no-sandbox",
    "--disable-background-networking",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]
TIMEOUT = 90.0
"""Seconds that anything may take; a frame of a few thousand rays takes one or two on an idle core."""


def find_chromium() -> Path | None:
    """The Chromium of the system, if there is one."""
    found = next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    return None if found is None else Path(found)


def missing() -> str:
    """Why there can be no test in a browser; empty where there can."""
    if importlib.util.find_spec("playwright") is None:
        return "no playwright: pip install playwright"
    return "" if find_chromium() else "no Chromium: apt-get install chromium"


class Browser:
    """Chromium. `with Browser() as browser: tab = browser.open(viewer.url)`; each tab is a client of its own."""

    def __init__(self) -> None:
        from playwright.sync_api import sync_playwright

        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(
            executable_path=str(find_chromium()), headless=True, args=ARGUMENTS
        )

    def open(self, url: str, width: int = 960, height: int = 532) -> "Tab":
        """A new tab at the viewer's page, when its panel is there. Nothing but the viewer is reached from it."""
        context = self._browser.new_context(viewport={"width": width, "height": height})
        context.route(lambda found: not found.startswith(url), lambda route: route.abort())
        tab = Tab(context.new_page())
        tab.goto(url)
        return tab

    def close(self) -> None:
        """Ends the process."""
        self._browser.close()
        self._playwright.stop()

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Tab:
    """One page: its mouse and keys, and all that went over its websocket since it was loaded."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.heard = Conversation()
        self.errors: list[str] = []
        """Exceptions in the page."""
        page.set_default_timeout(TIMEOUT * 1000)
        page.on("websocket", self.heard.listen)
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    @property
    def frames_seen(self) -> int:
        """Pictures that came, ever."""
        return self.heard.frames_seen

    @property
    def connections(self) -> int:
        """Times that the page has reached a server."""
        return self.heard.connections

    @property
    def sent(self) -> Counter[str]:
        """Messages that the page sent, ever, by type."""
        return self.heard.sent

    @property
    def pointer(self) -> str | None:
        """What a click or drag in the scene means: `click`, `rect-select`, or None: the camera moves."""
        return self.heard.pointer

    def goto(self, url: str) -> None:
        """Opens the viewer's page and waits for panel and camera."""
        self.page.goto(url, wait_until="domcontentloaded")
        self._wait_for_panel()

    def reload(self) -> None:
        """As the browser's button: a new client for the server."""
        self.heard.forget()
        self.page.reload(wait_until="domcontentloaded")
        self._wait_for_panel()

    def wait_for_reconnection(self, after: int) -> None:
        """Waits until the page has found a viewer again that was stopped and started anew at the same port.

        `after` is what `connections` was before: the page tries again every second or so, without being reloaded.
        """
        self.wait_until(lambda: self.connections > after, "the page to find a viewer again")
        self._wait_for_panel()

    def close(self) -> None:
        """Closes the tab, as a user does."""
        self.page.context.close()

    def wait_until(self, condition: Callable[[], Any], what: str, timeout: float = TIMEOUT) -> Any:
        """Waits until a condition of this tab's state holds, and returns its value."""
        end = time.monotonic() + timeout
        while not (found := condition()):
            assert time.monotonic() < end, f"waited {timeout:g} s for {what}"
            self.page.wait_for_timeout(30)  # Runs playwright's loop, which hands over what the websocket got.
        return found

    # The panel

    def elements(self, label: str | None = None, folder: str | None = None) -> list[dict[str, Any]]:
        """Elements of the panel as viser's messages describe them (`type`, `value`, `visible`, `disabled`, …).

        They are in the order of the panel within a container, in the order of their making otherwise.
        """
        self.page.wait_for_timeout(1)
        found = list(self.heard.elements.values())
        if label is not None:
            found = [element for element in found if element.get("label") == label]
        if folder is not None:
            found = [element for element in found if self.heard.folder(element) == folder]
        return sorted(found, key=lambda element: element["order"])

    def gui(self, label: str, folder: str | None = None) -> dict[str, Any]:
        """The one element of a label; `folder` tells equal labels apart. The last one if both are shown twice."""
        found = [element for element in self.elements(label, folder) if element["type"] != "GuiAddFolderMessage"]
        shown = [element for element in found if element.get("visible", True)] or found
        assert shown, f"no element {label!r}; there are {sorted({e.get('label') or '' for e in self.elements()})}"
        return shown[-1]

    def markdown(self, containing: str = "", folder: str | None = None) -> str:
        """Text of the visible markdown elements that contain something, joined by empty lines; '' if there is none."""
        texts = [e["markdown"] for e in self.elements(folder=folder) if "markdown" in e and e["visible"]]
        return "\n\n".join(text for text in texts if containing in text)

    def wait_for_markdown(self, containing: str, folder: str | None = None, timeout: float = TIMEOUT) -> str:
        """Waits for a text in the panel, and returns the whole element."""
        try:
            return self.wait_until(lambda: self.markdown(containing, folder), f"the text {containing!r}", timeout)
        except AssertionError as error:
            raise AssertionError(f"{error}; the panel says {self.markdown(folder=folder)!r}") from None

    def wait_for_gui(self, label: str, folder: str | None = None, timeout: float = TIMEOUT, **properties: Any) -> None:
        """Waits until an element has these properties: `wait_for_gui("Undo", disabled=False)`."""
        self.wait_until(
            lambda: properties.items() <= {**self.gui(label, folder)}.items(), f"{label!r} {properties}", timeout
        )

    def press(self, label: str, option: str | None = None, folder: str | None = None) -> None:
        """Presses a button, or an option of a button group. A disabled one is waited for."""
        element = self._reach(label, folder)
        place = self._by_id(element) if option is None else self._inputs(element, "button").filter(has_text=option)
        self._press(element, place)

    def set_number(self, label: str, value: float, folder: str | None = None) -> None:
        """Types a number into the field of a slider or of a number."""
        element = self._reach(label, folder)
        if element["value"] != value:
            self._set(element, lambda: self._type(self._inputs(element).last, f"{value:g}"))

    def choose(self, label: str, option: str, folder: str | None = None) -> None:
        """Chooses an option of a dropdown."""
        element = self._reach(label, folder)
        if element["value"] == option:
            return

        def choose() -> None:
            self._by_id(element).click()
            self.page.get_by_role("option", name=option, exact=True).click()

        self._set(element, choose)

    def fill(self, label: str, text: str, folder: str | None = None) -> None:
        """Puts a text into a text field, at once; a person's keys would each send what is there so far."""
        element = self._reach(label, folder)
        if element["value"] != text:
            self._set(element, lambda: self._type(self._inputs(element).first, text))

    def check(self, label: str, on: bool, folder: str | None = None) -> None:
        """Sets a checkbox."""
        element = self._reach(label, folder)
        if element["value"] != on:
            self._set(element, lambda: self._by_id(element).set_checked(on))

    def pick_colour(self, label: str, colour: tuple[int, int, int], folder: str | None = None) -> None:
        """Types a colour (0..255) into a colour field."""
        element = self._reach(label, folder)
        if tuple(element["value"]) != colour:
            text = "#" + "".join(f"{part:02x}" for part in colour)
            self._set(element, lambda: self._type(self._inputs(element).first, text))
            # Left by a press elsewhere, the field would send once more, and the page's sender would drop the press.
            self._inputs(element).first.blur()
            self.page.wait_for_timeout(200)

    def toggle_folder(self, label: str) -> None:
        """Opens a folder of the panel that is closed, or the other way round. What is in a closed one is not there."""
        self.page.get_by_text(label, exact=True).last.click()

    def open_page(self, label: str) -> None:
        """Turns to a page of the panel: `Control`, `Render`, `Export`."""
        self.page.get_by_role("tab", name=label).click()

    def text(self) -> str:
        """All text of the page."""
        return self.page.inner_text("body")

    def screenshot(self, path: Path) -> None:
        """The page as a PNG, as a person sees it."""
        self.page.screenshot(path=str(path))

    # The picture

    def frame(self) -> np.ndarray:
        """The last picture that the server sent [height width 3], uint8, pixel for pixel."""
        self.page.wait_for_timeout(1)
        return self.heard.frame()

    def wait_for_frame(
        self, after: int = 0, min_size: tuple[int, int] = (1, 1), timeout: float = TIMEOUT
    ) -> np.ndarray:
        """The first picture after `after` (of `frames_seen`) of at least this size (height, width).

        While the camera moves, and at first after each change, nerfstudio sends small ones.
        """

        def came() -> bool:
            height, width = self.heard.frame_size()
            return self.frames_seen > after and height >= min_size[0] and width >= min_size[1]

        self.wait_until(came, f"a frame of {min_size} after {after}, {self.frames_seen} came", timeout)
        return self.frame()

    def canvas(self) -> dict[str, float]:
        """Place of the scene on the page: x, y, width, height, in CSS pixels."""
        return self.page.locator("canvas[data-engine]").bounding_box()

    def fit_canvas(self, height: int, width: int) -> None:
        """Resizes the window until the scene has the aspect of a picture of this size, or a hair higher.

        nerfstudio cuts the shorter side of a frame to whole pixels; a hair higher makes `Max res` = `width` give frames
        of just `width` x `height`, with the pixels of a photograph of that size and the same vertical field of view.
        """
        scale, window, canvas = max(1, math.ceil(768 / height)), self.page.viewport_size, self.canvas()
        wanted = (width * scale, height * scale)
        around = (window["width"] - canvas["width"], window["height"] - canvas["height"])
        self.page.set_viewport_size({"width": round(wanted[0] + around[0]), "height": math.ceil(wanted[1] + around[1])})

        def fits() -> bool:
            found = self.canvas()
            aspect = found["width"] / found["height"]
            return found["width"] == wanted[0] and abs(self.heard.camera.get("aspect", 0.0) - aspect) < 1e-3 * aspect

        self.wait_until(fits, f"a scene of {wanted}")
        self._wait_for_rest()

    def page_point(self, row: float, col: float, size: tuple[int, int]) -> tuple[float, float]:
        """Where the ray through the centre of a pixel leaves the page: x, y in CSS pixels.

        `size` (height, width) is that of the picture that the pixel is of. The last frame is no measure: it is one of
        nerfstudio's small ones when the camera has just moved, and the same pixel of it is elsewhere, or nowhere.
        """
        box, (height, width) = self.canvas(), size
        # Frames are as high as the view; their width was cut to whole pixels around the middle.
        x = 0.5 + (col + 0.5 - width / 2) / (height * box["width"] / box["height"])
        return self._place(x, (row + 0.5) / height, box)

    # The scene

    def click_scene(self, x: float, y: float) -> None:
        """Clicks in the scene, in fractions of it from the upper left corner.

        Where Python waits for a click (`pointer`), it has been sent when this returns.
        """
        self._click(*self._place(x, y, self.canvas()))

    def click_pixel(self, row: float, col: float, size: tuple[int, int]) -> None:
        """Clicks where a pixel of a picture of this size (height, width) is shown."""
        self._click(*self.page_point(row, col, size))

    def drag_scene(self, x0: float, y0: float, x1: float, y1: float) -> None:
        """Drags from one place to another, in fractions of the scene: a box, or the camera."""
        box = self.canvas()
        start, end = self._place(x0, y0, box), self._place(x1, y1, box)

        def drag() -> None:
            self.page.mouse.move(*start)
            self.page.mouse.down()
            self.page.mouse.move(*end, steps=8)
            self.page.mouse.up()

        self._point(drag)

    # What is inside

    def _click(self, x: float, y: float) -> None:
        self._point(lambda: self.page.mouse.click(x, y))

    def _point(self, action: Callable[[], None]) -> None:
        """Does something in the scene; when Python waits for it, until the page has really sent it.

        The page arms its pointer in the next frame that it draws, so a first click may come too early, to no effect.
        """
        if self.pointer is None:
            action()
            return
        before, end = self.sent["ScenePointerMessage"], time.monotonic() + TIMEOUT
        while time.monotonic() < end:
            action()
            for _ in range(20):
                if self.sent["ScenePointerMessage"] > before:
                    return
                self.page.wait_for_timeout(50)
        raise AssertionError("the page sent no click")

    def _place(self, x: float, y: float, box: dict[str, float]) -> tuple[float, float]:
        # Beside the scene lies the panel: a click there is never sent, and presses what happens to be there.
        assert 0 <= x <= 1, f"({x:.3f}, {y:.3f}) lies beside the scene"
        assert 0 <= y <= 1, f"({x:.3f}, {y:.3f}) lies beside the scene"
        # viser counts a pixel's centre in: half a pixel less here gives just the place that is meant.
        return box["x"] + x * box["width"] - 0.5, box["y"] + y * box["height"] - 0.5

    def _type(self, place: Any, text: str) -> None:
        place.fill(text)
        place.press("Enter")

    def _reach(self, label: str, folder: str | None = None) -> dict[str, Any]:
        """The element of a label; the folder that it lies in is opened, if it is closed."""
        element = self.gui(label, folder)
        around = self.heard.elements.get(element["container_id"], {})
        place = f"[id='{element['id']}']:visible, label[for='{element['id']}']:visible"
        # What is not there in an open folder comes in a moment; a press on the title would close that.
        if not around.get("expand_by_default", True) and not self.page.locator(place).count():
            self.page.get_by_text(around["label"], exact=True).first.click()
            self.page.locator(place).first.wait_for()
        return element

    def _by_id(self, element: dict[str, Any]) -> Any:
        return self.page.locator(f"[id='{element['id']}']")

    def _inputs(self, element: dict[str, Any], kind: str = "input") -> Any:
        label = self.page.locator(f"label[for='{element['id']}']")
        return label.locator(f"xpath=ancestor::*[.//{kind}][1]").locator(kind)

    def _set(self, element: dict[str, Any], action: Callable[[], None]) -> None:
        """Gives an element a value, and waits until the page has sent it.

        What a message says is on the page a moment later: until then, giving an element the value that it still shows
        does nothing. So this is tried again.
        """
        identity, end = element["id"], time.monotonic() + TIMEOUT
        before = self.heard.changed[identity]
        while time.monotonic() < end:
            action()
            for _ in range(60):
                if self.heard.changed[identity] > before:
                    return
                self.page.wait_for_timeout(50)
        raise AssertionError(f"the page sent nothing for {element.get('label')!r}")

    def _press(self, element: dict[str, Any], place: Any) -> None:
        """Presses, once, and waits until the page has sent it: its sender drops what is followed within 50 ms."""
        identity = element["id"]
        before = self.heard.changed[identity]
        place.click()
        self.wait_until(lambda: self.heard.changed[identity] > before, f"the page to send {element.get('label')!r}")

    def _wait_for_panel(self) -> None:
        self.wait_until(lambda: self.heard.elements and self.heard.camera, "the panel")
        self.page.get_by_text("Train Cams").first.wait_for()
        self.page.locator("canvas[data-engine]").wait_for()
        self._wait_for_rest()

    def _wait_for_rest(self) -> None:
        """Waits until the scene keeps its size; the panel slides in, and the scene becomes narrower meanwhile."""
        before: list[dict[str, float]] = []

        def rests() -> bool:
            before.append(self.canvas())
            return len(before) > 8 and all(place == before[-1] for place in before[-8:])

        self.wait_until(rests, "the scene to keep its size")
