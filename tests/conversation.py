"""What went over the websocket between a viewer's page and its server: pictures, elements of the panel, clicks."""

from collections import Counter
from io import BytesIO
from typing import Any

import msgspec
import numpy as np
from PIL import Image


class Conversation:
    """All that a page was told since it was loaded, kept up to date with what it said itself."""

    def __init__(self) -> None:
        self.frames_seen = 0
        """Pictures that came, ever."""
        self.sent: Counter[str] = Counter()
        """Messages that the page sent, ever, by type."""
        self.changed: Counter[str] = Counter()
        """Changes of elements that the page sent, ever, by the element's id."""
        self.connections = 0
        """Times that the page has reached a server."""
        self._socket: Any = None
        self.forget()

    def forget(self) -> None:
        """The page was loaded anew, or has lost its server."""
        self.elements: dict[str, dict[str, Any]] = {}
        self.camera: dict[str, Any] = {}
        self.pointer: str | None = None
        self._picture = b""

    def listen(self, socket: Any) -> None:
        """Follows a websocket that the page has opened, instead of any older one."""
        self.forget()
        self._socket, heard = socket, False

        def received(payload: bytes) -> None:
            nonlocal heard
            # A page without its server opens one websocket after the other; only an answer is a connection.
            self.connections, heard = self.connections + (not heard), True
            self._received(payload)

        socket.on("framereceived", received)
        socket.on("framesent", self._sent)
        socket.on("close", lambda _: self.forget() if socket is self._socket else None)

    def frame_size(self) -> tuple[int, int]:
        """(height, width) of the last picture; (0, 0) if there is none."""
        if not self._picture:
            return 0, 0
        with Image.open(BytesIO(self._picture)) as image:
            return image.height, image.width

    def frame(self) -> np.ndarray:
        """The last picture [height width 3], uint8."""
        assert self._picture, "no frame came so far"
        with Image.open(BytesIO(self._picture)) as image:
            assert image.format == "PNG", f"the viewer sends {image.format}: start it with --viewer.image-format png"
            return np.array(image.convert("RGB"))

    def folder(self, element: dict[str, Any]) -> str | None:
        """Label of the folder that an element lies in."""
        return self.elements.get(element["container_id"], {}).get("label")

    def _received(self, payload: bytes) -> None:
        for message in msgspec.msgpack.decode(payload):
            kind = message["type"]
            if kind == "BackgroundImageMessage":
                self._picture = message["rgb_bytes"]
                self.frames_seen += 1
            elif kind == "ResetGuiMessage":
                self.elements.clear()
            elif kind == "GuiUpdateMessage":
                self.elements.get(message["id"], {}).update(message["updates"])
            elif kind == "GuiRemoveMessage":
                self.elements.pop(message["id"], None)
            elif kind.startswith("GuiAdd"):
                self.elements[message["id"]] = message
            elif kind == "ScenePointerEnableMessage":
                self.pointer = message["event_type"] if message["enable"] else None

    def _sent(self, payload: bytes) -> None:
        message = msgspec.msgpack.decode(payload)
        self.sent[message["type"]] += 1
        if message["type"] == "ViewerCameraMessage":
            self.camera = message
        elif message["type"] == "GuiUpdateMessage":
            self.changed[message["id"]] += 1
            element = self.elements.get(message["id"], {})
            if not element.get("type", "").startswith("GuiAddButton"):
                element.update(message["updates"])
