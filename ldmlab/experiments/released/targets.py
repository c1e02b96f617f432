"""The rows of the paper's tables for each released model, with their protocols, and the comparison with our scores.

The protocol is that of [LDM v2, App. E.3]. The paper does not state eta: `num_steps` and `eta` are those of the
authors' README where it names a model, and `caveats` give other numbers of steps in the paper's tables.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from ldmlab.checkpoints.released import LdmRow, released_row
from ldmlab.paper import numbers as paper
from ldmlab.study.records.record import Record

# Relative difference of two pipelines on the same pictures: 2.95 and 3.0 for LSUN-Bedrooms [LDM v2, App. E.3.1].
TOLERANCE = 0.02
MEAN_TOLERANCE = 0.005  # of means over the same pictures (0.1 of 24 dB), which differ by resizing and rounding only
# Names of folders that are taken to be the paper's data sets.
DATA: dict[str, tuple[str, ...]] = {
    "ImageNet": ("imagenet", "imagenet1k", "ilsvrc2012"), "CelebA-HQ": ("celebahq",), "FFHQ": ("ffhq",),
    "LSUN-Bedrooms": ("lsunbedrooms", "lsunbeds", "bedrooms"), "LSUN-Churches": ("lsunchurches", "churches"),
    "MS-COCO": ("coco", "mscoco", "coco2014"), "OpenImages": ("openimages",), "Places": ("places", "places365"),
}
SIZE = 256  # pixels per side, in every row below
# Metrics of a record -> the name a score must have to be the paper's quantity.
NAMES = {"r_fid": "rFID", "r_is": "IS", "r_psim": "LPIPS", "fid": "FID", "inception_score": "IS"}
# Means over pictures are unbiased at any number of them, unlike Fréchet distances and Inception scores.
MEANS = ("psnr", "ssim", "r_psnr", "r_ssim", "r_psim")
_RECONSTRUCTION = {"r_fid": "r_fid", "r_is": "r_is", "r_psnr": "psnr", "r_psim": "psim", "r_ssim": "ssim"}
_FID_IS = {"fid": "fid", "inception_score": "is"}
_FID_PR = {"fid": "fid", "precision": "precision", "recall": "recall"}
_ALL = {**_FID_IS, **_FID_PR}


@dataclass(frozen=True)
class Target:
    """A row of the paper's tables with its protocol; `metrics` maps our names of metrics to the paper's.

    The reference is the whole `split`, or `num_samples` pictures of it if not `whole`. `never` says why the row is not
    reproducible here, and `caveats` what the paper leaves open.
    """

    table: str
    row: str
    data: str
    metrics: Mapping[str, str] = field(hash=False)
    split: str = "train"
    num_samples: int = 50_000
    num_steps: int = 0  # 0 for a first stage, which is not sampled
    eta: float | int = 0.0
    guidance_scale: float = 1.0
    whole: bool = True
    never: str = ""
    caveats: tuple[str, ...] = ()

    @property
    def values(self) -> dict[str, float]:
        """The paper's numbers by our names of the metrics."""
        row = paper.table(self.table)[self.row]
        return {ours: float(row[theirs]) for ours, theirs in self.metrics.items()}


def _cin(table: str, row: str, scale: float) -> Target:
    return Target(table, row, "ImageNet", _ALL, num_steps=250, guidance_scale=scale, caveats=("eta is not stated",))


def _text(row: str, scale: float) -> Target:
    return Target("Tab. 2", row, "MS-COCO", _FID_IS, "validation", 30_000, 250, guidance_scale=scale, whole=False,
                  caveats=("eta is not stated", "which captions were drawn is not stated"))


TARGETS: dict[str, tuple[Target, ...]] = {
    "celeba256": (Target("Tab. 1", "CelebA-HQ / LDM-4", "CelebA-HQ", _FID_PR, num_steps=200,
                         caveats=("Tab. 1 has 500 steps, the README 200 for the same FID",)),),
    "ffhq256": (Target("Tab. 1", "FFHQ / LDM-4", "FFHQ", _FID_PR, num_steps=200, eta=1.0),),
    "lsun_churches256": (Target("Tab. 1", "LSUN-Churches / LDM-8", "LSUN-Churches", _FID_PR, num_steps=400,
                                caveats=("Tab. 1 has 200 steps, Tab. 18 100, the README 400 for the same FID",)),),
    "lsun_beds256": (Target("Tab. 1", "LSUN-Bedrooms / LDM-4", "LSUN-Bedrooms", _FID_PR, num_steps=200, eta=1.0),),
    "cin256": (Target("Tab. 10", "ImageNet / LDM-8 4.8M", "ImageNet", _ALL, num_steps=200, eta=1.0, caveats=(
        "the README prints FID 15.82 for this file, next to the row of 4.8M steps",)),),
    "cin256-v2": (_cin("Tab. 3", "ImageNet / LDM-4", 1.0), _cin("Tab. 10", "ImageNet / LDM-4-G scale 1.25", 1.25),
                  _cin("Tab. 3", "ImageNet / LDM-4-G scale 1.5", 1.5)),
    "txt2img-1p4B-eval": (_text("MS-COCO / LDM-KL-8", 1.0), _text("MS-COCO / LDM-KL-8-G", 1.5)),
    "layout2img-openimages256": (Target(
        "Tab. 9", "layout / LDM-4", "OpenImages", {"fid": "fid_openimages"}, "validation", 2048, 200, whole=False,
        caveats=("the 2048 pictures are those of earlier work",)),),
    "bsr_sr": (Target(
        "Tab. 5", "ImageNet x4 / LDM-4", "ImageNet", {"fid": "fid_val", "inception_score": "is", "psnr": "psnr",
                                                      "ssim": "ssim"}, "validation", num_steps=100,
        never="the released model was trained on BSR degradation, the model of this row on bicubic shrinking"),),
    "inpainting_big": (Target(
        "Tab. 7", "LDM-4 big, fine-tuned", "Places", {"fid": "fid"}, "test", 30_000, 50, whole=False,
        never="the masks of its 30k test pictures are not published, and it was measured at 512 px"),),
}
# Released models without a row in the paper.
NO_ROW = {
    "text2img256": "no table of the paper has this model; the README states FID 16.79 and IS 13.89 on Conceptual "
                   "Captions, 100 steps, eta = 0",
    "semantic_synthesis256": "the paper gives no score for semantic synthesis",
    "semantic_synthesis512": "the paper gives no score for semantic synthesis",
}


