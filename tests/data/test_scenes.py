"""The embedded world: repeatable, the same at every size, and of one piece with its annotations."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldmlab.data.scenes.places import STUFF
from ldmlab.data.scenes.scene import CLASSES, LABELS, VERSION, render_images, render_scene, scene_label
from ldmlab.data.scenes.styles import COLOURS

SOME = range(60)
GOLDEN_LABELS = [11, 2, 9, 4, 8, 8, 10, 5, 5, 6, 0, 10]
GOLDEN_MEANS = [
    [39.7, 32.4, 53.6, 62.4],
    [112.0, 145.3, 89.2, 99.7],
    [143.7, 156.5, 122.7, 107.4],
    [188.7, 178.1, 145.3, 138.0],
    [184.7, 166.1, 107.4, 116.3],
    [70.0, 61.1, 54.8, 72.1],
    [109.2, 110.1, 131.2, 141.5],
    [141.1, 142.8, 99.4, 111.3],
    [127.4, 124.1, 91.6, 98.1],
    [167.9, 145.4, 100.3, 86.1],
    [82.1, 62.2, 149.1, 140.2],
    [191.5, 155.2, 138.6, 145.9],
]
GOLDEN_CAPTION = "A green tree on a meadow at night, with a grey rock behind the tree."


@pytest.fixture(scope="module")
def some_scenes():
    return [render_scene(3, "train", i, 64) for i in SOME]


def test_the_world_has_not_changed():
    """A change that moves pixels must be meant, and take a new VERSION: means of quadrants, to a grey level."""
    images, labels = render_images(0, "train", range(12), 32)
    assert VERSION == 2
    assert labels.tolist() == GOLDEN_LABELS
    means = images.reshape(12, 3, 2, 16, 2, 16).mean((1, 3, 5)).reshape(12, 4)  # grey, by quadrant
    np.testing.assert_allclose(means, GOLDEN_MEANS, atol=1.0)
    assert render_scene(0, "train", 0, 32).caption == GOLDEN_CAPTION


def test_one_by_one_and_batch_give_the_same_bytes():
    """A picture depends on its index alone, not on its company."""
    images, labels = render_images(1, "test", (5, 2, 9), 48)
    for row, index in enumerate((5, 2, 9)):
        scene = render_scene(1, "test", index, 48)
        assert torch.equal(scene.image, torch.from_numpy(images[row]))
        assert scene.label == labels[row] == scene_label(1, "test", index)


def test_splits_and_seeds_are_disjoint():
    """The same index in another split or world is another picture; no picture comes twice."""
    keys = [(seed, split) for seed in (0, 1) for split in ("train", "validation", "test")]
    pictures = {image.tobytes() for key in keys for image in render_images(*key, range(30), 32)[0]}
    assert len(pictures) == 30 * len(keys)


@pytest.mark.parametrize("size", [64, 96])
def test_a_scene_is_the_same_at_every_size(size):
    """The smaller picture is the larger one averaged, up to what a pixel's width of antialiasing differs."""
    for index in range(8):
        small, large = (render_scene(0, "validation", index, s) for s in (size, 2 * size))
        averaged = F.avg_pool2d(large.image.float(), 2)
        assert (averaged - small.image.float()).abs().mean() < 6  # grey levels of 255
        assert small.caption == large.caption and small.label == large.label
        assert [b.name for b in small.boxes] == [b.name for b in large.boxes]
        for a, b in zip(small.boxes, large.boxes, strict=True):
            assert np.allclose([a.x0, a.y0, a.x1, a.y1], [b.x0, b.y0, b.x1, b.y1], atol=3 / size)


def test_boxes_bound_what_is_seen(some_scenes):
    """Every box is the tight bound of its thing's pixels in the label map, and every thing in the map has its box."""
    for scene in some_scenes:
        seen = scene.segmentation.numpy()
        for box in scene.boxes:
            x0, y0, x1, y1 = (round(64 * v) for v in (box.x0, box.y0, box.x1, box.y1))
            inside = seen[y0:y1, x0:x1] == box.label
            assert LABELS[box.label] == box.name
            assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
        things = {LABELS[k] for k in np.unique(seen)} - set(STUFF)
        assert things == {box.name for box in scene.boxes}


def test_class_caption_and_boxes_tell_the_same(some_scenes):
    """The main thing's box comes first; the caption names every thing, and the relations that hold."""
    for scene in some_scenes:
        main, others = scene.boxes[0], scene.boxes[1:]
        assert main.name == CLASSES[scene.label] and main.name in scene.caption
        assert all(box.name in scene.caption for box in others)
        assert len(re.findall(r" in the sky| of the | below the | beside the | behind the ", scene.caption)) == len(
            others
        )
        for box in others:
            if f"{box.name} to the left of" in scene.caption:
                assert box.x0 + box.x1 < main.x0 + main.x1
            if f"{box.name} to the right of" in scene.caption:
                assert box.x0 + box.x1 > main.x0 + main.x1
            if f"{box.name} below" in scene.caption:
                assert box.y0 + box.y1 > main.y0 + main.y1


def test_the_named_colour_is_the_colour_seen():
    """Of plain balloons, fish and cups by day, the colour in the caption is about the nearest to the pixels' hue."""
    checked = 0
    for index in range(250):
        scene = render_scene(5, "train", index, 32)
        name = CLASSES[scene.label]
        told = re.match(rf"An? (\w+) {name} ", scene.caption)
        if (
            name not in ("balloon", "fish", "cup")
            or told is None
            or "night" in scene.caption
            or "sunset" in scene.caption
        ):
            continue
        pixels = scene.image[:, scene.segmentation == LABELS.index(name)].float() / 255
        colour = pixels.median(1).values
        hues = {k: torch.tensor(v) for k, v in COLOURS.items() if k not in ("white", "black", "grey", "brown")}
        direction = {
            k: F.cosine_similarity(v - v.mean(), colour - colour.mean(), dim=0).item() for k, v in hues.items()
        }
        assert direction[told[1]] > max(direction.values()) - 0.25, (index, scene.caption)
        checked += 1
    assert checked > 5


def test_every_class_comes_about_as_often():
    """Labels are drawn evenly: none of the classes is under 60 % of its share of 3,000."""
    counts = np.bincount([scene_label(0, "train", i) for i in range(3000)], minlength=len(CLASSES))
    assert len(CLASSES) >= 10 and counts.min() > 0.6 * 3000 / len(CLASSES)


def test_there_is_structure_at_every_scale():
    """Halving the size loses real detail at each step from 256 down to 32, so that compression matters."""
    for size in (256, 128, 64):
        x = torch.from_numpy(render_images(0, "train", range(6), size)[0]).float()
        lost = x - F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
        assert lost.std() > 5  # grey levels


@pytest.mark.parametrize(
    ("split", "index", "size"), [("dev", 0, 64), ("train", -1, 64), ("train", 0, 31), ("train", 0, 513)]
)
def test_wrong_requests_are_refused(split, index, size):
    """An unknown split, a negative index and a size out of range say what is accepted."""
    with pytest.raises(ValueError, match="give one of|counts from 0|from 32 to 512"):
        render_scene(0, split, index, size)
