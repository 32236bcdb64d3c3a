"""The demo's furnished room: what stands where, in which class, and the path of the cameras.

Objects of one class differ in colour (chairs, cushions, books, lamps), and objects of different classes share one
(white walls, cabinet, lamp, table and cushion; wooden floor, table, door and cupboard): colour alone does not tell the
classes apart, which is what makes the room worth shaping. Metres, z up, the origin on the floor in the middle.
"""

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from jacobinerf_ns.demo.ray_tracer import Item, Light, Scene, Shell
from jacobinerf_ns.demo.solids import Material, Part, Vector, turn

CLASSES = (
    "wall",
    "floor",
    "ceiling",
    "door",
    "rug",
    "table",
    "chair",
    "sofa",
    "cushion",
    "cabinet",
    "lamp",
    "book",
)
"""Class names; the id of a class is its place, counted from 1, since 0 is void."""

HALF = (2.1, 1.7)
HEIGHT = 2.35

_WHITE: Vector = (0.86, 0.85, 0.82)
_WOOD: Vector = (0.68, 0.47, 0.29)
_METAL = Material((0.25, 0.25, 0.27))


def class_id(name: str) -> int:
    """Return the id of a class in the label maps."""
    return CLASSES.index(name) + 1


def furnished_room() -> Scene:
    """Return the room with its furniture and light."""
    shell = Shell(
        half=HALF,
        height=HEIGHT,
        materials=(
            Material(_WOOD, "planks", period=0.2, across=1, along=0),
            Material((0.9, 0.9, 0.88), "weave", period=0.8),
            Material(_WHITE, "weave", period=0.5),
        ),
        semantics=(class_id("floor"), class_id("ceiling"), class_id("wall")),
        instances=(1, 2, 3),
    )
    named = [*_along_the_walls(), *_dining(), *_sitting(), *_lamps(), *_books()]
    items = tuple(
        Item(f"{kind} {name}".strip(), class_id(kind), number, parts, casts_shadow=kind != "lamp")
        for number, (kind, name, parts) in enumerate(named, start=4)
    )
    lights = (
        Light((0.5, -0.3, HEIGHT - 0.05), (0.7, 0.5), (1.0, 0.98, 0.95), 1.15),
        Light((1.7, 1.3, 1.45), (0.15, 0.15), (1.0, 0.85, 0.65), 0.5),
    )
    return Scene(shell, items, lights, ambient=(0.62, 0.63, 0.66), bounce=(0.68, 0.65, 0.6))


def camera_path(num_views: int) -> Float[np.ndarray, "views 4 4"]:
    """Return camera-to-world poses (OpenGL: x right, y up, looking along -z) on a closed loop through the room.

    Each camera looks across the middle at the far side, a little downwards; height and distance change along the loop,
    so that surfaces are seen from several heights and not from one ring only.
    """
    angles = 2 * np.pi * np.arange(num_views) / num_views
    reach = 1 + 0.1 * np.sin(3 * angles)
    eyes = np.stack(
        [1.4 * reach * np.cos(angles), 1.1 * reach * np.sin(angles), 1.34 + 0.2 * np.sin(2 * angles + 0.6)], axis=1
    )
    targets = np.stack([-0.5 * np.cos(angles), -0.4 * np.sin(angles), 0.84 + 0.1 * np.cos(3 * angles)], axis=1)
    back = eyes - targets
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    poses = np.tile(np.eye(4), (num_views, 1, 1))
    poses[:, :3, :4] = np.stack([right, np.cross(back, right), back, eyes], axis=2)
    return poses


_Named = tuple[str, str, tuple[Part, ...]]


def _along_the_walls() -> list[_Named]:
    door = Material((0.6, 0.39, 0.23), "planks", period=0.28, across=0, along=2)
    cupboard = Material((0.66, 0.45, 0.28), "planks", period=0.2, across=0, along=2)
    white = Material(_WHITE, "panels", period=0.4, across=1)
    return [
        ("door", "", (_box((-0.95, -1.68, 1.0), (0.85, 0.04, 2.0), door), _ball((-0.63, -1.62, 1.0), 0.045, _METAL))),
        ("cabinet", "white", (_box((-1.88, -0.3, 0.4), (0.42, 1.2, 0.8), white),)),
        ("cabinet", "wooden", (_box((-1.8, 1.4, 0.8), (0.52, 0.52, 1.6), cupboard),)),
    ]


def _dining() -> list[_Named]:
    wood = Material(_WOOD, "planks", period=0.23, across=1, along=0)
    table = (_box((0, 0, 0.7), (1.05, 0.72, 0.05), wood), *_legs(1.0, 0.66, 0.68, 0.06, wood))
    chairs = [
        ("red", (0.72, 0.17, 0.15), (1.0, 0.12), 190.0),
        ("blue", (0.16, 0.3, 0.62), (0.85, -1.22), -12.0),
        ("green", (0.2, 0.5, 0.24), (0.15, -0.6), -75.0),
    ]
    return [
        ("table", "wooden", _place(table, (0.95, -0.55), 0.0)),
        *(("chair", name, _place(_chair(Material(colour)), at, yaw)) for name, colour, at, yaw in chairs),
    ]


def _chair(material: Material) -> tuple[Part, ...]:
    """Return a chair on the origin that faces +y."""
    seat = _box((0, 0, 0.44), (0.42, 0.42, 0.06), material)
    back = _box((0, -0.19, 0.68), (0.42, 0.04, 0.42), material)
    return (seat, back, *_legs(0.42, 0.42, 0.42, 0.05, material))


