"""How well shaping itself worked: cosines of pixel pairs, and nearest prototypes by simulated clicks.

Letters of `metrics.py`. A click's prototype is the Jacobian of the clicked pixel; every held-out pixel takes the class
of the prototype that its own Jacobian has the largest cosine with.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from jacobinerf_ns.core import metrics
from jacobinerf_ns.core.jacobian import cosine_response
from jacobinerf_ns.datamanager import FeatureDataManager
from jacobinerf_ns.evaluation.annotators import draw_pixels, view_with_most_ids
from jacobinerf_ns.features.store import PixelFeatures
from jacobinerf_ns.files.index_maps import VOID_ID
from jacobinerf_ns.labels.tracer import trace_all
from jacobinerf_ns.labels.truth import read_truth
from jacobinerf_ns.model import JacobiNeRFModel
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.progress import track


class ClickedPixel(NamedTuple):
    """One labelled pixel."""

    row: int
    col: int
    label: int


class RenderedView(NamedTuple):
    """Colour and Jacobians of a view, from one query of the field."""

    rgb: Float[Tensor, "height width channels"]
    jacobians: Float[Tensor, "height width dims"]


@dataclass(frozen=True)
class OneClickReport:
    """Scores of one trained field on its held-out views."""

    psnr: float
    """Mean over the held-out views, dB."""
    cosine_same: float
    """Mean Jacobian cosine of pixel pairs of one class."""
    cosine_different: float
    """The same of pairs of different classes."""
    cosine_gap: float
    """The one minus the other."""
    click_miou: tuple[float, ...]
    """Pooled mIoU by one click per class, per click seed."""
    dense_miou: float
    """Pooled mIoU with every pixel of the clicked view labelled, nearest neighbour."""
    clicked_view: str
    """File name of the clicked view: the training view with most classes."""

    @property
    def mean_click_miou(self) -> float:
        """Mean over the click seeds."""
        return sum(self.click_miou) / len(self.click_miou)

    def as_dict(self) -> dict[str, Any]:
        """Return everything for JSON, with the mean."""
        return {**asdict(self), "mean_click_miou": self.mean_click_miou}


def one_click_per_class(class_map: Int[Tensor, "height width"], seed: int) -> list[ClickedPixel]:
    """Draw a pixel of each class of a view."""
    rows, cols = draw_pixels(class_map, 1, seed)
    labels = class_map[rows, cols]
    return [ClickedPixel(*spot) for spot in zip(rows.tolist(), cols.tolist(), labels.tolist(), strict=True)]


@torch.no_grad()
def render_jacobians(model: JacobiNeRFModel, camera: Cameras) -> RenderedView:
    """Render colour and Jacobians of a view; the model has to be in eval mode."""
    rays = camera.to(model.device).generate_rays(camera_indices=0, keep_shape=True)
    picked = trace_all(model, rays.flatten(), lambda traced: (traced.outputs["rgb"], traced.jacobians))
    rgb, jacobians = (part.view(*rays.origins.shape[:2], -1).cpu() for part in picked)
    return RenderedView(rgb, jacobians)


def nearest_label(
    vectors: Float[Tensor, "pixels dims"], prototypes: Float[Tensor, "labels dims"], labels: Int[Tensor, "labels"]
) -> Int[Tensor, "pixels"]:
    """Return the label of the prototype with the largest cosine, in chunks that bound the memory."""
    return torch.cat([labels[cosine_response(part, prototypes).argmax(-1)] for part in vectors.split(8192)])


def score_vectors(
    clicked: Float[Tensor, "height width dims"],
    held_out: Float[Tensor, "pixels dims"],
    clicked_classes: Int[Tensor, "height width"],
    held_out_classes: Int[Tensor, "pixels"],
    click_seeds: Sequence[int],
) -> tuple[tuple[float, ...], float]:
    """Score any pixel vectors by nearest prototype.

    The same protocol for Jacobians and for a teacher's features, so that their numbers compare.

    Returns:
        mIoU per click seed, and mIoU from all labels of the clicked view.
    """
    num_classes = int(max(clicked_classes.max(), held_out_classes.max())) + 1

    def miou(prototypes: Tensor, labels: Tensor) -> float:
        predicted = nearest_label(held_out, prototypes, labels)
        return metrics.scores(metrics.confusion_matrix(predicted, held_out_classes, num_classes)).miou

    by_click = []
    for seed in click_seeds:
        clicks = one_click_per_class(clicked_classes, seed)
        prototypes = torch.stack([clicked[click.row, click.col] for click in clicks])
        by_click.append(miou(prototypes, torch.tensor([click.label for click in clicks])))
    known = clicked_classes != VOID_ID
    return tuple(by_click), miou(clicked[known], clicked_classes[known])


def evaluate_one_click(pipeline: JacobiNeRFPipeline, click_seeds: Sequence[int] = (0, 1, 2, 3)) -> OneClickReport:
    """Render the held-out views and the training view with most classes, and score them."""
    data = pipeline.datamanager
    frames, held_out = data.frames("train"), data.frames("eval")
    train_maps, truth = read_truth(frames), torch.stack(read_truth(held_out))
    place = view_with_most_ids(train_maps)
    pipeline.eval()
    views = list(_render_eval_views(pipeline))
    clicked = render_jacobians(pipeline.model, data.train_dataset.cameras[place : place + 1]).jacobians
    vectors, classes = torch.cat([view.jacobians.flatten(0, 1) for view in views]), truth.flatten()
    by_click, dense = score_vectors(clicked, vectors, train_maps[place], classes, click_seeds)
    gap = metrics.cosine_gap(vectors, classes)
    return OneClickReport(
        psnr=_mean_psnr(pipeline, views),
        cosine_same=gap.same,
        cosine_different=gap.different,
        cosine_gap=gap.gap,
        click_miou=by_click,
        dense_miou=dense,
        clicked_view=frames[place].path.name,
    )


def held_out_psnr(pipeline: JacobiNeRFPipeline) -> float:
    """Return the mean PSNR of the held-out views in dB, for captures without label maps."""
    pipeline.eval()
    return _mean_psnr(pipeline, list(_render_eval_views(pipeline)))


def evaluate_teacher(data: FeatureDataManager, click_seeds: Sequence[int] = (0, 1, 2, 3)) -> dict[str, Any]:
    """Score the teacher's own features of the photographs alike: what shaping was given to learn from.

    No field takes part; a rival that has to see every photograph it labels.
    """
    frames, held_out = data.frames("train"), data.frames("eval")
    train_maps, truth = read_truth(frames), torch.stack(read_truth(held_out))
    place = view_with_most_ids(train_maps)
    clicked = _all_pixels(data.teacher_store("train"), [place])[0]
    vectors = _all_pixels(data.teacher_store("eval"), range(len(held_out))).flatten(0, 2)
    by_click, dense = score_vectors(clicked, vectors, train_maps[place], truth.flatten(), click_seeds)
    gap = metrics.cosine_gap(vectors, truth.flatten())
    return {
        "click_miou": by_click,
        "mean_click_miou": sum(by_click) / len(by_click),
        "dense_miou": dense,
        "cosine_gap": gap.gap,
    }


def _all_pixels(store: PixelFeatures, images: Sequence[int]) -> Float[Tensor, "views height width features"]:
    height, width = store.sizes[images[0]]
    rows, cols = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = [torch.stack([torch.full_like(rows, image), rows, cols], dim=-1).flatten(0, 1) for image in images]
    return torch.stack([store.sample(indices).view(height, width, -1) for indices in pixels])


def _mean_psnr(pipeline: JacobiNeRFPipeline, views: Sequence[RenderedView]) -> float:
    photos = [pipeline.datamanager.eval_dataset[i]["image"][..., :3] for i in range(len(views))]
    values = [metrics.psnr(view.rgb, photo) for view, photo in zip(views, photos, strict=True)]
    return sum(values) / len(values)


def _render_eval_views(pipeline: JacobiNeRFPipeline) -> Iterator[RenderedView]:
    cameras = pipeline.datamanager.eval_dataset.cameras
    for i in track(range(len(cameras)), description="Rendering held-out views"):
        yield render_jacobians(pipeline.model, cameras[i : i + 1])
