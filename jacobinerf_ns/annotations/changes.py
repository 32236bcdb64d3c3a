"""Changes to annotations: each takes the immutable model and returns a new, consistent one.

All raise `UserError` for what the model refuses (a name that is taken, an id out of range).
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

from jacobinerf_ns.annotations.schema import MAX_ID, PALETTE, Annotations, Colour, Edit, Label, Seed, ViewSettings
from jacobinerf_ns.core.propagation import PropagationConfig
from jacobinerf_ns.errors import UserError, plain_errors

Item = TypeVar("Item", Label, Seed, Edit)


def label_named(annotations: Annotations, name: str) -> Label:
    """Return the label of that name.

    Raises:
        UserError: there is none; the message has the closest names.
    """
    for label in annotations.labels:
        if label.name == name.strip():
            return label
    names = [label.name for label in annotations.labels]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4) or names[:3]
    hint = f"did you mean {' or '.join(close)}?" if close else "there are no labels yet"
    raise UserError(f"no label {name!r} among {len(names)} labels: {hint}")


def add_label(
    annotations: Annotations,
    name: str,
    colour: Colour | None = None,
    id: int | None = None,
) -> tuple[Annotations, Label]:
    """Add a label without seeds: by default with the next free id, and the first colour of the palette not in use."""
    if id is None:
        id = next_id(label.id for label in annotations.labels)
    with plain_errors(f"label {name!r}"):
        label = Label(id=id, name=name, colour=colour or _next_colour(annotations))
    return _changed(annotations, labels=(*annotations.labels, label)), label


def remove_label(annotations: Annotations, label_id: int) -> Annotations:
    """Take a label away, with its seeds, its edits and its selection."""
    _check_id(annotations, label_id)
    return _changed(
        annotations,
        labels=tuple(label for label in annotations.labels if label.id != label_id),
        seeds=tuple(seed for seed in annotations.seeds if seed.label != label_id),
        edits=tuple(edit for edit in annotations.edits if edit.label != label_id),
        view=_without_selection(annotations.view, label_id),
    )


def rename_label(annotations: Annotations, label_id: int, name: str) -> Annotations:
    """Give a label another name; its id, and so its seeds and edits, stay."""
    return _relabel(annotations, label_id, name=name)


def recolour_label(annotations: Annotations, label_id: int, colour: Colour) -> Annotations:
    """Give a label another colour (0..255)."""
    return _relabel(annotations, label_id, colour=colour)


def set_grow(annotations: Annotations, label_id: int, grow: int) -> Annotations:
    """Set how many levels larger (or, below 0, smaller) than its natural one a label's selection is."""
    return _relabel(annotations, label_id, grow=grow)


def grow_all(annotations: Annotations, grow: int | None) -> Annotations:
    """Set the same for all labels; None leaves them as they are."""
    for label in annotations.labels if grow is not None else ():
        annotations = set_grow(annotations, label.id, grow or 0)
    return annotations


def add_seed(annotations: Annotations, seed: Seed) -> Annotations:
    """Add a seed at the end."""
    return _changed(annotations, seeds=(*annotations.seeds, seed))


def remove_seed(annotations: Annotations, index: int) -> Annotations:
    """Take the seed at a position of `annotations.seeds` away; negative positions count from the end."""
    return _changed(annotations, seeds=_without(annotations.seeds, index, "seed"))


def add_edit(annotations: Annotations, edit: Edit) -> Annotations:
    """Add an edit; it is applied after those that are there."""
    return _changed(annotations, edits=(*annotations.edits, edit))


def set_edit(annotations: Annotations, edit: Edit) -> Annotations:
    """Put an edit in the place of the label's one of that kind, or at the end."""
    same = [
        place for place, other in enumerate(annotations.edits) if (other.kind, other.label) == (edit.kind, edit.label)
    ]
    if not same:
        return add_edit(annotations, edit)
    return _changed(annotations, edits=(*annotations.edits[: same[0]], edit, *annotations.edits[same[0] + 1 :]))


def remove_edits(annotations: Annotations, label_id: int) -> Annotations:
    """Take all edits of a label away."""
    return _changed(annotations, edits=tuple(edit for edit in annotations.edits if edit.label != label_id))


def remove_seeds(annotations: Annotations, label_id: int) -> Annotations:
    """Take all seeds of a label away; the label stays."""
    return _changed(annotations, seeds=tuple(seed for seed in annotations.seeds if seed.label != label_id))


def discard_seed(annotations: Annotations, seed: Seed) -> Annotations:
    """Take the last seed that is equal to this one away; none is no error."""
    places = [place for place, other in enumerate(annotations.seeds) if other == seed]
    return remove_seed(annotations, places[-1]) if places else annotations


def remove_edit(annotations: Annotations, index: int) -> Annotations:
    """Take the edit at a position of `annotations.edits` away; negative positions count from the end."""
    return _changed(annotations, edits=_without(annotations.edits, index, "edit"))


