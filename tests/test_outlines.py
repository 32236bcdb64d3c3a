"""The line around a selection, and where a page begins: on views and cameras small enough to see the answer."""

import math

import torch

from jacobinerf_ns.core.viewpoints import good_viewpoint
from jacobinerf_ns.labels.outlines import draw_outline, line_width, outline


def test_the_line_lies_around_a_thing_and_not_on_it():
    selected = torch.zeros(12, 14, dtype=torch.bool)
    selected[3:8, 4:10] = True
    line = outline(selected)
    around = torch.zeros_like(selected)
    around[2:9, 3:11] = True
    corners = torch.zeros_like(selected)
    # Of a corner's 3x3 window four pixels are selected: it is rounded off, and so is the line.
    corners[[2, 2, 8, 8], [3, 10, 3, 10]] = True
    assert torch.equal(line, around & ~selected & ~corners)


def test_single_pixels_and_holes_get_no_line_and_neither_does_the_edge_of_the_view():
    selected = torch.zeros(12, 14, dtype=torch.bool)
    selected[:6] = True
    plain = outline(selected)
    assert plain[6].all()
    assert plain.sum() == 14
    selected[9, 3] = True
    selected[2, 5] = False
    assert torch.equal(outline(selected), plain)
    assert not outline(torch.ones_like(selected)).any()
    assert not outline(torch.zeros_like(selected)).any()


def test_larger_views_get_wider_lines():
    assert [line_width(*size) for size in ((48, 64), (198, 264), (1080, 1920), (1920, 1080))] == [1, 1, 4, 4]
    selected = torch.zeros(600, 600, dtype=torch.bool)
    selected[:, :300] = True
    drawn = draw_outline(torch.zeros(600, 600, 3), selected)
    assert drawn[5, :, 0].nonzero()[:, 0].tolist() == [300, 301]


def looking(position: tuple[float, float, float], at: tuple[float, float, float]) -> torch.Tensor:
    """A camera to scene, with its up as near to z as can be."""
    origin, target = torch.tensor(position), torch.tensor(at)
    back = torch.nn.functional.normalize(origin - target, dim=0)
    right = torch.nn.functional.normalize(torch.linalg.cross(torch.tensor([0.0, 0.0, 1.0]), back), dim=0)
    return torch.stack([right, torch.linalg.cross(back, right), back, origin], dim=1)


def test_a_page_begins_where_most_is_seen_and_not_where_a_camera_looks_away():
    around = [2 * math.pi * turn / 8 for turn in range(8)]
    ring = [looking((math.cos(angle), math.sin(angle), 0.3), (0.0, 0.0, 0.0)) for angle in around]
    away = looking((0.1, 0.0, 0.3), (5.0, 0.0, 3.0))  # the most central of all
    poses, tangents = torch.stack([away, *ring]), torch.full((9, 2), 0.5)
    found = good_viewpoint(poses, tangents)
    assert found.view != 0
    assert 0.5 < found.distance < 2.0
    # Where all see as much, the most central one is taken.
    nearer = looking((0.7, 0.0, 0.2), (0.0, 0.0, 0.0))
    assert good_viewpoint(torch.stack([*ring, nearer]), torch.full((9, 2), 3.0)).view == 8


def test_one_photo_is_enough_to_begin_with():
    assert good_viewpoint(looking((1.0, 0.0, 0.0), (0.0, 0.0, 0.0))[None], torch.ones(1, 2)).view == 0
