"""A small ray tracer: solids in a closed room, area lights with shadows, and the label under every ray.

numpy only. Metres, z up, linear light inside and gamma-coded colours at the doors. Every surface is matt, so that a
point looks the same from all sides: what a radiance field can represent exactly.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from jacobinerf_ns.demo.solids import Material, Part, Vector, decode, enter, material_colour, reciprocal

LIGHT_POINTS = 9
"""Points that stand for an area light (3 x 3): the steps a soft shadow can have."""

_SELF_HIT = 1e-4
"""Metres by which a shadow ray starts off its surface: far below any part, far above float64 rounding."""


@dataclass(frozen=True)
class Item:
    """An object: one class, one instance, several parts. A glowing shade lets its own lamp's light out."""

    name: str
    semantic: int
    instance: int
    parts: tuple[Part, ...]
    casts_shadow: bool = True


@dataclass(frozen=True)
class Light:
    """A flat horizontal light; `power` is what it gives at 1 m straight below, relative to white ambient light of 1."""

    centre: Vector
    half: tuple[float, float]
    colour: Vector
    power: float

    def points(self) -> Float[np.ndarray, "points 3"]:
        """Return the centres of 3 x 3 equal parts of the light."""
        steps = np.array([-2.0, 0.0, 2.0]) / 3
        x, y = np.meshgrid(steps * self.half[0], steps * self.half[1], indexing="ij")
        return np.stack([x.ravel(), y.ravel(), np.zeros(x.size)], axis=1) + np.array(self.centre)


@dataclass(frozen=True)
class Shell:
    """The room's inside: a box from (-x, -y, 0) to (x, y, height), with one class and instance each for three kinds."""

    half: tuple[float, float]
    height: float
    materials: tuple[Material, Material, Material]
    semantics: tuple[int, int, int]
    instances: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """What rays can hit, and what lights it. `Shell` tuples are in the order floor, ceiling, walls."""

    shell: Shell
    items: tuple[Item, ...]
    lights: tuple[Light, ...]
    ambient: Vector
    bounce: Vector


@dataclass(frozen=True)
class Trace:
    """Per ray: gamma-coded colour in 0..1, class and instance id (never 0), metres along the ray."""

    colour: Float[np.ndarray, "rays 3"]
    semantic: Int[np.ndarray, " rays"]
    instance: Int[np.ndarray, " rays"]
    distance: Float[np.ndarray, " rays"]


@dataclass
class _Surface:
    """Where rays end: `part` counts parts over all items, and is -1 - face for the shell."""

    distance: np.ndarray
    part: np.ndarray
    normal: np.ndarray


def trace_rays(
    scene: Scene,
    origins: Float[np.ndarray, "rays 3"],
    directions: Float[np.ndarray, "rays 3"],
    light_point: int | None = None,
) -> Trace:
    """Follow rays to the first surface and shade it.

    Args:
        scene: the scene; every origin must lie inside its shell and outside its items.
        origins: metres, world frame.
        directions: world frame, of any length.
        light_point: which of the `LIGHT_POINTS` points stands for every area light. None averages over all of them.
            A caller who supersamples gives each sub-sample another point: same shadows on average, a ninth of the work.
    """
    directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    surface = _first_surface(scene, origins, directions)
    points = origins + surface.distance[:, None] * directions
    albedo, glow, semantic, instance = _look_up(scene, surface, points)
    chosen = range(LIGHT_POINTS) if light_point is None else (light_point,)
    lit = np.mean([_direct_light(scene, points, surface.normal, index) for index in chosen], axis=0)
    light = lit + _ambient_light(scene, points, surface.normal)
    linear = albedo * (light + glow[:, None])
    return Trace(np.clip(linear, 0.0, 1.0) ** (1 / 2.2), semantic, instance, surface.distance)


def _first_surface(scene: Scene, origins: np.ndarray, directions: np.ndarray) -> _Surface:
    surface = _shell_surface(scene.shell, origins, directions)
    inverse = reciprocal(directions)
    first = 0
    for item in scene.items:
        near, far = _bounds_span(item, origins, inverse)
        rays = np.nonzero((near < far) & (far > 0) & (near < surface.distance))[0]
        for offset, part in enumerate(item.parts):
            if not len(rays):
                break
            distance, normal = enter(part, origins[rays], directions[rays])
            closer = distance < surface.distance[rays]
            hit = rays[closer]
            surface.distance[hit] = distance[closer]
            surface.normal[hit] = normal[closer]
            surface.part[hit] = first + offset
        first += len(item.parts)
    return surface


