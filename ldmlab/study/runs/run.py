"""One notebook's run: its spec, its models (trained or loaded at first use), its record."""

import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from ldmlab.data.user_pictures import open_user_pictures
from ldmlab.diffusion.conditioning.spatial import SpatialConditioner
from ldmlab.diffusion.conditioning.tokens import Conditioner
from ldmlab.first_stage.latents import Latents, PixelLatents
from ldmlab.perception.losses import loss_hash
from ldmlab.study.config.budgets import auto_tier
from ldmlab.study.config.conditions import condition_kind
from ldmlab.study.config.notebooks import NOTEBOOKS
from ldmlab.study.config.presets import study_spec
from ldmlab.study.config.specs import StudySpec
from ldmlab.study.records.networks import UNKNOWN, networks_of, split_inputs
from ldmlab.study.records.record import Record, environment, now, save_figure
from ldmlab.study.runs import conditioners, pictures
from ldmlab.study.runs import diffusion as diffusion_runs
from ldmlab.study.runs.conditioners import sample_labels
from ldmlab.study.runs.first_stage import TrainedFirstStage, encode, train_first_stage
from ldmlab.study.training.device import choose_device
from ldmlab.study.training.slurm import heed_warnings
from ldmlab.study.training.threads import share_processors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ldmlab.study.runs.scoring import RunScorer


