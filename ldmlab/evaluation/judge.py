"""The judge: a small network that measures whether samples of `scenes` match their class, caption or boxes.

It predicts from a picture the attributes of captions (`captions.ATTRIBUTES`) and the label of every pixel, one of
`scenes.LABELS`. It was trained on rendered pictures of `scenes`, half of them degraded in the manner of a weak first
stage. Its own accuracy, by attribute, is in its card and in the protocol of every score. No model of ldmlab is trained
with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from safetensors.torch import load_file
from scipy import ndimage
from scipy.stats import binomtest
from torch import Tensor, nn
from torch.nn import functional as F

from ldmlab.damage import read_json
from ldmlab.data.annotations.annotation import Box
from ldmlab.data.scenes.captions import ATTRIBUTES, parse_caption
from ldmlab.data.scenes.scene import CLASSES, LABELS
from ldmlab.evaluation.distances import Interval, Score
from ldmlab.perception.files import WEIGHTS, file_hash, freeze
from ldmlab.perception.lab_networks import fold_batchnorm
from ldmlab.perception.pictures import check_pictures

SIZE = 32  # side of the judge's input in pixels
GROUPS = {  # attributes that are also scored together
    "objects": ("class", "sky", "companion"),
    "colours": ("colour", "second", "companion_colour", "companion_second"),
    "relations": ("relation",),
    "place": ("place",),
}
_THINGS = (CLASSES, ATTRIBUTES["sky"], ATTRIBUTES["companion"])
_IS_THING = np.array([any(name in group for group in _THINGS) for name in LABELS])
_SPECK = 0.25  # parts of an object below this share of its largest part are ignored


def _conv(c_in: int, c_out: int, k: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, k, stride, k // 2, bias=False), nn.BatchNorm2d(c_out), nn.ReLU())


class _Residual(nn.Module):
    def __init__(self, c: int):
        super().__init__()
        self.body = nn.Sequential(_conv(c, c), _conv(c, c))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class JudgeNet(nn.Module):
    """A U-shaped network for the label map; attributes are predicted from features pooled over the objects.

    It has four resolutions down and three up, with skips. Appearance features are averaged over the pixels labelled as
    main object, object in the sky and companion; for the main object also over four parts chosen by attention, since a
    house has the colour of its roof. The relation is predicted from the positions of the two objects along x and y.
    """

    groups: Tensor

    def __init__(self, widths: tuple[int, ...] = (16, 48, 80, 80), look: int = 64, parts: int = 4):
        super().__init__()
        fine, mid, low, deep = widths
        stages = [
            nn.Sequential(_conv(3, fine), _Residual(fine)),
            nn.Sequential(_conv(fine, mid, stride=2), _Residual(mid)),
            nn.Sequential(_conv(mid, low, stride=2), _Residual(low)),
            nn.Sequential(_conv(low, deep, stride=2), _conv(deep, deep)),
        ]
        self.down = nn.ModuleList(stages)
        self.skips = nn.ModuleList(_conv(c, mid, 1) for c in (mid, low, deep))
        self.up = nn.ModuleList([_conv(mid, mid), _conv(mid, mid)])  # at 1/2, 1/4
        self.last = _conv(mid + fine, fine)
        self.labels = nn.Conv2d(fine, len(LABELS), 1)
        self.look = nn.Sequential(_conv(2 * mid, look), _conv(look, look))
        self.parts = nn.Conv2d(look, parts, 1)
        things = torch.tensor([[name in group for name in LABELS] for group in _THINGS])
        self.register_buffer("groups", things.float(), persistent=False)  # (3, labels)
        self.where = nn.Sequential(nn.Linear(8 * SIZE, 64), nn.ReLU())
        thing = deep + look + fine
        main = thing + parts * look
        inputs = {"place": deep, "hour": deep, "sky": thing, "relation": thing + 64}

        def head(kind: str, num: int) -> nn.Sequential:
            c_in = inputs.get(kind, thing if kind.startswith("companion") else main)
            return nn.Sequential(nn.Linear(c_in, 64), nn.ReLU(), nn.Linear(64, num))

        self.heads = nn.ModuleDict({kind: head(kind, len(answers) + 1) for kind, answers in ATTRIBUTES.items()})

    def forward(self, x: Float[Tensor, "n 3 s s"]) -> tuple[Tensor, dict[str, Tensor]]:
        """Logits of the label map (n, labels, s, s) and of each attribute (n, values + 1), "not present" last."""
        maps = []
        for stage in self.down:
            x = stage(x)
            maps.append(x)
        skips = [skip(m) for skip, m in zip(self.skips, maps[1:], strict=True)]
        y = self.up[1](skips[1] + F.interpolate(skips[2], scale_factor=2))
        y = self.up[0](skips[0] + F.interpolate(y, scale_factor=2))
        regions = self.labels(self.last(torch.cat([maps[0], F.interpolate(y, scale_factor=2)], 1)))
        look = self.look(torch.cat([maps[1], y], 1))
        parts = self.parts(look)
        with torch.autocast(x.device.type, enabled=False):
            return regions.float(), self._answers(*(m.float() for m in (regions, maps[0], look, parts, x)))

    def _answers(self, regions: Tensor, fine: Tensor, look: Tensor, parts: Tensor, deep: Tensor) -> dict[str, Tensor]:
        masks = torch.einsum("gl,nlhw->nghw", self.groups, regions.softmax(1))  # (n, 3, s, s)
        half = F.avg_pool2d(masks, 2)

        def pooled(features: Tensor, weights: Tensor) -> Tensor:
            # One pixel is added to the area, so that features vanish where there is no such object.
            area = weights.sum((2, 3)) + weights.shape[2] / SIZE
            return torch.einsum("nghw,nchw->ngc", weights, features) / area[..., None]

        overall = deep.mean((2, 3))
        things = torch.cat([pooled(fine, masks), pooled(look, half), overall[:, None].expand(-1, 3, -1)], 2)
        main, sky, companion = things.unbind(1)
        attention = (parts + (half[:, :1] + 1e-3).log()).flatten(2).softmax(2)
        main = torch.cat([main, torch.einsum("npi,nci->npc", attention, look.flatten(2)).flatten(1)], 1)
        two = masks[:, [0, 2]]
        profiles = [two.amax(2), two.amax(3), two.mean(2), two.mean(3)]
        where = self.where(torch.cat(profiles, 1).flatten(1))
        of = {"place": overall, "hour": overall, "sky": sky, "relation": torch.cat([companion, where], 1)}
        whose = {kind: companion if kind.startswith("companion") else main for kind in ATTRIBUTES}
        return {kind: head(of.get(kind, whose[kind])) for kind, head in self.heads.items()}


@dataclass(frozen=True)
class Predictions:
    """Predictions of the judge for n pictures: probabilities by attribute, and the label of every pixel.

    The attributes are the keys of `captions.ATTRIBUTES`; the last column of each stands for "not present".
    """

    answers: Mapping[str, Float[Tensor, "n _"]]
    regions: Int64[Tensor, "n 32 32"]  # indices into LABELS
    weights_hash: str
    accuracy: Mapping[str, Mapping[str, float]]  # of the judge on rendered pictures, "clean" and "spoiled" (degraded)

    def __len__(self) -> int:
        return len(self.regions)

    @property
    def classes(self) -> Float[Tensor, "n classes"]:
        """Probabilities of the classes."""
        return self.answers["class"][:, : len(CLASSES)]

    def attributes(self, index: int) -> dict[str, str]:
        """Attributes that the judge finds on one picture, as from `captions.parse_caption`; others have no entry."""
        best = {kind: int(p[index].argmax()) for kind, p in self.answers.items()}
        return {kind: ATTRIBUTES[kind][i] for kind, i in best.items() if i < len(ATTRIBUTES[kind])}

    def score(self, value: float, of: str, n: int, interval: Interval | None) -> Score:
        """A `Score` of the judge, with its accuracy on rendered pictures in the protocol."""
        own = {pictures: known[of] for pictures, known in self.accuracy.items() if of in known}
        about: dict[str, Any] = {"judged_at_px": SIZE, "on_true_pictures": own}
        return Score(value, f"judge: {of}", "1", 0, n, "judge", self.weights_hash, about, interval)


class Judge(nn.Module):
    """A trained `JudgeNet`, frozen; `predict` returns its `Predictions`."""

    net: JudgeNet

    def __init__(self, net: JudgeNet, weights_hash: str = "", accuracy: Mapping[str, Any] | None = None):
        super().__init__()
        self.net, self.weights_hash, self.accuracy = freeze(net), weights_hash, accuracy or {}

    @torch.inference_mode()
    def predict(self, x: Tensor, batch_size: int = 250) -> Predictions:
        """Predictions, on the CPU, for pictures (n, 3, s, s) in [-1, 1], resized to 32 px (antialiased) if needed.

        Raises TypeError or ValueError for other input.
        """
        check_pictures(x)
        if x.shape[2] != x.shape[3] or not len(x):
            raise ValueError(f"x must hold square pictures, one or more, got {tuple(x.shape)}")
        device, maps, probabilities = self.net.groups.device, [], []
        with torch.autocast(device.type, enabled=False):
            for part in x.split(batch_size):
                part = part.to(device, torch.float32)
                if part.shape[2] != SIZE:
                    part = F.interpolate(part, (SIZE, SIZE), mode="bilinear", antialias=True)
                regions, answers = self.net(part)
                maps.append(regions.argmax(1).cpu())
                probabilities.append({kind: logits.softmax(1).cpu() for kind, logits in answers.items()})
        answers = {kind: torch.cat([part[kind] for part in probabilities]) for kind in ATTRIBUTES}
        return Predictions(answers, torch.cat(maps), self.weights_hash, self.accuracy)


def load_judge(folder: Path | str | None = None) -> Judge:
    """Load the judge from `judge.safetensors` and `judge.json` in `folder` (default: the shipped one).

    Raises ValueError where the file's sha256 differs from that in its JSON.
    """
    path = Path(folder or WEIGHTS) / "judge.safetensors"
    card = read_json(path.with_suffix(".json"))
    digest = file_hash(path)
    if digest != card["sha256"]:
        raise ValueError(f"{path} has sha256 {digest}, but judge.json states {card['sha256']}; restore the file")
    net = fold_batchnorm(JudgeNet())
    net.load_state_dict(load_file(path))  # half precision in the file, float32 from here on
    return Judge(net, digest, card["validation_accuracy"])


def _wilson(right: int, n: int) -> Interval:
    low, high = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return Interval(float(low), float(high), 0.95, "Wilson")


def _bootstrap(sums: np.ndarray, counts: np.ndarray, num_resamples: int = 1000) -> Interval | None:
    """Bootstrap over pictures, each with all of its attributes, of sum / count; None for a single picture."""
    if (n := len(sums)) < 2:
        return None
    drawn = np.random.default_rng(0).multinomial(n, np.full(n, 1 / n), num_resamples)
    low, high = np.quantile((drawn @ sums) / (drawn @ counts), (0.025, 0.975))
    return Interval(float(low), float(high), 0.95, f"bootstrap of the pictures, {num_resamples} resamples")


def class_accuracy(predicted: Predictions, labels: Int64[Tensor, " n"]) -> Score:
    """Share of pictures classified as their label by the judge, with Wilson's interval."""
    if len(labels) != len(predicted):
        raise ValueError(f"need one label per picture, got {len(labels)} labels and {len(predicted)} pictures")
    if labels.min() < 0 or labels.max() >= len(CLASSES):
        raise ValueError(f"labels must be 0 to {len(CLASSES) - 1}, got {int(labels.min())} to {int(labels.max())}")
    right = int((predicted.classes.argmax(1) == labels.cpu()).sum())
    return predicted.score(right / len(predicted), "class", len(predicted), _wilson(right, len(predicted)))


