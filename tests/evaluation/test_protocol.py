"""Scores of different protocols are refused by name and value, unless asked for."""

from dataclasses import replace

import pytest

from ldmlab.evaluation.distances import Score
from ldmlab.evaluation.protocol import Protocol, check_comparable, differences, refuse_differences

SAID = {"data": "scenes", "reference": "train", "split": "validation", "size": 32, "resize": "PIL bicubic, antialiased",
        "crop": "centre square", "sampler": "ddim", "num_steps": 20, "eta": 0.0, "guidance_scale": 1.0, "ema": True,
        "noise": "by sample", "subset": "hash of names", "seed": 0, "dtype": "float32", "quantization": "8 bits",
        "std_over_subsets": 0.1}


def a_score(value: float = 1.0, n: int = 512, name: str = "FD-lab", **changes) -> Score:
    return Score(value, name, "1", 10_000, n, "fd-lab", "ab12" * 16, SAID | changes)


def test_a_score_carries_its_protocol():
    """All that the paper's own comparison needs is there; the split is the one scored against; results are no part."""
    protocol = Protocol.of(a_score())
    resized = 32, "PIL bicubic, antialiased", "centre square", "8 bits"
    sampled = "ddim", 20, 0.0, 1.0, True, "by sample", "float32", "hash of names"
    assert protocol == Protocol("fd-lab", "ab12" * 16, 10_000, 512, "scenes", "train", *resized, *sampled)
    assert protocol.seed == 0
    entries = {"extractor": "fd-lab", "weights_hash": "ab12" * 16, "n_real": 10_000, "n_fake": 512}
    assert Protocol.of(entries, SAID) == protocol


def test_protocols_that_agree():
    """Another value or seed is what scores are compared for."""
    a, b = a_score(1.0, seed=0), a_score(2.0, seed=1)
    assert Protocol.of(a) == Protocol.of(b) and differences(Protocol.of(a), Protocol.of(b)) == {}
    assert check_comparable({"LDM-4": a, "LDM-8": b}) == {} == check_comparable({"LDM-4": a}) == check_comparable({})


@pytest.mark.parametrize("change", [
    {"sampler": "ddpm"}, {"num_steps": 50}, {"eta": 1.0}, {"guidance_scale": 1.5}, {"ema": False}, {"noise": "one"},
    {"subset": "the first"},
    {"dtype": "bfloat16"}, {"resize": "bilinear, not antialiased"}, {"crop": "none"}, {"reference": "validation"},
    {"data": "cifar10"}, {"size": 64}, {"quantization": "none"},
])
def test_every_difference_is_refused_and_named(change):
    """The message names both scores, the entry and both values."""
    (entry, value), = change.items()
    with pytest.raises(ValueError, match="LDM-4 and LDM-8") as refused:
        check_comparable({"LDM-4": a_score(), "LDM-8": a_score(**change)})
    named = {"reference": "split"}.get(entry, entry)
    assert f"{named}: {SAID[entry]} / {value}" in str(refused.value)


def test_what_was_counted_and_looked_with_belongs_to_it():
    """Number of pictures, network, its weights, the metric itself."""
    a = a_score()
    for other, entry in ((a_score(n=1024), "n_fake: 512 / 1024"), (replace(a, n_real=5), "n_real: 10000 / 5"),
                         (replace(a, extractor="referee"), "extractor: fd-lab / referee"),
                         (replace(a, weights_hash="cd34" * 16), "weights_hash: ab12ab12 / cd34cd34"),
                         (a_score(name="KID-lab"), "metric: FD-lab / KID-lab")):
        with pytest.raises(ValueError, match=entry):
            check_comparable({"a": a, "b": other})


def test_differences_can_be_asked_for():
    """Then nothing is refused, and a figure learns what to mark: each entry with its values."""
    scores = {"a": a_score(), "b": a_score(num_steps=50), "c": a_score(num_steps=50, eta=1.0), "d": a_score()}
    assert check_comparable(scores, allow=True) == {"num_steps": [20, 50], "eta": [0.0, 1.0]}
    pair = Protocol.of(scores["a"]), Protocol.of(scores["c"])
    assert differences(*pair) == {"num_steps": (20, 50), "eta": (0.0, 1.0)}


def test_an_entry_that_only_one_has_is_a_difference():
    """What a score does not say cannot be taken to be equal."""
    with pytest.raises(ValueError, match="tier: None / laptop"):
        refuse_differences([("a", {"n": 1}), ("b", {"n": 1, "tier": "laptop"})])
