"""Seeds as small solids in the viewer's scene: spheres say "this", cubes say "not this"."""

from collections.abc import Sequence

import viser
from nerfstudio.viewer.viewer import VISER_NERFSTUDIO_SCALE_RATIO

from jacobinerf_ns.annotations.schema import Colour
from jacobinerf_ns.labels.snapshot import LabelSnapshot, Mark

RADIUS = 0.008
"""Of a mark, in scene units: nerfstudio scales captures to about -1..1."""
MOVED = 0.002
"""Scene units from which on a mark follows the surface: while training, that moves a little with every frame."""

_Key = tuple[str, Colour, bool]


class Marks:
    """The marks that are drawn now."""

    def __init__(self, server: viser.ViserServer) -> None:
        """`server` is the viewer's."""
        self._server = server
        self._drawn: dict[str, tuple[_Key, tuple[float, float, float], viser.MeshHandle]] = {}

    def show(self, snapshot: LabelSnapshot | None) -> None:
        """Draws the marks of the seeds that hit something, and takes away all others."""
        wanted = {} if snapshot is None else _named(snapshot.marks)
        colours = {} if snapshot is None else {label.id: label.colour for label in snapshot.labels}
        for name in self._drawn.keys() - wanted.keys():
            self._drawn.pop(name)[2].remove()
        for name, mark in wanted.items():
            key = (name, colours[mark.seed.label], mark.seed.negative)
            if name in self._drawn and self._drawn[name][0] == key and _near(self._drawn[name][1], mark.point):
                continue
            self._drawn[name] = (key, mark.point, self._draw(name, mark, colours[mark.seed.label]))

    def _draw(self, name: str, mark: Mark, colour: Colour) -> viser.MeshHandle:
        x, y, z = (part * VISER_NERFSTUDIO_SCALE_RATIO for part in mark.point)
        size, scene = RADIUS * VISER_NERFSTUDIO_SCALE_RATIO, self._server.scene
        if mark.seed.negative:
            side = 1.6 * size
            return scene.add_box(name, color=colour, dimensions=(side, side, side), position=(x, y, z))
        return scene.add_icosphere(name, radius=size, color=colour, subdivisions=2, position=(x, y, z))


def _named(marks: Sequence[Mark]) -> dict[str, Mark]:
    return {f"/jacobinerf/seed_{place}": mark for place, mark in enumerate(marks) if mark.hit}


def _near(first: Sequence[float], second: Sequence[float]) -> bool:
    return max(abs(a - b) for a, b in zip(first, second, strict=True)) < MOVED
