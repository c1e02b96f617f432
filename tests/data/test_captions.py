"""What captions state: nothing lost of the world's own, nothing made up for what people type."""

import pytest

from ldmlab.data.annotations.annotation import Annotation
from ldmlab.data.scenes.captions import ATTRIBUTES, parse_caption
from ldmlab.data.scenes.places import HOURS
from ldmlab.data.scenes.scene import render_scene

FLYING = ("balloon", "butterfly", "fish", "rocket")
WHERE = {
    "meadow": "on a meadow",
    "desert": "in the desert",
    "snow": "in the snow",
    "sea": "on the sea",
    "under water": "under water",
    "room": "in a room",
}
ABOVE = {"meadow": "above a meadow", "desert": "above the desert", "snow": "above the snow", "sea": "above the sea"}
RELATIONS = {"left": "to the left of", "right": "to the right of", "in front": "in front of"}


@pytest.fixture(scope="module")
def captions():
    return [render_scene(5, split, i, 32).caption for split in ("train", "validation") for i in range(200)]


def described(said: dict[str, str], whose: str, name: str) -> str:
    colours = " and ".join(said[whose + kind] for kind in ("colour", "second") if whose + kind in said)
    return " ".join(part for part in (said.get(f"{whose}pattern"), colours, name) if part)


def article(words: str) -> str:
    return ("an " if words[0] in "aeiou" else "a ") + words


def rebuilt(said: dict[str, str]) -> str:
    """The caption that the generator writes for what is stated."""
    main = said["class"]
    where = ABOVE.get(said["place"], WHERE[said["place"]]) if main in FLYING else WHERE[said["place"]]
    where = "by the sea" if (main, said["place"]) == ("lighthouse", "sea") else where
    first = article(described(said, "", main)) if main != "house" else f"a house with a {described(said, '', 'roof')}"
    text = " ".join(part for part in (first, where, HOURS[said["hour"]].words if "hour" in said else "") if part)
    more = []
    if "sky" in said:
        more.append(("a " if said["sky"] == "cloud" else "the ") + said["sky"] + " in the sky")
    if "companion" in said:
        relation = RELATIONS.get(said["relation"], said["relation"])
        more.append(f"{article(described(said, 'companion_', said['companion']))} {relation} the {main}")
    text += ", with " + " and ".join(more) if more else ""
    return text[0].upper() + text[1:] + "."


def test_nothing_is_lost(captions):
    """From what is read off a caption of the world the caption can be written again, word for word."""
    for caption in captions:
        said = parse_caption(caption)
        assert all(answer in ATTRIBUTES[kind] for kind, answer in said.items())
        assert rebuilt(said) == caption


def test_every_answer_occurs(captions):
    """Between them the world's captions give every answer but a few colours."""
    for kind, answers in ATTRIBUTES.items():
        missing = set(answers) - {parse_caption(caption).get(kind) for caption in captions}
        assert missing <= ({"white", "grey", "brown"} if kind.endswith("colour") else set()), kind


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a red car", {"class": "car", "colour": "red"}),
        (
            "Red car in the snow with a blue ball",
            {"class": "car", "colour": "red", "place": "snow", "companion": "ball", "companion_colour": "blue"},
        ),
        (
            "a red ball behind a BLUE boat",
            {
                "class": "boat",
                "colour": "blue",
                "companion": "ball",
                "companion_colour": "red",
                "relation": "behind",
            },
        ),
        ("fish under water, a rock on the left!", "class fish, place under water, companion rock, relation left"),
        ("a tree under a blue sky", "class tree, hour day"),
        ("a tree under a white cloud", "class tree, sky cloud"),
        ("a house with a striped red roof", "class house, pattern striped, colour red"),
        ("a black car at night", "class car, hour night"),  # no thing is black
        ("a car in front of a house", "class car"),  # no relation between two main things
        ("a cup behind a ball", "class cup, companion ball"),  # the relation is the other way round
        ("scarlet zebras on Mars", {}),
        ("", {}),
    ],
)
def test_what_people_type_is_understood_as_far_as_it_goes(text, said):
    """Found is what is there in the words of this world, and nothing else is claimed."""
    if isinstance(said, str):
        said = dict(pair.split(" ", 1) for pair in said.split(", "))
    assert parse_caption(text) == said


def test_the_caption_of_a_mirrored_picture_claims_the_same_but_for_the_sides(captions):
    """Annotations swap left and right; nothing else that is stated may change by it."""
    swap = {"left": "right", "right": "left"}
    for caption in captions:
        said = parse_caption(caption)
        if "relation" in said:
            said["relation"] = swap.get(said["relation"], said["relation"])
        assert parse_caption(Annotation(0, caption, ()).mirrored().caption) == said
