"""Of class-sorted pictures, what is measured on some is measured on all classes, never on the first class alone."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from made_files import encoded, lay_out, picture

from ldmlab.data.degradation import bicubic
from ldmlab.data.images import ImageSet, open_dataset, quantize_8bit
from ldmlab.diffusion.conditioning.spatial import LowResolution
from ldmlab.evaluation.distances import FeatureMoments
from ldmlab.experiments import evaluation, first_stages, guidance, image_guiding, latent_scale, restoration
from ldmlab.experiments import rate_distortion as rd
from ldmlab.experiments.released.run import ReleasedRun
from ldmlab.first_stage.autoencoder import AutoencoderConfig, build_autoencoder
from ldmlab.first_stage.latents import LatentStats
from ldmlab.study.records.record import Record
from ldmlab.study.runs import conditioners, first_stage
from ldmlab.study.runs.pictures import Pictures
from ldmlab.study.runs.run import Run

CLASSES, EACH, N = 4, 40, 64

pytestmark = pytest.mark.usefixtures("in_root")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four classes of 40 pictures, in folders: sorted by class."""
    return lay_out(tmp_path_factory.mktemp("sorted") / "pictures", {
        f"{split}/{label}/{i:03}.png": encoded(picture(100 * label + i, 8, 8))
        for split in ("train", "val") for label in range(CLASSES) for i in range(EACH)})


@pytest.fixture(scope="module")
def pictures(folder) -> Pictures:
    """Both splits at 8 px."""
    return Pictures(*(open_dataset(folder, size=8, split=split) for split in ("train", "validation")))


def check_mix(labels: torch.Tensor, num: int) -> None:
    """Shares of the classes as in the whole set, within four standard deviations of a draw without replacement."""
    counts = labels.bincount(minlength=CLASSES)
    share = 1 / CLASSES
    sd = (num * share * (1 - share) * (1 - num / (CLASSES * EACH))) ** 0.5
    assert len(labels) == num and (counts - num * share).abs().max() <= 4 * sd + 1


