"""What the panel says: help, hints, and the table of labels, as markdown."""

import re
from collections import Counter
from collections.abc import Mapping

from jacobinerf_ns.annotations.schema import Annotations

HELP = """
1. Press **Click**, then click on a thing in the view. The heat map shows what resonates with it: red answers, blue
   does not.
2. Too little? Click on what is missing. Too much? Press **Not this** and click on what is wrong, or raise
   **Threshold**. **Box** takes what you draw a rectangle over.
3. Name the label under **Labels**, press **Add label**, and click on the next thing.
4. **Propagate** shows all labels at once. **Save masks of all photos** writes them as files.

While a click is awaited, dragging does not move the camera. **Keep clicking** awaits one after the other; **Stop**
ends that. Marks: a sphere is a click, a cube says *not this*. Everything is saved at once, in `annotations.json` of the
run: `ns-render` and the `jacobinerf` commands read the same file.
"""
NOTHING_YET = "Press **Click**, then click on a thing in the view."
NO_LABEL = "(no label yet)"
"""Stands in the list of labels while there is none."""


def plain(text: str) -> str:
    """Return a text in which markdown finds nothing to do: names of labels are whatever people type."""
    return re.sub(r"([\\`*_{}\[\]<>()#+\-.!|~$&])", r"\\\1", text.replace("\n", " "))


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


def answer(name: str, share: float, seeds: int) -> str:
    """Return what a click that hit something did, and what may be done next."""
    advice = (
        "Not all of it? Click again, or lower **Threshold**. Too much? Press **Not this**."
        if seeds == 1
        else "Name it under **Labels**, or add a label for the next thing."
    )
    return f"clicked: **{plain(name)}** answers in {percent(share)} of the view. {advice}"
