"""The linter over the paper's numbers: what contradicts is reported, and nothing else."""

from dataclasses import replace

import pytest

from ldmlab.paper import numbers as paper
from ldmlab.paper.linter import agree, lint, report

# What a careful reader finds by hand: (subject, metric) of each.
KNOWN = {
    ("LSUN-Churches / LDM-8", "sampling_steps"),  # 200 in Tab. 1, 100 in Tab. 18, 400 in the README
    ("LSUN-Churches / LDM-8", "num_steps"),  # 500k and 410K
    ("LSUN-Churches / LDM-8", "num_params"),  # 294M and 256M
    ("CelebA-HQ / LDM-4", "sampling_steps"),  # 500 and, in the README, 200
    ("LSUN-Bedrooms / LDM-4", "total_v100_days"),  # 55 in all, 60 for the generator
    ("ImageNet / LDM-4", "num_params"),  # 391M, 395M, 400M
    ("ImageNet / LDM-8-G", "sampling_steps"),  # 200 in Tab. 10, 100 in Tab. 18
    ("ImageNet / LDM-8-G 4.8M", "fid_torch_fidelity"),  # 7.76 and 7.77, the other way round in the README
    ("ImageNet / LDM-8-G 4.8M", "fid_adm_script"),
    ("ImageNet / LDM-8-G 4.8M", "is"),  # 209.52 and 201.56
    ("ImageNet / LDM-8 4.8M", "fid"),  # 15.51 and 15.82
    ("ImageNet / LDM-8 4.8M", "is"),  # 79.03 and 78.82
    ("Tab. 15, inpainting Places", "lr"),  # the base rate, not times 128
    ("Landscapes / LDM", "f"),  # 8 in Tab. 15, 4 in Sec. 4.3.2 and in the release
    ("Landscapes / LDM", "num_codes"),
    ("Tab. 13, LDM-32", "z_shape"),  # 88 x 8 x 32, where f = 32 and c = 16 in Tab. 8
    ("Tab. 14, LDM-32", "z_shape"),
    ("Tab. 13, LDM-8", "num_heads"),  # 1, where 32 channels a head are released
    ("Tab. 15, layout OpenImages", "num_heads"),
    ("Tab. 15, semantic Landscapes", "num_heads"),
    ("text LAION", "batch_size"),  # 680 on one A100
    ("LSUN-Churches / LDM-8", "sampling_steps"),  # 400 asked for, 500 executed: a second finding of this name
    ("DDIM script", "most_sampling_steps"),  # 1000 steps visit t = 1000
    ("the recommended f", "f"),  # 4 to 16, and two sentences later 4 and 8
    ("VQ-f4 Z8192, VQ-f4 Z256", "r_fid"),  # lower R-FID at lower PSNR
    # Beyond those, found by the rules:
    ("CelebA-HQ / LDM-4", "fid"),  # 5.11, and 5.15 under Fig. 28
    ("LSUN-Churches / LDM-8", "fid"),  # 4.02, and 4.48 under Fig. 30
    ("ImageNet / ADM-G, ADM-U", "total_v100_days"),  # 329 + 30 is not 349
    ("inpainting Places", "num_gpus"),  # eight V100, where App. F has one A100 for all
    ("layout / LDM-4", "fid_margin"),  # nearly 11 in the text, 12.31 and 13.31 in Tab. 9
    ("text and layout UNets", "table"),  # said to stand in Tab. 13, stand in Tab. 15
}


def keys(findings):
    """What a finding is about."""
    return {(finding.subject, finding.metric) for finding in findings}


def edited(table, row, metric, value):
    """The paper's numbers with one of them changed."""
    numbers = paper.numbers()
    assert any((n.table, n.row, n.metric) == (table, row, metric) for n in numbers)
    return [replace(n, value=value) if (n.table, n.row, n.metric) == (table, row, metric) else n for n in numbers]


