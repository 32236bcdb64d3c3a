"""The part of the panel that asks for a thing in words instead of by a click."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import viser

from jacobinerf_ns.annotations import changes
from jacobinerf_ns.annotations.schema import Annotations, Label
from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.words import checked
from jacobinerf_ns.labels.words import Answer
from jacobinerf_ns.panel import texts
from jacobinerf_ns.panel.desk import Desk
from jacobinerf_ns.panel.worker import Worker

Find = Callable[[str, AbstractContextManager[Any]], Answer]
"""Looks for words, with a lock held while the field is asked."""
UNNAMED = re.compile(r"object \d+")
"""Name that the panel gives."""


class WordSection:
    """Looks for words in the training photos in a thread of its own, and makes what they are a seed.

    A teacher may have to be read from disk first, which takes seconds in which clicks go on.
    """

    def __init__(self, desk: Desk, server: viser.ViserServer, find: Find, failed: Callable[[Exception], None]) -> None:
        """`find` looks for words, `failed` says in the panel's thread what went wrong."""
        self._desk, self._find = desk, find
        self._words = server.gui.add_text("Words", "", hint="What the label is, in a few words; then press Find.")
        hint = "Looks for the words in all photos: where they fit best, the label begins."
        self._button = server.gui.add_button("Find", icon=viser.Icon.SEARCH, hint=hint)
        self._button.on_click(lambda _: desk.do(self.ask))
        self._worker = Worker(lambda error: desk.do(partial(self._not_found, failed, error)), lambda: None)
        self._worker.start()

    def ask(self) -> None:
        """Look for the words that were typed, for the selected label.

        Raises:
            UserError: words that cannot be asked, or another question that is not answered yet.
        """
        if self._button.disabled:
            raise UserError("one question at a time: wait for its answer")
        words = checked(self._words.value)
        label = self._desk.selected(self._desk.annotations)
        self._button.disabled = True
        self._desk.say(f"looking for **{texts.plain(words)}** in all photos …")
        self._worker.post(partial(self._look, words, None if label is None else label.id))

    def _look(self, words: str, label: int | None) -> None:
        """Find the words, in a thread that nobody waits for."""
        answer = self._find(words, self._desk.viewer.train_lock or nullcontext())
        self._desk.do(partial(self._found, answer, label))

    def _found(self, answer: Answer, label: int | None) -> None:
        """Add what was found to the label that was selected when it was asked for."""
        self._button.disabled = False
        if not answer.places:
            self._desk.say(texts.not_there(answer.words, answer.stands_out))
            return

        def change(now: Annotations) -> Annotations:
            if any(known.id == label for known in now.labels):
                now = changes.select(now, label)
            now, mine = self._desk.selected_or_new(now)
            return changes.add_seed(self._named(now, mine, answer.words), answer.seed(mine.id))

        mine = self._desk.selected(self._desk.change(change))
        assert mine is not None
        self._desk.say(texts.found(answer.words, mine.name, answer.stands_out, len(answer.places)))
        self._desk.show_labels()

    @staticmethod
    def _named(annotations: Annotations, label: Label, words: str) -> Annotations:
        """Return the annotations with a label called by the words that begin it, unless somebody has named it."""
        taken = any(known.name == words for known in annotations.labels)
        if taken or annotations.seeds_of(label.id) or not UNNAMED.fullmatch(label.name):
            return annotations
        return changes.rename_label(annotations, label.id, words)

    def _not_found(self, failed: Callable[[Exception], None], error: Exception) -> None:
        self._button.disabled = False
        failed(error)
