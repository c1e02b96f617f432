"""What notebook 16 measures: each effect it shows is there in a case where the answer is known."""

from types import SimpleNamespace

import pytest
import torch

from ldmlab.data.images import ImageSet, to_float, to_uint8
from ldmlab.evaluation.distances import FeatureMoments
from ldmlab.evaluation.distortions import degrade
from ldmlab.experiments import evaluation as ev
from ldmlab.experiments import metric_ranking
from ldmlab.figures import evaluation as figures
from ldmlab.figures import ranking
from ldmlab.perception.lab_networks import feature_net
from ldmlab.perception.losses import PsimLoss
from ldmlab.study.records.record import Record
from ldmlab.study.runs.run import Run
from ldmlab.study.runs.run_scoring import RunScorer
from ldmlab.study.runs.scoring import Scorer

PARAMS = {"f": 8, "reg": "kl", "data": "blobs", "size": 32, "tier": "smoke", "seed": 0}


class Blobs(ImageSet):
    """Smooth pictures of random colours, quickly made; an ImageSet as far as these tests look."""

    num_classes = 0

    def __init__(self, num: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        coarse = torch.rand(num, 3, 5, 5, generator=generator) * 2 - 1
        smooth = torch.nn.functional.interpolate(coarse, 32, mode="bicubic", align_corners=True)
        self.pixels, self.fingerprint = to_uint8(smooth.clamp(-1, 1)), f"blobs {num} {seed}"

    def __len__(self) -> int:
        return len(self.pixels)

    def images(self, indices):
        return self.pixels[torch.as_tensor(list(indices))]

    def subset(self, num: int) -> list[int]:
        return list(range(min(num, len(self))))


def a_run(**attributes) -> Run:
    """A Run that has these attributes and computes nothing."""
    run = object.__new__(Run)
    run.__dict__.update(attributes)
    return run


class BlobScorer(RunScorer):
    """The scorer of a run without a spec: all training pictures are the reference."""

    protocol = {}

    def __init__(self, pictures):
        Scorer.__init__(self, "cpu", is_smoke=True)
        self.pictures, self.num_resamples, self._reference = pictures, 8, {}

    @property
    def reference_set(self):
        return self.pictures.train


@pytest.fixture
def run(lab_root):
    """A run with pictures and a scorer, and nothing trained."""
    pictures = SimpleNamespace(train=Blobs(160, 0), val=Blobs(64, 1))
    about = {"device": torch.device("cpu"), "spec": SimpleNamespace(seed=0)}
    return a_run(pictures=pictures, scorer=BlobScorer(pictures), **about)


def moments(rows: torch.Tensor) -> FeatureMoments:
    return FeatureMoments(rows.shape[1], keep=len(rows), extractor="fd-lab", weights_hash="0").update(rows)


def test_fewer_pictures_score_worse_under_frechet_and_alike_under_the_kernel():
    """Draws of one law: the bias of FD doubles as N halves; the kernel distance stays near 0; sizes stop above d."""
    generator = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(n, 6, generator=generator) for n in (4000, 800))
    curves = ev.by_number(moments(real), moments(fake), 120, 8)
    fd = dict(curves["by_n"])
    assert list(fd) == [800, 400, 200] and fd[800] < fd[400] < fd[200]
    assert (fd[200] - fd[400]) / (fd[400] - fd[800]) == pytest.approx(2, rel=0.4)
    assert [n for n, _ in curves["part"]].count(200) == 4
    assert all(reach > 0 for _, reach in curves["reach"])
    kernel = dict(ev.kernel_by_number(moments(real), moments(fake)))
    assert list(kernel) == [800, 400, 200, 100] and all(abs(value) < 60 for value in kernel.values())


def test_kernels_agree_on_flat_pictures_and_not_on_fine_stripes():
    """Antialiasing averages stripes away; reading single pixels does not, and so the kernels are the ones named."""
    flat = torch.full((1, 3, 64, 64), 0.25)
    assert all((small - flat[..., :16, :16]).abs().max() < 0.02 for small in ev.resized(flat, 16).values())
    stripes = torch.ones(1, 3, 64, 64)
    stripes[..., ::2] = -1
    small = ev.resized(stripes, 16)
    assert all(x.shape == (1, 3, 16, 16) for x in small.values())
    assert small["box"].abs().max() < 0.02 and small["bicubic"][..., 4:-4].abs().max() < 0.1
    assert small["nearest"].abs().min() > 0.9


