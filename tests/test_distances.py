"""Where rays meet surfaces, against rays that are made by hand."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from jacobinerf_ns.core.distances import surface_distances

T = torch.tensor([[1.0, 2.0, 2.1, 2.2, 5.0]])


def test_the_mean_of_what_is_near_the_median() -> None:
    """Samples at 2, 2.1 and 2.2 are one surface; what is grazed before it and shines through behind it is not."""
    w = torch.tensor([[0.1, 0.1, 0.5, 0.1, 0.2]])
    torch.testing.assert_close(surface_distances(w, T), torch.tensor([(0.2 + 1.05 + 0.22) / 0.7]))
    expected = (w * T).sum() / w.sum()
    assert abs(expected - 2.1) > 0.3 > abs(surface_distances(w, T) - 2.1)


def test_a_ray_that_meets_nothing_ends_at_its_last_sample() -> None:
    """As with nerfacto's median; also where the ray is quite empty."""
    assert surface_distances(torch.zeros(1, 5), T) == 5.0
    assert surface_distances(torch.tensor([[0.0, 0.4, 0.0, 0.0, 0.01]]), T) == 5.0


def test_one_sample_says_where_it_is() -> None:
    """An opaque wall at one sample."""
    torch.testing.assert_close(surface_distances(torch.tensor([[0.0, 0.0, 1.0, 0.0, 0.0]]), T), torch.tensor([2.1]))


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.floats(0.01, 100))
def test_units_do_not_matter_and_the_surface_is_among_the_samples(parts: list[float], scale: float) -> None:
    """A scene that is scaled has its surfaces scaled."""
    w = torch.tensor([[*parts, 0.5]], dtype=torch.float64)
    w, t = w / w.sum(), T.double()
    found = surface_distances(w, t)
    torch.testing.assert_close(surface_distances(w, scale * t), scale * found)
    assert 1.0 <= float(found) <= 5.0
