"""Layouts as tokens, beside the recorded cases: what tokens say again, and what is wrong with boxes is told."""

import pytest
import torch

from ldmlab.data.annotations.annotation import Annotation, Box
from ldmlab.diffusion.conditioning.boxes import BoxFlag, BoxTokenizer, check_boxes

BOXES = (Box("a", 4, 0.1, 0.2, 0.4, 0.9), Box("b", 0, 0.5, 0.5, 1.0, 1.0))
NAMES = ("balloon", "boat", "house")


def test_tokens_say_the_boxes_again():
    """Encoding and decoding gives labels, order, and corners within half a place; 92 tokens as released."""
    tokenizer = BoxTokenizer(171)
    tokens = tokenizer.encode(BOXES, (0.25, 0.0, 0.5, 1.0))
    assert tokens.shape == (92,) and tokens.dtype == torch.int64 and tokenizer.length == 92
    for (label, found), box in zip(tokenizer.decode(tokens), BOXES, strict=True):
        assert label == box.label
        assert found == pytest.approx((box.x0, box.y0, box.x1, box.y1), abs=0.5 / 89 + 1e-9)
    assert tokenizer.decode_crop(tokens) == pytest.approx((0.25, 0.0, 0.5, 1.0), abs=1 / 89)


def test_null_and_empty_layouts():
    """No condition is padding alone; a layout without boxes still says which part of the picture is seen."""
    tokenizer = BoxTokenizer(5, num_tokens=64, max_objects=2)
    assert tokenizer.null.tolist() == [63] * 8
    assert tokenizer.decode(tokenizer.null) == [] and tokenizer.decode_crop(tokenizer.null) is None
    assert tokenizer.encode(()).tolist() == [63] * 6 + [0, 63]
    assert tokenizer.decode_crop(tokenizer.encode(()))[2:] == (1.0, 1.0)


def test_flipping_is_encoding_the_mirrored_annotation():
    """Whether the picture's annotation is mirrored or the tokens are flipped makes no difference."""
    tokenizer, annotation = BoxTokenizer(171), Annotation(-1, "", BOXES, (0.25, 0.0, 0.5, 1.0))
    mirrored = annotation.mirrored()
    flipped = tokenizer.encode(annotation.boxes, annotation.crop, flip=True)
    assert torch.equal(flipped, tokenizer.encode(mirrored.boxes, mirrored.crop))
    assert not torch.equal(flipped, tokenizer.encode(annotation.boxes, annotation.crop))


def test_boxes_outside_of_the_crop_are_dropped():
    """A box that shares no area with what is seen has no tokens, though it is one of the first max_objects."""
    tokenizer = BoxTokenizer(5, max_objects=2)
    left, right = Box("a", 1, 0.0, 0.0, 0.5, 1.0), Box("b", 2, 0.5, 0.0, 1.0, 1.0)
    tokens = tokenizer.encode((left, right, right), (0.5, 0.0, 0.5, 1.0))
    assert [label for label, _ in tokenizer.decode(tokens)] == [2]


def test_order_and_flags():
    """`order` shuffles after the cut to max_objects; flags that are not in use do not enter the class token."""
    many = [Box("", k, 0.0, 0.0, 0.5, 0.5) for k in range(4)]
    group = BoxTokenizer(10, max_objects=3, use_group=True)
    flags = [BoxFlag.GROUP, 0, BoxFlag.GROUP | BoxFlag.INSIDE, 0]
    assert [c for c, _ in group.decode(group.encode(many, order=[2, 0, 1], flags=flags))] == [12, 10, 1]
    every = BoxTokenizer(10, max_objects=3, use_group=True, use_additional=True)
    assert [c for c, _ in every.decode(every.encode(many, order=[2, 0, 1], flags=flags))] == [92, 10, 1]


@pytest.mark.parametrize(
    ("boxes", "options", "message"),
    [
        ([Box("a", 5, 0.0, 0.0, 1.0, 1.0)], {}, "labels of boxes must lie in 0 to 4"),
        ([Box("a", 1, 10.0, 20.0, 200.0, 100.0)], {}, "fractions of the picture"),
        ([Box("a", 1, 0.5, 0.0, 0.25, 1.0)], {}, "x0 <= x1"),
        (BOXES, {"order": [0, 0]}, "permutation of 0 to 1"),
        (BOXES, {"flags": [1]}, "1 for 2 boxes"),
        (BOXES, {"crop": (0.0, 0.0, 0.0, 1.0)}, "crop must be"),
    ],
)
def test_what_cannot_be_encoded_is_told(boxes, options, message):
    """Labels, boxes, crops and orders that make no sense are refused with what was given."""
    with pytest.raises(ValueError, match=message):
        BoxTokenizer(5).encode(boxes, **options)


def test_a_vocabulary_that_is_too_small_is_refused():
    """Class tokens never meet the padding, and layouts of another length are not decoded."""
    with pytest.raises(ValueError, match="171 classes .* need 2736 tokens"):
        BoxTokenizer(171, num_tokens=1024, use_group=True, use_additional=True)
    with pytest.raises(ValueError, match="a layout has 92 tokens"):
        BoxTokenizer(171).decode(torch.zeros(91, dtype=torch.int64))


def test_good_boxes_pass_unchanged():
    """Boxes of a person and of a data set come out as given, with nothing to tell."""
    given = [("boat", 0, 0.25, 1, 0.5), Box("house", 2, 0.0, 0.0, 0.5, 1.0)]
    assert check_boxes(given, NAMES) == ((Box("boat", 1, 0.0, 0.25, 1.0, 0.5), given[1]), [])


def test_boxes_partly_outside_are_cut_and_that_is_said():
    """The part inside stays, and the message names box and numbers."""
    boxes, told = check_boxes([("boat", -0.5, 0.25, 0.5, 1.5)], NAMES)
    assert boxes == (Box("boat", 1, 0.0, 0.25, 0.5, 1.0),)
    assert told == ["box 'boat' (-0.5, 0.25, 0.5, 1.5) is cut to the picture: (0, 0.25, 0.5, 1)"]


@pytest.mark.parametrize(
    ("box", "message"),
    [
        (("boat", 1.0, 0.0, 1.5, 1.0), r"box 'boat' \(1, 0, 1.5, 1\) lies outside"),
        (("boat", 0.5, 0.0, 0.5, 1.0), r"box 'boat' .* has no size"),
        (("boat", 0.5, 0.0, float("nan"), 1.0), "has no size"),
        (("baloon", 0.0, 0.0, 1.0, 1.0), "class 'baloon' is unknown; nearest are balloon"),
        (("zebra", 0.0, 0.0, 1.0, 1.0), "known are balloon, boat, house"),
        (("boat", 0.0, 0.0, 1.0), "a box is"),
    ],
)
def test_boxes_that_show_nothing_are_refused(box, message):
    """A box without a visible part, or of an unknown class, is named."""
    with pytest.raises(ValueError, match=message):
        check_boxes([box], NAMES)


def test_of_too_many_boxes_the_largest_are_kept():
    """Order stays, the smallest go, and that is said."""
    given = [("boat", 0.0, 0.0, side, side) for side in (0.5, 0.1, 0.9, 0.7)]
    boxes, told = check_boxes(given, NAMES, max_objects=3)
    assert [b.x1 for b in boxes] == [0.5, 0.9, 0.7] and told == ["4 boxes, more than 3: the largest 3 are kept"]