def test_pleasing_the_loss_flatters_it_more_than_the_eye():
    """The loss falls along the way, and by a larger factor than squared error: that is why it may not score."""
    x = to_float(Blobs(3, 2).images(range(3)))[..., :16, :16]
    noisy = (x + 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    loss = PsimLoss(feature_net("psim-lab"))
    kept = ev.optimize_pixels(loss, x, noisy)
    assert tuple(kept) == ev.GAME_STEPS and torch.equal(kept[0], noisy)
    with torch.no_grad():
        falls = loss(x, noisy).mean() / loss(x, kept[ev.GAME_STEPS[-1]]).mean()
    squared = (noisy - x).square().mean() / (kept[ev.GAME_STEPS[-1]] - x).square().mean()
    assert falls > 2 and falls > squared


def test_the_copier_has_a_good_distance_and_is_found(run):
    """What section 5 claims: exact copies score well in KD-EffNet and are told by nearness; unseen pictures are not."""
    samples = degrade(ev.pictures(run, "val", 64), "noise", 0.4)
    record = Record("16_evaluation", "LDM-8", PARAMS)
    ev.measure_copies(run, record, samples)
    value = record.value
    assert value("memorisation_copier") == 1 and record.metrics["memorisation_copier"]["copies"] == 1
    assert value("memorisation_unseen") == pytest.approx(0.5, abs=0.2)
    assert value("planted_kd_effnet_copier") < value("planted_kd_effnet_model") / 2
    assert record.curves["nearness_copier"][-1][1] == 0
    assert figures.fig_copies(record).axes
    rows = ev.neighbours(run, ev.pictures(run, "train", 2), k=2)
    assert torch.equal(rows["neighbour 1"], ev.pictures(run, "train", 2))


def test_errors_of_the_solvable_world_stack_up():
    """Each further source of error raises the distance; with many steps only its own floor is left."""
    record = Record("16_evaluation", "LDM-8", PARAMS)
    ev.measure_world(record)
    last = {name: record.curves[f"world_{name}"][-1][1] for name in ("sampler", "model", "first_stage")}
    assert last["sampler"] < last["model"] < last["first_stage"]
    assert record.value("world_sampler") == pytest.approx(0, abs=1e-9)
    for name in ("model", "first_stage"):
        assert record.curves[f"world_{name}"][0][1] > last[name]
        assert last[name] == pytest.approx(record.value(f"world_{name}"), rel=0.01)
    assert figures.fig_solvable(record).axes


def test_figures_are_drawn_from_a_record_alone(run):
    """The number of pictures, too few for an FD∞; and the orders, with every family that is tried at smoke."""
    record = Record("16_evaluation", "LDM-8", PARAMS, protocol={"game_n": 4})
    ev.measure_number(run, record, ev.pictures(run, "val", 64))
    assert "fd_lab_infinity_real" not in record.metrics
    (caption,) = {text.get_text() for text in figures.fig_sample_size(record).texts if "Against n" in text.get_text()}
    assert "too few pictures for FD∞" in caption.replace("\n", " ")
    metric_ranking.measure_ranking(run, record)
    orders = ranking.orders_of(record)
    assert set(orders["kd_effnet"]) == set(metric_ranking.SMOKE_FAMILIES) and "copies" not in orders["psnr"]
    assert orders["psnr"]["blur"]["value"] == 1 and orders["pairs_PSIM-lab"]["blur"]["trains"]
    labels = [text.get_text() for text in ranking.fig_ranking(record).axes[0].get_yticklabels()]
    assert "PSIM-lab  (trains)" in labels and "KD-EffNet" in labels
    with pytest.raises(ValueError, match="no orders"):
        ranking.fig_ranking(Record("16_evaluation", "LDM-8", PARAMS))
