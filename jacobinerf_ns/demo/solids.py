"""Convex solids and what they are made of: entry points of rays, normals, and patterns on surfaces.

numpy only; metres, z up, angles in degrees. Colours are written gamma-coded (0..1, as one sees them) and become linear
for shading.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

Vector = tuple[float, float, float]

GAMMA = 2.2


@dataclass(frozen=True)
class Material:
    """A matt surface: a colour, a pattern in the frame of its part, and light of its own."""

    colour: Vector
    pattern: Literal["plain", "planks", "checker", "panels", "weave"] = "plain"
    other: Vector = (0.0, 0.0, 0.0)
    period: float = 0.1
    across: int = 0
    along: int = 1
    glow: float = 0.0


@dataclass(frozen=True)
class Part:
    """One convex solid: a box, an ellipsoid (`ball`) or an upright elliptic cylinder (`tube`) in its own frame."""

    shape: Literal["box", "ball", "tube"]
    centre: Vector
    half: Vector
    material: Material
    yaw: float = 0.0
    pitch: float = 0.0

    def rotation(self) -> Float[np.ndarray, "3 3"]:
        """Return own frame to world: first `pitch` about x, then `yaw` about z, both in degrees."""
        return turn(self.yaw) @ _tip(self.pitch)


def turn(degrees: float) -> Float[np.ndarray, "3 3"]:
    """Return the rotation about z, counter-clockwise seen from above."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _tip(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[1.0, 0.0, 0.0], [0.0, c, -s], [0.0, s, c]])


def decode(colour: Vector) -> Float[np.ndarray, "3"]:
    """Return the linear light of a gamma-coded colour."""
    return np.array(colour) ** GAMMA


def material_colour(material: Material, local: Float[np.ndarray, "points 3"]) -> Float[np.ndarray, "points 3"]:
    """Return the linear colour at `local`, metres in the part's own frame.

    Patterns repeat every `period` metres and are solid (they run through the part), so that they need no unwrapping:
    `checker` alternates with the `other` colour; `planks` are boards `period` wide along axis `along`; `panels` are
    parted by dark joints; `weave` is a faint unevenness that walls and cloth have.
    """
    colour, other = decode(material.colour), decode(material.other)
    u, v = local[:, material.across] / material.period, local[:, material.along] / material.period
    if material.pattern == "checker":
        return np.where(((np.floor(u) + np.floor(v)) % 2 == 0)[:, None], colour, other)
    if material.pattern == "planks":
        return colour * _wood(u, v)[:, None]
    if material.pattern == "panels":
        return colour * np.where(np.abs(u % 1 - 0.5) > 0.475, 0.5, 1.0)[:, None]
    if material.pattern == "weave":
        # The two horizontal axes together: the pattern then runs along walls of either direction.
        turns = 2 * np.pi / material.period * np.stack([local[:, 0] + local[:, 1], local[:, 2] + 0.6 * local[:, 0]])
        return colour * (1 + 0.04 * np.sin(turns[0]) * np.sin(turns[1]))[:, None]
    return np.broadcast_to(colour, local.shape)


def _wood(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Return the brightness of boards one unit wide in u: each of its own shade and grain, dark joints between."""
    board = np.floor(u)
    shade = _scatter(board)
    grain = np.sin(7 * u + 0.9 * np.sin(1.3 * v + 20 * shade)) * np.sin(0.8 * v + 40 * shade)
    joint = np.abs(u - board - 0.5) > 0.46
    return np.where(joint, 0.45, 0.72 + 0.4 * shade + 0.1 * grain)


def _scatter(number: np.ndarray) -> np.ndarray:
    """Return a fixed value in 0..1 for every whole number, without a random state to carry about."""
    return np.abs(np.sin(12.9898 * number + 4.1)) % 1


def reciprocal(directions: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Return 1 / `directions`, finite everywhere."""
    # A ray parallel to a plane meets it very far away instead of nowhere: no infinities, no NaN from 0 * infinity.
    return 1.0 / np.where(np.abs(directions) < 1e-12, 1e-12, directions)


def enter(
    part: Part, origins: Float[np.ndarray, "rays 3"], directions: Float[np.ndarray, "rays 3"]
) -> tuple[Float[np.ndarray, " rays"], Float[np.ndarray, "rays 3"]]:
    """Return where rays enter a part from outside, and the outward normal there.

    Space is mapped so that the part becomes the unit cube, ball or tube: the ray parameter survives an affine map.

    Returns:
        The ray parameter (a multiple of the direction's length; infinite where a ray misses or starts inside), and the
        world normal of length 1 (of no meaning where the parameter is infinite).
    """
    to_local = part.rotation() / np.array(part.half)
    o, d = (origins - np.array(part.centre)) @ to_local, directions @ to_local
    near, far, normal = _SPANS[part.shape](o, d)
    distance = np.where((near < far) & (near > 0), near, np.inf)
    normal = normal @ to_local.T
    return distance, normal / np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)


def _box_span(o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    inverse = reciprocal(d)
    entries, exits = -o * inverse - np.abs(inverse), -o * inverse + np.abs(inverse)
    axis = entries.argmax(axis=1)
    rays = np.arange(len(o))
    normal = np.zeros_like(d)
    normal[rays, axis] = -np.sign(d[rays, axis])
    return entries[rays, axis], exits.min(axis=1), normal


def _ball_span(o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    near, far = _quadratic_span(o, d)
    return near, far, o + _finite(near)[:, None] * d


def _tube_span(o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    near, far = _quadratic_span(o[:, :2], d[:, :2])
    inverse = reciprocal(d[:, 2])
    bottom, top = -o[:, 2] * inverse - np.abs(inverse), -o[:, 2] * inverse + np.abs(inverse)
    side = near > bottom
    normal = np.zeros_like(d)
    normal[:, :2] = np.where(side[:, None], o[:, :2] + _finite(near)[:, None] * d[:, :2], 0.0)
    normal[:, 2] = np.where(side, 0.0, -np.sign(d[:, 2]))
    return np.maximum(near, bottom), np.minimum(far, top), normal


def _finite(distance: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(distance), distance, 0.0)


def _quadratic_span(o: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where `|o + t d| = 1`; infinity for both where there is no such t."""
    a = np.maximum(np.einsum("ij,ij->i", d, d), 1e-24)
    b, c = np.einsum("ij,ij->i", o, d), np.einsum("ij,ij->i", o, o) - 1.0
    root = b * b - a * c
    distance = np.sqrt(np.maximum(root, 0.0))
    return np.where(root > 0, (-b - distance) / a, np.inf), np.where(root > 0, (-b + distance) / a, np.inf)


_SPANS = {"box": _box_span, "ball": _ball_span, "tube": _tube_span}
