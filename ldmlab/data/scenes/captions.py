"""Parse captions of `scenes` into the attributes that they state."""

import re

from ldmlab.data.scenes.places import HOURS, PLACES
from ldmlab.data.scenes.props import COMPANIONS
from ldmlab.data.scenes.scene import CLASSES
from ldmlab.data.scenes.styles import BRIGHT, COLOURS, COLOURS_OF, PATTERNS

_IN_SKY = ("sun", "moon", "cloud")
_BESIDE = tuple(name for name in COMPANIONS if name not in _IN_SKY)
# A prompt may name a white car, though in `scenes` white occurs only as the second colour of a pattern.
_PAINTS = tuple(c for c in COLOURS if c in {"white", *BRIGHT, *(c for row in COLOURS_OF.values() for c in row)})
_SECONDS = tuple(c for c in COLOURS if c in {"white", *BRIGHT})
_DRAWN = tuple(p for p in PATTERNS if p != "plain")
_RELATIONS = ("below", "beside", "in front", "behind", "left", "right")

# Attributes and their possible values in captions. "second" is the other colour of a pattern.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "class": CLASSES,
    "colour": _PAINTS,
    "second": _SECONDS,
    "pattern": _DRAWN,
    "place": tuple(PLACES),
    "hour": tuple(HOURS),
    "sky": _IN_SKY,
    "companion": _BESIDE,
    "companion_colour": _PAINTS,
    "companion_second": _SECONDS,
    "companion_pattern": _DRAWN,
    "relation": _RELATIONS,  # of the companion to the main thing: below it, to the left of it
}

_RELATION_WORDS = {relation.split()[-1]: relation for relation in _RELATIONS}
# The last words of its phrase identify an hour: "blue sky" is day, "night" is night.
_HOUR_WORDS = {
    (" ".join(words[-2:]) if (words := hour.words.split())[-1] == "sky" else words[-1]): name
    for name, hour in HOURS.items()
}


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())


def parse_caption(caption: str) -> dict[str, str]:
    """The attributes that a caption states, by the keys of ATTRIBUTES; others have no entry.

    Captions of `scenes` are parsed without loss. In other text, words of their vocabulary are recognised in the same
    order (patterns and colours before their object, a relation after the companion); the first value of an attribute
    counts and unknown words are skipped. "red car in the snow" states a class, a colour and a place.
    """
    found: dict[str, str] = {}
    colours: list[str] = []  # of the next object
    pattern, last, previous = "", "", ""
    for word in _words(caption):
        thing = ""
        if word in COLOURS:
            colours.append(word)
        elif word in _DRAWN:
            pattern = word
        elif word in CLASSES or (word == "roof" and found.get("class") == "house"):
            thing = "class"
            if word == "roof" or found.setdefault("class", word) == word:
                _describe(found, "", colours, pattern)
        elif word in _IN_SKY:
            thing = "sky"
            found.setdefault("sky", word)
        elif word in _BESIDE:
            thing = "companion"
            if "companion" not in found:
                found["companion"] = word
                _describe(found, "companion_", colours, pattern)
            else:
                thing = "another"
        elif word in _RELATION_WORDS and last == "companion":
            found.setdefault("relation", _RELATION_WORDS[word])
        elif (hour := _HOUR_WORDS.get(word) or _HOUR_WORDS.get(f"{previous} {word}")) is not None:
            found.setdefault("hour", hour)
        elif (place := word if word in PLACES else f"{previous} {word}") in PLACES:
            found.setdefault("place", place)
        if thing or word == "sky":
            colours, pattern = [], ""
        last, previous = thing or last, word
    return found


def _describe(found: dict[str, str], whose: str, colours: list[str], pattern: str) -> None:
    stated = {"pattern": pattern, **dict(zip(("colour", "second"), colours, strict=False))}
    for kind, answer in stated.items():
        if answer in ATTRIBUTES[whose + kind]:
            found.setdefault(whose + kind, answer)
