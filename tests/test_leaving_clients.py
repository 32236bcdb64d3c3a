"""What somebody did last on a page that is gone: viser's own server has to take it."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import viser
from viewer_process import free_port
from viser._messages import GuiUpdateMessage, ScenePointerMessage

from jacobinerf_ns.compat.leaving_clients import MOST, remember_clients


@pytest.fixture
def server() -> Iterator[viser.ViserServer]:
    found = viser.ViserServer(port=free_port(), verbose=False)
    yield found
    found.stop()


def test_a_control_and_a_click_are_taken_from_a_client_who_has_left(server: viser.ViserServer) -> None:
    slider, told = server.gui.add_slider("Threshold", 0.0, 1.0, 0.1, 0.5), []
    slider.on_update(lambda event: told.append((event.client_id, slider.value)))
    message = GuiUpdateMessage(slider._impl.id, {"value": 0.7})
    came: list[Any] = []
    server.on_client_connect = cast(Any, came.append)
    with pytest.raises(KeyError):
        server.gui._handle_gui_updates(cast(Any, 3), message)
    remember_clients(server)
    came[0](SimpleNamespace(client_id=3))
    server.gui._handle_gui_updates(cast(Any, 3), GuiUpdateMessage(slider._impl.id, {"value": 0.2}))
    assert told == [(3, 0.2)]
    clicks: list[int] = []
    server.scene.on_pointer_event("click")(lambda event: clicks.append(event.client_id))
    click = ScenePointerMessage("click", (0.0, 0.0, 0.0), (0.0, 0.0, 1.0), ((0.5, 0.5),))
    server.scene._handle_scene_pointer_updates(cast(Any, 3), click)
    assert clicks == [3]
    assert server.get_clients() == {}
    with pytest.raises(KeyError):
        server.get_clients()[4]
    for number in range(10, 10 + MOST):
        came[0](SimpleNamespace(client_id=number))
    with pytest.raises(KeyError):
        server.get_clients()[3]
