"""Controls of the viewer that do what their names say."""

from collections.abc import Sequence

import viser


def add_button_group(gui: viser.GuiApi, label: str, options: Sequence[str]) -> viser.GuiButtonGroupHandle[str]:
    """Buttons in one row. Every press counts, also of the one that was pressed last, and the first one of all.

    viser 0.2.7 takes a group for a choice, which starts with the first option: choosing what is chosen does nothing.
    """
    group = gui.add_button_group(label, tuple(options))
    group._impl.is_button = True
    return group
