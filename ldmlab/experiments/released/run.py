"""The run of notebook 19_released_models: checks parameters, opens a released model, provides pictures and record."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from ldmlab.checkpoints.diffusers_format.folders import read_pipeline
from ldmlab.checkpoints.released import FirstStageRow, LdmRow, released_row, scaled_down
from ldmlab.checkpoints.released_model import build, load_compvis, save_compvis
from ldmlab.checkpoints.released_sampling import bert_folder, find_checkpoint, latent_diffusion, unconditional_error
from ldmlab.damage import DamagedFile, read_or_set_aside
from ldmlab.data.images import ImageSet, quantize_8bit, to_float, to_uint8
from ldmlab.data.masks import KINDS as MASKS
from ldmlab.data.masks import inpainting_masks
from ldmlab.diffusion.conditioning.captions import SCENES_VOCABULARY
from ldmlab.diffusion.samplers import NOISE
from ldmlab.evaluation.uncertainty import MOST_ROWS
from ldmlab.experiments.released.targets import sampling_target
from ldmlab.perception.files import file_hash
from ldmlab.study.config.budgets import auto_tier, budget_of
from ldmlab.study.config.conditions import condition_kind
from ldmlab.study.config.notebooks import NOTEBOOKS
from ldmlab.study.config.paths import runs_dir
from ldmlab.study.config.specs import DataSpec
from ldmlab.study.records.record import Record, environment, now, save_figure
from ldmlab.study.runs.pictures import MIN_VAL, Pictures, open_listed, open_set, show_report
from ldmlab.study.training.device import choose_device
from ldmlab.study.training.progress import progress
from ldmlab.study.training.threads import share_processors
from ldmlab.tensor_files import load_tensors, save_tensors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHUNK = 64  # pictures per file of samples on disk
STEPS_WITHOUT_ROW = 100
_CLASS_STRIDE = 379  # neighbouring classes of ImageNet are similar; this stride visits all 1000


class ReleasedRun:
    """A released model with its file, pictures and record.

    At tier smoke without a file, a scaled-down model with random weights is made. Errors are raised before any work:
    FileNotFoundError for missing weights, ValueError for parameters that do not fit the model.
    """

    def __init__(self, notebook: str, params: dict[str, Any], device: str = "auto", quiet: bool = False):
        self.notebook, self.started, self._clock = notebook, now(), time.monotonic()
        self.device, self.caption = choose_device(device), params["caption"]
        share_processors()
        self.tier = auto_tier(self.device.type) if params["tier"] == "auto" else params["tier"]
        self.budget = budget_of(self.tier)
        self.random = self.budget.is_smoke and not params["file"]
        self.row = _row(params["model"], self.random)
        self.samples_pictures, self.seed = isinstance(self.row, LdmRow), params["seed"]
        self.stage_row: FirstStageRow = self.row.first_stage if self.samples_pictures else self.row
        self.target = sampling_target(params["model"], params["guidance_scale"])
        self.num_steps = params["num_steps"] or self.budget.released_steps or (
            self.target.num_steps if self.target else STEPS_WITHOUT_ROW)
        self.size, self.vocabulary = params["size"] or self._own_size(), None
        self._check(params)
        self.path = (self._made_file() if self.random
                     else Path(params["file"] or find_checkpoint(params["model"])).expanduser())
        if self.samples_pictures and self.row.condition and self.row.condition.kind == "text":
            self.vocabulary = SCENES_VOCABULARY if self.random else None if self.path.is_dir() else bert_folder()
        # Records store file names instead of paths, which differ between machines.
        config = self.stage_row.config
        self.params = {**params, "f": config.f, "reg": config.reg, "data": Path(str(params["data"])).stem,
                       "file": Path(params["file"]).name, "tier": self.tier, "size": self.size,
                       "num_steps": self.num_steps if self.samples_pictures else 0}
        self._data_spec = DataSpec(params["data"], self.size, 0, 0)
        if not quiet:
            print(f"{notebook}: {self.row.name} ({self.row.paper}), data {self.params['data']} at {self.size} px, tier "
                  f"{self.tier}, seed {self.seed}, on {self.device}\n{self.origin}", flush=True)

    @property
    def origin(self) -> str:
        """The origin of the weights, as a sentence."""
        return f"weights: random, scaled down, {self.path.name}" if self.random else f"weights: {self.path}"

    @property
    def about(self) -> str:
        """Data, size, model, tier and seed, in words for the small print."""
        weights = "random weights, scaled down" if self.random else self.path.name
        return (f"{self.params['data']} at {self.size} px; {self.row.name}, {weights}; tier {self.tier}, "
                f"seed {self.seed}.")

    @property
    def stride(self) -> int:
        """The number of pixels of which the sides of a picture must be multiples."""
        halvings = len(self.row.denoiser.widths) - 1 if self.samples_pictures else 0
        return self.stage_row.config.f * 2**halvings

    def _own_size(self) -> int:
        if self.random:
            return -(-32 // self.stride) * self.stride
        return self.row.size if self.samples_pictures else 256

    def _check(self, params: dict[str, Any]) -> None:
        if self.size % self.stride:
            raise ValueError(f"size = {self.size}, but {self.row.name} needs a multiple of {self.stride}")
        wanted, c = f"guidance_scale = {params['guidance_scale']:g}", getattr(self.row, "condition", None)
        if params["guidance_scale"] == 1:
            return
        if c is None:
            raise ValueError(f"{self.row.name} is unconditional and needs guidance_scale = 1; got {wanted}")
        if not c.has_null_condition:
            raise ValueError(f"{self.row.name}: {unconditional_error(c.kind, wanted)}")

    def _made_file(self) -> Path:
        """A checkpoint of the scaled-down model with random weights in CompVis's format, determined by the seed."""
        path = runs_dir() / "released" / f"{self.row.name.replace(' ', '-')}-s{self.seed}.ckpt"
        if not path.exists():
            torch.manual_seed(self.seed)
            path.parent.mkdir(parents=True, exist_ok=True)
            save_compvis(build(self.row), path)
        return path

    # --- Models and pictures ------------------------------------------------------------------------------------------
    @cached_property
    def model(self) -> Any:
        """The `LatentDiffusion` on the run's device, or the `ReleasedModel` of a first stage alone.

        ValueError if a folder holds another model.
        """
        if self.path.is_dir():
            model: Any = read_pipeline(self.path, self.device)
            if not self.samples_pictures or model.denoiser.config.widths != self.row.denoiser.widths:
                raise ValueError(f"{self.path} holds a pipeline with widths {model.denoiser.config.widths}, which is "
                                 f"no {self.row.name}")
            return model
        loaded = load_compvis(self.path, self.row)
        if self.samples_pictures:
            return latent_diffusion(loaded, self.size, self.vocabulary, self.device)
        loaded.first_stage.requires_grad_(False).to(self.device)
        return loaded

    @cached_property
    def file_hash(self) -> str:
        """SHA-256 of the file, or of the names and contents of a folder's files."""
        if not self.path.is_dir():
            return file_hash(self.path)
        files = sorted(p for p in self.path.rglob("*") if p.is_file())
        names = "".join(f"{path.relative_to(self.path)} {file_hash(path)}\n" for path in files)
        return hashlib.sha256(names.encode()).hexdigest()

    @cached_property
    def val(self) -> ImageSet:
        """Validation pictures, for reconstructions and conditions."""
        num = max(self.budget.released_reconstructed, self.num_samples)
        split = "test" if self.target and self.target.split == "test" else "validation"
        found = open_listed(self._data_spec, split, num)
        if found.num_listed < MIN_VAL:
            raise ValueError(f"data = {self._data_spec.name!r} has {found.num_listed} {split} pictures, and {MIN_VAL} "
                             "or more are needed; add pictures")
        if found.report.kind != "scenes":
            found.look()
            show_report(found.report)
        return found

    @cached_property
    def reference(self) -> ImageSet:
        """The reference pictures of scores, of the split that the paper uses, and at most as many."""
        num, target = self.budget.released_reference or None, self.target
        if target and not target.whole:
            num = min(num or target.num_samples, target.num_samples)
        return open_set(self._data_spec, target.split if target else "train", num or 0)

    @cached_property
    def training(self) -> ImageSet:
        """Training pictures, as many as the kernel distance takes, that reconstructions are compared with."""
        return open_set(self._data_spec, "train", min(self.budget.released_reference or MOST_ROWS, MOST_ROWS))

    @property
    def num_samples(self) -> int:
        """The number of samples to score."""
        return self.budget.released_samples or (self.target.num_samples if self.target else 5000)

    @cached_property
    def _known(self) -> list:
        return Pictures(self.val, self.val).annotations("val")

    def conditions(self, rows: range) -> Tensor:
        """Conditions of the samples with these indices: classes in equal shares, or from validation pictures.

        ValueError if the data lacks what the condition needs.
        """
        tau = self.model.conditioner
        if tau is None:
            return torch.zeros(len(rows), dtype=torch.long)
        if tau.kind == "class":
            c = self.row.condition
            return torch.tensor([i * _CLASS_STRIDE % (c.num_items - c.has_null_condition) for i in rows])
        kind, numbers = condition_kind(tau.kind), self.numbers(rows)
        if tau.injected_as == "tokens":
            known = [self._known[i] for i in numbers]
            if not any(getattr(annotation, kind.reads) for annotation in known):
                raise ValueError(f"{self.val.name} has no {kind.source}")
            return tau.read(known)
        if kind.maps and not self.val.map_names:
            raise ValueError(f"{self.val.name} has no {kind.source}")
        if tau.kind == "mask":  # tau.condition would draw the masks of a whole training
            holes = [inpainting_masks(1, (self.size,) * 2, tuple(MASKS)[i % len(MASKS)], self.seed + i) for i in rows]
            return torch.cat([to_float(self.val.images(numbers)), torch.cat(holes)], 1)
        one = lambda n: {"image": self.val.images([n])} | ({"map": self.val.maps([n])} if kind.maps else {})  # noqa: E731
        return torch.cat([tau.condition(one(n), torch.Generator().manual_seed(self.seed + i))
                          for i, n in zip(rows, numbers, strict=True)])

    def numbers(self, rows: range) -> list[int]:
        """The validation pictures whose conditions samples with these indices have: `ImageSet.subset`, in turn."""
        order = self.val.subset(len(self.val))
        return [order[i % len(order)] for i in rows]

    def sample(
        self, y: Tensor, *, indices: Sequence[int] | None = None, guidance_scale: float | None = None
    ) -> Float[Tensor, "n 3 H W"]:
        """Samples in [-1, 1] for conditions `y` with this run's seed, steps, eta and guidance, quantized to 8 bits."""
        x = self.model.sample(
            y, num_steps=self.num_steps, eta=self.eta, seed=self.seed, indices=indices, batch_size=CHUNK,
            guidance_scale=self.params["guidance_scale"] if guidance_scale is None else guidance_scale)
        return quantize_8bit(x)

    @property
    def eta(self) -> float | int:
        """eta of DDIM, as for the paper's row."""
        return self.target.eta if self.target else 0.0

    def sampled(self) -> Iterator[Float[Tensor, "n 3 H W"]]:
        """The run's samples in chunks of CHUNK, loaded from disk if an earlier or interrupted run made them."""
        protocol = [self.file_hash, self.size, self.seed, self.num_steps, self.eta, self.params["guidance_scale"],
                    self.val.fingerprint, self.num_samples, NOISE]
        folder = runs_dir() / "released" / f"samples-{hashlib.sha256(json.dumps(protocol).encode()).hexdigest()[:16]}"
        with progress(self.num_samples, f"{self.row.name}, samples", unit="pictures") as bar:
            for start in range(0, self.num_samples, CHUNK):
                rows = range(start, min(start + CHUNK, self.num_samples))
                path = folder / f"{start:06d}.safetensors"
                x = read_or_set_aside(path, partial(_load_samples, num=len(rows)))
                if x is None:
                    x = to_uint8(self.sample(self.conditions(rows), indices=rows))
                    save_tensors(path, {"x": x}, {"key": f"{folder.name}/{start}"})
                bar.update(len(rows))
                yield to_float(x)

    def _name_data(self) -> None:
        if (label := self.val.label) != self.val.name:
            self.params["data"] = label

    # --- Records ------------------------------------------------------------------------------------------------------
    def new_record(self) -> Record:
        """A record without metrics, with parameters, environment, inputs and protocol."""
        self._name_data()
        measured = NOTEBOOKS[self.notebook].measured(self.params)
        record = Record(self.notebook, self.row.name, measured, started=self.started, env=environment(self.device))
        record.inputs |= {"file": self.file_hash, "data": self.val.fingerprint}
        record.set_data(self.val.report.as_dict(), self.val.former_fingerprint)
        record.protocol |= {**self.val.protocol, "weights": "random" if self.random else "file",
                            "noise": NOISE}
        return record

    def keep(self, name: str, fig: "Figure") -> "Figure":
        """Write a figure to results/figures/ and return it for display."""
        self._name_data()
        save_figure(fig, name, *(self.params[key] for key in ("data", "tier", "size")))
        return fig

    def finish(self, record: Record) -> Path:
        """Save the record with the wall time of the run that measured it; returns its path."""
        record.wall_s = record.wall_s or round(time.monotonic() - self._clock, 1)
        path = record.save()
        print(f"record: {path}", flush=True)
        return path