def caption_fulfilment(predicted: Predictions, captions: Sequence[str]) -> dict[str, Score]:
    """Share of the captions' attributes that the judge finds: by attribute, by the groups of GROUPS, and `all`.

    An attribute counts where a caption states it, as correct if its value is the judge's most probable one, "not
    present" included. Attributes that no caption states have no entry. Intervals are Wilson's for an attribute, and a
    bootstrap over pictures for a group, of which a picture may state several. `n_fake` is the number of pictures.
    Raises ValueError unless there is one caption per picture and one of them states an attribute.
    """
    if len(captions) != len(predicted):
        raise ValueError(f"need one caption per picture, got {len(captions)} captions and {len(predicted)} pictures")
    stated = [parse_caption(caption) for caption in captions]
    if not any(stated):
        raise ValueError(f"no caption states an attribute of captions of `scenes`; the first is {captions[0]!r}")
    found = [predicted.attributes(i) for i in range(len(predicted))]
    is_stated = np.array([[kind in a for kind in ATTRIBUTES] for a in stated])
    right = np.array([[k in a and a[k] == s.get(k) for k in ATTRIBUTES] for a, s in zip(stated, found, strict=True)])
    groups = {kind: (kind,) for kind in ATTRIBUTES} | GROUPS | {"all": tuple(ATTRIBUTES)}
    scores = {}
    for name, kinds in groups.items():
        columns = [kind in kinds for kind in ATTRIBUTES]
        counts, hits = is_stated[:, columns].sum(1), right[:, columns].sum(1)
        there = counts > 0
        counts, hits, n = counts[there], hits[there], int(there.sum())
        if n:
            interval = _wilson(int(hits.sum()), n) if len(kinds) == 1 else _bootstrap(hits, counts)
            scores[name] = predicted.score(float(hits.sum() / counts.sum()), name, n, interval)
    return scores


