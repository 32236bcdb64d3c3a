"""What views cost: a chunk of rays, an edited mask, kept views and moving previews are bounded by settings."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from allocated import peak_bytes
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from test_editing import look
from torch import Tensor

from jacobinerf_ns.annotations.schema import Edit, Label
from jacobinerf_ns.config import FULL_MODEL, LITE_MODEL
from jacobinerf_ns.core.propagation import PropagationConfig, Prototypes
from jacobinerf_ns.labels import edits, memory, views
from jacobinerf_ns.labels.memory import FEWEST_RAYS, ChunkSize
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.labels.traces import Piece
from jacobinerf_ns.model import JacobiNeRFModelConfig
from jacobinerf_ns.panel.renderer import SteadyRenderer

MIB = 1 << 20
SOMEWHERE = torch.device("meta")
"""A device that is no CPU, whose memory the tests name."""


def some_rays(count: int) -> RayBundle:
    directions = torch.nn.functional.normalize(
        torch.randn(count, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    return RayBundle(
        origins=torch.zeros(count, 3),
        directions=directions,
        pixel_area=torch.full((count, 1), 1e-4),
        camera_indices=torch.zeros(count, 1).long(),
        nears=torch.zeros(count, 1),
        fars=torch.full((count, 1), 6.0),
    )


@pytest.mark.parametrize("config", [FULL_MODEL, LITE_MODEL], ids=["full size", "lite"])
def test_a_chunk_takes_no_more_than_is_reckoned_with(config: JacobiNeRFModelConfig):
    config = replace(config, implementation="torch", log2_hashmap_size=12, entity_log2_hashmap_size=12)
    box = SceneBox(torch.tensor([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]]))
    model = config.setup(scene_box=box, num_train_data=4, metadata={}, device="cpu", grad_scaler=None).eval()
    model.step = 0
    rays = some_rays(160)
    with torch.no_grad():
        taken = peak_bytes(lambda: Piece(model.trace(rays)).light()) / len(rays)
    # What is reckoned with was found as resident memory, of which tensors are a half at most.
    assert model.bytes_per_ray / 5 < taken < model.bytes_per_ray / 2
    assert model.rays_at_once == config.eval_num_rays_per_chunk


def test_chunks_follow_free_memory_and_stay_as_they_are(monkeypatch: pytest.MonkeyPatch):
    free = [64 << 30]
    monkeypatch.setattr(memory, "free_bytes", lambda device: free[0])
    size, ray = ChunkSize(), 500_000

    def rays(configured: int = 1 << 15) -> int:
        return size.rays(configured, ray, SOMEWHERE)

    assert rays() == 1 << 15  # as configured: there is room for more
    free[0] = 24 << 30
    assert rays() == 16384
    free[0] = 20 << 30
    assert rays() == 16384  # which still has room: what is kept of views stays
    free[0] = 2 << 30
    assert rays() == 2048
    assert rays(100) == 100
    free[0] = 64 << 30
    assert rays() == 2048
    free[0] = 0
    assert rays() == FEWEST_RAYS


def masked(prototypes: int, hidden: int = 2) -> LabelSnapshot:
    """A label of a mask, whose rays are its prototypes, one of another, and a "not this" click."""
    generator = torch.Generator().manual_seed(1)
    labels = (Label(id=1, name="mask", colour=(9, 9, 9)), Label(id=2, name="rest", colour=(9, 9, 9)))
    owners = torch.zeros(prototypes).long()
    owners[prototypes // 2] = 1
    positive = torch.ones(prototypes, dtype=torch.bool)
    positive[-1] = False
    vectors = torch.randn(prototypes, 3 * hidden, generator=generator)
    chosen = Prototypes(vectors, owners, positive, torch.ones(prototypes))
    return LabelSnapshot(labels, chosen, PropagationConfig(threshold=0.3), edits=(Edit(kind="remove", label=1),))


def edited(rays: RayBundle, snapshot: LabelSnapshot) -> Tensor:
    return edits.edited_colour(look, rays, look(rays), snapshot)


def test_an_edited_mask_takes_no_more_than_its_setting(monkeypatch: pytest.MonkeyPatch):
    rays, snapshot = some_rays(512), masked(512)
    monkeypatch.setattr(edits, "BLOCK_BYTES", 2 * MIB, raising=False)
    without = peak_bytes(lambda: edited(rays, masked(2)))
    peak = peak_bytes(lambda: edited(rays, snapshot))
    assert edits.BLOCK_BYTES < peak - without < 16 * edits.BLOCK_BYTES


@pytest.mark.parametrize("per_block", [1, 3, 64])
def test_blocks_of_prototypes_change_no_response(monkeypatch: pytest.MonkeyPatch, per_block: int):
    traced, snapshot = look(some_rays(5)), masked(7)
    whole = edits._sample_responses(traced, snapshot)
    monkeypatch.setattr(edits, "BLOCK_BYTES", per_block * traced.weights.nbytes)
    torch.testing.assert_close(edits._sample_responses(traced, snapshot), whole)
    assert float(whole.max()) > 0.5


def test_labels_without_prototypes_have_no_edited_samples():
    traced, snapshot = look(some_rays(5)), masked(7)
    nothing = snapshot.prototypes._replace(**{name: rows[:0] for name, rows in snapshot.prototypes._asdict().items()})
    assert not edits._sample_responses(traced, replace(snapshot, prototypes=nothing)).any()


def test_views_are_kept_within_what_is_free_now(monkeypatch: pytest.MonkeyPatch):
    free = [1 << 30]
    monkeypatch.setattr(views, "free_bytes", lambda device: free[0])
    piece, rays = Piece(look(some_rays(64))), some_rays(64)
    size = piece.compact().nbytes
    kept = views.KeptViews(device=SOMEWHERE)
    view = kept.view(rays, "weights")
    kept.keep(view, 0, piece)
    assert view.nbytes == size
    free[0] = 0  # as when training has begun
    kept.keep(view, 1, piece)
    assert list(view.pieces) == [0]
    free[0] = 8 * size
    kept.keep(view, 1, piece)
    assert view.nbytes == 2 * size


@pytest.mark.parametrize("aspect", [16 / 9, 1.0, 0.6])
def test_a_slow_field_still_shows_where_a_camera_goes(aspect: float):
    renderer: Any = object.__new__(SteadyRenderer)
    renderer.state, renderer.target_fps, renderer._rate = "low_move", 24, 1.0
    renderer.viewer = SimpleNamespace(control_panel=SimpleNamespace(max_res=512))
    height, width = renderer._calculate_image_res(aspect)
    assert 60 <= min(height, width) <= 62
    assert width / height == pytest.approx(aspect, rel=0.02)