def test_a_subset_is_drawn_by_names(pictures, folder):
    """Not by order: the same names in folders that sort otherwise are the same pictures; a smaller draw begins it."""
    train = pictures.train
    chosen = train.subset(N)
    check_mix(train.labels(chosen), N)
    assert train.subset(N // 2) == chosen[: N // 2] and len(set(chosen)) == N
    assert sorted(train.subset(10_000)) == list(range(len(train)))
    drawn = open_dataset(folder, size=8, num=N)
    assert torch.equal(drawn.images(drawn.subset(N)), train.images(chosen)), "what `num` draws, in the same order"
    again = ImageSet(train._source, train._pixels.numbers[::-1].copy(), split="train", size=8,
                     protocol=train._preparation)
    assert torch.equal(again.images(again.subset(N)), train.images(chosen))
    scenes = open_dataset("scenes", size=32, num=12)
    assert scenes.subset(5) == [0, 1, 2, 3, 4] and "subset" not in scenes.protocol
    assert train.protocol["subset"] == "hash of names"


class Asked:
    """A scorer, latents and a model that only note what they are given."""

    is_smoke = False

    def __init__(self, pictures=None):
        self.reference_set = pictures and pictures.train

    def moments(self, parts, extractor="effnet"):
        return FeatureMoments(1, extractor="none").update(torch.zeros(sum(map(len, parts)), 1))

    def __getitems__(self, rows):
        return {"moments": torch.tensor(rows).view(-1, 1, 1, 1).float()}


@pytest.fixture
def run(pictures, monkeypatch):
    """A run that holds what the consumers read."""
    identity = build_autoencoder(AutoencoderConfig(f=1, z_channels=3, reg="none", resolution=8)).eval()
    stats = LatentStats("none", mean=(0.0,), std=(1.0,), std_error=(0.0,), num_images=0)
    for module in (guidance, rd):
        for name in ("NUM_REACHABLE", "MOST_TABLES"):
            monkeypatch.setattr(module, name, N, raising=False)
    identity.sample_latent = lambda moments, generator: moments
    made = object.__new__(Run)
    vars(made).update(
        pictures=pictures, spec=SimpleNamespace(budget=SimpleNamespace(num_restored=N), seed=0), scorer=Asked(pictures),
        latents=Asked(), first_stage=SimpleNamespace(model=identity, stats=stats))
    return made


def released(run: Run) -> ReleasedRun:
    """A run of a released model on the same pictures."""
    made = object.__new__(ReleasedRun)
    vars(made)["val"] = run.pictures.val
    return made


CONSUMERS = {
    "evaluation": lambda run: evaluation.pictures(run, "val", N),
    "evaluation, unseen": lambda run: evaluation.mock_generators(run, torch.zeros(N, 3, 8, 8), N)["unseen"],
    "restoration": restoration.true_pictures,
    "image guiding": lambda run: image_guiding.targets(run, N),
    "precision and recall": guidance.reachable_moments,
    "layout t": lambda run: latent_scale.validation_latents(run, N)[0],
    "scale factor": lambda run: first_stage.measure_latents(run.first_stage.model, run.pictures, "none",
                                                            torch.device("cpu"), N),
    "latents": lambda run: first_stages.sampled_latents(run, N),
    "code tables": lambda run: torch.cat(list(rd.training_moments(run))),
    "released": lambda run: run.pictures.val.images(ReleasedRun.numbers(released(run), range(N))),
}


@pytest.fixture
def asked(monkeypatch):
    """The labels of the pictures that are read, by call."""
    labels: list[torch.Tensor] = []
    read = ImageSet.images

    def images(self, indices):
        labels.append(self.labels(indices))
        return read(self, indices)

    monkeypatch.setattr(ImageSet, "images", images)
    return labels


@pytest.mark.parametrize("name", CONSUMERS)
def test_every_class_is_among_the_pictures(name, run, asked):
    """Each place that measures on some of the pictures, by the pictures that it asks for."""
    found = CONSUMERS[name](run)
    if name in ("latents", "code tables"):  # these read latents, here the numbers of the pictures
        asked.append(run.pictures.train.labels(found.flatten().long().tolist()))
    labels = torch.cat(asked)
    check_mix(labels[-N:], N)
    assert len(labels) == (3 * N if name == "evaluation, unseen" else N)


def test_every_class_is_in_validation_psnr_and_progressive_bits(run, asked, tiny_spec, tmp_path, monkeypatch):
    """The two that read their pictures in the midst of larger work, which ends there."""
    def stop(*_, **__):
        raise InterruptedError

    monkeypatch.setattr(first_stage, "fit", stop)
    monkeypatch.setattr(first_stage, "NUM_VALIDATED", N)
    with pytest.raises(InterruptedError):
        first_stage._fit_first_stage(tiny_spec, run.pictures, torch.device("cpu"), tmp_path, tmp_path / "file")
    check_mix(asked.pop(), N)
    monkeypatch.setattr(rd, "latents_of", stop)
    monkeypatch.setattr(rd, "MOST_PROGRESSIVE", N)
    run.spec = replace(tiny_spec, evaluation=replace(tiny_spec.evaluation, batch_size=N))
    model = SimpleNamespace(first_stage=run.first_stage.model, stats=run.first_stage.stats)
    vars(run)["diffusion"] = SimpleNamespace(model=model)
    with pytest.raises(InterruptedError):
        rd._progressive(run, Record("05_rate_distortion", "LDM-8", {}))
    check_mix(asked.pop(), N)


def test_conditions_are_those_of_the_pictures_restored(run):
    """Condition i belongs to true picture i, and after the last the first follows."""
    x, y = restoration.true_pictures(run), conditioners.spatial_conditions(LowResolution(1, 2), run.pictures, 20)
    assert torch.equal(y, quantize_8bit(bicubic(x[:20], 2)))
    val, num = run.pictures.val, CLASSES * EACH
    found = conditioners.validation_annotations(run.pictures, num + 2)
    assert [a.label for a in found[:num]] == val.labels(val.subset(num)).tolist() and found[num:] == found[:2]
    check_mix(torch.tensor([a.label for a in found[:N]]), N)
