"""Keeps the labels that a model renders in step with the annotation file and with the weights."""

import base64
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from nerfstudio.cameras.rays import RayBundle
from scipy.sparse import csr_matrix
from scipy.spatial import KDTree
from torch import Tensor

from jacobinerf_ns.annotations.rays import SeedRays
from jacobinerf_ns.annotations.schema import Annotations, TextSeed
from jacobinerf_ns.annotations.store import AnnotationStore
from jacobinerf_ns.core.connection import carried_responses, surface_graph
from jacobinerf_ns.core.jacobian import cosine_response
from jacobinerf_ns.core.partition import Partition, leaves_at
from jacobinerf_ns.core.plateaus import find_plateaus
from jacobinerf_ns.core.propagation import (
    CENTRES_FIT,
    PropagationConfig,
    Prototypes,
    Seeds,
    centre_shares,
    centres_fit,
    label_responses,
    select_prototypes,
)
from jacobinerf_ns.core.refinement import (
    clearest_refinement,
    grow,
    over_segments,
    refine_prototypes,
    uncontested,
)
from jacobinerf_ns.errors import UserError, one_line_exit
from jacobinerf_ns.labels.responses import needs_samples, prototype_responses, responses
from jacobinerf_ns.labels.seed_cache import SeedTrace, SeedTraces
from jacobinerf_ns.labels.snapshot import Connection, LabelSnapshot, Mark, Relevancy, SurfacePool
from jacobinerf_ns.labels.things import Parts, segments_at, things_meant
from jacobinerf_ns.labels.tracer import Tracer, chunks, in_eval_mode, trace_all
from jacobinerf_ns.labels.traces import Piece, nearest_points

POOL_RAYS = 8192
"""Random training pixels that refined prototypes are averaged over."""
MOST_STARTS = 256
"""Pixels of a seed, about, from which its label carries on."""
FEW_SEEDS = 128
"""Seeds up to which each is averaged with its surroundings and refined; masks need neither."""
SHOWN_BY = ("threshold", "strictness", "void_below")
"""Settings that need no new prototypes."""


class _Built(NamedTuple):
    made_of: tuple
    snapshot: LabelSnapshot
    """With the settings that need nothing rendered at their defaults."""


class _Surface(NamedTuple):
    """Random training pixels, rendered."""

    version: Hashable
    rays: RayBundle
    pieces: list[Piece]
    """Without their samples, in the rays' order."""
    vectors: Float[Tensor, "pixels dims"]
    """Their unit Jacobians."""
    tree: KDTree
    """Of their surface points."""
    graph: csr_matrix
    """Which of these are near each other."""
    parted: list[Parts]
    """Where these are in the scene taken apart, as often as it was."""


class _Segments(NamedTuple):
    """Where seeds and the scene's pixels are in the scene taken apart, but for what seeds tell apart."""

    seeds: Int[Tensor, "seeds trees"]
    pixels: Int[Tensor, "pixels trees"]


class LabelKeeper:
    """Answers with the current `LabelSnapshot` of an annotation file."""

    def __init__(self, store: AnnotationStore, maker: "LabelMaker") -> None:
        """`maker` is this keeper's alone: what it keeps is of this file."""
        self.store = store
        self.refuses = False
        """End a command at its first frame where the file cannot be shown; with a panel, that is said there instead."""
        self.problem: str | None = None
        """Why the current annotations cannot be shown; the last ones that could are."""
        self._maker = maker
        self._snapshot: LabelSnapshot | None = None

    def __call__(self) -> LabelSnapshot | None:
        """Return labels for a frame; None while there are none. Never raises for what a user did: `problem` says it.

        Seeds that hit nothing are left out; where the file cannot be shown at all, the last good labels stay.
        """
        if self.refuses:
            with one_line_exit():
                return self.current()
        annotations, problem = self.store.snapshot()[1], None
        try:
            self._snapshot = self._maker.make(annotations, self.store.folder, needs_surface=True)
            problem = None if self._snapshot is None else _without_surface(annotations, self._snapshot.marks)
        except UserError as error:
            problem = str(error)
        self.problem = self.store.problem or problem
        return self._snapshot

    def current(self, adjust: Callable[[Annotations], Annotations] = lambda same: same) -> LabelSnapshot | None:
        """Return labels as the file has them now, with what `adjust` changes of it.

        Raises:
            UserError: seeds that cannot be found or hit nothing.
        """
        return self._maker.snapshot_of(adjust(self.store.snapshot()[1]), self.store.folder)


