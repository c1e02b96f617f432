"""The table of metrics: what a row says of itself is what its scores say."""

import pytest
import torch

from ldmlab.evaluation.distances import FeatureMoments
from ldmlab.evaluation.metrics import METRICS, Metric
from ldmlab.perception.lab_networks import ARCHITECTURES


def moments(extractor: str, seed: int, n: int = 60, dim: int = 8) -> FeatureMoments:
    rows = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return FeatureMoments(dim, extractor=extractor, weights_hash="w").update(rows)


@pytest.mark.parametrize("row", METRICS.values(), ids=METRICS)
def test_a_row_names_its_scores(row):
    """Label, unit, extractor and protocol of a row are those of the score that a record gets."""
    real, fake = moments(row.extractor, 0), moments(row.extractor, 1)
    score = row(real, fake, {"num_steps": 4})
    assert (score.name, score.unit, score.extractor, score.weights_hash) == (row.label, row.unit, row.extractor, "w")
    assert score.protocol["num_steps"] == 4 and row.extractor in ARCHITECTURES
    if row.interval is not None:
        interval = row.interval(real, fake, num_resamples=8, seed=0)
        assert interval.low < interval.high


def test_a_number_becomes_a_score_under_the_label_of_its_row():
    """A row may measure a plain number; features of two networks are refused all the same."""
    row = Metric("shift", "shift of the mean", "1", "fd-lab",
                 lambda real, fake, protocol: (real.mean - fake.mean).norm().item())
    score = row(moments("fd-lab", 0), moments("fd-lab", 1), {})
    assert score.value > 0 and (score.name, score.n_real, score.n_fake) == ("shift of the mean", 60, 60)
    with pytest.raises(ValueError, match="different networks"):
        row(moments("fd-lab", 0), moments("referee", 1), {})


def test_rows_say_how_many_pictures_they_need():
    """A Fréchet distance needs more pictures than features on both sides, FD∞ four times as many samples."""
    few, enough, many = (moments("fd-lab", 0, n) for n in (8, 9, 32))
    assert not METRICS["fd_lab"].enough(few, many) and not METRICS["fd_lab"].enough(many, few)
    assert METRICS["fd_lab"].enough(enough, enough)
    assert METRICS["fd_lab_infinity"].enough(few, many) and not METRICS["fd_lab_infinity"].enough(many, enough)


def test_rows_that_do_not_see_structure_are_taken_only_by_name():
    """FD-lab and its like stay for the exhibit that shows what they miss; the published network is the standard."""
    assert {row.extractor for row in METRICS.values() if row.standard or row.at_milestones} == {"effnet"}
    assert not any("KID" in row.label for row in METRICS.values() if row.extractor == "effnet")


def test_equal_sets_have_precision_and_recall_and_one_picture_has_no_recall():
    """Real = fake gives 1 and 1; one picture 500 times is precise, and recalls next to nothing."""
    real = moments("effnet", 0, 500)
    assert [METRICS[name](real, real, {}).value for name in ("precision", "recall")] == [1, 1]
    once = FeatureMoments(8, extractor="effnet", weights_hash="w").update(real.sample[:1].repeat(500, 1))
    assert METRICS["precision"](real, once, {}).value == 1 and METRICS["recall"](real, once, {}).value < 0.01


def test_fd_effnet_states_the_rank_of_both_sets():
    """Collapsed samples have few directions, which more of them do not mend; constant features change nothing."""
    rows = torch.randn(2600, 8, generator=torch.Generator().manual_seed(2))
    real, flat = (FeatureMoments(8, extractor="effnet", weights_hash="w").update(x)
                  for x in (rows, rows * torch.tensor([1.0] + 7 * [0.0]) + 3))
    row = METRICS["fd_effnet"]
    assert row.enough(real, flat) and not row.enough(real, moments("effnet", 1, 2559))
    ranks = row(real, flat, {}).protocol
    assert ranks["effective_rank_real"] > 7.5 and ranks["effective_rank_fake"] == 1
