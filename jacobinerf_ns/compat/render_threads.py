"""The threads that draw nerfstudio's viewer, one for each tab: which class they are of.

The viewer makes them by name and offers no other way; until it does.
"""

from collections.abc import Callable
from typing import TypeVar

import nerfstudio.viewer.viewer as nerfstudio_viewer
from nerfstudio.viewer.render_state_machine import RenderStateMachine

Thread = TypeVar("Thread", bound=RenderStateMachine)


def use_render_threads(make: Callable[..., RenderStateMachine]) -> None:
    """Let `make` make the threads of all tabs to come."""
    nerfstudio_viewer.RenderStateMachine = make  # pyright: ignore[reportAttributeAccessIssue]


def replace_render_threads(
    viewer: nerfstudio_viewer.Viewer, make: Callable[..., Thread], ours: type[Thread]
) -> list[Thread]:
    """Replace the threads of tabs that are older, as those of an earlier viewer are; return the new ones, at work."""
    replaced = []
    for number, renderer in list(viewer.render_statemachines.items()):
        if renderer.is_alive() and not isinstance(renderer, ours):
            renderer.running = False
            thread = make(viewer, nerfstudio_viewer.VISER_NERFSTUDIO_SCALE_RATIO, renderer.client)
            viewer.render_statemachines[number] = thread
            thread.start()
            replaced.append(thread)
    return replaced
