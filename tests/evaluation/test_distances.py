"""Distances between sets of feature vectors: closed forms, too few vectors, batches, published implementations."""

import math

import numpy as np
import pytest
import torch

from ldmlab.evaluation import distances
from ldmlab.evaluation.distances import (
    FeatureMoments,
    Score,
    frechet,
    frechet_distance,
    frechet_score,
    kid,
    kid_score,
    moments_of,
    reference_moments,
)
from ldmlab.perception.lab_networks import feature_net


def vectors(n: int, dim: int, seed: int = 0, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, dim, generator=g) @ torch.randn(dim, dim, generator=g) * scale + shift


def moments(x: torch.Tensor, batch: int = 64, **keywords) -> FeatureMoments:
    m = FeatureMoments(x.shape[1], **keywords)
    for part in x.split(batch):
        m.update(part)
    return m


def test_frechet_of_gaussians_in_closed_form():
    """For commuting covariances the distance is that of the means plus that of the deviations."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 32, generator=g, dtype=torch.float64))[0]
    s1, s2 = torch.rand(2, 32, generator=g, dtype=torch.float64) + 0.1
    mu1, mu2 = torch.randn(2, 32, generator=g, dtype=torch.float64)
    cov1, cov2 = (basis * s.square() @ basis.T for s in (s1, s2))
    expected = ((mu1 - mu2).square().sum() + (s1 - s2).square().sum()).item()
    assert math.isclose(frechet_distance(mu1, cov1, mu2, cov2), expected, rel_tol=1e-12)
    assert frechet_distance(mu1, cov1, mu1, cov1) < 1e-9


def test_frechet_is_symmetric_and_agrees_with_torch_fidelity():
    """The published implementation's formula, on the same vectors, and its own statistics."""
    metric = pytest.importorskip("torch_fidelity.metric_fid")
    x, y = vectors(400, 48, 1), vectors(300, 48, 2, scale=1.2, shift=0.3)
    theirs = metric.fid_statistics_to_metric(
        *(metric.fid_features_to_statistics(s.double()) for s in (x, y)), verbose=False
    )["frechet_inception_distance"]
    ours = frechet(moments(x), moments(y))
    assert math.isclose(ours, theirs, rel_tol=1e-6)
    assert math.isclose(ours, frechet(moments(y), moments(x)), rel_tol=1e-9)


def test_frechet_with_fewer_vectors_than_entries():
    """The singular-value path agrees with the covariances', and with a set that has enough."""
    few, other, many = vectors(20, 64, 1), vectors(30, 64, 2), vectors(500, 64, 3)
    for a, b in ((few, other), (few, many), (many, few)):
        ma, mb = moments(a), moments(b)
        by_covariance = frechet_distance(ma.mean, ma.cov, mb.mean, mb.cov)
        assert math.isclose(frechet(ma, mb), by_covariance, rel_tol=1e-4)
    assert moments(few).factor() is not None and moments(many).factor() is None
    assert frechet(moments(few), moments(few)) < 1e-9


def test_frechet_of_nearly_singular_covariances():
    """As covariances of features are: eigenvalues over eleven powers of ten; some that are zero in one, or in both."""
    g = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(64, 64, generator=g, dtype=torch.float64))[0]
    i, zero = torch.arange(64, dtype=torch.float64), torch.zeros(64, dtype=torch.float64)
    s1 = (-0.2 * i).exp()
    s2 = s1 * (1 + 0.5 * i.sin())
    for a, b, off in ((s1, s2, 1e-9), (s1 * (i < 40), s2, 1e-6), (s1, s2 * (i < 40), 1e-6),
                      (s1 * (i < 40), s2 * (i < 30), 1e-6)):
        cov1, cov2 = (basis * s.square() @ basis.T for s in (a, b))
        expected = (a - b).square().sum().item()
        assert math.isclose(frechet_distance(zero, cov1, zero, cov2), expected, rel_tol=off)


def test_frechet_of_two_points_each():
    """Rank one: tr (C1 C2)^(1/2) is the product of the two lengths times the cosine between the lines."""
    a, b = torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]]), torch.tensor([[0.6, 0.8, 0], [-0.6, -0.8, 0]])
    assert math.isclose(frechet(moments(a), moments(b)), 2 + 2 - 2 * 2 * 0.6, rel_tol=1e-6)


def test_moments_do_not_depend_on_batches():
    """One batch or many: the same mean, covariance and sample, at a mean far from 0 too."""
    x = vectors(333, 16, 3, shift=100.0)
    one, many = moments(x, 333, keep=50), moments(x, 7, keep=50)
    torch.testing.assert_close(one.mean, many.mean, rtol=1e-13, atol=0)
    torch.testing.assert_close(one.cov, many.cov, rtol=1e-9, atol=1e-9)
    assert torch.equal(one.sample, many.sample) and len(one.sample) == 50
    torch.testing.assert_close(one.cov, torch.cov(x.double().T))


def test_sample_is_even():
    """Early and late pictures are kept alike, which sorted folders need; up to `keep` vectors all are, in order."""
    x = torch.arange(2000.0)[:, None]
    sample = moments(x, 100, keep=400).sample
    assert 850 < sample.mean() < 1150
    assert torch.equal(moments(x[:300], 100, keep=400).sample, x[:300])


