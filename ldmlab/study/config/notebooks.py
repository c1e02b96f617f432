"""The table of notebooks: one row holds what library, tests and README need of a notebook.

To add one, write its row here, an experiment, a figure function, and the notebook with its solution;
`study.config.missing_parts` names what is missing. Standard library only: parameters are checked before anything slow
is imported, so functions and classes are named by strings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from ldmlab.first_stage.factors import FS

# The rows of checkpoints.released, which needs torch.
RELEASED = (
    "kl-f4", "kl-f8", "kl-f16", "kl-f32", "vq-f4", "vq-f4-noattn", "vq-f8", "vq-f8-n256", "vq-f16", "celeba256",
    "ffhq256", "lsun_beds256", "lsun_churches256", "cin256", "cin256-v2", "text2img256", "txt2img-1p4B-eval",
    "layout2img-openimages256", "semantic_synthesis256", "semantic_synthesis512", "bsr_sr", "inpainting_big")


@dataclass(frozen=True)
class StudyFigure:
    """A figure of the study, drawn from a notebook's records."""

    name: str
    shows: str  # figures and tables of the paper, or what is plotted
    metric: str  # the records in it compare by this metric, one of the row's `metrics`
    function: str  # inside ldmlab.figures: "tradeoff.fig_tradeoff"; takes a list of records and returns a Figure
    per_f: bool = False  # shows the records of a single f
    one_record: bool = False  # the function takes a single record