class LabelMaker:
    """Makes a `LabelSnapshot` of annotations; renders seeds only when seeds, their treatment or weights changed."""

    def __init__(
        self,
        tracer: Tracer,
        seed_rays: Callable[[Annotations, Path], SeedRays],
        random_rays: Callable[[int], RayBundle],
        photos: int,
        partitions: Callable[[], Sequence[Partition]] = tuple,
    ) -> None:
        """Make labels on a field.

        Args:
            tracer: the field.
            seed_rays: turns annotations and the folder of their masks into rays.
            random_rays: draws training pixels.
            photos: how many photos these are drawn from.
            partitions: the scene taken apart, as often as it was.
        """
        self._tracer, self._random_rays, self._photos, self._partitions = tracer, random_rays, photos, partitions
        self._traces = SeedTraces(tracer, seed_rays)
        self._built: _Built | None = None
        self._surface_pixels: _Surface | None = None

    def snapshot_of(self, annotations: Annotations, folder: Path, needs_surface: bool = True) -> LabelSnapshot | None:
        """Return the labels of annotations; None where they have none.

        Args:
            annotations: labels, seeds, edits and settings.
            folder: what the mask files of seeds are relative to.
            needs_surface: refuse labels none of whose seeds hits a surface; otherwise take every seed as it is.

        Raises:
            UserError: seeds that cannot be found or hit nothing.
        """
        snapshot = self.make(annotations, folder, needs_surface)
        problem = None if snapshot is None else _without_surface(annotations, snapshot.marks)
        if problem is not None and needs_surface:
            raise UserError(problem)
        return snapshot

    def make(self, annotations: Annotations, folder: Path, needs_surface: bool) -> LabelSnapshot | None:
        """Do the same, leaving out seeds that hit nothing where a surface is needed."""
        if not annotations.labels:
            return None
        view, ids = annotations.view, [label.id for label in annotations.labels]
        built, common = self._build(annotations, folder, needs_surface), view.propagation.threshold
        plateaus = built.plateaus if common == "own" else tuple(one.around(common) for one in built.plateaus)
        return replace(
            built,
            labels=annotations.labels,
            config=view.propagation,
            selected=0 if view.selected is None else ids.index(view.selected),
            opacity=view.opacity,
            edits=tuple(edit for edit in annotations.edits if annotations.seeds_of(edit.label)),
            plateaus=plateaus,
            relevancy=self._relevancy(annotations),
        )

    @torch.no_grad()
    def _relevancy(self, annotations: Annotations) -> Relevancy | None:
        """Return the relevancy of the words that the selected label was asked for in last, if it was."""
        selected = annotations.view.selected or annotations.labels[0].id
        texts = [seed for seed in annotations.seeds_of(selected) if isinstance(seed, TextSeed) and not seed.negative]
        known = [seed.relevancy for seed in texts if seed.relevancy and seed.photos == self._photos]
        if not known:
            return None
        values = torch.frombuffer(bytearray(base64.b64decode(known[-1])), dtype=torch.uint8)[:POOL_RAYS]
        with in_eval_mode(self._tracer):
            vectors = self._surface().vectors[: len(values)]
        return Relevancy(vectors, values.to(vectors) / 255)

    def _build(self, annotations: Annotations, folder: Path, needs_surface: bool) -> LabelSnapshot:
        defaults = {name: getattr(PropagationConfig(), name) for name in SHOWN_BY}
        treatment = replace(annotations.view.propagation, **defaults)
        ids = tuple(label.id for label in annotations.labels)
        made_of = (annotations.seeds, ids, treatment, folder, needs_surface, self._tracer.weights_version)
        if self._built is None or self._built.made_of != made_of:
            self._built = _Built(made_of, self._render_seeds(annotations, folder, needs_surface))
        return self._built.snapshot

    @torch.no_grad()
    def _render_seeds(self, annotations: Annotations, folder: Path, needs_surface: bool) -> LabelSnapshot:
        config, count = annotations.view.propagation, len(annotations.labels)
        with in_eval_mode(self._tracer):
            traces = self._traces.of(annotations, folder)
            hits = [trace.hit if needs_surface else torch.ones_like(trace.hit) for trace in traces]
            seeds = _seeds(annotations, traces, hits, self._tracer.device)
            prototypes = select_prototypes(seeds, config)
            smooths = config.smooth > 0 and config.response == "cosine" and len(prototypes.vectors) > 0
            gathers = (config.refine > 0 or smooths) and len(seeds.vectors) > 0
            segments = self._segments(seeds, traces, hits) if gathers else None
            centres = None
            # With one label every pixel that resembles it at all would count as clearly its own: it would drift away.
            if config.refine > 0 and len(seeds.labels[seeds.positive].unique()) > 1:
                if len(seeds.vectors) <= FEW_SEEDS:
                    prototypes = self._refined(annotations, seeds, hits, segments, config)
                elif config.response == "cosine" and config.prototypes == "all":
                    means = select_prototypes(seeds, replace(config, prototypes="mean"))
                    refined = refine_prototypes(means, self._surface().vectors, config.refine)
                    centres = refined if centres_fit(refined, seeds) >= CENTRES_FIT else None
            scale = None
            if config.response == "raw" and config.decision != "paper" and len(seeds.vectors):
                rows = [self._rows(trace, hit, prototypes, config) for trace, hit in zip(traces, hits, strict=True)]
                scale = _own_responses(torch.cat(rows), seeds, prototypes, count)
            pool = self._smoothing(prototypes, centres, segments, config, count) if smooths else None
            marks = _marks(annotations, traces)
            snapshot = LabelSnapshot(annotations.labels, prototypes, config, centres, scale, pool, marks=marks)
            return snapshot if config.decision == "paper" else self._over_scene(snapshot, traces, hits)

    def _over_scene(
        self, snapshot: LabelSnapshot, traces: Sequence[SeedTrace], hits: Sequence[Tensor]
    ) -> LabelSnapshot:
        """Return the snapshot with what random training pixels say: how far labels carry, and at which levels."""
        surface = self._surface()
        if needs_samples(snapshot.config):
            found = trace_all(self._tracer, surface.rays, lambda traced: responses(Piece(traced), snapshot)).cpu()
        else:
            found = torch.cat([responses(piece, snapshot) for piece in surface.pieces]).cpu()
        connection = None
        if snapshot.config.connected:
            starts = _starts(snapshot, traces, hits, surface.tree)
            carried = torch.from_numpy(carried_responses(found.double().numpy(), surface.graph, starts)).to(found)
            connection = Connection(surface.tree, carried.to(self._tracer.device))
            found = torch.minimum(found, carried)
        things = things_meant(snapshot, hits, surface.parted)
        levels = [find_plateaus(column, meant) for column, meant in zip(found.unbind(-1), things, strict=True)]
        return replace(snapshot, connection=connection, plateaus=tuple(levels))

    def _segments(self, seeds: Seeds, traces: Sequence[SeedTrace], hits: Sequence[Tensor]) -> _Segments | None:
        """Where the scene was taken apart, what is in one segment; None where it was not."""
        surface = self._surface()
        if not surface.parted:
            return None
        points = torch.cat([trace.points[hit] for trace, hit in zip(traces, hits, strict=True)])
        within, kinds = segments_at(points, surface.parted), (2 * seeds.labels + seeds.positive).cpu()
        pixels = torch.from_numpy(np.stack([parts.leaves for parts in surface.parted], axis=-1))
        return _Segments(*(uncontested(some, within, kinds).to(self._tracer.device) for some in (within, pixels)))

    def _refined(
        self,
        annotations: Annotations,
        seeds: Seeds,
        hits: Sequence[Tensor],
        segments: _Segments | None,
        config: PropagationConfig,
    ) -> Prototypes:
        """Prototypes of a few seeds, moved to their segments, or to what of the scene is clearly nearest to them."""
        if segments is not None:
            moved = over_segments(seeds.vectors, segments.seeds, self._surface().vectors, segments.pixels)
            return select_prototypes(seeds._replace(vectors=moved), config)
        around = [a[hit] for a, hit in zip(self._traces.around(annotations.seeds), hits, strict=True)]
        grown = seeds._replace(vectors=grow(seeds.vectors, torch.cat(around)))
        starts = [select_prototypes(start, config) for start in (grown, seeds)]
        return clearest_refinement(starts, self._surface().vectors, config.refine)

    def _rows(self, trace: SeedTrace, hit: Tensor, prototypes: Prototypes, config: PropagationConfig) -> Tensor:
        """Responses of a seed's own rays to all prototypes."""
        if not bool(hit.any()):
            return prototypes.vectors.new_zeros(0, len(prototypes.vectors))
        own = trace.rays[hit.to(trace.rays.origins.device)]
        return trace_all(
            self._tracer, own, lambda traced: prototype_responses(Piece(traced), prototypes.vectors, config)
        )

    def _surface(self) -> _Surface:
        """Surface points of random training pixels and their Jacobians; once per weights."""
        version = self._tracer.weights_version
        if self._surface_pixels is None or self._surface_pixels.version != version:
            rays = self._random_rays(POOL_RAYS)
            pieces = [Piece(self._tracer.trace(chunk)).light() for chunk in chunks(self._tracer, rays)]
            vectors, points = (
                torch.cat(parts) for parts in zip(*((p.jacobians, p.points) for p in pieces), strict=True)
            )
            places = points.cpu().numpy()
            parted = [Parts(found, leaves_at(places.astype(np.float64), found)) for found in self._partitions()]
            self._surface_pixels = _Surface(
                version, rays, pieces, vectors, KDTree(places), surface_graph(places), parted
            )
        return self._surface_pixels

    def _smoothing(
        self,
        prototypes: Prototypes,
        centres: Prototypes | None,
        segments: _Segments | None,
        config: PropagationConfig,
        count: int,
    ) -> SurfacePool:
        surface = self._surface()
        vectors = surface.vectors
        if segments is not None:
            vectors = over_segments(vectors, segments.pixels, vectors, segments.pixels)
        similarity = cosine_response(vectors, prototypes.vectors)
        leaning = None
        if centres is not None:
            leaning = centre_shares(cosine_response(vectors, centres.vectors), centres, count)
        found = label_responses(similarity, prototypes, count, config.neighbours, config.temperature, leaning)
        return SurfacePool(surface.tree, surface.vectors, found)


