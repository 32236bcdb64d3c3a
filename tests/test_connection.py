"""Connected responses: by hand, and against a search that tries every way on."""

import heapq

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from jacobinerf_ns.core.connection import carried_responses, surface_graph


def chain(count: int) -> csr_matrix:
    first = np.arange(count - 1)
    return csr_matrix((np.ones(count - 1), (first, first + 1)), shape=(count, count))


def slowly(responses: np.ndarray, graph: csr_matrix, starts: np.ndarray) -> np.ndarray:
    """Dijkstra's search with the least response of a path in the place of its length."""
    both, responses = (graph + graph.T).tolil(), responses.copy()
    responses[starts] = 1.0
    found, waiting = np.zeros_like(responses), [(-responses[start], start) for start in starts]
    heapq.heapify(waiting)
    seen: set[int] = set()
    while waiting:
        width, place = heapq.heappop(waiting)
        if place in seen:
            continue
        seen.add(place)
        found[place] = -width
        for beside in both.rows[place]:
            heapq.heappush(waiting, (-min(-width, responses[beside]), beside))
    return found


def test_a_path_carries_as_much_as_its_least_point():
    responses = np.array([[0.9], [0.8], [0.3], [0.7], [0.1]])
    found = carried_responses(responses, chain(5), [np.array([0])])
    np.testing.assert_allclose(found[:, 0], [1.0, 0.8, 0.3, 0.3, 0.1])


def test_seeds_on_both_sides_of_a_gap_carry_to_their_own():
    responses = np.array([[0.9], [0.8], [0.3], [0.7], [0.2]])
    found = carried_responses(responses, chain(5), [np.array([0, 4])])
    np.testing.assert_allclose(found[:, 0], [1.0, 0.8, 0.3, 0.7, 1.0])


def test_nothing_carries_over_a_gap_in_space_and_labels_without_seeds_select_nothing():
    rows = np.stack(np.meshgrid(np.arange(5.0), np.arange(5.0)), axis=-1).reshape(-1, 2)
    here = np.concatenate([rows, np.zeros((25, 1))], axis=1)
    graph = surface_graph(np.concatenate([here, here + np.array([100.0, 0.0, 0.0])]))
    found = carried_responses(np.full((50, 2), 0.9), graph, [np.array([3]), np.zeros(0, dtype=np.int64)])
    np.testing.assert_allclose(found[:, 0], [0.9, 0.9, 0.9, 1.0, *21 * [0.9], *25 * [0.0]])
    assert not found[:, 1].any()


def test_a_pixel_that_was_drawn_often_is_not_surrounded_by_itself():
    line = np.repeat([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]], 30, axis=0)
    found = carried_responses(np.full((90, 1), 0.9), surface_graph(line), [np.array([0])])
    np.testing.assert_allclose(found[1:, 0], 0.9)


@pytest.mark.parametrize("seed", range(5))
def test_the_tree_says_what_a_search_says(seed: int):
    rng = np.random.default_rng(seed)
    points, responses = rng.random((300, 3)), rng.random((300, 2)).round(1)  # rounded: many are the same
    responses[rng.random(300) < 0.2] = 0.0
    graph, starts = surface_graph(points), [rng.integers(0, 300, 1), rng.integers(0, 300, 6)]
    found = carried_responses(responses, graph, starts)
    for label in range(2):
        np.testing.assert_allclose(found[:, label], slowly(responses[:, label], graph, starts[label]), atol=1e-12)


def test_few_points_and_points_in_one_place_are_no_trouble():
    for points in (np.zeros((1, 3)), np.zeros((4, 3)), np.eye(3)):
        found = carried_responses(np.full((len(points), 1), 0.5), surface_graph(points), [np.array([0])])
        assert found[0, 0] == 1.0
        assert (found[1:] <= 0.5).all()
