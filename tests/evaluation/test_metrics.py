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
