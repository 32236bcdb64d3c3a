"""What the panel says: help, hints, and the table of labels, as markdown."""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from jacobinerf_ns.annotations.schema import Annotations
from jacobinerf_ns.labels.words import THERE

HELP = """
1. Press **Click**, then click on a thing in the view: it is tinted and outlined, the rest is dimmed.
2. Only a part of it? Press **Larger**, or click on what is missing. Too much? **Smaller**, or **Not this** and click on
   what is wrong.
3. Name it under **Name**. For the next thing choose *(new label)* under **Label**, and click on it.
4. **Propagate** shows all labels at once. **Save masks** writes them as files, for all photos.

Runs whose teacher knows words (`clip`, or `precomputed` with `--texts`) have a field **Words**: instead of clicking,
type what the thing is, and press **Find**.

While a click is awaited, dragging does not move the camera; **Stop** ends that. Marks: a sphere is a click, a cube says
*not this*. **Show** → *Resonance* is the heat map of what resonates with the clicks: red answers, blue does not.
**Tune** has the threshold and what else decides who gets a pixel. Everything is saved at once, in `annotations.json`
of the run: `ns-render` and the `jacobinerf` commands read the same file.
"""
NOTHING_YET = "Press **Click**, then click on a thing in the view."
NO_LABEL = "(no label yet)"
"""Stands in the list of labels while there is none."""
NEW_LABEL = "(new label)"
"""Stands at the end of the list of labels."""


def plain(text: str) -> str:
    """Return a text in which markdown finds nothing to do: names of labels are whatever people type."""
    return re.sub(r"([\\`*_{}\[\]<>()#+\-.!|~$&])", r"\\\1", text.replace("\n", " "))


def saved_again(path: Path) -> str:
    """Return what is said when the annotation file's folder, which had gone, is back."""
    return f"The folder is back: all labels are saved again, in `{path}`."


def percent(share: float) -> str:
    """Return a share as people read it: `12 %`, `0.4 %`, `none`."""
    if share == 0:
        return "none"
    return f"{100 * share:.0f} %" if share >= 0.01 else f"{100 * share:.1f} %"


def table(annotations: Annotations, shares: Mapping[int, float], selected: int | None) -> str:
    """Return the labels with their seeds and their share of the view."""
    if not annotations.labels:
        return "*No label yet: the first click makes one.*"
    positive, negative = Counter[int](), Counter[int]()
    for seed in annotations.seeds:
        (negative if seed.negative else positive)[seed.label] += 1
    rows = ["| label | this | not this | in view |", "|---|---|---|---|"]
    for label in annotations.labels:
        name = plain(label.name)
        seen = percent(shares[label.id]) if label.id in shares and positive[label.id] else "–"
        shown = f"**{name}**" if label.id == selected else name
        rows.append(f"| {shown} | {positive[label.id]} | {negative[label.id]} | {seen} |")
    return "\n".join(rows)


def found(words: str, name: str, stands_out: float, places: int) -> str:
    """Return what words did: how sure it is, on how many places the label stands, and what may be done next."""
    where = f"at {places} {'place' if places == 1 else 'places'}, which **{plain(name)}** stands on now"
    advice = "Only a part of it? Press **Larger**, or **Click**. Too much? **Smaller**, or **Not this**."
    return f"found **{plain(words)}** {where}: {_fits(stands_out)}. {advice}"


def not_there(words: str, stands_out: float) -> str:
    """Return what is said of words that nothing fits."""
    return f"nothing like **{plain(words)}** here, nothing was added: at best, {_fits(stands_out)}."


def _fits(stands_out: float) -> str:
    return f"it fits {stands_out:.1f} deviations better than everyday words do, from {THERE:g} on it counts"


def answer(name: str, share: float, seeds: int, sizes: int) -> str:
    """Return what a click that hit something did, and what may be done next: of how many sizes, after so many seeds."""
    advice = (
        "Only a part of it? Press **Larger**, or click again. Too much? **Smaller**, or **Not this**."
        if seeds == 1 and sizes > 1
        else "Only a part of it? Click again. Too much? Press **Not this**."
        if seeds == 1
        else "Name it, and choose *(new label)* for the next thing."
    )
    return f"clicked: **{plain(name)}** answers in {percent(share)} of the view. {advice}"
