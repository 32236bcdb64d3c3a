"""What can be set for a task: the fields that its function takes, and that its command shows as options.

Free of torch: command lines are parsed before anything is loaded. What stands below a field is the option's help.
"""

from dataclasses import dataclass
from typing import Literal

from jacobinerf_ns.annotations.formats.registry import FormatName


@dataclass(frozen=True)
class PropagateSettings:
    """Which photos are labelled, how, and as which files."""

    split: Literal["train", "test", "all"] = "all"
    """Photos the run was trained on, those held out, or both."""
    format: FormatName = "png"
    """An index PNG per photo, one annotations.coco.json of run lengths (CVAT) or of outlines (Label Studio, which reads
    no run lengths; the same pixels), or a LabelMe file per photo."""
    labels: tuple[str, ...] = ()
    """Names of the labels to write; none: all. The others still compete for pixels, and theirs become 0."""
    refine: int | None = None
    """Rounds of refining what stands for a label on the scene itself; None is the annotation file's."""
    smooth: float | None = None
    """Share (0..1) of a pixel's response that comes from the nearest surfaces; None is the annotation file's."""
    space: Literal["2d", "3d"] | None = None
    """Take responses on rendered pixels (2d) or per sample in space (3d); None is the annotation file's."""
    void_below: float | None = None
    """Pixels of less confidence (0..1) than this get no label, id 0; None is the annotation file's."""
    threshold: float | Literal["own"] | None = None
    """Response (0..1) that labels are measured against, or each label's `own`; None is the annotation file's."""
    grow: int | None = None
    """Levels that all labels are larger than their natural sizes, or below 0 smaller; None is the annotation file's."""
    full_resolution: bool = False
    """Render at the photos' original size. Otherwise label maps are rendered at the training resolution, and each pixel
    of the photo gets the id that its centre lies in."""
    overlays: bool = False
    """Also write the photos with the labels' colours over them, into overlays/."""
    overwrite: bool = False
    """Make all files anew, in the place of what is there."""


@dataclass(frozen=True)
class ExportSettings:
    """What is taken out of a run, and how it is written."""

    num_points: int = 200_000
    """Points to sample; outliers are taken off afterwards."""
    mesh: bool = False
    """Also make a mesh of each label, by Poisson reconstruction."""
    frame: Literal["world", "scene"] = "world"
    """Frame of the files: the capture's own (that of its transforms.json), or the one that the run trains in."""
    remove_outliers: bool = True
    """Take off points that are far from all others of their label."""
    threshold: float | Literal["own"] | None = None
    """Response (0..1) from which on a pixel is a label's, or each label's `own`; None is the annotation file's."""
    grow: int | None = None
    """Levels that all labels are larger than their natural sizes, or below 0 smaller; None is the annotation file's."""
    json: bool = True
    """Also write counts and bounding boxes, as export.json."""
    overwrite: bool = False
    """Replace the files of an earlier export."""