def _legs(width: float, depth: float, height: float, thickness: float, material: Material) -> tuple[Part, ...]:
    """Return four legs under the corners of a top of `width` and `depth`."""
    x, y = (width - thickness) / 2, (depth - thickness) / 2
    size = (thickness, thickness, height)
    return tuple(_box((i * x, j * y, height / 2), size, material) for i in (-1, 1) for j in (-1, 1))


def _sitting() -> list[_Named]:
    cloth = Material((0.36, 0.45, 0.52), "weave", period=0.3)
    rug = Material((0.55, 0.2, 0.2), "checker", other=(0.8, 0.72, 0.58), period=0.25)
    sofa = (
        _box((0, 0, 0.25), (1.8, 0.76, 0.34), cloth),
        _box((0, 0.28, 0.65), (1.8, 0.2, 0.5), cloth),
        _box((-0.82, 0, 0.35), (0.18, 0.76, 0.54), cloth),
        _box((0.82, 0, 0.35), (0.18, 0.76, 0.54), cloth),
    )
    table = tuple(
        _tube((0, 0, z), radius, height, Material(_WHITE))
        for z, radius, height in ((0.43, 0.36, 0.05), (0.22, 0.05, 0.38), (0.03, 0.22, 0.04))
    )
    cushions = [
        ("orange", (0.85, 0.45, 0.12), -0.98, 4.0),
        ("white", (0.86, 0.85, 0.82), -0.45, -6.0),
        ("blue", (0.16, 0.3, 0.62), 0.1, 8.0),
    ]
    floor_cushion = Part("ball", (1.45, 0.85, 0.15), (0.3, 0.3, 0.15), Material((0.2, 0.5, 0.24)))
    return [
        ("rug", "", (_box((-0.4, 0.25, 0.008), (2.0, 1.25, 0.016), rug),)),
        ("sofa", "", _place(sofa, (-0.45, 1.3), 0.0)),
        ("table", "white", _place(table, (-0.45, 0.3), 0.0)),
        *(
            ("cushion", name, (Part("ball", (x, 1.34, 0.62), (0.23, 0.1, 0.21), Material(colour), yaw, -18.0),))
            for name, colour, x, yaw in cushions
        ),
        ("cushion", "green", (floor_cushion,)),
    ]


def _lamps() -> list[_Named]:
    globe = Material((0.9, 0.9, 0.86), glow=0.45)
    shades = [Material(colour, glow=0.3) for colour in ((0.85, 0.45, 0.12), (0.12, 0.45, 0.45))]
    standing = (
        _tube((0, 0, 0.02), 0.16, 0.04, _METAL),
        _tube((0, 0, 0.7), 0.025, 1.3, _METAL),
        _tube((0, 0, 1.45), 0.22, 0.32, shades[0]),
    )
    on_cabinet = (
        _tube((0, 0, 0.82), 0.1, 0.04, _METAL),
        _tube((0, 0, 0.94), 0.025, 0.2, _METAL),
        _tube((0, 0, 1.13), 0.15, 0.22, shades[1]),
    )
    hanging = (_tube((0, 0, 2.13), 0.015, 0.44, _METAL), _ball((0, 0, 1.78), 0.18, globe))
    return [
        ("lamp", "white", _place(hanging, (-0.1, 0.05), 0.0)),
        ("lamp", "orange", _place(standing, (1.7, 1.3), 0.0)),
        ("lamp", "teal", _place(on_cabinet, (-1.88, 0.08), 0.0)),
    ]


def _books() -> list[_Named]:
    standing = [
        ("red", (0.72, 0.17, 0.15), 0.1, 0.32),
        ("white", (0.86, 0.85, 0.82), 0.09, 0.27),
        ("blue", (0.16, 0.3, 0.62), 0.13, 0.35),
        ("green", (0.2, 0.5, 0.24), 0.1, 0.29),
        ("yellow", (0.85, 0.7, 0.2), 0.11, 0.33),
    ]
    lying = [
        ("on wood, brown", (0.45, 0.27, 0.15), (1.1, -0.5, 0.75), 20.0),
        ("on wood, orange", (0.85, 0.45, 0.12), (1.08, -0.5, 0.815), 65.0),
        ("on white, teal", (0.12, 0.45, 0.45), (-0.5, 0.25, 0.485), -25.0),
    ]
    books: list[_Named] = []
    y = -0.85
    for name, colour, thickness, height in standing:
        centre = (-1.9, y + thickness / 2, 0.8 + height / 2)
        books.append(("book", name, (_box(centre, (0.22, thickness, height), Material(colour)),)))
        y += thickness + 0.005
    for name, colour, centre, yaw in lying:
        books.append(("book", name, (replace(_box(centre, (0.3, 0.22, 0.06), Material(colour)), yaw=yaw),)))
    return books


def _box(centre: Vector, size: Vector, material: Material) -> Part:
    return Part("box", centre, (size[0] / 2, size[1] / 2, size[2] / 2), material)


def _ball(centre: Vector, radius: float, material: Material) -> Part:
    return Part("ball", centre, (radius, radius, radius), material)


def _tube(centre: Vector, radius: float, height: float, material: Material) -> Part:
    return Part("tube", centre, (radius, radius, height / 2), material)


def _place(parts: tuple[Part, ...], at: tuple[float, float], yaw: float) -> tuple[Part, ...]:
    """Turn furniture that was built around the origin by `yaw` degrees, and move it to `at`."""
    placed = []
    for part in parts:
        x, y, z = (turn(yaw) @ np.array(part.centre)).tolist()
        placed.append(replace(part, centre=(x + at[0], y + at[1], z), yaw=part.yaw + yaw))
    return tuple(placed)