def _pixels(box: Box) -> tuple[slice, slice]:
    """Rows and columns of the label map that a box overlaps."""
    x0, y0, x1, y1 = (v * SIZE for v in (box.x0, box.y0, box.x1, box.y1))
    # The small margin keeps ends on a pixel's edge, up to rounding, from taking one pixel more.
    first, end = (lambda v: max(0, int(np.floor(v + 1e-3)))), (lambda v: min(SIZE, int(np.ceil(v - 1e-3))))
    return slice(first(y0), end(y1)), slice(first(x0), end(x1))


def box_iou(regions: Int64[Tensor, "32 32"], box: Box) -> float:
    """IoU of a box with the bounding box of the object of its name in a label map; 0 where there is none.

    The object is the union of the 8-connected parts of that label that overlap the box, without those smaller than a
    quarter of the largest.
    """
    rows, columns = _pixels(box)
    parts, _ = ndimage.label(regions.numpy() == LABELS.index(box.name), np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())
    inside = [p for p in np.unique(parts[rows, columns]) if p > 0]
    if not inside:
        return 0.0
    kept = np.isin(parts, [p for p in inside if sizes[p] >= _SPECK * sizes[inside].max()])
    ys, xs = np.flatnonzero(kept.any(1)) / SIZE, np.flatnonzero(kept.any(0)) / SIZE
    x0, y0, x1, y1 = xs[0], ys[0], xs[-1] + 1 / SIZE, ys[-1] + 1 / SIZE
    common = max(0.0, min(x1, box.x1) - max(x0, box.x0)) * max(0.0, min(y1, box.y1) - max(y0, box.y0))
    return float(common / ((x1 - x0) * (y1 - y0) + (box.x1 - box.x0) * (box.y1 - box.y0) - common))


