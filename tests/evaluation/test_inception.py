"""The path through Inception runs offline with a stand-in file; without a file, the error says how to get it."""

import hashlib
import json
import math

import pytest
import torch
from torch import nn

from ldmlab.evaluation import inception
from ldmlab.evaluation.distances import Score
from ldmlab.evaluation.inception import InceptionNet, find_inception, inception_scores, manifest

tf = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory):
    """A file of the right layout with random values, scaled so that features neither vanish nor overflow."""

    class Blank(tf.FeatureExtractorInceptionV3):
        def load_state_dict(self, state, *args, **kwargs):
            pass

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tf, "load_state_dict_from_url", lambda *args, **kwargs: {})
        model = Blank("inception-v3-compat", ["2048"], verbose=False)
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):  # as after training: none of its four is neutral
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
    path = tmp_path_factory.mktemp("weights") / "stand-in.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def net(stand_in):
    return InceptionNet(stand_in)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty folder of torch's downloads, without a network (see conftest)."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    return tmp_path / "checkpoints"


def test_without_the_file_the_error_says_how_to_get_it(hub):
    """Name, size, sha256, address, folder, command; nothing is downloaded, and nothing was begun."""
    with pytest.raises(FileNotFoundError) as missing:
        InceptionNet()
    for part in ("weights-inception-2015-12-05-6726825d.pth", "95.6 MB", "sha256 6726825d", "https://github.com/toshas",
                 str(hub), "python -m ldmlab fetch inception", "KD-EffNet"):
        assert part in str(missing.value)
    assert not hub.exists()


def test_the_file_is_found_under_either_name(hub):
    """torch-fidelity and pytorch-fid publish the same bytes under two names."""
    hub.mkdir()
    (hub / "pt_inception-2015-12-05-6726825d.pth").write_bytes(b"")
    assert find_inception().name.startswith("pt_")
    (hub / manifest()["file"]).write_bytes(b"")
    assert find_inception().name == manifest()["file"]
    assert manifest()["sha256"].startswith("6726825d") and manifest()["url"].endswith(manifest()["file"])


@pytest.mark.parametrize("content", [b"", b"no weights at all", {"fc.weight": torch.zeros(2, 2)}])
def test_other_files_are_refused(tmp_path, content):
    """An empty file, one that is none of weights, one of another layout: the message names the file."""
    path = tmp_path / "other.pth"
    torch.save(content, path) if isinstance(content, dict) else path.write_bytes(content)
    with pytest.raises(ValueError, match="other.pth does not hold"):
        InceptionNet(path)
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        InceptionNet(tmp_path / "nowhere.pth")


def test_a_file_that_runs_code_is_refused(tmp_path):
    """torch-fidelity itself would have run it."""

    class Evil:
        def __reduce__(self):
            return (pytest.fail, ("code of a weight file ran",))

    path = tmp_path / "evil.pth"
    torch.save({"fc.weight": Evil()}, path)
    with pytest.raises(ValueError, match="evil.pth"):
        InceptionNet(path)


def test_the_path_runs_to_the_end(net, monkeypatch):
    """All five scores, equal to torch-fidelity's own on the same pictures; random weights never give an "FID"."""
    from torch_fidelity import calculate_metrics

    from ldmlab.evaluation.distances import moments_of

    bytes_ = torch.randint(256, (2, 6, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    bytes_[1] = bytes_[1] // 2 + 60
    real, fake = bytes_.float() / 127.5 - 1
    scores = inception_scores(
        moments_of(real.split(4), net), fake.split(4), net, {"seed": 3}, splits=2, allow_few=True
    )
    assert {key: s.name for key, s in scores.items()} == {
        "fid": "FD-unverified", "kid": "KID-unverified", "inception_score": "IS-unverified",
        "precision": "PR-unverified precision", "recall": "PR-unverified recall",
    }
    for score in scores.values():
        assert (score.n_fake, score.extractor, score.weights_hash) == (6, "inception-unverified", net.weights_hash)
        assert math.isfinite(score.value) and score.protocol["seed"] == 3 and "299 px" in score.protocol["input_resize"]
        assert json.dumps(score.as_dict())

    class Pictures(torch.utils.data.Dataset):
        def __init__(self, x):
            self.x = x

        def __len__(self):
            return len(self.x)

        def __getitem__(self, i):
            return self.x[i]

    # One network for both; that its FID agrees is the business of test_distances, at a size where it is quick.
    monkeypatch.setattr("torch_fidelity.utils.create_feature_extractor", lambda *args, **kwargs: net.stages[0])
    monkeypatch.setattr("torch_fidelity.metrics.create_feature_extractor", lambda *args, **kwargs: net.stages[0])
    theirs = calculate_metrics(
        input1=Pictures(bytes_[1]), input2=Pictures(bytes_[0]), isc=True, kid=True, prc=True, cuda=False, verbose=False,
        cache=False, save_cpu_ram=True, feature_extractor="inception-v3-compat", feature_layer_isc="logits_unbiased",
        feature_layer_kid="2048", feature_layer_prc="2048", isc_splits=2, kid_subset_size=6, kid_subsets=1,
    )
    for ours, key in (("inception_score", "inception_score_mean"), ("kid", "kernel_inception_distance_mean"),
                      ("precision", "precision"), ("recall", "recall")):
        assert scores[ours].value == pytest.approx(theirs[key], rel=1e-4, abs=1e-9), ours


def test_features_are_those_of_the_plain_network(net, stand_in):
    """Another order of memory and folded BatchNorms change rounding, not features; the layout of the input nothing."""
    plain = tf.FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(stand_in)
    )
    bytes_ = torch.randint(256, (2, 3, 48, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x = bytes_.float() / 127.5 - 1
    for given in (x, x.contiguous(memory_format=torch.channels_last)):
        for ours, theirs in zip(net.features(given), plain(bytes_), strict=True):
            assert theirs.abs().max() > 0 and (ours - theirs).abs().max() <= 1e-5 * theirs.abs().max()


def test_too_few_pictures_are_refused_before_samples_are_looked_at(net):
    """2048 features need 2049 pictures, which the message says."""
    from ldmlab.evaluation.distances import FeatureMoments

    real = FeatureMoments(2048, extractor=net.name, weights_hash=net.weights_hash)
    real.n = 2048
    with pytest.raises(ValueError, match="2049"):
        inception_scores(real, (pytest.fail("looked") for _ in range(1)), net)


def test_the_published_weights_earn_the_published_names(stand_in, monkeypatch):
    """The name FID hangs on the sha256 of the manifest, and on nothing else."""
    digest = hashlib.sha256(stand_in.read_bytes()).hexdigest()
    monkeypatch.setattr(inception, "manifest", lambda: {"sha256": digest, "file": stand_in.name})
    net = InceptionNet(stand_in)
    assert net.name == "inception-v3-compat"
    from ldmlab.evaluation.distances import FeatureMoments, kid_score, score_name

    a, b = (FeatureMoments(4, extractor=net.name).update(torch.randn(9, 4)) for _ in range(2))
    assert [score_name(kind, a, b) for kind in ("FD", "FD∞", "KID", "IS")] == ["FID", "FID∞", "KID", "IS"]
    assert isinstance(kid_score(a, b), Score)