def _shell_surface(shell: Shell, origins: np.ndarray, directions: np.ndarray) -> _Surface:
    """Return where rays leave the room: every ray ends there at the latest."""
    upper = np.array([*shell.half, shell.height])
    lower = np.array([-shell.half[0], -shell.half[1], 0.0])
    distances = (np.where(directions > 0, upper, lower) - origins) * reciprocal(directions)
    axis = distances.argmin(axis=1)
    rays = np.arange(len(axis))
    forward = directions[rays, axis] > 0
    normal = np.zeros_like(directions)
    normal[rays, axis] = np.where(forward, -1.0, 1.0)
    face = np.where(axis == 2, forward.astype(np.int64), 2)
    return _Surface(distances[rays, axis], -1 - face, normal)


def _bounds_span(item: Item, origins: np.ndarray, inverse: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the ray parameters of entering and leaving the axis-aligned box around an item."""
    reach = [np.abs(part.rotation()) @ np.array(part.half) for part in item.parts]
    centres = [np.array(part.centre) for part in item.parts]
    lower = np.min([centre - size for centre, size in zip(centres, reach, strict=True)], axis=0)
    upper = np.max([centre + size for centre, size in zip(centres, reach, strict=True)], axis=0)
    near, far = -np.inf, np.inf
    # Axis by axis: reducing over an axis of three would cost more than all the rest.
    for axis in range(3):
        one = (lower[axis] - origins[:, axis]) * inverse[:, axis]
        two = (upper[axis] - origins[:, axis]) * inverse[:, axis]
        near, far = np.maximum(near, np.minimum(one, two)), np.minimum(far, np.maximum(one, two))
    return np.asarray(near), np.asarray(far)


def _look_up(
    scene: Scene, surface: _Surface, points: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return linear albedo, glow, class and instance of every surface point."""
    albedo, glow = np.zeros_like(points), np.zeros(len(points))
    semantic, instance = np.zeros(len(points), np.int64), np.zeros(len(points), np.int64)
    shell = scene.shell
    for face, material in enumerate(shell.materials):
        rays = np.nonzero(surface.part == -1 - face)[0]
        albedo[rays] = material_colour(material, points[rays])
        semantic[rays], instance[rays] = shell.semantics[face], shell.instances[face]
    index = 0
    for item in scene.items:
        for part in item.parts:
            rays = np.nonzero(surface.part == index)[0]
            index += 1
            local = (points[rays] - np.array(part.centre)) @ part.rotation()
            albedo[rays] = material_colour(part.material, local)
            glow[rays] = part.material.glow
            semantic[rays], instance[rays] = item.semantic, item.instance
    return albedo, glow, semantic, instance


def _ambient_light(scene: Scene, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Return light from everywhere: from above `ambient`, from below `bounce`, and less of it in the room's corners."""
    shell = scene.shell
    upward = 0.5 + 0.5 * normals[:, 2:]
    light = upward * decode(scene.ambient) + (1 - upward) * decode(scene.bounce)
    half = np.array([*shell.half, shell.height / 2])
    gaps = half - np.abs(points - np.array([0.0, 0.0, shell.height / 2]))
    dimming = 1 - 0.4 * np.exp(-np.maximum(gaps, 0.0) / 0.25) * (1 - np.abs(normals))
    return light * dimming.prod(axis=1, keepdims=True)


def _direct_light(scene: Scene, points: np.ndarray, normals: np.ndarray, light_point: int) -> np.ndarray:
    total = np.zeros_like(points)
    starts = points + _SELF_HIT * normals
    for light in scene.lights:
        towards = light.points()[light_point] - starts
        squared = np.einsum("ij,ij->i", towards, towards)
        cosine = np.einsum("ij,ij->i", towards, normals) / np.sqrt(squared)
        facing = np.nonzero(cosine > 0)[0]
        open_way = facing[~_blocked(scene, starts[facing], towards[facing])]
        # Softer than the inverse square: a lamp's walls and ceiling send light back, and its own corner stays in range.
        strength = light.power * cosine[open_way] * 2 / (1 + squared[open_way])
        total[open_way] += strength[:, None] * decode(light.colour)
    return total


def _blocked(scene: Scene, origins: np.ndarray, towards: np.ndarray) -> np.ndarray:
    """Return whether something lies between `origins` and `origins + towards`. The shell never does."""
    blocked = np.zeros(len(origins), bool)
    inverse = reciprocal(towards)
    for item in scene.items:
        if not item.casts_shadow:
            continue
        near, far = _bounds_span(item, origins, inverse)
        rays = np.nonzero((near < far) & (far > 0) & (near < 1) & ~blocked)[0]
        for part in item.parts:
            if not len(rays):
                break
            inside = enter(part, origins[rays], towards[rays])[0] < 1
            blocked[rays[inside]] = True
            rays = rays[~inside]
    return blocked
