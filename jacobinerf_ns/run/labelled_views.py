"""Views of a run with their labels as NumPy arrays: what `jacobinerf propagate` writes, and what Python code gets."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from nerfstudio.cameras.cameras import Cameras

from jacobinerf_ns.annotations.schema import Label
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.files.index_maps import VOID_ID
from jacobinerf_ns.files.names import find_image
from jacobinerf_ns.labels.snapshot import LabelSnapshot
from jacobinerf_ns.labels.tracer import Tracer
from jacobinerf_ns.labels.views import label_view
from jacobinerf_ns.progress import track
from jacobinerf_ns.run.photos import Photo, Split


@dataclass(frozen=True, eq=False)
class LabelledView:
    """One rendered view and its labels."""

    rgb: Float[np.ndarray, "height width 3"]
    """The rendering, 0..1."""
    depth: Float[np.ndarray, "height width"]
    """Distance along each ray to what it hits, in scene units."""
    ids: Int[np.ndarray, "height width"]
    """Id of each pixel's label; 0 is none."""
    confidence: Float[np.ndarray, "height width"]
    """How sure each pixel's label is, 0..1."""
    responses: Float[np.ndarray, "height width labels"]
    """How much each pixel resonates with each label, 0..1 (for the paper's decision: raw, in units of colour)."""
    labels: tuple[Label, ...]
    """Names, ids and colours, in the order of `responses`."""

    def mask(self, name: str) -> Bool[np.ndarray, "height width"]:
        """Say of each pixel whether it is the label's.

        Raises:
            UserError: no label has that name.
        """
        return self.ids == self.labels[self._position(name)].id

    def response(self, name: str) -> Float[np.ndarray, "height width"]:
        """Give each pixel's response to one label.

        Raises:
            UserError: no label has that name.
        """
        return self.responses[..., self._position(name)]

    def overlay(self, opacity: float = 0.6) -> Float[np.ndarray, "height width 3"]:
        """Paint the labels' colours over the rendering; pixels without a label stay as they are."""
        painted = self.rgb.copy()
        for label in self.labels:
            inside = self.ids == label.id
            painted[inside] += opacity * (np.array(label.colour, dtype=np.float32) / 255.0 - painted[inside])
        return painted

    def __repr__(self) -> str:
        """Name the size and the labels."""
        height, width = self.ids.shape
        return f"LabelledView({width}x{height}: {', '.join(label.name for label in self.labels)})"

    def _position(self, name: str) -> int:
        names = [label.name for label in self.labels]
        if name not in names:
            raise UserError(f"no label {name!r} in this view: expected one of {', '.join(map(repr, names))}")
        return names.index(name)


class Labels:
    """Labels of a run as they were fitted; what is clicked, fitted or saved later does not change them."""

    def __init__(
        self, tracer: Tracer, snapshot: LabelSnapshot, photos: Callable[[Split, bool], Sequence[Photo]]
    ) -> None:
        """`photos` lists those of a split, with cameras of the training resolution (False) or of the originals."""
        self.snapshot = snapshot
        """All that responses are made of; immutable."""
        self._tracer, self._photos = tracer, photos

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(label.name for label in self.snapshot.labels)

    def render(self, view: str | Cameras, full_resolution: bool = False) -> LabelledView:
        """Render a view and its labels.

        Args:
            view: the name of a photo of the capture, trained on or held out, or one camera of nerfstudio's, in the
                run's scene frame.
            full_resolution: render a photo at its original size instead of the size that the run trains with.

        Raises:
            UserError: there is no such photo, or not one camera.
        """
        if isinstance(view, str):
            photos = self._photos("all", full_resolution)
            return self._render(photos[find_image(view, [photo.path for photo in photos], "photos")].camera)
        if full_resolution:
            raise UserError("full_resolution is about photos, and a camera has a size of its own: leave it out")
        if view.size != 1:
            raise UserError(f"found {view.size} cameras, expected one: render cameras[i : i + 1] in turn")
        return self._render(view)

    def render_all(
        self, split: Split = "all", full_resolution: bool = False, progress: bool = True
    ) -> Iterator[tuple[str, LabelledView]]:
        """Render the photos of a split one after the other, each when it is asked for.

        Args:
            split: photos the run was trained on (`train`), those held out (`test`), or both (`all`).
            full_resolution: as for `render`.
            progress: show a progress bar, which is gone when all are done.

        Returns:
            Pairs of a photo's name, relative to the capture's folder, and its view.

        Raises:
            UserError: there is no such split.
        """
        photos = self._photos(split, full_resolution)
        shown = track(photos, "Labelling", transient=True, disable=not progress)
        return ((photo.name, self._render(photo.camera)) for photo in shown)

    def __repr__(self) -> str:
        """Name the labels."""
        return f"Labels({', '.join(self.names)})"

    def _render(self, camera: Cameras) -> LabelledView:
        rays = camera.generate_rays(camera_indices=0, keep_shape=True)
        view = label_view(self._tracer, rays, self.snapshot)
        ids = np.array([VOID_ID, *(label.id for label in self.snapshot.labels)])
        return LabelledView(
            rgb=view.rgb.cpu().numpy(),
            depth=view.depth[..., 0].cpu().numpy(),
            ids=ids[view.decision.labels.cpu().numpy()],
            confidence=view.decision.confidence.cpu().numpy(),
            responses=view.responses.cpu().numpy(),
            labels=self.snapshot.labels,
        )
