"""Words resolved to places: where in the training photos of a field a text fits best, and whether it fits at all."""

import base64
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from jacobinerf_ns.annotations.rays import rays_through
from jacobinerf_ns.annotations.schema import Place, TextSeed
from jacobinerf_ns.compat.console import quiet_nerfstudio
from jacobinerf_ns.core.jacobian import NORM_EPS
from jacobinerf_ns.core.relevancy import relevancy, smoothed, spread_places, stands_out
from jacobinerf_ns.datamanager import FeatureDataManager
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Extractor
from jacobinerf_ns.features.store import open_store
from jacobinerf_ns.features.surfaces import SurfacesConfig
from jacobinerf_ns.features.words import TextTeacher, canonical, checked, everyday, text_teacher, wordless
from jacobinerf_ns.files.grids import pixels_under
from jacobinerf_ns.files.names import image_name
from jacobinerf_ns.labels.seed_cache import SURFACE
from jacobinerf_ns.labels.snapshot import RELEVANCY_PIXELS
from jacobinerf_ns.labels.tracer import Tracer, in_eval_mode, trace_all
from jacobinerf_ns.labels.traces import Traced, surface_points

PLACES = 8
"""Places that stand for a text, at most."""
NEIGHBOURS = 32
"""Pixels of one entity whose features are taken together."""
THERE = 3.5
"""Deviations of everyday words from which on a text counts as being there: hardly any reaches it by chance."""
SUREST = 0.7
"""Share of the best place's deviations that every place has at least."""
_CHUNK = 1024
"""Pixels whose features are read at a time."""

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
    relevancy: str = ""
    """Of the first random training pixels, as a `TextSeed` keeps it."""
    photos: int = 0
    """Training photos."""

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
            relevancy=self.relevancy,
            photos=self.photos,
        )


class _Originals(NamedTuple):
    names: list[Path]
    sizes: list[tuple[int, int]]
    """(width, height), pixels."""


class _Seen(NamedTuple):
    """What the field says of the pixels, on the CPU."""

    version: Hashable
    """Of the weights."""
    hit: Bool[Tensor, "pixels"]
    """Whether there is a surface; the rest is of those that have one."""
    jacobians: Float[Tensor, "places dims"]
    points: Float[Tensor, "places 3"]
    """Scene units."""