def _seeds(
    annotations: Annotations, traces: Sequence[SeedTrace], hits: Sequence[Tensor], device: torch.device
) -> Seeds:
    """All rays of seeds that count."""
    if not traces:
        nothing = torch.zeros(0, dtype=torch.bool, device=device)
        empty = torch.zeros(0, 1, device=device)
        return Seeds(empty, nothing.long(), nothing, empty[:, 0])
    positions = {label.id: position for position, label in enumerate(annotations.labels)}
    counts = torch.tensor([int(hit.sum()) for hit in hits])

    def each(values: list) -> Tensor:
        return torch.tensor(values).repeat_interleave(counts).to(device)

    return Seeds(
        torch.cat([trace.vectors[hit] for trace, hit in zip(traces, hits, strict=True)]),
        each([positions[seed.label] for seed in annotations.seeds]),
        each([not seed.negative for seed in annotations.seeds]),
        torch.cat([trace.weights[hit] for trace, hit in zip(traces, hits, strict=True)]),
    )


def _starts(
    snapshot: LabelSnapshot, traces: Sequence[SeedTrace], hits: Sequence[Tensor], tree: KDTree
) -> list[Int[np.ndarray, "seeds"]]:
    """Return the points of a tree at each label's positive seeds."""
    starts: list[list[np.ndarray]] = [[] for _ in snapshot.labels]
    positions = {label.id: position for position, label in enumerate(snapshot.labels)}
    for mark, trace, hit in zip(snapshot.marks, traces, hits, strict=True):
        if not mark.seed.negative:
            chosen = trace.points[hit]
            some = chosen[:: max(1, len(chosen) // MOST_STARTS)]
            starts[positions[mark.seed.label]].append(nearest_points(tree, some).cpu().numpy().ravel())
    return [np.concatenate(found) if found else np.zeros(0, dtype=np.int64) for found in starts]


def _marks(annotations: Annotations, traces: Sequence[SeedTrace]) -> tuple[Mark, ...]:
    marks = []
    for seed, trace in zip(annotations.seeds, traces, strict=True):
        points = trace.points[trace.hit] if bool(trace.hit.any()) else trace.points
        nearest = int((points - points.mean(0)).norm(dim=-1).argmin())
        x, y, z = points[nearest].tolist()
        marks.append(Mark(seed, (x, y, z), bool(trace.hit.any())))
    return tuple(marks)


def _without_surface(annotations: Annotations, marks: Sequence[Mark]) -> str | None:
    """Return what is to be said where a label has seeds and none of them hits anything."""
    for label in annotations.labels:
        mine = [mark.hit for mark in marks if mark.seed.label == label.id and not mark.seed.negative]
        if mine and not any(mine):
            return (
                f"no seed of label {label.name!r} hits a surface ({len(mine)} tried, all in the background or "
                "sky): click on the object"
            )
    return None


def _own_responses(
    rows: Float[Tensor, "seeds prototypes"], seeds: Seeds, prototypes: Prototypes, count: int
) -> Float[Tensor, "labels"]:
    """How strongly each label's seeds answer to its own prototypes: what a raw response is measured against."""
    scale = rows.new_ones(count)
    for position in seeds.labels[seeds.positive].unique().tolist():
        mine = (seeds.labels == position) & seeds.positive
        own = (prototypes.labels == position) & prototypes.positive
        scale[position] = rows[mine][:, own].amax(-1).mean()
    return scale