@dataclass(frozen=True)
class Notebook:
    """The properties of a notebook that do not need a run. Texts are Markdown, as the README prints them."""

    name: str  # of its file, and of the folder of its records
    title: str
    paper: str  # sections, figures and tables that it reproduces
    minutes: str  # at tier laptop
    expect: str  # numbers to expect at tier laptop
    parameters: tuple[str, ...]  # in the order of its parameters cell; `study.config.parameters` defines each
    # Parameters that no number of its record depends on, except seconds: they choose what is displayed, or how it is
    # computed.
    display_only: tuple[str, ...] = ()
    condition: str = "class"  # what its diffusion models are conditioned on
    experiment: str = ""  # module of ldmlab.experiments that trains and measures
    # By which metrics its records compare: name -> entries of the protocol of sampling that must be equal; none for
    # metrics of reconstructions.
    metrics: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    figures: tuple[StudyFigure, ...] = ()
    wanted: tuple[tuple[int, str], ...] = ()  # f and regularizer of the records that the report asks for
    seeds: int = 1  # how many seeds of each
    evidence: bool = False  # quantities of `claims` are read from its records
    machine: str = "2 CPU cores"  # at tier laptop
    run_class: str = "ldmlab.study.runs.run.Run"
    solution: str = ""  # path in the project; empty for notebooks/solutions/<name>.md

    def __post_init__(self) -> None:
        object.__setattr__(self, "solution", self.solution or f"notebooks/solutions/{self.name}.md")

    @property
    def path(self) -> str:
        """Path in the project."""
        return f"notebooks/{self.name}.ipynb"

    def measured(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """The parameters that numbers of its record depend on."""
        return {name: value for name, value in params.items() if name not in self.display_only}


# Parameters of the notebooks that train a model at one f.
_RUN = ("f", "reg", "data", "size", "tier", "seed", "perceptual")
# How samples were made: as evaluation.protocol.SAMPLING, which needs torch; and less of it where a record holds samples
# of several guidance scales, or of a task.
_SAMPLES = ("sampler", "num_steps", "eta", "guidance_scale", "ema", "noise")
_GUIDED = ("sampler", "num_steps", "eta", "guidance_n", "noise")
_RESTORED = ("sampler", "num_steps", "eta", "n", "noise")
# f and regularizer of the sweeps of the study.
_KL, _VQ = tuple((f, "none" if f == 1 else "kl") for f in FS), ((4, "vq"), (8, "vq"), (16, "vq"))

_ROWS = (
    Notebook(
        "00_tour", "the whole idea in one sitting", "Sec. 3",
        minutes="2", expect="PSNR of reconstructions 19.8 dB",
        parameters=("f", "data", "tier", "seed", "perceptual"), experiment="first_stages"),
    Notebook(
        "01_autoencoders", "what a first stage keeps", "Sec. 3.1, Tab. 8, App. G",
        minutes="3, or 1 once trained", expect="PSNR 19.8 dB, rKD-EffNet 623",
        parameters=_RUN, experiment="first_stages", metrics={"rkd_effnet": ()}),
    Notebook(
        "02_latents", "the space in between, and its scale", "Sec. 3.1, App. G",
        minutes="3, or 1 once trained", expect="standard deviation of z 2.19",
        parameters=(*_RUN, "scale_mode"), experiment="first_stages"),
    Notebook(
        "03_diffusion", "noise to latents to pictures", "Sec. 3.2, App. B",
        minutes="7, or 2 once trained", expect="FD-lab 54",
        parameters=(*_RUN, "num_steps", "eta", "guidance_scale"), experiment="first_stages",
        metrics={"kd_effnet_by_guidance": _GUIDED},
        figures=(StudyFigure("guidance", "Tab. 10", "kd_effnet_by_guidance", "paper_tables.fig_guidance", per_f=True),),
        wanted=((8, "kl"),), evidence=True),
    Notebook(
        "04_tradeoff", "the study over f", "Sec. 4.1, Fig. 6, 7, 17",
        minutes="7; all six f 26", expect="KD-EffNet 715, at eta = 1 690",
        parameters=(*_RUN, "compile"), display_only=("compile",), experiment="tradeoff",
        metrics={"kd_effnet": _SAMPLES, "rkd_effnet": ()},
        figures=(StudyFigure("tradeoff", "Fig. 6, 7, 17; Tab. 8", "kd_effnet", "tradeoff.fig_tradeoff"),
                 StudyFigure("clocks", "Fig. 6, 17 by other measures of cost", "kd_effnet",
                             "training_cost.fig_training_cost"),
                 StudyFigure("decomposition", "what each stage loses", "kd_effnet", "decomposition.fig_decomposition"),
                 StudyFigure("reconstruction", "Tab. 8", "rkd_effnet", "paper_tables.fig_reconstruction")),
        wanted=_KL + _VQ, seeds=2, evidence=True),
    Notebook(
        "05_rate_distortion", "true bits, JPEG and WebP beside", "Sec. 3.1, 4.1, Fig. 2, Tab. 8",
        minutes="2, models trained", expect="20.3 dB at 0.30 bits a pixel, JPEG 18.0",
        parameters=_RUN, experiment="rate_distortion", metrics={"rkd_effnet": ()},
        figures=(StudyFigure("rate_distortion", "Fig. 2", "rkd_effnet", "rate_distortion.fig_rate_distortion"),),
        wanted=_KL + _VQ, evidence=True),
    Notebook(
        "06_snr_rescaling", "the scale of a latent, and sampling beyond the training size", "App. D.1, G, Fig. 13, 15",
        minutes="5, models of 04 trained", expect="layout settles at t = 615 as it comes, 456 rescaled",
        parameters=("f", "data", "size", "tier", "seed", "perceptual"), experiment="snr_rescaling",
        metrics={"kd_effnet_2x_kl_rescaled": ()},
        figures=(StudyFigure("rescaling", "Fig. 15", "kd_effnet_2x_kl_rescaled", "snr_rescaling.fig_rescaling",
                             per_f=True),),
        wanted=((8, "kl"),), evidence=True),
    Notebook(
        "07_sampling", "quality and speed, four samplers", "Fig. 7",
        minutes="3, models trained; at f = 1 16",
        expect="FD-lab 50 with 10 steps of DPM-Solver++ as with 200 of DDIM",
        parameters=_RUN, experiment="sampling", metrics={"kd_effnet": _SAMPLES},
        figures=(StudyFigure("sampling", "Fig. 7", "kd_effnet", "sampling.fig_steps"),
                 StudyFigure("samplers", "samplers side by side", "kd_effnet", "sampling.fig_samplers")),
        wanted=_KL, evidence=True),
    Notebook(
        "08_class_conditional", "conditioned on a class, and guided two ways",
        "Sec. 3.3, App. C, D.4, Tab. 3, 10",
        minutes="6, models of 04 trained", expect="judged class accuracy 0.67, guided 0.94",
        parameters=(*_RUN, "classes"), display_only=("classes",), experiment="guidance",
        metrics={"kd_effnet_by_guidance": _GUIDED},
        figures=(StudyFigure("guidance_class", "Tab. 3, 10", "kd_effnet_by_guidance",
                             "guidance.fig_guidance_tradeoff"),),
        evidence=True),
    Notebook(
        "09_text_to_image", "type a caption, see pictures", "Sec. 3.3, 4.3.1, Tab. 2, 17",
        minutes="17, or 3 once trained", expect="statements fulfilled 0.52, guided 0.58, unconditional 0.13",
        parameters=(*_RUN, "caption", "guidance_scale"), display_only=("caption", "guidance_scale"),
        condition="text", experiment="guidance", metrics={"kd_effnet_by_guidance": _GUIDED},
        figures=(StudyFigure("guidance_text", "Tab. 2", "kd_effnet_by_guidance", "guidance.fig_guidance_tradeoff"),),
        evidence=True),
    Notebook(
        "10_layout_to_image", "draw boxes, see pictures", "App. D.3, Tab. 9, 17",
        minutes="15, or 3 once trained", expect="IoU of boxes 0.39, guided 0.49, unconditional 0.05",
        parameters=(*_RUN, "layout", "guidance_scale"), display_only=("layout", "guidance_scale"),
        condition="layout", experiment="guidance", metrics={"kd_effnet_by_guidance": _GUIDED},
        figures=(StudyFigure("guidance_layout", "Tab. 9", "kd_effnet_by_guidance", "guidance.fig_guidance_tradeoff"),),
        evidence=True),
    Notebook(
        "11_semantic_synthesis", "a map of labels, painted", "Sec. 4.3.2, Fig. 9",
        minutes="12, or 2 once trained", expect="pixels of the right label 0.85, of another's map 0.26",
        parameters=(*_RUN, "picture"), display_only=("picture",), condition="labels",
        experiment="semantic_synthesis"),
    Notebook(
        "12_super_resolution", "×4 by five methods, bicubic or BSR", "Sec. 4.4, Tab. 5, 11",
        minutes="30, or 6 once trained", expect="FD-lab 36, regression 40, bicubic 126; PSNR 20.5, 22.4, 20.5 dB",
        parameters=(*_RUN, "factor", "degradation", "picture"), display_only=("picture",),
        condition="low_resolution", experiment="super_resolution",
        metrics={"kd_effnet_bicubic": (*_RESTORED, "factor", "degradation")},
        figures=(StudyFigure("super_resolution", "Tab. 5, 11", "kd_effnet_bicubic",
                             "restoration.fig_super_resolution"),)),
    Notebook(
        "13_inpainting", "holes filled, and what latents save", "Sec. 4.5, Tab. 6, 7",
        minutes="30, or 7 once trained",
        expect="FD-lab with 40 to 50 % missing 8.2, regression 28; 3.4 times LDM-1's training speed",
        parameters=(*_RUN, "attention", "picture"), display_only=("picture",), condition="mask",
        experiment="inpainting", metrics={"kd_effnet_masked_all": (*_RESTORED, "masks_all", "masks_hard")},
        figures=(StudyFigure("inpainting", "Tab. 6, 7", "kd_effnet_masked_all", "restoration.fig_inpainting"),)),
    Notebook(
        "14_image_guiding", "an unconditional model guided by a picture", "App. C, Eq. 16, 17, Fig. 14",
        minutes="3, models of 04 trained", expect="×4: PSNR 20.3 dB, FD-lab 37; bicubic 20.6, 130",
        parameters=(*_RUN, "factor", "guidance_scale"), display_only=("guidance_scale",),
        experiment="image_guiding", metrics={"kd_effnet_unguided": ()},
        figures=(StudyFigure("image_guiding", "Fig. 14", "kd_effnet_unguided", "image_guiding.fig_image_guiding",
                             per_f=True, one_record=True),)),
    Notebook(
        "15_beyond_training_size", "larger, wider, in tiles", "App. D.1, Fig. 13, 21-25",
        minutes="11, or 2 to look again",
        expect="FD-lab at 32, 64, 96 px: ×4 38, 36, 43; first stage alone 34, 32, 21",
        parameters=(*_RUN, "picture"), display_only=("picture",), experiment="beyond_training_size",
        metrics={"kd_effnet_by_size_real": ()},
        figures=(StudyFigure("beyond", "Fig. 13, 21 to 25", "kd_effnet_by_size_real", "restoration.fig_beyond",
                             per_f=True, one_record=True),)),
    Notebook(
        "16_evaluation", "which orders of pictures a metric sees", "App. E.3, Fig. 32-34",
        minutes="not measured since its centre changed", expect="KD-EffNet tells blur from no structure, FD-lab not",
        parameters=("f", "data", "size", "tier", "seed", "perceptual"), experiment="evaluation", wanted=((8, "kl"),)),
    Notebook(
        "17_user_study", "which of the two is better? A panel for a class", "App. E.3.6, Tab. 4",
        minutes="2, models of 04 and 12 trained", expect="simulated raters' preferences within their intervals",
        parameters=(*_RUN, "rater", "num_questions", "exposure_s"),
        display_only=("rater", "num_questions", "exposure_s"), experiment="user_study.simulated"),
    Notebook(
        "18_compute", "what it costs, counted, and measured on your machine", "Sec. 4.1, App. F, Tab. 18",
        minutes="2", expect="202 GFLOP a denoiser call of LDM-4 on CelebA-HQ; Tab. 18 implies 33 TFLOP/s",
        parameters=_RUN[:-1], experiment="compute.forecasts"),
    Notebook(
        "19_released_models", "a released file, or yours, measured again", "App. E.3, Tab. 1-10",
        minutes="not measured; 1 at `smoke`", expect="nothing measured again yet: no file was at hand",
        parameters=("model", "file", "data", "size", "tier", "seed", "num_steps", "guidance_scale", "caption"),
        display_only=("caption",), experiment="released.scores",
        run_class="ldmlab.experiments.released.run.ReleasedRun"),
    Notebook(
        "20_report", "all figures and tables, and a ledger of 29 claims", "Sec. 4.1, App. D",
        minutes="1", expect="`scenes`: 5 claims supported, 1 contradicted, 23 underpowered",
        parameters=("data", "size", "tier"), machine="any", run_class="ldmlab.report.Report"),
)
NOTEBOOKS: dict[str, Notebook] = {row.name: row for row in _ROWS}
# What must be equal in the making of samples for two records to compare by a metric.
SAMPLED_BY: dict[str, tuple[str, ...]] = {metric: names for row in _ROWS for metric, names in row.metrics.items()}


def load_run_class(notebook: str) -> type:
    """The class of a notebook's run, imported by its name, since some live in packages above this one."""
    module, _, name = NOTEBOOKS[notebook].run_class.rpartition(".")
    return getattr(import_module(module), name)