class Words:
    """Looks for texts in the training photos of a field, and keeps what a second question need not ask again."""

    def __init__(self, tracer: Tracer, data: FeatureDataManager, pixels: Int[Tensor, "pixels 3"]) -> None:
        """Look at training pixels (image, row, column) of `data`, by the eyes of the field in `tracer`."""
        self._tracer, self._data, self._pixels = tracer, data, pixels
        self._own: tuple[Any, TextTeacher] | None = None
        """The run's own teacher, with the config that it was made of."""
        self._features: tuple[TextTeacher, Float[Tensor, "pixels dim"]] | None = None
        """Of the pixels, by that teacher."""
        self._seen: _Seen | None = None

    def find(
        self,
        words: str,
        against: Sequence[str] = (),
        extractor: Extractor | None = None,
        features: Sampler | None = None,
        lock: AbstractContextManager[Any] | None = None,
    ) -> Answer:
        """Look for a text.

        Args:
            words: what to look for.
            against: words that it must fit better than; none are the canonical ones.
            extractor: a teacher that knows words; None is the run's own.
            features: of training pixels by that teacher; None takes them from its cache, and makes what is missing.
            lock: held while the field is asked, where others ask or train it meanwhile.

        Raises:
            UserError: words that cannot be asked, or a teacher that knows none.
        """
        text = checked(words)
        teacher = self.own_teacher() if extractor is None else text_teacher(extractor)
        negatives = compared_with(teacher, text, against)
        others = [word for word in everyday(teacher) if word.lower() != text.lower()]
        vectors = teacher.encode([text, *negatives, *others])
        if extractor is None and features is None:
            sampled = self._own_features()
        else:
            sampled = self._sample(features or self._in_photos(teacher))
        cosines = _cosines(sampled, vectors)
        with lock or nullcontext():
            seen = self._look()
        return self._answer(Answer(text, teacher.text_model(), negatives, 0.0, ()), cosines[seen.hit], seen)

    def _answer(self, asked: Answer, cosines: Float[Tensor, "places texts"], seen: _Seen) -> Answer:
        """Return the answer to a text: its cosines come first, then those of `against`, then those of other words."""
        after = 1 + len(asked.against)
        alone = stands_out(cosines[:, 0], cosines[:, after:])
        cosines = smoothed(cosines, seen.jacobians, NEIGHBOURS)
        score, relevant = stands_out(cosines[:, 0], cosines[:, after:]), relevancy(cosines[:, 0], cosines[:, 1:after])
        asked = asked._replace(stands_out=float(score.max()))
        fits = (score >= max(THERE, SUREST * asked.stands_out)) & (relevant > 0.5)
        if not bool(fits.any()):
            return asked
        places = self._places(fits, alone, score, seen)
        return asked._replace(places=places, relevancy=_kept(relevant, seen.hit), photos=len(self._originals.sizes))

    def likest(self, query: Float[Tensor, "features"], features: Sampler, threshold: float) -> tuple[Place, ...]:
        """Return the places of a vector of features, such as a pixel's or a picture's, as those of words are found.

        Args:
            query: the vector.
            features: of training pixels, in the vector's space.
            threshold: cosine that a place reaches at least; none is returned where nothing does.
        """
        seen = self._look()
        alone = _cosines(self._sample(features), F.normalize(query.float().cpu(), dim=0)[None])[seen.hit]
        score = smoothed(alone, seen.jacobians, NEIGHBOURS)[:, 0]
        fits = score >= threshold
        return self._places(fits, alone[:, 0], score, seen) if bool(fits.any()) else ()

    def _places(
        self, fits: Bool[Tensor, "places"], alone: Float[Tensor, "places"], score: Float[Tensor, "places"], seen: _Seen
    ) -> tuple[Place, ...]:
        """Return the best of the places that fit and others that are spread over the scene, of the better half alone.

        Beside an outline a pixel may resonate with what it is not.
        """
        fits = fits & (alone >= alone[fits].median())
        chosen = fits.nonzero()[:, 0][spread_places(seen.points[fits], score[fits], PLACES)]
        return tuple(self._place(pixel) for pixel in self._pixels[seen.hit][chosen].tolist())

    def own_teacher(self) -> TextTeacher:
        """Return the teacher that the run was trained with.

        Raises:
            UserError: it knows no words.
        """
        config = self._data.config.extractor
        if self._own is None or self._own[0] is not config:
            if isinstance(config, SurfacesConfig):  # looks at no photo, and cannot be set up without its field
                raise wordless()
            self._own = config, text_teacher(config.setup(device=self._tracer.device))
        return self._own[1]

    def _sample(self, sampler: Sampler) -> Float[Tensor, "pixels dim"]:
        return torch.cat([sampler(chunk) for chunk in self._pixels.split(_CHUNK)])

    def _own_features(self) -> Float[Tensor, "pixels dim"]:
        teacher = self.own_teacher()
        if self._features is None or self._features[0] is not teacher:
            self._features = teacher, self._sample(self._in_photos(teacher))
        return self._features[1]

    def _in_photos(self, teacher: TextTeacher) -> Sampler:
        return open_store(teacher, self._data.frames("train"), self._data.config.cache_dir).sample

    @torch.no_grad()
    def _look(self) -> _Seen:
        """Ask the field about the pixels, once for all questions of the same weights.

        Raises:
            UserError: it has no surface.
        """
        version = self._tracer.weights_version
        if self._seen is None or self._seen.version != version:
            rays = rays_through(self._data.train_dataset.cameras, self._pixels)
            with in_eval_mode(self._tracer):
                jacobians, points, hit = trace_all(self._tracer, rays, _numbers)
            if not bool(hit.any()):
                raise UserError("the field has no surface yet to look for words on: let it train on")
            self._seen = _Seen(version, hit, jacobians[hit], points[hit])
        return self._seen

    @cached_property
    def _originals(self) -> _Originals:
        with quiet_nerfstudio():
            listed = self._data.originals("train")
        sizes = torch.cat([listed.cameras.width, listed.cameras.height], dim=-1).tolist()
        return _Originals(list(listed.image_filenames), [(width, height) for width, height in sizes])

    def _place(self, pixel: Sequence[int]) -> Place:
        """Return a training pixel as one of the original photo."""
        index, row, column = pixel
        camera, (width, height) = self._data.train_dataset.cameras[index], self._originals.sizes[index]
        trained = (int(camera.width), int(camera.height))
        x, y = pixels_under(np.array([[column, row]]), trained, (width, height))[0].tolist()
        return Place(image=image_name(self._originals.names, index), width=width, height=height, pixel=(x, y))


def knows_words(data: FeatureDataManager) -> bool:
    """Return whether the teacher of a run says that it can be asked in words; it is not set up for that."""
    return bool(getattr(data.config.extractor, "knows_words", False))


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


def _kept(relevant: Float[Tensor, "places"], hit: Bool[Tensor, "pixels"]) -> str:
    """Return the relevancy of the first pixels as text, a byte each; where there is no surface it is 0."""
    values = torch.zeros(len(hit))
    values[hit] = relevant
    return base64.b64encode((values[:RELEVANCY_PIXELS] * 255).round().to(torch.uint8).numpy().tobytes()).decode()


def _numbers(traced: Traced) -> tuple[Tensor, Tensor, Tensor]:
    opaque = traced.outputs["accumulation"][:, 0] > SURFACE
    return traced.jacobians.cpu(), surface_points(traced).cpu(), opaque.cpu()
