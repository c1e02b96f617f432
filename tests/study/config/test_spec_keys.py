"""Models trained by earlier versions are found again: keys of specs stay; those of first stages are of version 0.4,
which names their perceptual loss."""

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest

from ldmlab.study.config.notebooks import FS
from ldmlab.study.config.presets import classifier_spec, regression_spec, study_spec
from ldmlab.study.config.specs import content_key

KEYS = json.loads(Path(__file__).with_name("spec_keys.json").read_text())
CONDITIONS = {
    "class": {}, "text": {}, "layout": {}, "labels": {}, "mask": {}, "mask without attention": {"attention": False},
    "low_resolution": {"condition_options": {"factor": 4, "degradation": "bicubic"}},
    "low_resolution bsr": {"condition_options": {"factor": 2, "degradation": "bsr"}},
}


def keys_of(tier: str, condition: str) -> dict[str, list[str]]:
    """Content keys of first stage, diffusion model with its evaluation, classifier and regression, by f."""
    found = {}
    for f, reg in product(FS, ("kl", "vq")):
        spec = study_spec(f, reg, tier=tier, condition=condition.split()[0], **CONDITIONS[condition])
        parts = [spec.first_stage, [asdict(spec.diffusion.denoiser), content_key(spec.diffusion, spec.evaluation)],
                 classifier_spec(spec, 12)]
        if condition.startswith(("mask", "low_resolution")):
            parts.append(regression_spec(spec))
        found[f"{reg}-f{f}"] = [content_key(part) for part in parts]
    return found


@pytest.mark.parametrize("condition", CONDITIONS)
@pytest.mark.parametrize("tier", ["smoke", "laptop", "gpu", "paper"])
def test_keys_are_those_of_the_first_version(tier, condition):
    """A changed key would train every model of every user anew, and leave the old one unused on disk."""
    assert keys_of(tier, condition) == KEYS[tier][condition]
