"""The threads that draw nerfstudio's viewer, one for each tab: which class they are of, and that none may be missing.

The viewer makes them by name and offers no other way; until it does. It also asks for the thread of every tab that is
connected: one that has just come has none yet, and the KeyError would end training.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import nerfstudio.viewer.viewer as nerfstudio_viewer
from nerfstudio.viewer.render_state_machine import RenderAction, RenderStateMachine

Thread = TypeVar("Thread", bound=RenderStateMachine)


class _Nobody:
    """Stands for the thread of a tab that has none yet, or none any more."""

    running = False

    def action(self, action: RenderAction) -> None:
        """Do nothing: a tab that has just come gets its first frame by itself."""


def _forget(*_: object, **__: object) -> None:
    """Stand for sending a frame that nobody waits for any more."""


class _Threads(dict[int, Any]):
    """Threads by the number of their tab."""

    def __missing__(self, number: int) -> _Nobody:
        return _Nobody()


def use_render_threads(viewer: nerfstudio_viewer.Viewer, make: Callable[..., RenderStateMachine]) -> None:
    """Let `make` make the threads of all tabs to come, and let tabs without a thread be no error."""
    nerfstudio_viewer.RenderStateMachine = make  # pyright: ignore[reportAttributeAccessIssue]
    viewer.render_statemachines = _Threads(viewer.render_statemachines)


def replace_render_threads(
    viewer: nerfstudio_viewer.Viewer, make: Callable[..., Thread], ours: type[Thread]
) -> list[Thread]:
    """Replace the threads of tabs that are older, as those of an earlier viewer are; return the new ones, at work."""
    replaced = []
    for number, renderer in list(viewer.render_statemachines.items()):
        if renderer.is_alive() and not isinstance(renderer, ours):
            renderer.running = False
            # A frame that it is still rendering would come after the new thread's, and stay.
            renderer._send_output_to_viewer = _forget
            thread = make(viewer, nerfstudio_viewer.VISER_NERFSTUDIO_SCALE_RATIO, renderer.client)
            viewer.render_statemachines[number] = thread
            thread.start()
            replaced.append(thread)
    return replaced
