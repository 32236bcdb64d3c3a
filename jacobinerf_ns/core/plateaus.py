"""Thresholds that find themselves: levels at which what a label selects of a scene hardly changes.

Letters (those of `propagation.py` apart):
    R  [pixels]    responses of random pixels of the scene to one label, 0..1
    θ  [levels]    thresholds: a level selects the pixels with R ≥ θ; from part to whole θ falls
    A              share of the pixels that a level selects: one that falls as θ rises
    L              log A / (1 − A)

A thing answers to a click about as one, and what is not the thing answers less: between the two R is rare, and A stands
still. Such plateaus are what maximally stable extremal regions are in pictures (Matas et al., BMVC 2002). Stability is
that of L, the odds: a small thing that becomes half as large again has changed as much as a large one, and "nearly all"
is no more stable than "nearly nothing". A teacher of parts and wholes makes several plateaus, and often that of
half the room is the most stable. So the natural level is the one where
    log(|dL/dθ| + flat) + pull · (θ − typical)²
is least: stable, and of what responds nearly as the clicked place itself does.

Where it is known which parts of the scene things are (`persistence.py`), that says more than a histogram: the natural
level is then the one whose selection is most like the likeliest thing,
    argmax over θ of |{R ≥ θ} ∩ T| / |{R ≥ θ} ∪ T|,   T the pixels of the thing.
A thing is likelier the more it is one, and the smaller: a click that was meant for a wall would seldom have fallen on
just this picture (the size principle; Tenenbaum and Griffiths, Behavioral and Brain Sciences 2001).
The field still draws the outline, in views and at distances from which nobody has looked at things.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jacobinerf_ns.core.propagation import COMMON_THRESHOLD

GRID = np.linspace(0.05, 0.95, 91)
"""Thresholds that are tried."""
TYPICAL, PULL = 0.8, 80.0
"""Threshold that things are best selected with where one has to do for all, and how much a level away from it has to be
more stable. Found on connected responses of `nook`, `atelier` and two trainings on the demo room; pulls of 20 to 120
select about the same."""
REACH = 0.08
"""Response on each side of the natural level over which it is to be stable."""
FINE_REACH = 0.06
"""The same for the other levels, which may lie between two that are near."""
FEWEST, MOST = 4, 0.95
"""Pixels, and share of them, beyond which a level says nothing: chance, and the whole scene."""
DEPTH, FLAT = 0.1, 0.3
"""By which part a level has to be more stable than what is between it and a more stable one; and the change of L per
unit of response below which all is as stable."""
STEP = 0.2
"""Change of log A from one level to the next: less is the same thing again."""
FITS = 0.5
"""Overlap (0..1) with a thing from which on a level is a level of it; with less, the field knows no such thing."""
NEARLY = 0.04
"""Overlap (0..1) by which levels may differ that select a thing as well."""
SMALL, KNOWN, NEAR = 0.7, 2.5, 6.0
"""What counts for a thing beside its score: how little of the scene it is, times −log share; how well the field knows
it, times log of the overlap with its best level; how far that is from `OF_THINGS`. Found on trainings on `nook`, the
demo room, `atelier` and the fox; 0.5 to 1, 1.5 to 3 and 4.5 to 8 select about the same."""
OF_THINGS = 0.73
"""Level at which a field that knows a thing selects it, as a rule."""
TOGETHER, SAME_LEVEL = 0.1, 0.035
"""Things whose best levels are this near are one choice, and more of them are more likely: with sums s that is
t · log Σ exp(s / t), t the first number. Where two choices are about as likely, it is no longer chance which is taken:
0.05 to 0.15 select about the same."""
AMONG_THINGS, PULL_THERE = 0.81, 200.0
"""The typical level and its pull where things are known and no level fits one: what all trees agree on is little."""
ALIKE, LEAST_OVERLAP = 1.0, 1e-3
"""How much what another tree has counts less, times the log of the overlap (0..1), and the overlap that is none. 1 to
1.4 select about the same; with 0.25 a tree that has half of a thing spoke for it, and half a cabinet was selected."""
SAME_THING = 0.85
"""Overlap (0..1) from which on two things are one."""


class Thing(NamedTuple):
    """What a label may be meant to select."""

    members: Bool[np.ndarray, "pixels"]
    score: float
    """How likely it is meant, as `persistence.py` has it."""


def consensus(found: Sequence[Sequence[Thing]]) -> list[Thing]:
    """Return what several trees of one scene find, each thing once, with the mean of what most of them say of its like.

    Those count that say most, and more than half of the trees: a thing that the others cut in two, or merge with its
    wall, is one all the same. Of a tree that knows nothing like it the score is 0.

    Args:
        found: the things of each tree, over the same pixels.
    """
    every = [thing for things in found for thing in things]
    if len(found) < 2 or not every:
        return every
    members = np.stack([thing.members for thing in every]).astype(np.float32)
    both = members @ members.T
    sizes = np.diag(both)
    overlap = both / np.maximum(sizes[:, None] + sizes - both, 1.0)
    says = np.array([thing.score for thing in every]) + ALIKE * np.log(np.maximum(overlap, LEAST_OVERLAP))
    trees = np.repeat(np.arange(len(found)), [len(things) for things in found])
    votes = np.stack([says[:, trees == tree].max(axis=1, initial=0.0) for tree in range(len(found))])
    scores = np.sort(votes, axis=0)[-(len(found) // 2 + 1) :].mean(axis=0)
    kept: list[int] = []
    for place in np.argsort(-scores, kind="stable").tolist():
        if (overlap[place, kept] < SAME_THING).all():
            kept.append(place)
    return [Thing(every[place].members, float(scores[place])) for place in kept]


class Plateaus(NamedTuple):
    """The levels that a label can be selected at."""

    levels: tuple[float, ...]
    """Their thresholds θ (0..1), from part to whole: each selects what the one before does, and more. At least one."""
    natural: int
    """Position of the one that a person most likely means."""

    def used(self, grow: int) -> int:
        """Return the position of the level so many steps larger than the natural one, or the last there is."""
        return min(max(self.natural + grow, 0), len(self.levels) - 1)

    def grown(self, grow: int, steps: int) -> int | None:
        """Return the `grow` of the level so many steps from that of `grow`; None where there is no such level."""
        position = self.used(grow) + steps
        return position - self.natural if 0 <= position < len(self.levels) else None

    def around(self, threshold: float) -> "Plateaus":
        """Return the same with a threshold that somebody chose as the natural level."""
        levels = sorted({*self.levels, threshold}, reverse=True)
        return Plateaus(tuple(levels), levels.index(threshold))


def moved(threshold: float, strictness: float) -> float:
    """Move a threshold by a share (−1..1) of its way: to 0, where all is selected, or to 1."""
    return threshold + strictness * (threshold if strictness < 0 else 1.0 - threshold)


def find_plateaus(responses: Float[Tensor, "pixels"], things: Sequence[Thing] = ()) -> Plateaus:
    """Return the levels of one label; the common threshold where hardly anything or nearly everything responds.

    Deterministic, and the same for the same pixels in any order.

    Args:
        responses: R of random pixels of the whole scene, some thousands.
        things: what the label may mean, where that is known of the same pixels.
    """
    raw = responses.double().cpu().numpy()
    ordered = np.sort(raw)
    inside = len(ordered) - np.searchsorted(ordered, GRID)
    says = (inside >= FEWEST) & (inside <= MOST * len(ordered))
    if not says.any():
        return Plateaus((COMMON_THRESHOLD,), 0)
    tried, inside = GRID[says], inside[says]
    fine = np.log(_change(ordered, tried, FINE_REACH) + FLAT)
    of_things = _of_things(raw, things, tried, inside)
    natural = of_things[0] if of_things else _stablest(ordered, tried, among_things=len(things) > 0)
    kept = [natural]
    for level in of_things + sorted(_valleys(fine), key=lambda level: (fine[level], level)):
        if all(abs(np.log(inside[level] / inside[other])) >= STEP for other in kept):
            kept.append(level)
    kept.sort(reverse=True)
    return Plateaus(tuple(round(float(tried[level]), 2) for level in kept), kept.index(natural))


def _stablest(ordered: Float[np.ndarray, "pixels"], tried: Float[np.ndarray, "levels"], among_things: bool) -> int:
    """Return the level around which least changes, of those that select what responds nearly as the click itself."""
    typical, pull = (AMONG_THINGS, PULL_THERE) if among_things else (TYPICAL, PULL)
    return int((np.log(_change(ordered, tried, REACH) + FLAT) + pull * (tried - typical) ** 2).argmin())


def _of_things(
    responses: Float[np.ndarray, "pixels"],
    things: Sequence[Thing],
    tried: Float[np.ndarray, "levels"],
    inside: Int[np.ndarray, "levels"],
) -> list[int]:
    """Return the levels that select a thing best, from the likeliest on; things that no level fits are left out."""
    found = []
    for thing in things:
        own = np.sort(responses[thing.members])
        both = len(own) - np.searchsorted(own, tried)
        overlap = both / (inside + len(own) - both)
        if FEWEST <= len(own) <= MOST * len(responses) and overlap.max() >= FITS:
            level, share = _middle(overlap), len(own) / len(responses)
            seen = KNOWN * np.log(overlap.max()) - NEAR * (tried[level] - OF_THINGS) ** 2
            found.append((float(thing.score - SMALL * np.log(share) + seen), level))
    if not found:
        return []
    sums, levels = np.array([each for each, _ in found]), np.array([level for _, level in found])
    same = np.abs(tried[levels][:, None] - tried[levels]) <= SAME_LEVEL
    likely = (np.exp((sums - sums.max()) / TOGETHER) * same).sum(axis=1)  # its logarithm would order them alike
    order = np.lexsort([-levels, -sums, -likely])
    return levels[order].tolist()


def _middle(overlap: Float[np.ndarray, "levels"]) -> int:
    """Return the level in the middle of those around the largest overlap that have nearly as much: the steadiest."""
    most = int(overlap.argmax())
    less = overlap < overlap[most] - NEARLY
    below, above = np.flatnonzero(less[:most]), np.flatnonzero(less[most:])
    low = below[-1] + 1 if len(below) else 0
    high = most + above[0] - 1 if len(above) else len(overlap) - 1
    return int(low + high) // 2


def _change(
    ordered: Float[np.ndarray, "pixels"], tried: Float[np.ndarray, "levels"], reach: float
) -> Float[np.ndarray, "levels"]:
    """How much L falls around every level, per unit of response; one pixel is added on both sides of the odds."""

    def odds(thresholds: Float[np.ndarray, "levels"]) -> Float[np.ndarray, "levels"]:
        inside = len(ordered) - np.searchsorted(ordered, thresholds)
        return np.log((inside + 1.0) / (len(ordered) - inside + 1.0))

    return (odds(np.maximum(tried - reach, 0.0)) - odds(np.minimum(tried + reach, 1.0))) / (2.0 * reach)


def _valleys(heights: Float[np.ndarray, "levels"]) -> list[int]:
    """Return the minima (of flat ones the middles) that are deeper by `DEPTH` than the lowest way to a deeper one.

    Levels are flooded from below: a valley ends where its water meets that of a deeper one.
    """
    flats = np.split(np.arange(len(heights)), np.flatnonzero(~np.isclose(np.diff(heights), 0.0)) + 1)
    floors = [float(heights[flat[0]]) for flat in flats]
    valley: dict[int, int] = {}
    bottoms: set[int] = set()
    for place in np.argsort(floors, kind="stable").tolist():
        beside = sorted({valley[near] for near in (place - 1, place + 1) if near in valley}, key=floors.__getitem__)
        valley[place] = beside[0] if beside else place
        if not beside:
            bottoms.add(place)
        for shallow in beside[1:]:
            if floors[place] - floors[shallow] < DEPTH:
                bottoms.discard(shallow)
            valley.update({other: beside[0] for other, bottom in valley.items() if bottom == shallow})
    return [int(flats[bottom][len(flats[bottom]) // 2]) for bottom in sorted(bottoms)]
