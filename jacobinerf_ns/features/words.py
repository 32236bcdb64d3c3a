"""Words that a teacher can be asked with: what they may be, and teachers that understand them."""

import unicodedata
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from jacobinerf_ns.errors import UserError
from jacobinerf_ns.features.base import Extractor

_NOUNS = """
apple arm bag ball bed bench bicycle bird blanket boat book bottle bowl box bread bridge brush bucket building bus
cable cage camera candle car carpet cat ceiling chair clock cloud coat computer corn cup curtain desk dog door dress
drum duck elephant face fence fire fish flag floor flower fork fox fruit glass glove grass guitar hammer hand hat
horse house key keyboard knife ladder lamp leaf letter light map mirror moon motorcycle mountain mouse mug newspaper
orange oven painting paper pen person phone piano pillow pipe plant plate rabbit road rock roof rope rug sand scissors
sea shelf shirt shoe sink sky snow sofa spoon stairs star statue stone stove sun table television tent tie towel toy
train tree truck umbrella vase wall watch water wheel window wood
"""
CANONICAL = ("object", "things", "stuff", "texture")
"""What a text is compared with unless somebody names other words (LERF's): anything is one of these."""
EVERYDAY = tuple(_NOUNS.split())
"""Nouns of everyday life: how well they fit a place says how well any word would."""
LONGEST = 200
"""Characters. Models read some 60 to 80 pieces of words, and describe one thing best in a few words."""


@runtime_checkable
class TextTeacher(Extractor, Protocol):
    """A teacher whose features and words lie in one space: the cosine of both says how well they fit."""

    def text_model(self) -> str:
        """Return the name that people know the model of the words by."""
        ...

    def known_words(self) -> tuple[str, ...] | None:
        """Return all words that can be asked for; None where any can."""
        ...

    def encode(self, words: Sequence[str]) -> Float[Tensor, "texts dim"]:
        """Return a unit vector for each text, float32 on the CPU.

        Raises:
            UserError: a text that `checked` or the model refuses, or the model knows none.
        """
        ...


def text_teacher(extractor: Extractor) -> TextTeacher:
    """Return a teacher that words can be asked of.

    Raises:
        UserError: it is none.
    """
    if not isinstance(extractor, TextTeacher):
        raise wordless()
    return extractor


def wordless() -> UserError:
    """Return what is said of a run whose teacher knows no words."""
    return UserError(
        "this run's teacher knows no words: name one that does at the end of the command, as in clip --model "
        "openai/clip-vit-base-patch16, or precomputed with --texts"
    )


def canonical(teacher: TextTeacher) -> tuple[str, ...]:
    """Return what a text is compared with by default: of a teacher of few words, all of them."""
    return teacher.known_words() or CANONICAL


def everyday(teacher: TextTeacher) -> tuple[str, ...]:
    """Return words that say how well any word fits."""
    return teacher.known_words() or EVERYDAY


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
