"""The notebooks: their parameters, and the values of f."""

from importlib import import_module

# The rows of checkpoints.released, which needs torch.
RELEASED = (
    "kl-f4", "kl-f8", "kl-f16", "kl-f32", "vq-f4", "vq-f4-noattn", "vq-f8", "vq-f8-n256", "vq-f16", "celeba256",
    "ffhq256", "lsun_beds256", "lsun_churches256", "cin256", "cin256-v2", "text2img256", "txt2img-1p4B-eval",
    "layout2img-openimages256", "semantic_synthesis256", "semantic_synthesis512", "bsr_sr", "inpainting_big")
NOTEBOOKS: dict[str, tuple[str, ...]] = {
    "00_tour": ("f", "data", "tier", "seed"),
    "01_autoencoders": ("f", "reg", "data", "size", "tier", "seed"),
    "02_latents": ("f", "reg", "data", "size", "tier", "seed", "scale_mode"),
    "03_diffusion": ("f", "reg", "data", "size", "tier", "seed", "num_steps", "eta", "guidance_scale"),
    "04_tradeoff": ("f", "reg", "data", "size", "tier", "seed", "compile"),
    "05_rate_distortion": ("f", "reg", "data", "size", "tier", "seed"),
    "06_snr_rescaling": ("f", "data", "size", "tier", "seed"),
    "07_sampling": ("f", "reg", "data", "size", "tier", "seed"),
    "08_class_conditional": ("f", "reg", "data", "size", "tier", "seed", "classes"),
    "09_text_to_image": ("f", "reg", "data", "size", "tier", "seed", "caption", "guidance_scale"),
    "10_layout_to_image": ("f", "reg", "data", "size", "tier", "seed", "layout", "guidance_scale"),
    "11_semantic_synthesis": ("f", "reg", "data", "size", "tier", "seed", "picture"),
    "12_super_resolution": ("f", "reg", "data", "size", "tier", "seed", "factor", "degradation", "picture"),
    "13_inpainting": ("f", "reg", "data", "size", "tier", "seed", "attention", "picture"),
    "14_image_guiding": ("f", "reg", "data", "size", "tier", "seed", "factor", "guidance_scale"),
    "15_beyond_training_size": ("f", "reg", "data", "size", "tier", "seed", "picture"),
    "16_evaluation": ("f", "data", "size", "tier", "seed"),
    "17_user_study": ("f", "reg", "data", "size", "tier", "seed", "rater", "num_questions", "exposure_s"),
    "18_compute": ("f", "reg", "data", "size", "tier", "seed"),
    "19_released_models": ("model", "file", "data", "size", "tier", "seed", "num_steps", "guidance_scale", "caption"),
    "20_report": ("data", "size", "tier"),
}
# Parameters that choose pictures to look at, and change nothing that is measured; or how it is computed, and change the
# seconds, as another machine would: then the record's events tell.
SHOWN_ONLY: dict[str, tuple[str, ...]] = {
    "04_tradeoff": ("compile",),
    "08_class_conditional": ("classes",),
    "09_text_to_image": ("caption", "guidance_scale"),
    "10_layout_to_image": ("layout", "guidance_scale"),
    "11_semantic_synthesis": ("picture",),
    "12_super_resolution": ("picture",),
    "13_inpainting": ("picture",),
    "14_image_guiding": ("guidance_scale",),
    "15_beyond_training_size": ("picture",),
    "17_user_study": ("rater", "num_questions", "exposure_s"),
    "19_released_models": ("caption",),
}


FS = (1, 2, 4, 8, 16, 32)
# Which notebook's models are told what to show by something else than the class.
CONDITIONS = {
    "09_text_to_image": "text", "10_layout_to_image": "layout", "11_semantic_synthesis": "labels",
    "12_super_resolution": "low_resolution", "13_inpainting": "mask",
}

_RUN_CLASSES = {
    "19_released_models": "ldmlab.experiments.released.run.ReleasedRun", "20_report": "ldmlab.report.Report",
}


def load_run_class(notebook: str) -> type:
    """The class of a notebook's run, imported by its name, since some live in packages above this one."""
    module, _, name = _RUN_CLASSES.get(notebook, "ldmlab.study.runs.run.Run").rpartition(".")
    return getattr(import_module(module), name)
