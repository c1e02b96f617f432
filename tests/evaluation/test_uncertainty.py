"""Intervals hold what they claim, on Gaussians of known parameters; FD∞ takes the bias away."""

import math

import pytest
import torch

from ldmlab.evaluation.distances import FeatureMoments, frechet, frechet_distance, kid
from ldmlab.evaluation.uncertainty import (
    frechet_infinity,
    frechet_interval,
    kernel_contrast,
    kernel_estimate,
    kernel_interval,
    kernel_score,
    mean_interval,
)


def moments(x: torch.Tensor, **keywords) -> FeatureMoments:
    return FeatureMoments(x.shape[1], extractor="fd-lab", **keywords).update(x)


def population(mu: torch.Tensor, cov: torch.Tensor) -> FeatureMoments:
    """A reference of known parameters, as of infinitely many pictures."""
    whole = FeatureMoments(len(mu), extractor="fd-lab")
    whole.n, whole.mean, whole.scatter = 10**9, mu, cov * (10**9 - 1)
    return whole


@pytest.fixture
def gaussians():
    """Factors and means of two Gaussians of four features, x = u @ factor + mean, and a generator."""
    g = torch.Generator().manual_seed(0)
    factor1, factor2 = torch.randn(2, 4, 4, generator=g, dtype=torch.float64)
    mu1, mu2 = torch.randn(2, 4, generator=g, dtype=torch.float64)
    return (factor1, mu1), (factor2, mu2), g


