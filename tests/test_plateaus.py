"""A label's levels: by hand, and what holds for all responses."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from jacobinerf_ns.core.plateaus import Plateaus, find_plateaus, moved
from jacobinerf_ns.core.propagation import COMMON_THRESHOLD

PART, WHOLE, REST = 20 * [1.0], 40 * [0.6], 940 * [0.1]
"""Responses of 1000 pixels: a part, the thing that it is of, and the rest of the room."""


def selects(responses: torch.Tensor, plateaus: Plateaus) -> list[int]:
    return [int((responses >= level).sum()) for level in plateaus.levels]


def test_levels_lie_between_a_part_its_thing_and_the_rest():
    responses = torch.tensor(PART + WHOLE + REST)
    found = find_plateaus(responses)
    assert selects(responses, found) == [20, 60]
    # Both are as stable: what responds nearly as the clicked place itself does.
    assert found.natural == 0
    assert found.levels == pytest.approx((0.8, 0.35), abs=0.02)


def test_a_slope_is_no_natural_size_however_typical():
    things = np.linspace(0.72, 1.0, 60).tolist()
    found = find_plateaus(torch.tensor(things + REST))
    assert selects(torch.tensor(things + REST), found)[found.natural] == 60


def test_what_answers_sharply_is_the_natural_size():
    # Between part and thing nothing lies; from the thing on responses fall off evenly to the rest.
    slope = np.linspace(0.55, 0.1, 400).tolist()
    responses = torch.tensor(PART + slope + 600 * [0.1])
    found = find_plateaus(responses)
    assert selects(responses, found)[found.natural] == 20


@pytest.mark.parametrize("scale", [1, 30])
def test_small_things_are_as_stable_as_large_ones(scale: int):
    # 8 of 8000 pixels, or 240: what is not the thing is the same, and so is the level.
    responses = torch.cat([torch.full((8 * scale,), 0.9), torch.linspace(0.0, 0.5, 8000)])
    found = find_plateaus(responses)
    assert selects(responses, found)[found.natural] == 8 * scale


@pytest.mark.parametrize(
    "responses",
    [[], [1.0], 3 * [1.0], 50 * [0.0], 50 * [1.0], 3 * [0.9] + 1000 * [0.0], 1000 * [0.99] + 3 * [0.0]],
    ids=["no pixel", "one", "few", "nothing", "everything", "chance", "nearly everything"],
)
def test_where_nothing_can_be_said_the_common_threshold_stands(responses: list[float]):
    assert find_plateaus(torch.tensor(responses)) == ((COMMON_THRESHOLD,), 0)


def test_everything_that_is_alike_is_not_the_natural_size():
    """Before shaping all responses are high: of what is stable, the room as a whole is left out."""
    responses = torch.cat([torch.full((50,), 0.99), torch.full((950,), 0.7), torch.full((3,), 0.1)])
    found = find_plateaus(responses)
    assert selects(responses, found) == [50]


@pytest.mark.parametrize("seed", range(20))
def test_properties(seed: int):
    generator = torch.Generator().manual_seed(seed)
    parts = [
        (torch.rand(1, generator=generator) + 0.1 * torch.randn(int(size), generator=generator)).clamp(0, 1)
        for size in 10 ** (1 + 2.5 * torch.rand(4, generator=generator))
    ]
    responses = torch.cat(parts)
    found = find_plateaus(responses)
    shuffled = responses[torch.randperm(len(responses), generator=generator)]
    assert find_plateaus(shuffled) == find_plateaus(responses.double()) == found
    assert list(found.levels) == sorted(set(found.levels), reverse=True)
    assert 0 <= found.natural < len(found.levels)
    sizes = selects(responses, found)
    # Each selects what the one before does, and clearly more; none is everything, or chance.
    assert all(more >= 1.2 * less for less, more in pairwise(sizes))
    if found.levels != (COMMON_THRESHOLD,):
        assert sizes[0] >= 4
        assert sizes[-1] <= 0.95 * len(responses)


def test_growing_ends_where_levels_do():
    plateaus = Plateaus((0.9, 0.6, 0.3), 1)
    assert [plateaus.used(grow) for grow in (-9, -1, 0, 1, 9)] == [0, 0, 1, 2, 2]
    assert plateaus.grown(0, 1) == 1
    assert plateaus.grown(1, 1) is None
    # Kept from a time when there were more levels: a step leads from the level that is shown.
    assert plateaus.grown(9, -1) == 0
    assert plateaus.grown(-9, 1) == 0


def test_a_chosen_threshold_stands_among_the_levels():
    assert Plateaus((0.9, 0.3), 1).around(0.5) == ((0.9, 0.5, 0.3), 1)
    assert Plateaus((0.9, 0.3), 1).around(0.9) == ((0.9, 0.3), 0)


def test_strictness_goes_from_all_to_nothing_but_itself():
    assert [moved(0.4, strictness) for strictness in (-1.0, -0.5, 0.0, 0.5, 1.0)] == pytest.approx(
        [0.0, 0.2, 0.4, 0.7, 1.0]
    )