def _check_picture(path: str, spec: StudySpec, condition: str, factor: int) -> None:
    """ValueError where no picture of one's own can be used: now, and not after models have been trained."""
    if path:
        aligned = condition in ("labels", "low_resolution", "mask")  # where the denoiser sees the whole picture
        levels = len(spec.diffusion.denoiser.widths) if aligned else 1
        smallest = max(1, spec.f * 2 ** (levels - 1) // factor)
        for _ in open_user_pictures(path, condition if condition in ("mask", "labels") else "picture", smallest):
            pass


def _check_labels(path: str, num_labels: int) -> None:
    """ValueError where a label map of one's own has labels that those of the data lack."""
    for name, (labels,) in open_user_pictures(path, "labels"):
        if (largest := int(labels.max())) >= num_labels:
            raise ValueError(f"picture = {path!r}: {name} has the label {largest}; those of the data's label maps are "
                             f"0 to {num_labels - 1}")


class Run:
    """Pictures, models and scorer of a notebook; each is computed once, and later runs load the same models.

    `params` are those of the notebook as `read_parameters` returns them; `device` is as `choose_device` takes it. With
    `quiet` the line that says what runs is not printed.
    """

    def __init__(self, notebook: str, params: dict[str, Any], device: str = "auto", quiet: bool = False):
        self.notebook, self.started, self._clock = notebook, now(), time.monotonic()
        self.device = choose_device(device)
        share_processors()
        heed_warnings()
        tier = params["tier"]
        if tier == "auto":
            tier = auto_tier(self.device.type)
        changes = {name: params[name] for name in ("scale_mode", "compile") if name in params}
        f, reg, size = params["f"], params.get("reg", "kl"), params.get("size", 0)
        condition = NOTEBOOKS[notebook].condition
        condition_options = {name: params[name] for name in condition_kind(condition).options}
        self.spec: StudySpec = study_spec(f, reg, params["data"], tier, params["seed"], size, condition=condition,
                                          attention=params.get("attention", True),
                                          perceptual=params.get("perceptual", ""),
                                          condition_options=condition_options, **changes)
        if "perceptual" in NOTEBOOKS[notebook].parameters:
            params = {**params, "perceptual": self.spec.first_stage.perceptual}
            loss_hash(params["perceptual"])  # missing weights are an error now, and not after data have been read
        _check_picture(params.get("picture", ""), self.spec, condition, params.get("factor", 1))
        # Records travel: of a path they keep the name, with the fingerprint of the files once these are open.
        self.params = {**params, "data": Path(str(params["data"])).stem, "tier": tier, "reg": self.spec.reg,
                       "size": self.spec.data.size}
        torch.manual_seed(self.spec.seed)
        if not quiet:
            chosen = " (auto)" if params["tier"] != tier else ""
            print(f"{notebook}: {self.spec.name}, data {self.spec.data.name} at {self.spec.data.size} px, tier {tier}"
                  f"{chosen}, seed {self.spec.seed}, on {self.device}", flush=True)

    @property
    def about(self) -> str:
        """What pictures and which run a figure shows, for its small print."""
        data, spec = self.pictures.train, self.spec
        return (f"{data.name} at {data.size} px; {spec.name} on {spec.first_stage.name}, tier {spec.tier}, "
                f"seed {spec.seed}.")

    @cached_property
    def pictures(self) -> pictures.Pictures:
        """Training and validation pictures; ValueError where they are too few, or lack what the condition reads."""
        opened = pictures.open_pictures(self.spec, NOTEBOOKS[self.notebook].samples)
        if (label := opened.train.label) != opened.train.name:
            self.params["data"] = label
        conditioners.check_annotations(self.spec.diffusion, opened)  # now, and not after a first stage has been trained
        pictures.labels_named(opened.train, self.params.get("classes", ""))
        if self.params.get("picture") and NOTEBOOKS[self.notebook].condition == "labels":
            _check_labels(self.params["picture"], len(opened.train.map_names))
        return opened

    @cached_property
    def first_stage(self) -> TrainedFirstStage:
        """The first stage, trained or loaded."""
        return train_first_stage(self.spec, self.pictures, self.device)

    @cached_property
    def latents(self) -> Latents | PixelLatents:
        """Cached moments of the training pictures, both mirror images."""
        return encode(self.spec, self.first_stage, self.pictures, self.device)

    @cached_property
    def conditioner(self) -> Conditioner | SpatialConditioner | None:
        """The untrained conditioner tau_theta of this run's model; None for an unconditional one."""
        return conditioners.build_conditioner(self.spec.diffusion, self.pictures, self.first_stage)

    @cached_property
    def scorer(self) -> "RunScorer":
        """Scores samples and reconstructions against this run's pictures."""
        from ldmlab.study.runs.scoring import RunScorer

        return RunScorer(self.spec, self.pictures, self.device)

    @cached_property
    def diffusion(self) -> diffusion_runs.TrainedDiffusion:
        """The diffusion model, trained (its samples scored at milestones) or loaded."""
        known = diffusion_runs.find_diffusion(self.spec, self.pictures, self.first_stage, self.device)
        return known or diffusion_runs.train_diffusion(
            self.spec, self.pictures, self.first_stage, self.latents, self.device,
            on_milestone=self.scorer.score_milestone)

    def new_record(self) -> Record:
        """A record with parameters, environment and inputs, and no measurements."""
        train, about = self.pictures.train, self.pictures.report.as_dict()
        measured = NOTEBOOKS[self.notebook].measured(self.params)
        record = Record(self.notebook, self.spec.name, measured, started=self.started, env=environment(self.device))
        record.inputs["data"] = train.fingerprint
        record.set_data(about, train.former_fingerprint)
        record.inputs["first_stage"] = self.first_stage.hash
        record.protocol.update(self.pictures.train.protocol)
        record.events += self.first_stage.curve.events
        return record

    def measured_before(self, record: Record) -> Record | None:
        """The record on disk with the same parameters and inputs, if there is one; says so."""
        stored = record.stored()
        if stored is not None:
            print(f"{record.name}: measured {stored.started}, loaded", flush=True)
        return stored

    def keep(self, name: str, fig: "Figure") -> "Figure":
        """A figure for the cell to show, written to results/figures/ as well."""
        _ = self.pictures  # names the data
        save_figure(fig, name, *(self.params[key] for key in ("data", "tier", "size")))
        return fig

    def finish(self, record: Record) -> Path:
        """Save the record with the wall time of the run that measured it, and every network behind it; its path."""
        if "diffusion" in self.__dict__ and not any(name.startswith("denoiser") for name in record.inputs):
            record.inputs["denoiser"] = self.diffusion.hash
        networks, others = split_inputs(record.inputs, record.notebook)
        known = {name: value for name, value in networks_of(record).items() if value != UNKNOWN}
        record.inputs = others | networks | known
        record.wall_s = record.wall_s or round(time.monotonic() - self._clock, 1)
        path = record.save()
        print(f"record: {path}", flush=True)
        return path


def first_labels(run: Run, n: int) -> Int[Tensor, " n"]:
    """`n` labels that go through the classes in turn; zeros where the data has none."""
    return sample_labels(run.pictures.train.num_classes, n)