def test_the_known_contradictions_are_found_and_no_other():
    """Every one of the list, by name; a new one would have to be looked at and added."""
    findings = lint()
    assert keys(findings) == KNOWN and len(findings) == 31


def test_every_finding_cites_what_it_sets_side_by_side():
    """At least two numbers, or one and the arithmetic that it fails; each with source and mark in the report."""
    findings, text = lint(), report(lint())
    for finding in findings:
        assert len(finding.citations) >= (1 if "stride" in finding.rule else 2), finding
        assert finding.detail in " ".join(text.split()) and all(n.source for n in finding.citations)
    assert "[LDM v2, Tab. 18: LSUN-Churches / LDM-8] (S)" in " ".join(text.split())


@pytest.mark.parametrize(("place", "value", "caught"), [
    (("Tab. 10", "ImageNet / LDM-4", "fid"), 10.65, ("ImageNet / LDM-4", "fid")),
    (("Tab. 11", "ImageNet x4 / SR3", "psnr"), 24.6, ("ImageNet x4 / SR3", "psnr")),
    (("Tab. 18", "ImageNet / LDM-8-G", "total_v100_days"), 79, ("ImageNet / LDM-8-G", "total_v100_days")),
    (("Tab. 4", "inpainting / LDM-4", "percent_preferred"), 61.8, ("inpainting", "percent_preferred")),
    (("Tab. 12", "FFHQ", "lr"), 8.4e-6, ("Tab. 12, FFHQ", "lr")),
    (("Tab. 6", "LDM-1", "hours_per_epoch"), 10.0, ("inpainting", "speed_up")),
    (("Tab. 6", "LDM-4 VQ", "fid_2k"), 19.94, ("inpainting", "fid_factor")),
    (("Tab. 15", "class ImageNet", "z_shape"), (64, 64, 4), ("Tab. 15, class ImageNet", "z_shape")),
    (("Tab. 8", "KL-f16 c16", "r_fid"), 8.7, ("KL-f16 c16, KL-f16 c8", "r_fid")),
    (("Tab. 15", "text LAION", "num_heads"), 1, ("Tab. 15, text LAION", "num_heads")),
    (("Tab. 1", "FFHQ / LDM-4", "sampling_steps"), 300, ("FFHQ / LDM-4", "sampling_steps")),
])
def test_a_seeded_edit_is_caught(place, value, caught):
    """One number mistyped, and the rule that it breaks reports it, and says nothing of what it does not touch."""
    new = keys(lint(edited(*place, value))) - keys(lint())
    assert new == {caught}


def test_a_contradiction_that_is_mended_is_reported_no_longer():
    """Were the overall compute 60, or the heads 8, there would be nothing to say."""
    mended = keys(lint(edited("Tab. 18", "LSUN-Bedrooms / LDM-4", "total_v100_days", 60)))
    assert mended == KNOWN - {("LSUN-Bedrooms / LDM-4", "total_v100_days")}
    mended = keys(lint(edited("Tab. 15", "semantic Landscapes", "num_heads", 8)))
    assert mended == KNOWN - {("Tab. 15, semantic Landscapes", "num_heads")}


def test_consistent_numbers_give_no_report():
    """All numbers that no finding cites, taken alone; and none at all."""
    cited = {n for finding in lint() for n in finding.citations}
    rest = [n for n in paper.numbers() if n not in cited]
    assert len(rest) > 1200 and lint(rest) == [] and lint([]) == []
    assert report([]) == "0 contradictions"


def test_numbers_agree_as_far_as_they_are_printed():
    """190.4 is 190.43; 7.76 is not 7.77; 294 966 916 parameters are printed as 294M."""
    assert agree("is", 190.4, 190.43) and not agree("fid", 7.76, 7.77) and not agree("is", 190.4, 190.5)
    assert agree("num_params", 294e6, 294_966_916) and not agree("num_params", 391e6, 395e6)
    assert agree("ch_mult", (1, 2), (1, 2)) and not agree("f", 4, 8)
