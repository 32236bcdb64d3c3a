"""Words that a teacher can be asked with: what they may be, and teachers that understand them."""

import unicodedata
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Extractor

LONGEST = 200
"""Characters. Models read some 60 to 80 pieces of words, and describe one thing best in a few words."""


@runtime_checkable
class TextTeacher(Extractor, Protocol):
    """A teacher whose features and words lie in one space: the cosine of both says how well they fit."""

    def encode(self, words: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Return a unit vector for each text, float32 on the CPU.

        Raises:
            UserError: a text that `checked` or the model refuses, or the model knows none.
        """
        ...


def checked(words: str) -> str:
    """Return words without blanks around them.

    Raises:
        UserError: nothing is left, they are too long, or hold characters that cannot be seen.
    """
    text = words.strip()
    if not text:
        raise UserError("empty text given: describe in a few words what to find, as in --text 'a wooden chair'")
    if len(text) > LONGEST:
        raise UserError(f"a text of {len(text):,} characters given, at most {LONGEST} are read: use a few words")
    hidden = next((character for character in text if unicodedata.category(character).startswith("C")), None)
    if hidden is not None:
        raise UserError(f"the text holds the control character U+{ord(hidden):04X}: use plain words")
    return text
