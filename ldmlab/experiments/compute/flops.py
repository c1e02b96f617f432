"""Counted operations of the paper's models and of the runs of this project, beside Tab. 18 [LDM v2, App. F].

Models are built on torch's "meta" device, so that counting needs neither weights nor compute. Operations are those of
convolutions and matrix products for one picture, with a multiply-add counted as two. A context of one token is counted
as in the released code, at every position; ours attends to it once and needs up to 4 % less.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ldmlab.checkpoints.released import LDMS, LdmRow
from ldmlab.damage import read_json
from ldmlab.diffusion.conditioning.transformer import TokenTransformer
from ldmlab.diffusion.unet.unet import DenoiserConfig, UNet, count_params
from ldmlab.evaluation.cost import V100_PER_A100, count_flops
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.paper import numbers as paper
from ldmlab.study.config.conditions import KINDS, condition_kind
from ldmlab.study.config.notebooks import FS
from ldmlab.study.config.paths import results_dir
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import ConditionSpec, StudySpec, denoiser_config

PASSES = 3  # forward passes per training step, counting its backward pass as two
DAY = 86_400  # seconds
IMAGENET = 1_281_167  # training pictures
# Where the paper states batch size and steps of a released model. That of super-resolution differs from Tab. 15's.
TRAINED = {
    "celeba256": ("Tab. 12", "CelebA-HQ"), "ffhq256": ("Tab. 12", "FFHQ"), "lsun_beds256": ("Tab. 12", "LSUN-Bedrooms"),
    "lsun_churches256": ("Tab. 12", "LSUN-Churches"), "cin256": ("Tab. 18", "ImageNet / LDM-8"),
    "cin256-v2": ("Tab. 15", "class ImageNet"), "txt2img-1p4B-eval": ("Tab. 15", "text LAION"),
    "layout2img-openimages256": ("Tab. 15", "layout OpenImages"),
    "semantic_synthesis256": ("Tab. 15", "semantic Landscapes"),
}


# --- Counting ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Costs:
    """Operations of each part of a model for one picture, forward, in FLOP, and the parts' numbers of parameters.

    `tau` is the transformer of the condition, which is trained with the denoiser. `masked` marks an inpainting model,
    which also encodes the masked picture.
    """

    denoiser: int
    encode: int
    decode: int
    num_params: int
    num_params_first_stage: int
    tau: int = 0
    num_params_tau: int = 0
    masked: bool = False

    @property
    def num_encodes(self) -> int:
        """Encoder calls per picture in a training step without cached latents."""
        return 1 + self.masked

    def training(self, online: bool = False) -> int:
        """FLOP per picture of the denoiser's training, with cached latents, or encoding at each step (`online`)."""
        return PASSES * (self.denoiser + self.tau) + self.num_encodes * self.encode * online

    def sampling(self, num_steps: int, guided: bool = False) -> int:
        """FLOP per sample: `num_steps` denoiser calls, doubled by classifier-free guidance, and the decoder."""
        return (1 + guided) * (num_steps * self.denoiser + self.tau) + self.masked * self.encode + self.decode

    @property
    def first_stage_training(self) -> int:
        """FLOP per picture of the autoencoder's training, without perceptual network and discriminator."""
        return PASSES * (self.encode + self.decode)


def count_denoiser(config: DenoiserConfig, side: int, num_tokens: int = 1) -> int:
    """FLOP of one forward pass on one latent of `side` squared, with `num_tokens` of context if it takes one."""
    config = replace(config, attention_at=tuple(sorted(config.attention_at)))
    if num_tokens == 1:  # extrapolated from 2 and 3, since our UNet has a shortcut for a single token
        return 2 * _count_denoiser(config, side, 2) - _count_denoiser(config, side, 3)
    return _count_denoiser(config, side, num_tokens)


@cache
def _count_denoiser(config: DenoiserConfig, side: int, num_tokens: int) -> int:
    with torch.device("meta"):
        unet, z, t = UNet(config), torch.empty(1, config.in_channels, side, side), torch.zeros(1)
        context = None if config.context_dim is None else torch.empty(1, num_tokens, config.context_dim)
    return count_flops(unet, z, t, context)