def draw(n: int, factor: torch.Tensor, mu: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    return torch.randn(n, len(mu), generator=g, dtype=torch.float64) @ factor + mu


def test_the_closed_form_lies_in_the_interval(gaussians):
    """Two samples of 300, 200 times: the true distance is inside at least 90 % of the 95 % intervals."""
    one, two, g = gaussians
    true = frechet_distance(one[1], one[0].T @ one[0], two[1], two[0].T @ two[0])
    inside = 0
    for _ in range(200):
        real, fake = moments(draw(300, *one, g)), moments(draw(300, *two, g))
        interval = frechet_interval(real, fake, over="both", num_resamples=25)
        inside += interval.low <= true <= interval.high
    assert 180 <= inside < 200


def test_infinity_holds_the_closed_form_and_its_interval_is_no_wider_than_need_be(gaussians):
    """A known reference, 200 samples, 200 times: inside at least 90 % of the intervals, but not in all."""
    one, two, g = gaussians
    real = population(one[1], one[0].T @ one[0])
    true = frechet_distance(one[1], one[0].T @ one[0], two[1], two[0].T @ two[0])
    scores = [
        frechet_infinity(real, moments(draw(200, *two, g)), max_parts=2, num_groups=8, seed=i) for i in range(200)
    ]
    assert 180 <= sum(s.interval.low <= true <= s.interval.high for s in scores) < 200


def test_infinity_takes_the_bias_away():
    """Samples of the reference itself: FD counts n, FD∞ is near 0, and only its interval holds the truth."""
    g = torch.Generator().manual_seed(1)
    real = population(torch.zeros(16, dtype=torch.float64), torch.eye(16, dtype=torch.float64))
    fakes = [moments(torch.randn(160, 16, generator=g)) for _ in range(20)]
    scores = [frechet_infinity(real, fake, {"num_steps": 20}) for fake in fakes]
    mean = sum(s.value for s in scores) / len(scores)
    biased = sum(frechet(real, fake) for fake in fakes) / len(fakes)
    assert abs(mean) < 0.1 * biased
    assert sum(s.interval.low <= 0 <= s.interval.high for s in scores) >= 17
    assert not any(frechet_interval(real, fake, num_resamples=10).low <= 0 for fake in fakes)
    score = scores[0]
    assert (score.name, score.n_fake, score.protocol["num_steps"]) == ("FD∞-lab", 160, 20)
    assert [n for n, _ in score.protocol["extrapolated_from"]] == [160, 80, 160 / 3, 40]
    assert score.protocol["extrapolated_from"][0][1] == pytest.approx(frechet(real, fakes[0]), rel=1e-6)


def test_infinity_does_not_depend_on_the_order_of_the_classes():
    """Samples sorted by class are mixed before they are parted: parts of one class would lie far from the reference."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(400, 4, generator=g)
    x[:, 0] += torch.arange(400) // 100 * 10.0
    real = population(x.double().mean(0), torch.cov(x.double().T))
    assert abs(frechet_infinity(real, moments(x)).value) < 5


def test_infinity_needs_enough():
    """Parts of twice the features; the message says how many pictures that takes."""
    x = torch.randn(63, 16)
    with pytest.raises(ValueError, match="64 generated"):
        frechet_infinity(moments(x), moments(x))


def test_the_interval_is_the_spread_of_another_draw():
    """FD and kernel distance: the interval's width over the spread of fresh samples, the reference fixed, is near 1."""
    g = torch.Generator().manual_seed(3)
    real = moments(torch.randn(400, 8, generator=g))
    fakes = [moments(torch.randn(200, 8, generator=g) * 1.3 + 0.2) for _ in range(60)]
    distances = {
        frechet_interval: [frechet(real, fake) for fake in fakes],
        kernel_interval: [kernel_estimate(real, fake)[0] for fake in fakes],
    }
    for interval, values in distances.items():
        more = {"num_resamples": 100} if interval is frechet_interval else {}
        found = interval(real, fakes[0], over="fake", **more)
        spread = 2 * 1.96 * torch.tensor(values).std().item()
        assert 0.6 < (found.high - found.low) / spread < 1.7, interval.__name__
        assert (found.level, "generated" in found.method) == (0.95, True)


def test_halves_of_one_set_lie_at_zero_within_their_interval():
    """Unbiased, and never cut at 0: both signs occur, the mean is 0 within two errors, intervals hold it."""
    g = torch.Generator().manual_seed(4)
    x = torch.randn(120, 8, generator=g)
    orders = [torch.randperm(120, generator=g) for _ in range(20)]
    scores = [kernel_score(moments(x[order[:60]]), moments(x[order[60:]]), times=1000) for order in orders]
    values = torch.tensor([score.value for score in scores])
    assert (values < 0).any() and (values > 0).any()
    assert values.mean().abs() < 2 * values.std() / 20**0.5
    assert sum(score.interval.low <= 0 <= score.interval.high for score in scores) >= 17
    assert all(score.interval.low < score.value < score.interval.high for score in scores)


@pytest.mark.parametrize("shift", [0.0, 0.3, 2.0])
def test_the_interval_of_a_kernel_distance_covers(shift):
    """Fresh sets of 40 and 60, 200 times, at equal, near and far means: 89 to 100 % of the 95 % intervals."""
    g = torch.Generator().manual_seed(5)
    truth = sum(kernel_estimate(moments(torch.randn(1500, 4, generator=g)),
                                moments(torch.randn(1500, 4, generator=g) + shift))[0] for _ in range(4)) / 4
    truth, inside = truth if shift else 0.0, 0
    for _ in range(200):
        found = kernel_interval(moments(torch.randn(40, 4, generator=g)),
                                moments(torch.randn(60, 4, generator=g) + shift))
        inside += found.low <= truth <= found.high
    assert 178 <= inside <= 200


@pytest.mark.parametrize("gain", [0.0, 0.4])
def test_a_difference_of_distances_lies_in_its_paired_interval(gain):
    """Two sets of one noise, against one reference: inside 90 % of 60 intervals, narrower than without pairs."""
    g = torch.Generator().manual_seed(7)
    draw_sets = lambda n: (moments(torch.randn(n, 4, generator=g)), u := torch.randn(n, 4, generator=g),  # noqa: E731
                           moments(u + 0.8), moments(1.1 * u + 0.8 - gain))
    truth = sum(kernel_contrast(real, pair, (1, -1))[0] for real, _, *pair in (draw_sets(800) for _ in range(6))) / 6
    inside, widths = 0, torch.zeros(2)
    for _ in range(60):
        real, _, *pair = draw_sets(40)
        value, found = kernel_contrast(real, pair, (1, -1))
        one, two = (kernel_interval(real, fake) for fake in pair)
        inside += found.low <= truth <= found.high
        widths += torch.tensor([found.high - found.low, math.hypot(one.high - one.low, two.high - two.low)])
        assert value == pytest.approx((one.low + one.high - two.low - two.high) / 2)
    assert 54 <= inside <= 60 and widths[0] < 0.8 * widths[1]
    with pytest.raises(ValueError, match="sets of 40, 30 pictures"):
        kernel_contrast(real, [pair[0], moments(torch.randn(30, 4))], (1, -1))


def test_a_kernel_distance_is_the_mean_over_all_pairs():
    """Of sets of unequal size, against the sums written out; that of equal sizes is torch-fidelity's of one subset."""
    x, y = torch.randn(7, 3), torch.randn(9, 3) + 1
    kernel = lambda a, b: ((a @ b.T / 3 + 1) ** 3).double()  # noqa: E731
    within = [sum(k[i, j] for i in range(len(k)) for j in range(len(k)) if i != j) / (len(k) * (len(k) - 1))
              for k in (kernel(x, x), kernel(y, y))]
    expected = (within[0] + within[1] - 2 * kernel(x, y).mean()).item()
    real, fake = moments(x), moments(y)
    assert kernel_estimate(real, fake)[0] == pytest.approx(expected, rel=1e-5)
    assert kernel_estimate(real, moments(y[:7]))[0] == pytest.approx(kid(x, y[:7])[0], rel=1e-5)
    fake.update(y)  # what was summed of the first vectors is not used for more
    assert kernel_estimate(real, fake)[0] != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("n", [2, 3, 4])
def test_no_interval_of_a_handful(n):
    """Two to four pictures have a distance, but no spread worth a name."""
    with pytest.raises(ValueError, match=f"needs 5 pictures of each, got 20 real and {n} generated"):
        kernel_interval(moments(torch.randn(20, 3)), moments(torch.randn(n, 3)))


def test_pairs_vary_less_than_two_sets():
    """Reconstructions share the pictures' own spread: drawing pairs sees that, drawing two sets does not."""
    g = torch.Generator().manual_seed(5)
    x = torch.randn(300, 4, generator=g)
    real, fake = moments(x), moments(x * 1.5 + 0.3)
    widths = {}
    for over in ("pairs", "both"):
        interval = frechet_interval(real, fake, over=over)
        widths[over] = interval.high - interval.low
    assert widths["pairs"] < 0.7 * widths["both"]


def test_what_an_interval_cannot_be_drawn_from_is_refused():
    """A reference of which a part was kept; pairs of unequal sets; a level of 95; one resample."""
    x = torch.randn(50, 4)
    part, whole, half = moments(x, keep=20), moments(x), moments(x[:25])
    for real, fake, options, message in (
        (part, whole, {"over": "both"}, "only 20 were kept"),
        (whole, half, {"over": "pairs"}, "50 and 25"),
        (whole, whole, {"level": 95.0}, "level=95"),
        (whole, whole, {"num_resamples": 1}, "1 resamples"),
    ):
        with pytest.raises(ValueError, match=message):
            frechet_interval(real, fake, **options)


def test_interval_of_a_mean():
    """Quantiles of t: 12.7 standard errors a side for two values, 1.96 for many; none for one, or for infinite ones."""
    interval = mean_interval(torch.tensor([1.0, 2.0]))
    assert (interval.low, interval.high) == pytest.approx((1.5 - 6.353102, 1.5 + 6.353102), abs=1e-5)
    many = mean_interval(torch.tensor([0.0, 1.0]).repeat(50_000))
    assert (many.high - many.low) / 2 == pytest.approx(1.96 * 0.5 / 10**2.5, rel=1e-3)
    assert mean_interval(torch.tensor([1.0])) is None and mean_interval(torch.tensor([1.0, math.inf])) is None