def sampling_target(name: str, guidance_scale: float | int = 1.0) -> Target | None:
    """The row of a released model at a guidance scale, its first row for other scales, None if it has no row."""
    found = TARGETS.get(name, ())
    return next((target for target in found if target.guidance_scale == guidance_scale), found[0] if found else None)


def reconstruction_target(name: str) -> Target:
    """The row of Tab. 8 of a released first stage, or of the first stage of a released latent diffusion model."""
    row = released_row(name)
    stage = row.first_stage if isinstance(row, LdmRow) else row
    return Target("Tab. 8", stage.paper, "ImageNet", _RECONSTRUCTION, "validation")


# --- Comparison -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Comparison:
    """One number of the paper beside ours; `verdict` is within, off, not comparable or not measured, for reason `why`.

    `same` is whether the scores have the same name, whatever else differs.
    """

    table: str
    row: str
    metric: str
    paper: float
    ours: float | None
    verdict: str
    why: str
    same: bool = True


def compare(record: Record) -> list[Comparison]:
    """Compare every number of the paper for the record's model with that of the record."""
    p = record.params
    targets = [reconstruction_target(p["model"])]
    if sampled := sampling_target(p["model"], p["guidance_scale"]):
        targets.append(sampled)
    return [_compare(record, target, metric, value) for target in targets for metric, value in target.values.items()]


def _compare(record: Record, target: Target, metric: str, theirs: float) -> Comparison:
    place, entry = (target.table, target.row, metric, theirs), record.metrics.get(metric)
    if entry is None:
        return Comparison(*place, None, "not measured", _missing(record, metric))
    ours = entry["value"]
    if reasons := differences(record, target, metric):
        same = NAMES.get(metric, entry["name"]) == entry["name"]
        return Comparison(*place, ours, "not comparable", "; ".join(reasons), same)
    interval = entry.get("interval") or {"low": ours, "high": ours}
    slack = MEAN_TOLERANCE if metric in MEANS else TOLERANCE
    low, high = interval["low"] * (1 - slack), interval["high"] * (1 + slack)
    open_ = "".join(f"; {caveat}" for caveat in target.caveats)
    if low <= theirs <= high:
        return Comparison(*place, ours, "within", f"the paper's lies in {low:.4g} to {high:.4g}{open_}")
    return Comparison(*place, ours, "off", f"off by {ours - theirs:+.3g} ({100 * (ours / theirs - 1):+.1f} %){open_}")


def _missing(record: Record, metric: str) -> str:
    """The reason that a record states for a missing score with Inception features."""
    of = "Inception's rFID" if metric.startswith("r_") else "Inception's FID"
    said = [event.partition(": weights")[0] for event in record.events if event.startswith((of, "Inception's weights"))]
    return "; ".join(said) or "not measured in this record"


def differences(record: Record, target: Target, metric: str) -> list[str]:
    """Reasons why a metric of the record is not comparable with the paper's number; [] if it is."""
    p, protocol, entry = record.params, record.protocol, record.metrics[metric]
    found = [target.never] if target.never else []
    if protocol.get("weights") == "random":
        found.append("the weights are random, since no released file was given")
    if re.sub("[^a-z0-9]", "", p["data"].lower()) not in DATA[target.data]:
        found.append(f"data {p['data']} instead of {target.data}")
    if p["size"] != SIZE:
        found.append(f"{p['size']} px instead of {SIZE}")
    if metric not in MEANS and entry["n_fake"] != target.num_samples:
        found.append(f"{entry['n_fake']} pictures instead of {target.num_samples:,}")
    if target.num_steps:
        found += [f"{name} = {protocol[name]:g} instead of {getattr(target, name):g}"
                  for name in ("num_steps", "eta", "guidance_scale") if protocol[name] != getattr(target, name)]
        if target.whole and metric == "fid" and not protocol["reference_whole"]:
            found.append(f"the reference is a part of the split {target.split} instead of all of it")
        if not target.whole and metric == "fid" and entry["n_real"] != target.num_samples:
            found.append(f"{entry['n_real']} reference pictures instead of {target.num_samples:,}")
    if metric in ("precision", "recall"):
        found.append("the paper uses the script of Dhariwal and Nichol for them")
    if (wanted := NAMES.get(metric)) and entry["name"] != wanted:
        found.append(f"the score is {entry['name']} instead of {wanted.removeprefix('r')}")
    return found
