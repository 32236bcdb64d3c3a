"""Words resolved to places: where in a run's training photos a text fits best, and whether it fits at all."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from jacobinerf_ns.annotations.rays import rays_through
from jacobinerf_ns.annotations.schema import Place, TextSeed
from jacobinerf_ns.core.jacobian import NORM_EPS
from jacobinerf_ns.core.relevancy import relevancy, smoothed, spread_places, stands_out
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Extractor
from jacobinerf_ns.features.store import open_store
from jacobinerf_ns.features.surfaces import SurfacesConfig
from jacobinerf_ns.features.words import TextTeacher, canonical, checked, everyday, text_teacher, wordless
from jacobinerf_ns.files.grids import pixels_under
from jacobinerf_ns.files.names import image_name
from jacobinerf_ns.labels.seed_cache import SURFACE
from jacobinerf_ns.labels.tracer import in_eval_mode, trace_all
from jacobinerf_ns.labels.traces import Traced, surface_points
from jacobinerf_ns.pipeline import JacobiNeRFPipeline
from jacobinerf_ns.run.photos import Photo

PIXELS = 8192
"""Random training pixels that are asked."""
PLACES = 8
"""Places that stand for a text, at most."""
NEIGHBOURS = 32
"""Pixels of one entity whose features are taken together."""
THERE = 3.5
"""Deviations of everyday words from which on a text counts as being there: hardly any reaches it by chance."""
SUREST = 0.7
"""Share of the best place's deviations that every place has at least."""

Sampler = Callable[[Int[Tensor, "pixels 3"]], Float[Tensor, "pixels dim"]]
"""Gives features of training pixels (image, row, column)."""


class Answer(NamedTuple):
    """What is said of a text."""

    words: str
    model: str
    """Model of the words."""
    against: tuple[str, ...]
    """Words that it was compared with."""
    stands_out: float
    """Deviations of everyday words by which it fits its best place."""
    places: tuple[Place, ...]
    """Pixels of training photos that stand for it; none: nothing like that is here."""

    def __str__(self) -> str:
        """Say how sure it is, and on how many places it stands."""
        measured = f"it fits {self.stands_out:.1f} deviations better than everyday words do, from {THERE} on it counts"
        if not self.places:
            return f"nothing like {self.words!r} here: at best, {measured}"
        return f"{self.words!r} is here, at {len(self.places)} places: {measured}"

    def seed(self, label: int, negative: bool = False) -> TextSeed:
        """Return the answer as a seed of a label.

        Raises:
            UserError: nothing like that is here.
        """
        if not self.places:
            raise UserError(str(self))
        return TextSeed(
            label=label,
            negative=negative,
            words=self.words,
            model=self.model,
            against=self.against,
            stands_out=self.stands_out,
            places=self.places,
        )