def test_bad_features_are_refused():
    """NaN, a wrong dimension, a covariance of one vector."""
    m = FeatureMoments(4)
    with pytest.raises(ValueError, match="not finite"):
        m.update(torch.full((2, 4), float("nan")))
    with pytest.raises(ValueError, match="4 entries"):
        m.update(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="at least 2"):
        _ = m.update(torch.zeros(1, 4)).cov


def test_kid_agrees_with_torch_fidelity():
    """One subset of everything is the published estimator, number for number."""
    metric = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = vectors(60, 8, 1), vectors(60, 8, 2, shift=0.2)
    theirs = metric.kid_features_to_metric(
        x.double(), y.double(), kid_subsets=1, kid_subset_size=60, rng_seed=0, verbose=False
    )[metric.KEY_METRIC_KID_MEAN]
    value, spread = kid(x, y)
    assert math.isclose(value, theirs, rel_tol=1e-9) and spread == 0


def test_kid_is_unbiased_and_seeded():
    """Around 0 for two halves of one set, far above for another set; the same for the same seed."""
    both = vectors(800, 8, 1)
    x, y = both[:400], both[400:]
    near, spread = kid(x, y, subset_size=100)
    assert abs(near) < spread and spread > 0
    assert kid(x, y + 1, subset_size=100)[0] > 10 * abs(near)
    assert kid(x, y, subset_size=100) == (near, spread)
    assert kid(x, y, subset_size=100, seed=1) != (near, spread)


class FakeSet:
    """What `reference_moments` needs of an ImageSet."""

    def __init__(self, n: int = 30, fingerprint: str = "a"):
        g = torch.Generator().manual_seed(0)
        self.pictures, self.fingerprint, self.asked = torch.randint(256, (n, 3, 32, 32), generator=g), fingerprint, 0

    def __len__(self):
        return len(self.pictures)

    def images(self, indices):
        self.asked += len(indices)
        return self.pictures[list(indices)].to(torch.uint8)


def test_reference_moments_are_kept(tmp_path):
    """Made once for a data set and a network, read after that; made anew for another set, network, or a broken file."""
    net, data = feature_net("fd-lab"), FakeSet()
    first = reference_moments(data, net, tmp_path, batch_size=16)
    assert data.asked == 30 and first.n == 30
    second = reference_moments(data, net, tmp_path)
    assert data.asked == 30
    assert torch.equal(first.mean, second.mean) and torch.equal(first.sample, second.sample)
    assert frechet(first, second) < 1e-6 and second.extractor == "fd-lab" and second.weights_hash == net.weights_hash
    reference_moments(FakeSet(fingerprint="b"), net, tmp_path)
    reference_moments(data, feature_net("referee"), tmp_path)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3 and data.asked == 60
    for path in files:
        path.write_bytes(b"half a file")
    assert frechet(reference_moments(data, net, tmp_path), first) < 1e-6 and data.asked == 90


def test_scores_carry_their_names():
    """FD-lab, KID-lab, FD-referee: never FID, which means Inception."""
    x = FakeSet().pictures.float() / 127.5 - 1
    for net, end in ((feature_net("fd-lab"), "lab"), (feature_net("referee"), "referee")):
        real, fake = moments_of([x[:15]], net), moments_of([x[15:]], net)
        fd = frechet_score(real, fake, {"steps": 50}, allow_few=True)
        mmd = kid_score(real, fake, {"steps": 50}, seed=3)
        assert (fd.name, mmd.name) == (f"FD-{end}", f"KID-{end}")
        assert (fd.n_real, fd.n_fake, fd.extractor, fd.weights_hash) == (15, 15, net.name, net.weights_hash)
        assert fd.protocol == {"steps": 50} and mmd.protocol["seed"] == 3
        assert fd.as_dict()["value"] == fd.value > 0 and "interval" not in fd.as_dict()


def test_too_few_pictures_are_refused():
    """As many vectors as features leave a singular covariance; the message says how many it takes; a flag allows it."""
    enough, few = (moments(vectors(n, 16), extractor="fd-lab") for n in (17, 16))
    for pair in ((enough, few), (few, enough)):
        with pytest.raises(ValueError, match="17 or more of each.*allow_few"):
            frechet_score(*pair)
        assert frechet_score(*pair, allow_few=True).value >= 0
    assert frechet_score(enough, enough).n_fake == 17
    assert kid_score(few, enough).n_real == 16


def test_scores_refuse_what_cannot_be_compared():
    """Moments of two networks; the network that trains models; a value that is not a number."""
    x = torch.zeros(4, 3, 32, 32)
    lab, other, loss = (moments_of([x], feature_net(name)) for name in ("fd-lab", "referee", "psim-lab"))
    with pytest.raises(ValueError, match="different networks"):
        frechet_score(lab, other)
    with pytest.raises(ValueError, match="is not a network for scores"):
        frechet_score(loss, loss)
    with pytest.raises(ValueError, match="not a number"):
        Score(float("nan"), "FD-lab", "1", 2, 2)
    assert Score(float("inf"), "PSNR", "dB", 2, 2).as_dict()["value"] is None


def test_sampling_keys_stay_the_same():
    """The kept sample is part of cached files, so NumPy's stream behind it must not drift."""
    np.testing.assert_allclose(np.random.default_rng(0).random(2), [0.6369616873214543, 0.2697867137638703])
    assert distances.KEEP == 2048