def _fills_box(regions: Int64[Tensor, "32 32"], box: Box) -> bool:
    """Whether the box's own label is the most frequent label of objects inside of it."""
    rows, columns = _pixels(box)
    counts = np.bincount(regions[rows, columns].numpy().ravel(), minlength=len(LABELS)) * _IS_THING
    return bool(counts.any() and counts.argmax() == LABELS.index(box.name))


def layout_scores(predicted: Predictions, boxes: Sequence[tuple[Box, ...]]) -> dict[str, Score]:
    """Agreement of the pictures with their boxes: means over all boxes, intervals by bootstrap over pictures.

    `layout_iou`: mean of `box_iou`, 0 for objects that are not found. `box_class_accuracy`: share of boxes in which the
    most frequent label of objects (not sky or ground) is that of the box. Raises ValueError for a box whose name is not
    an object of `scenes`, or that is empty or exceeds the picture.
    """
    if len(boxes) != len(predicted):
        raise ValueError(f"need the boxes of each picture, got those of {len(boxes)} and {len(predicted)} pictures")
    known = [name for group in _THINGS for name in group]
    for box in (box for row in boxes for box in row):
        if box.name not in known:
            raise ValueError(f"no object {box.name!r}; accepted are {', '.join(known)}")
        if not (-1e-6 <= box.x0 < box.x1 <= 1 + 1e-6 and -1e-6 <= box.y0 < box.y1 <= 1 + 1e-6):
            raise ValueError(f"a box must lie in the picture, its ends in [0, 1], got {box}")
    rows = [(regions, own) for regions, own in zip(predicted.regions, boxes, strict=True) if own]
    if not rows:
        raise ValueError("no picture has a box")
    counts = np.array([len(own) for _, own in rows])
    scores = {}
    for name, measure in {"layout_iou": box_iou, "box_class_accuracy": _fills_box}.items():
        sums = np.array([sum(measure(regions, box) for box in own) for regions, own in rows], float)
        scores[name] = predicted.score(float(sums.sum() / counts.sum()), name, len(rows), _bootstrap(sums, counts))
    return scores
