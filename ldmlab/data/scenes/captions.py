"""What a caption of `scenes` states, kind by kind."""

import re

from ldmlab.data.scenes.places import HOURS, PLACES
from ldmlab.data.scenes.props import COMPANIONS
from ldmlab.data.scenes.scene import CLASSES
from ldmlab.data.scenes.styles import _COLOURS_OF, BRIGHT, COLOURS, PATTERNS

_IN_SKY = ("sun", "moon", "cloud")
_BESIDE = tuple(name for name in COMPANIONS if name not in _IN_SKY)
# One may ask for a white car, though the world paints things white only beside another colour.
_PAINTS = tuple(c for c in COLOURS if c in {"white", *BRIGHT, *(c for row in _COLOURS_OF.values() for c in row)})
_SECONDS = tuple(c for c in COLOURS if c in {"white", *BRIGHT})
_DRAWN = tuple(p for p in PATTERNS if p != "plain")
_RELATIONS = ("below", "beside", "in front", "behind", "left", "right")

# Kinds of statement, each with all that captions state of it. "second" is the other colour of a pattern.
ANSWERS: dict[str, tuple[str, ...]] = {
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
# An hour is told by its last words: "blue sky" is day, "night" is night.
_HOUR_WORDS = {
    (" ".join(words[-2:]) if (words := hour.words.split())[-1] == "sky" else words[-1]): name
    for name, hour in HOURS.items()
}


def _words(caption: str) -> list[str]:
    return re.findall(r"\w+", caption.lower())


def claims(caption: str) -> dict[str, str]:
    """What a caption states, by the kinds of ANSWERS; what it does not state has no entry.

    From any caption of `scenes` nothing is lost. Of other text the words that this world knows are understood, in the
    order of its captions (patterns and colours stand before their thing, a relation after the companion), and the
    first of each kind counts: "red car in the snow" states a class, a colour and a place. Unknown words are passed
    over.
    """
    found: dict[str, str] = {}
    colours: list[str] = []  # said of the next thing
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
    said = {"pattern": pattern, **dict(zip(("colour", "second"), colours, strict=False))}
    for kind, answer in said.items():
        if answer in ANSWERS[whose + kind]:
            found.setdefault(whose + kind, answer)
