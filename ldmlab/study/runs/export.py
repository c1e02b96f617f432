"""A trained model as a folder of diffusers, and the run that trains one which diffusers can build."""

from dataclasses import replace
from pathlib import Path

from ldmlab.checkpoints.diffusers_format import configs
from ldmlab.checkpoints.diffusers_format.folders import write_pipeline
from ldmlab.diffusion.conditioning.captions import MAX_LENGTH
from ldmlab.diffusion.model import LatentDiffusion
from ldmlab.study.config.parameters import read_parameters
from ldmlab.study.config.specs import ConditionSpec
from ldmlab.study.runs.pictures import open_set
from ldmlab.study.runs.run import Run


def export(model: LatentDiffusion, folder: Path | str) -> str:
    """Write a model for diffusers; the pipeline's name, or what stands in the way."""
    try:
        return f"{write_pipeline(model, folder)}: {folder}"
    except ValueError as error:
        return f"not expressible: {error}"


def exportable_run(data: str = "scenes", tier: str = "auto", seed: int = 0, size: int = 0, *, text: bool = True,
                   perceptual: str = "") -> Run:
    """A run at f = 8 whose model diffusers has classes for: of captions or, without `text`, of classes if any.

    Parameters are those of 09_text_to_image, or of 07_sampling without `text`; `run.diffusion.model` trains the model,
    or finds it again. Its first stage has neither patches nor shortcut, and its captions are of the released length.
    ParameterError for what the notebooks do not accept.
    """
    prompt = {"caption": "", "guidance_scale": 1.0} if text else {}
    notebook = "09_text_to_image" if text else "07_sampling"
    params = {"f": 8, "reg": "kl", "data": data, "size": size, "tier": tier, "seed": seed,
              "perceptual": perceptual, **prompt}
    run = Run(notebook, read_parameters(notebook, params).as_dict())
    if not text and (num_classes := open_set(run.spec.data, "train").num_classes):
        print(f"{run.spec.data.name} has {num_classes} classes, and diffusers no pipeline for a class-conditional "
              "model: write_parts of ldmlab.checkpoints.diffusers_format.folders writes its parts", flush=True)
    first_stage, diffusion = run.spec.first_stage, run.spec.diffusion
    first_stage = replace(first_stage, autoencoder=configs.exportable_config(first_stage.autoencoder))
    if isinstance(diffusion.condition, ConditionSpec):
        diffusion = replace(diffusion, condition=replace(diffusion.condition, max_length=MAX_LENGTH))
    run.spec = replace(run.spec, first_stage=first_stage, diffusion=diffusion)
    return run
