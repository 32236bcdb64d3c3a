"""Words asked of a run: of its feature field where there is one, else of what the teacher says of the photos."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from nerfstudio.cameras.cameras import Cameras
from torch import Tensor

from jacobinerf_ns.annotations.rays import rays_through
from jacobinerf_ns.core.jacobian import NORM_EPS
from jacobinerf_ns.core.relevancy import relevancy
from jacobinerf_ns.features.words import TextTeacher
from jacobinerf_ns.labels.tracer import in_eval_mode, trace_all
from jacobinerf_ns.labels.traces import Traced
from jacobinerf_ns.labels.words import Answer, Sampler
from jacobinerf_ns.model import JacobiNeRFModel
from jacobinerf_ns.run.opened import Run
from jacobinerf_ns.tasks.feature_field.field import FeatureField
from jacobinerf_ns.tasks.feature_field.files import feature_field_path, load_feature_field


def ask(run: Run, words: str, against: Sequence[str] = (), teacher: TextTeacher | None = None) -> Answer:
    """Look for a text in a run.

    Args:
        run: an opened run.
        words: what to look for.
        against: words that it must fit better than; none are the canonical ones.
        teacher: that looks at the photos now; None is the run's own, with its feature field where there is one.

    Raises:
        UserError: words that cannot be asked, a teacher that knows none, or a feature field of another teacher.
    """
    if teacher is None and feature_field_path(run).exists():
        own = run.pipeline.words.own_teacher()
        feature_field = load_feature_field(run, own.fingerprint())
        return run.pipeline.words.find(words, against, own, distilled(run, feature_field))
    return run.pipeline.words.find(words, against, teacher)


def distilled(run: Run, feature_field: FeatureField) -> Sampler:
    """Return what samples distilled features at training pixels."""
    model, cameras = run.pipeline.model, run.pipeline.datamanager.train_dataset.cameras

    @torch.no_grad()
    def sample(pixels: Int[Tensor, "pixels 3"]) -> Float[Tensor, "pixels dim"]:
        with in_eval_mode(model):
            return trace_all(model, rays_through(cameras, pixels), lambda traced: feature_field.rendered(traced).cpu())

    return sample


@torch.no_grad()
def view_relevancy(
    model: JacobiNeRFModel,
    feature_field: FeatureField,
    camera: Cameras,
    text: Float[Tensor, " dim"],
    others: Float[Tensor, "others dim"],
) -> Float[Tensor, "height width"]:
    """Return how much likelier a view's distilled features are the text than any of the others, 0..1, on the CPU.

    The model is in eval mode.
    """
    rays = camera.to(model.device).generate_rays(camera_indices=0, keep_shape=True)
    query, compared = text.to(model.device), others.to(model.device)

    def look(traced: Traced) -> Float[Tensor, "rays"]:
        directions = F.normalize(feature_field.rendered(traced).float(), dim=-1, eps=NORM_EPS)
        return relevancy(directions @ query, directions @ compared.T)

    return trace_all(model, rays.flatten(), look).view(rays.origins.shape[:2]).cpu()