@cache
def count_first_stage(config: AutoencoderConfig, size: int) -> tuple[int, int, int]:
    """FLOP of encoder and decoder on one picture of `size` squared, and their number of parameters."""
    if config.f == 1:
        return 0, 0, 0
    with torch.device("meta"):
        model: Any = build_autoencoder(config)
        x = torch.empty(1, 3, size, size)
        z = torch.empty(1, model.z_channels, size // config.f, size // config.f)
    encode = count_flops(lambda: model.to_latent(model.encoder(x)))  # `encode` would read the picture's values
    return encode, count_flops(model.decode, z), count_params(model)


@cache
def count_tau(vocab_size: int, length: int, dim: int, layers: int, heads: int = 8, head_dim: int = 64
              ) -> tuple[int, int]:
    """FLOP of a condition's transformer on `length` tokens, and its number of parameters."""
    with torch.device("meta"):
        tau, ids = TokenTransformer(vocab_size, length, dim, layers, heads, head_dim), torch.zeros(1, length).long()
    return count_flops(tau, ids), count_params(tau)


def costs_of_row(row: LdmRow) -> Costs:
    """Costs of a released model at its training size."""
    c, first_stage = row.condition, row.first_stage.config
    tau = (0, 0)
    if c and c.num_layers:
        tau = count_tau(c.num_items, c.max_length, c.channels, c.num_layers)
    masked = c is not None and condition_kind(c.kind).encodes_picture
    return _costs(row.denoiser, first_stage, row.size, c.max_length or 1 if c else 1, tau, masked)


def costs_of_spec(spec: StudySpec) -> Costs:
    """Costs of the run that a spec describes, for data with classes; at tier `paper` one of the paper's sweep."""
    c, tau, num_tokens = spec.diffusion.condition, (0, 0), 1
    if isinstance(c, ConditionSpec):
        kind = condition_kind(c.kind)
        num_tokens = kind.num_tokens(c)
        tau = count_tau(kind.vocab_size(c), num_tokens, c.dim, c.num_layers, c.num_heads, c.head_dim)
    return _costs(denoiser_config(spec.diffusion, num_classes=1), spec.first_stage.autoencoder, spec.data.size,
                  num_tokens, tau, c is not None and condition_kind(c.kind).encodes_picture)


def _costs(denoiser: DenoiserConfig, first_stage: AutoencoderConfig, size: int, num_tokens: int, tau: tuple[int, int],
           masked: bool) -> Costs:
    encode, decode, num_params_first_stage = count_first_stage(first_stage, size)
    return Costs(count_denoiser(denoiser, size // first_stage.f, num_tokens), encode, decode, count_params(denoiser),
                 num_params_first_stage, *tau, masked)


# --- Models -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Model:
    """A model with its costs and the training of its denoiser and first stage; steps are 0 if they are not stated."""

    name: str
    f: int
    costs: Costs
    num_steps: int = 0
    batch_size: int = 0
    first_stage: str = ""
    first_stage_steps: int = 0
    first_stage_batch: int = 0

    def training(self, online: bool = False) -> int:
        """FLOP of the denoiser's whole training."""
        return self.num_steps * self.batch_size * self.costs.training(online)

    @property
    def first_stage_training(self) -> int:
        """FLOP of the first stage's whole training; a lower bound, see `Costs.first_stage_training`."""
        return self.first_stage_steps * self.first_stage_batch * self.costs.first_stage_training


def paper_models() -> list[Model]:
    """The released models, the inpainting model of Tab. 15, and the sweep of Tab. 13 with VQ first stages.

    The configurations of first stages that were not released are assumed, see `ldmlab.study.config.paper_models`.
    """
    found = []
    for row in LDMS.values():
        if row.name == "semantic_synthesis512":  # the model of 256 px, continued
            continue
        plan: dict[str, Any] = {}
        if row.name in TRAINED:
            table, name = TRAINED[row.name]
            plan = paper.table(table)[name]
        stage = paper.table("Tab. 8").get(row.first_stage.paper, {})
        found.append(Model(row.paper, row.first_stage.config.f, costs_of_row(row), plan.get("num_steps", 0),
                           plan.get("batch_size", 0), row.first_stage.paper, stage.get("num_steps", 0),
                           stage.get("batch_size", 0)))
    found.append(model_of_spec(study_spec(4, "vq", tier="paper", condition="mask"), "inpainting Places, Tab. 15"))
    return found + sweep()


def sweep() -> list[Model]:
    """LDM-1 to LDM-32 on ImageNet, the paper's sweep over f [LDM v2, Tab. 13]."""
    return [model_of_spec(study_spec(f, "vq", tier="paper"), f"LDM-{f}, Tab. 13") for f in FS]


def workbench_models(tier: str, size: int = 0, reg: str = "kl") -> list[Model]:
    """The models that the notebooks train at a tier: the sweep of 04, and every other condition at f = 4."""
    specs = {f"LDM-{f}": study_spec(f, reg, tier=tier, size=size) for f in FS}
    specs |= {f"LDM-4, {kind.replace('_', ' ')}": study_spec(4, reg, tier=tier, size=size, condition=kind)
              for kind in KINDS if kind != "class"}
    return [model_of_spec(spec, name) for name, spec in specs.items()]


def model_of_spec(spec: StudySpec, name: str) -> Model:
    """The model that a spec describes, with its costs and length of training."""
    stage, plan = spec.first_stage, spec.diffusion
    return Model(name, spec.f, costs_of_spec(spec), plan.num_steps, plan.batch_size, stage.name, stage.num_steps,
                 stage.batch_size if stage.num_steps else 0)


def cost_table(models: Iterable[Model], num_steps: int = 200, unit: str = "EFLOP") -> pd.DataFrame:
    """A table of models: parameters in millions, GFLOP per picture, whole trainings in EFLOP (10^18) or PFLOP (10^15).

    Cells are empty for trainings that are not stated. KeyError for another `unit`.
    """
    whole, rows = {"EFLOP": 1e18, "PFLOP": 1e15}[unit], []
    for m in models:
        c, stated = m.costs, bool(m.num_steps)
        rows.append({
            "model": m.name, "f": m.f, "denoiser [M]": c.num_params / 1e6,
            "first stage [M]": c.num_params_first_stage / 1e6, "tau [M]": c.num_params_tau / 1e6 or None,
            "denoiser [GFLOP]": c.denoiser / 1e9, "tau [GFLOP]": c.tau / 1e9 or None, "encode [GFLOP]": c.encode / 1e9,
            "decode [GFLOP]": c.decode / 1e9, "train, cached [GFLOP]": c.training() / 1e9,
            "train, online [GFLOP]": c.training(True) / 1e9,
            f"sample, {num_steps} steps [TFLOP]": c.sampling(num_steps) / 1e12,
            "pictures seen [M]": m.num_steps * m.batch_size / 1e6 if stated else None,
            f"training, cached [{unit}]": m.training() / whole if stated else None,
            f"training, online [{unit}]": m.training(True) / whole if stated else None,
            f"first stage's training [{unit}]": m.first_stage_training / whole or None})
    return pd.DataFrame(rows).set_index("model")


def parts(models: Sequence[Model], num_steps: int = 200) -> dict[str, pd.DataFrame]:
    """FLOP per picture by f and part (encode, denoiser, decode), for "online" and "cached" training and "sampling".

    "cached" encodes every picture of ImageNet and its mirror image once, amortized over the training.
    """
    found: dict[str, dict[int, tuple[float, float, float]]] = {"online": {}, "cached": {}, "sampling": {}}
    for m in models:
        c, seen = m.costs, m.num_steps * m.batch_size
        found["online"][m.f] = (c.num_encodes * c.encode, c.training(), 0.0)
        found["cached"][m.f] = (2 * IMAGENET * c.num_encodes * c.encode / seen, c.training(), 0.0)
        found["sampling"][m.f] = (0.0, c.sampling(num_steps) - c.decode, c.decode)
    return {work: pd.DataFrame(rows, index=("encode", "denoiser", "decode")).T for work, rows in found.items()}


# --- Tab. 18 ----------------------------------------------------------------------------------------------------------
def tab18() -> pd.DataFrame:
    """The paper's compute requirements, row by row as printed [LDM v2, Tab. 18]."""
    columns = {"generator_v100_days": "generator [V100-days]", "classifier_v100_days": "classifier [V100-days]",
               "total_v100_days": "total [V100-days]", "images_per_s": "samples/s", "num_params": "parameters [M]",
               "fid": "FID", "is": "IS", "precision": "precision", "recall": "recall", "r_fid": "R-FID",
               "sampling_steps": "DDIM steps", "num_steps": "training steps", "batch_size": "batch"}
    frame = pd.DataFrame(paper.table("Tab. 18")).T.reindex(columns=list(columns)).rename(columns=columns)
    frame["parameters [M]"] = frame["parameters [M]"].astype(float) / 1e6
    return frame.rename_axis("data / model")


def implied_rates(models: Iterable[Model]) -> pd.DataFrame:
    """Operations per second of the authors' A100 implied by Tab. 18: operations counted here over the time stated.

    Training encodes every picture at each step, as the released code does; recomputation by gradient checkpointing is
    not counted, and of first stages only the autoencoder is. V100-days are converted to seconds of an A100 by the
    factor 2.2 of App. F, which the paper takes from another source: rates of training depend on it, those of sampling
    do not. Rows with classifier guidance are omitted, since the paper does not describe the classifier.
    """
    known, rows = {m.name: m for m in models}, []
    for name, row in paper.table("Tab. 18").items():
        base, guided = name.partition("-G scale")[0], "guidance_scale" in row
        if base in known:
            m = known[base]
            seen = row.get("num_steps", m.num_steps) * row.get("batch_size", m.batch_size)
            work, sample = seen * m.costs.training(online=True), m.costs.sampling(row["sampling_steps"], guided)
        elif stage := next((m for m in known.values() if "VQGAN-" in name and m.first_stage_steps and
                            m.first_stage.startswith(f"VQ-{name.rpartition('-')[2]} ")), None):
            seen, work, sample = stage.first_stage_steps * stage.first_stage_batch, stage.first_stage_training, None
        else:
            continue
        seconds = float(row["generator_v100_days"]) / V100_PER_A100 * DAY
        rows.append({
            "data / model": name, "V100-days": row["generator_v100_days"], "pictures seen [M]": seen / 1e6,
            "training [EFLOP]": work / 1e18, "pictures/s": seen / seconds, "training [TFLOP/s]": work / seconds / 1e12,
            "samples/s": row.get("images_per_s"), "sample [TFLOP]": sample and sample / 1e12,
            "sampling [TFLOP/s]": sample and sample * row["images_per_s"] / 1e12})
    return pd.DataFrame(rows).set_index("data / model").astype(float)


# --- Benchmarks -------------------------------------------------------------------------------------------------------
def benchmark_tables(folder: Path | None = None) -> pd.DataFrame:
    """Results of `benchmarks/` in `folder`, by default results/benchmarks: each of our variants against each peer.

    `ratio` is our speed over the peer's with its interval `low` to `high`, and `goal` the target for `low`. `void`
    marks measurements on a machine with other load. Files of another format are skipped.
    """
    columns = ("table", "work", "variant", "peer", "exact", "seconds", "ratio", "low", "high", "goal", "void")
    found = []
    for path in sorted((folder or results_dir() / "benchmarks").glob("*.json")):
        try:
            content = read_json(path)
            found += _comparisons(content["table"], content["rows"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return pd.DataFrame(found, columns=columns).set_index("table")


def _comparisons(table: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    peers = {(row["work"], row["variant"]) for row in rows if row["kind"] == "peer"}
    found = []
    for row in rows:
        goals = {goal["peer"]: goal["at_least"] for goal in row["goals"]}
        found += [{"table": table, "work": row["work"], "variant": row["variant"], "peer": other,
                   "exact": row["exact"], "seconds": row["median_s"], **ratio, "goal": goals.get(other),
                   "void": row["void"]}
                  for other, ratio in row["over"].items()
                  if row["kind"] == "ours" and ((row["work"], other) in peers or other in goals)]
    return found
