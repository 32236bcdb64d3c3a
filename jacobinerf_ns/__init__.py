"""JacobiNeRF for nerfstudio: train a radiance field once, click once, get the whole entity in every view.

    import jacobinerf_ns as jn

    run = jn.open_run("outputs/capture/jacobinerf/RUN/config.yml")
    notes = run.annotations.click("chair", image="0012.png", xy=(320, 200))
    labels = run.fit(notes)
    chair = labels.render("0030.png").mask("chair")

Names are imported when they are first used: nerfstudio loads this package for every one of its commands.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jacobinerf_ns.annotations.notes import Notes
    from jacobinerf_ns.annotations.schema import Annotations
    from jacobinerf_ns.errors import UserError
    from jacobinerf_ns.run.labelled_views import LabelledView, Labels
    from jacobinerf_ns.run.opened import Run, open_run
    from jacobinerf_ns.run.photos import Photo

__all__ = ["Annotations", "LabelledView", "Labels", "Notes", "Photo", "Run", "UserError", "open_run"]

_MODULES = {
    "Annotations": "annotations.schema",
    "LabelledView": "run.labelled_views",
    "Labels": "run.labelled_views",
    "Notes": "annotations.notes",
    "Photo": "run.photos",
    "Run": "run.opened",
    "UserError": "errors",
    "open_run": "run.opened",
}
"""Where each public name lives."""


def __getattr__(name: str) -> Any:
    """Import a public name at its first use."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names too, whether they have been used or not."""
    return sorted({*globals(), *__all__})
