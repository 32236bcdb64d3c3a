"""The outputs that a view shows of labels: pictures from responses, in forms that nerfstudio can show."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from jacobinerf_ns.core.propagation import Decision, Prototypes
from jacobinerf_ns.labels.outlines import draw_outline
from jacobinerf_ns.labels.snapshot import Answers, LabelSnapshot

PAPER_WHITE = 1.0
DIMMED = 0.7
"""Brightness that pixels outside of a selection keep in its overlay: a white line shows on all of them."""


def pictures(
    rgb: Float[Tensor, "*pixels 3"], found: Answers, decision: Decision, snapshot: LabelSnapshot
) -> dict[str, Tensor]:
    """All label outputs of rays or of a view, in forms that nerfstudio can show: floats in 0..1, colours, booleans.

    Overlays of whole views get a line around the selected label beside this (`outlined`).
    """
    selection = selected(found, decision, snapshot)
    chosen = slice(snapshot.selected, snapshot.selected + 1)
    resonance = found.responses[..., chosen] if snapshot.labels else torch.zeros_like(rgb[..., :1])
    palette = torch.tensor([(0, 0, 0), *(label.colour for label in snapshot.labels)], device=rgb.device) / 255.0
    colours = palette[decision.labels]
    known = (decision.labels > 0)[..., None]
    blended = torch.lerp(rgb, colours, snapshot.opacity)
    own = palette[snapshot.selected + 1] if snapshot.labels else palette[0]
    # A line says where a selection ends, so it needs less of its colour, and stays a picture.
    tinted = torch.lerp(rgb, own.expand_as(rgb), snapshot.opacity**2)
    masks = {name: (decision.labels == position + 1)[..., None] for position, name in enumerate(snapshot.mask_names())}
    return {
        "resonance": resonance,
        "selection": selection,
        "selection_overlay": torch.where(selection, tinted, DIMMED * rgb) if snapshot.labels else rgb,
        "rgb_selected": torch.where(selection, rgb, PAPER_WHITE),
        "labels": colours,
        "labels_overlay": torch.where(known, blended, rgb),
        "label_confidence": decision.confidence[..., None],
        **masks,
    }


def outlined(shown: dict[str, Tensor], snapshot: LabelSnapshot) -> dict[str, Tensor]:
    """Return the pictures of a whole view with a line around the selected label in its overlays."""
    if not snapshot.labels:
        return shown
    mine = {
        "selection_overlay": shown["selection"],
        "labels_overlay": shown[snapshot.mask_names()[snapshot.selected]],
    }
    return {**shown, **{name: draw_outline(shown[name], mask[..., 0].bool()) for name, mask in mine.items()}}


def selected(found: Answers, decision: Decision, snapshot: LabelSnapshot) -> Bool[Tensor, "*pixels 1"]:
    """Pixels of the selected label: connected with its seeds at its threshold, and no other label responds more.

    The paper's decision knows no threshold.
    """
    if not snapshot.labels:
        return torch.zeros_like(decision.labels, dtype=torch.bool)[..., None]
    mine = found.connected[..., snapshot.selected]
    if snapshot.config.decision == "paper":
        return (decision.labels == snapshot.selected + 1)[..., None]
    best = found.responses.argmax(-1) == snapshot.selected
    return ((mine >= snapshot.thresholds()[snapshot.selected]) & best & (mine > 0))[..., None]


def nothing_to_show(rgb: Float[Tensor, "*pixels 3"]) -> dict[str, Tensor]:
    """Return the same outputs where no label is there yet: the viewer lists what the first frame has."""
    none = rgb.new_zeros(0)
    empty = LabelSnapshot((), Prototypes(rgb.new_zeros(0, 1), none.long(), none.bool(), none))
    found = rgb.new_zeros(*rgb.shape[:-1], 0)
    nobody = rgb.new_zeros(rgb.shape[:-1])
    shown = pictures(rgb, Answers(found, found), Decision(nobody.long(), nobody), empty)
    return {**shown, "relevancy": nobody[..., None], "edited": rgb}