def select(annotations: Annotations, label_id: int | None) -> Annotations:
    """Choose the label shown as `resonance` and `selection`; none is the first one."""
    return set_view(annotations, selected=label_id)


def set_view(annotations: Annotations, **settings: Any) -> Annotations:
    """Change fields of `ViewSettings`."""
    with plain_errors("view"):
        view = ViewSettings(**{**dict(annotations.view), **settings})
    return _changed(annotations, view=view)


def merge(first: Annotations, second: Annotations) -> Annotations:
    """Return annotations with all labels, seeds and edits of both.

    Labels of one name become one, with the id and the colour of `first`; an id of `second` that `first` has given to
    another name is replaced by the next free one. What both have is taken once. View settings are those of `first`.
    """
    labels = list(first.labels)
    by_name = {label.name: label.id for label in labels}
    # Ids that `second` uses must stay free too, or its own labels would clash with renumbered ones.
    taken = {label.id for label in (*first.labels, *second.labels)}
    in_first = {label.id for label in first.labels}
    ids: dict[int, int] = {}
    for label in second.labels:
        if label.name not in by_name:
            new = next_id(taken) if label.id in in_first else label.id
            taken.add(new)
            labels.append(label.model_copy(update={"id": new}))
            by_name[label.name] = new
        ids[label.id] = by_name[label.name]
    seeds = [seed.model_copy(update={"label": ids[seed.label]}) for seed in second.seeds]
    edits = [edit.model_copy(update={"label": ids[edit.label]}) for edit in second.edits]
    return _changed(
        first,
        labels=tuple(labels),
        seeds=tuple(dict.fromkeys((*first.seeds, *seeds))),
        edits=tuple(dict.fromkeys((*first.edits, *edits))),
    )


def carry_over(current: Annotations, old: Annotations, new: Annotations) -> Annotations:
    """Return `current` with the change that leads from `old` to `new`; what others changed since `old` stays as it is.

    Raises:
        UserError: both changes touch the same label and do not fit together.
    """
    if current == old:
        return new
    view = _carry_fields(dict(current.view), dict(old.view), dict(new.view))
    parts = (vars(annotations.view.propagation) for annotations in (current, old, new))
    view["propagation"] = PropagationConfig(**_carry_fields(*parts))
    return _changed(
        current,
        labels=_carry_items(current.labels, old.labels, new.labels),
        seeds=_carry_items(current.seeds, old.seeds, new.seeds),
        edits=_carry_items(current.edits, old.edits, new.edits),
        view=ViewSettings(**view),
    )


def next_id(taken: Iterable[int]) -> int:
    """Return one more than the largest id, which no removed label had that files still name; else a gap."""
    taken = set(taken)
    largest = max(taken, default=0)
    if largest < MAX_ID:
        return largest + 1
    free = next((candidate for candidate in range(1, MAX_ID + 1) if candidate not in taken), None)
    if free is None:
        raise UserError(f"all {MAX_ID} label ids are in use: remove a label first")
    return free


def _carry_fields(current: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    return {name: new[name] if new[name] != value else current[name] for name, value in old.items()}


def _carry_items(current: Sequence[Item], old: Sequence[Item], new: Sequence[Item]) -> tuple[Item, ...]:
    gone, come = Counter(old) - Counter(new), Counter(new) - Counter(old)
    kept: list[Item] = []
    for item in reversed(current):
        if gone[item] > 0:
            gone[item] -= 1
        else:
            kept.insert(0, item)
    for position, item in enumerate(new):
        if come[item] > 0:
            come[item] -= 1
            kept.insert(position, item)
    return tuple(kept)


def _changed(annotations: Annotations, **parts: Any) -> Annotations:
    with plain_errors():
        return Annotations(**{**dict(annotations), **parts})


def _relabel(annotations: Annotations, label_id: int, **fields: Any) -> Annotations:
    _check_id(annotations, label_id)

    def changed(label: Label) -> Label:
        with plain_errors(f"label {label.name!r}"):
            return Label(**{**dict(label), **fields})

    return _changed(
        annotations, labels=tuple(changed(label) if label.id == label_id else label for label in annotations.labels)
    )


def _check_id(annotations: Annotations, label_id: int) -> None:
    if all(label.id != label_id for label in annotations.labels):
        raise UserError(f"no label has the id {label_id}: it may have been removed meanwhile")


def _without(items: Sequence[Item], index: int, kind: str) -> tuple[Item, ...]:
    if not -len(items) <= index < len(items):
        raise UserError(f"there is no {kind} at position {index}: found {len(items)}")
    position = index % len(items)
    return (*items[:position], *items[position + 1 :])


def _without_selection(view: ViewSettings, label_id: int) -> ViewSettings:
    return view.model_copy(update={"selected": None}) if view.selected == label_id else view


def _next_colour(annotations: Annotations) -> Colour:
    uses = Counter(label.colour for label in annotations.labels)
    return min(PALETTE, key=uses.__getitem__)