def _row(name: str, small: bool) -> Any:
    """The `LdmRow` of a released model, or the `FirstStageRow` of a first stage alone; scaled down if `small`."""
    return scaled_down(released_row(name)) if small else released_row(name)


def sample_rows(run: ReleasedRun, n: int = 6) -> dict[str, Float[Tensor, "n 3 H W"]]:
    """Rows for `picture_grid`: `n` samples for the run's caption or conditions, at three guidance scales if possible.

    For models conditioned on pictures, the true pictures come first. {} for a first stage.
    """
    if not run.samples_pictures:
        return {}
    tau = run.model.conditioner
    if tau is not None and tau.kind == "text" and run.caption:
        y = tau.tokenizer([run.caption] * n)
    else:
        y = run.conditions(range(n))
    if tau is not None and tau.injected_as == "channels":
        return {"true": to_float(run.val.images(run.numbers(range(n)))), "samples": run.sample(y)}
    if run.row.condition is None or not run.row.condition.has_null_condition:
        return {"samples": run.sample(y)}
    return {f"guidance scale {scale:g}": run.sample(y, guidance_scale=scale) for scale in (1.0, 1.5, 3.0)}


def _load_samples(path: Path, num: int) -> Tensor:
    tensors, about = load_tensors(path, optional=("key",))
    x, key = tensors.get("x"), f"{path.parent.name}/{int(path.stem)}"
    if x is None or x.dtype != torch.uint8 or len(x) != num or about.get("key", key) != key:
        raise DamagedFile(path, "it holds other pictures")
    return x
