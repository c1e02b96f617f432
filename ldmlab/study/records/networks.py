"""The networks that a record's numbers rest on, by name and content hash.

A record's `inputs` name every network under the names below. Older records name some otherwise, or leave them out; the
hashes beside their scores say most of what is missing. A network that nothing identifies is `UNKNOWN`.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ldmlab.evaluation.distances import INCEPTION, UNVERIFIED

if TYPE_CHECKING:
    from ldmlab.study.records.record import Record

UNKNOWN = "networks unknown"
# What a score calls its network -> the name of that network in a record's inputs.
EXTRACTORS = {
    "fd-lab": "fd_extractor", "referee": "fd_referee", "judge": "caption_judge", "PSIM-lab": "perceptual",
    "psim-lab": "perceptual", "LPIPS": "perceptual", "LPIPS-Alex": "lpips_alex", INCEPTION: "inception",
    UNVERIFIED: "inception"}
SCORING = tuple(dict.fromkeys(EXTRACTORS.values()))
# Networks that made pictures, each followed by a suffix where a record has several.
MODELS = ("first_stage", "denoiser", "classifier", "regression")
# Names that inputs had before -> today's; 11_semantic_synthesis filed its caption judge under "judge".
_FORMER = {"judge": "fd_extractor", "judge_of_success": "caption_judge", "fd-lab": "fd_extractor",
           "referee": "fd_referee"}
_FORMER_OF = {"11_semantic_synthesis": {"judge": "caption_judge"}}
# Metrics and curves by the beginning of their names, for those that do not say what they were taken with.
_BY_NAME = {
    "fd_extractor": r"r?fd_lab|kid_lab|precision|recall|memorisation_|nearness_|planted_fd_lab|game_fd_lab|"
                    r"rescaling_gain|.*_rfd_lab$",
    "fd_referee": r"r?fd_referee|pd_referee|rank_correlation",
    "perceptual": r"perceptual|.*_perceptual$|r_psim|game_loss",
    "lpips_alex": r"(r_)?lpips_alex",
    "inception": r"fid|inception_score|r_fid|r_is",
    "caption_judge": r"class_accuracy|fulfilled|objects|colours|place|relations|layout_iou|box_class_accuracy|pixels_|"
                     r"miou_",
}
# By the metric that stands for a figure: networks of the other scores that it shows, where a record has them.
_SHOWN_WITH = {
    "psnr_bicubic": ("fd_extractor", "fd_referee"), "psnr_masked_all": ("fd_extractor", "fd_referee"),
    "psnr_unguided": ("fd_extractor",), "fd_lab_by_guidance": ("caption_judge", "inception")}


def network_of(name: str, entry: Mapping[str, Any] | None = None) -> str | None:
    """Which network a metric or curve was taken with, as inputs name it; None where it needs none."""
    if entry and entry.get("extractor"):
        return EXTRACTORS.get(entry["extractor"], entry["extractor"])
    return next((network for network, pattern in _BY_NAME.items() if re.match(pattern, name)), None)


def split_inputs(inputs: Mapping[str, str], notebook: str = "") -> tuple[dict[str, str], dict[str, str]]:
    """(networks, all else) of a record's inputs, under today's names; "none" stands for no network."""
    former, networks, others = _FORMER | _FORMER_OF.get(notebook, {}), {}, {}
    for name, value in inputs.items():
        name = former.get(name, name)
        if name in SCORING or any(name == model or name.startswith(f"{model}_") for model in MODELS):
            if value != "none":
                networks[name] = value
        else:
            others[name] = value
    return networks, others


def networks_of(record: "Record") -> dict[str, str]:
    """Network -> content hash, of every network that had a part in a record, from its inputs and its scores.

    A network is `UNKNOWN` where a score was taken with it and nothing says which weights it had, or where two places
    disagree.
    """
    networks, _ = split_inputs(record.inputs, record.notebook)
    hashes = {name: {value} for name, value in networks.items()}
    for name, entry in [*record.metrics.items(), *((name, {}) for name in record.curves)]:
        if network := network_of(name, entry):
            stated = entry.get("weights_hash")
            hashes.setdefault(network, set()).update({stated} if stated else ())
    return {name: next(iter(found)) if len(found) == 1 else UNKNOWN for name, found in hashes.items()}


def networks_behind(record: "Record", metric: str) -> str:
    """The scoring networks that must be equal for a figure of `metric`, in words: "fd_extractor 0b8ffc43"; "": none."""
    networks, own = networks_of(record), network_of(metric, record.metrics.get(metric))
    shown = [name for name in _SHOWN_WITH.get(metric, ()) if name in networks]
    found = {name: networks.get(name, UNKNOWN) for name in dict.fromkeys([own, *shown]) if name}
    return UNKNOWN if UNKNOWN in found.values() else ", ".join(f"{name} {value[:8]}" for name, value in found.items())