def find_words(
    pipeline: JacobiNeRFPipeline,
    photos: Sequence[Photo],
    words: str,
    against: Sequence[str] = (),
    extractor: Extractor | None = None,
    features: Sampler | None = None,
) -> Answer:
    """Look for a text in a run's training photos.

    Args:
        pipeline: of an opened run; its field says which pixels belong together.
        photos: the training photos.
        words: what to look for.
        against: words that it must fit better than; none are the canonical ones.
        extractor: a teacher that knows words; None is the run's own.
        features: of training pixels by that teacher; None takes them from its cache, and makes what is missing.

    Raises:
        UserError: words that cannot be asked, or a teacher that knows none.
    """
    data, text = pipeline.datamanager, checked(words)
    teacher = own_teacher(pipeline) if extractor is None else text_teacher(extractor)
    negatives = compared_with(teacher, text, against)
    others = [word for word in everyday(teacher) if word.lower() != text.lower()]
    vectors = teacher.encode([text, *negatives, *others])
    if features is None:
        features = open_store(teacher, data.frames("train"), data.config.cache_dir).sample
    pixels = pipeline.random_training_pixels(PIXELS)
    similarity = torch.cat([_cosines(features(chunk), vectors) for chunk in pixels.split(1024)])
    jacobians, points, hit = _seen(pipeline, pixels)
    pixels, similarity, jacobians, points = pixels[hit], similarity[hit], jacobians[hit], points[hit]
    alone = stands_out(similarity[:, 0], similarity[:, 1 + len(negatives) :])
    similarity = smoothed(similarity, jacobians, NEIGHBOURS)
    query, compared = similarity[:, 0], similarity[:, 1 : 1 + len(negatives)]
    score = stands_out(query, similarity[:, 1 + len(negatives) :])
    best = float(score.max())
    fits = (score >= max(THERE, SUREST * best)) & (relevancy(query, compared) > 0.5)
    if not bool(fits.any()):
        return Answer(text, teacher.text_model(), negatives, best, ())
    fits &= alone >= alone[fits].median()  # beside an outline a pixel may resonate with what it is not
    chosen = fits.nonzero()[:, 0][spread_places(points[fits], score[fits], PLACES)]
    places = tuple(_place(photos, pixel) for pixel in pixels[chosen].tolist())
    return Answer(text, teacher.text_model(), negatives, best, places)


def own_teacher(pipeline: JacobiNeRFPipeline) -> TextTeacher:
    """Return the teacher that a run was trained with.

    Raises:
        UserError: it knows no words.
    """
    config = pipeline.datamanager.config.extractor
    if isinstance(config, SurfacesConfig):  # looks at no photo, and cannot be set up without its field
        raise wordless()
    return text_teacher(config.setup(device=pipeline.model.device))


def compared_with(teacher: TextTeacher, words: str, against: Sequence[str] = ()) -> tuple[str, ...]:
    """Return what words are compared with: `against`, or the canonical words; never the words themselves.

    Raises:
        UserError: nothing is left, or a word cannot be asked.
    """
    given = [checked(word) for word in against] or canonical(teacher)
    found = tuple(dict.fromkeys(word for word in given if word.lower() != words.strip().lower()))
    if not found:
        raise UserError(f"{words!r} is compared with nothing but itself: give other words with --against")
    return found


def _cosines(features: Float[Tensor, "pixels dim"], texts: Float[Tensor, "texts dim"]) -> Float[Tensor, "pixels texts"]:
    """Raise UserError where features are not of the texts' model."""
    if features.shape[1] != texts.shape[1]:
        raise UserError(
            f"the features have {features.shape[1]} dimensions and the words {texts.shape[1]}: "
            "they are of different models, give the words of the model that made the features"
        )
    return F.normalize(features.float(), dim=-1, eps=NORM_EPS).cpu() @ texts.T


@torch.no_grad()
def _seen(pipeline: JacobiNeRFPipeline, pixels: Int[Tensor, "pixels 3"]) -> tuple[Tensor, Tensor, Tensor]:
    """Return Jacobians, points in the scene and whether there is a surface, on the CPU."""
    model = pipeline.model

    def numbers(traced: Traced) -> tuple[Tensor, Tensor, Tensor]:
        opaque = traced.outputs["accumulation"][:, 0] > SURFACE
        return traced.jacobians.cpu(), surface_points(traced).cpu(), opaque.cpu()

    with in_eval_mode(model):
        rays = rays_through(pipeline.datamanager.train_dataset.cameras, pixels)
        return trace_all(model, rays, numbers, "Looking for words")


def _place(photos: Sequence[Photo], pixel: Sequence[int]) -> Place:
    """Return a training pixel (image, row, column) as one of the original photo."""
    index, row, column = pixel
    (height, width), camera = photos[index].size, photos[index].camera
    here = torch.tensor([[column, row]]).numpy()
    x, y = pixels_under(here, (int(camera.width), int(camera.height)), (width, height))[0].tolist()
    names = [photo.path for photo in photos]
    return Place(image=image_name(names, index), width=width, height=height, pixel=(x, y))
