"""The networks that look: shipped, frozen, different from each other, and honest about their names."""

import json
import shutil

import pytest
import torch

from ldmlab.perception.files import WEIGHTS
from ldmlab.perception.lab_networks import ARCHITECTURES, FdNet, PsimNet, feature_net, fold_batchnorm
from ldmlab.perception.losses import LPIPS_TRUNK, PsimLoss, perceptual_loss
from ldmlab.perception.pictures import check_pair, check_pictures

NAMES = sorted(ARCHITECTURES)


def pictures(n: int = 4, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", NAMES)
def test_shipped_weights_load(name):
    """Each network loads with the hash its JSON states, is frozen, and gives finite vectors of the stated dimension."""
    net = feature_net(name)
    card = json.loads((WEIGHTS / f"{name}.json").read_text())
    assert net.weights_hash == card["sha256"] and net.dim == card["dim"]
    assert not net.training and not any(p.requires_grad for p in net.parameters())
    for size in (32, 48, 64):
        vectors = net.embed(pictures(2, size))
        assert vectors.shape == (2, net.dim) and vectors.isfinite().all()


def test_shipped_weights_are_small():
    """The files of these networks together stay under 6 MB, each network under 0.9 million parameters."""
    assert sum((WEIGHTS / f"{name}.safetensors").stat().st_size for name in NAMES) < 6e6
    assert all(sum(p.numel() for p in feature_net(name).parameters()) < 900_000 for name in NAMES)


def test_networks_were_trained_apart():
    """No two share architecture, seed, training task or weights: the one that trains models never scores them."""
    cards = [json.loads((WEIGHTS / f"{name}.json").read_text()) for name in NAMES]
    for key in ("seed", "task", "sha256", "num_params"):
        assert len({card[key] for card in cards}) == len(cards), key
    x = pictures()
    a, b = feature_net("fd-lab").embed(x), feature_net("referee").embed(x)
    assert a.shape[1] != b.shape[1]


def test_networks_learned_their_task():
    """The weights are trained ones: their JSON states a class accuracy far above chance."""
    for name in NAMES:
        accuracy = json.loads((WEIGHTS / f"{name}.json").read_text())["validation_accuracy"]
        assert accuracy["32px"]["class"] > 0.6, name


def test_changed_weights_are_refused(tmp_path):
    """A file whose hash is not the stated one is not used in silence."""
    for suffix in ("safetensors", "json"):
        shutil.copy(WEIGHTS / f"psim-lab.{suffix}", tmp_path)
    path = tmp_path / "psim-lab.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(ValueError, match="sha256"):
        feature_net("psim-lab", tmp_path)


def test_unknown_names_are_refused():
    """The message lists what there is."""
    with pytest.raises(ValueError, match="'fd-lab'"):
        feature_net("inception")
    with pytest.raises(ValueError, match="'auto', 'lpips' or 'psim-lab', got 'vgg'"):
        perceptual_loss("vgg")


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), TypeError, "uint8"),
        (torch.zeros(2, 1, 32, 32), ValueError, r"\(2, 1, 32, 32\)"),
        (torch.zeros(2, 3, 8, 8), ValueError, r"\(2, 3, 8, 8\)"),
        (torch.full((2, 3, 32, 32), 255.0), ValueError, "255"),
        (torch.full((2, 3, 32, 32), float("nan")), ValueError, "nan"),
    ],
)
def test_pictures_are_checked(x, error, message):
    """Wrong type, shape and range are refused with what was given."""
    with pytest.raises(error, match=message):
        check_pictures(x)


def test_folding_keeps_the_function():
    """Shipping a network without its BatchNorms does not change what it computes."""
    torch.manual_seed(0)
    for architecture in (PsimNet, FdNet):
        net, x = architecture(), pictures()
        for _ in range(3):
            net.stage_maps(x)  # moves the running statistics away from 0 and 1
        before = net.eval().embed(x)
        after = fold_batchnorm(net).embed(x)
        torch.testing.assert_close(before, after, atol=1e-4, rtol=1e-4)
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in net.modules())


def test_embedding_ignores_autocast():
    """A score taken while a model runs in bfloat16 is the same as without."""
    net, x = feature_net("fd-lab"), pictures()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = net.embed(x)
    torch.testing.assert_close(inside, net.embed(x))


@pytest.mark.parametrize("size", [32, 64, 256])
def test_perceptual_loss_reaches_both_inputs(size):
    """One distance a picture at any size, 0 for equal pictures, finite gradients to both, none kept in the network."""
    loss = perceptual_loss("student")
    assert loss.name == "PSIM-lab" and loss.weights_hash
    x, y = pictures(2, size, 1).requires_grad_(), pictures(2, size, 2).requires_grad_()
    distances = loss(x, y)
    assert distances.shape == (2,) and (distances > 0).all() and (distances < 4).all()
    distances.sum().backward()
    for p in (x, y):
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().sum() > 0
    assert all(p.grad is None for p in loss.parameters())
    assert loss(x, x).abs().max() == 0


def test_flat_pictures_have_finite_gradients():
    """Black against black, where unit normalisation divides by almost nothing."""
    y = torch.full((1, 3, 32, 32), -1.0, requires_grad=True)
    perceptual_loss("student")(torch.full((1, 3, 32, 32), -1.0), y).sum().backward()
    assert y.grad.isfinite().all()


def test_loss_stays_in_evaluation_mode():
    """train() of the model that holds it wakes nothing in it."""
    loss = perceptual_loss("student")
    holder = torch.nn.ModuleList([loss]).train()
    assert holder.training and not loss.training and not loss.net.training


def test_loss_refuses_pictures_it_cannot_compare():
    """Different shapes; a first real picture in [0, 255]. A reconstruction beyond [-1, 1] is fine."""
    loss = PsimLoss(feature_net("psim-lab"))
    with pytest.raises(ValueError, match="one shape"):
        check_pair(pictures(2), pictures(3), in_range=False)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        loss(pictures(2) * 127 + 128, pictures(2))
    loss(pictures(2), 1.5 * pictures(2))


@pytest.fixture(scope="module")
def trunk_folder(tmp_path_factory):
    """A hub folder with a file of VGG16's layout and random numbers, its unused classifier left out."""
    from torchvision.models import vgg16

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        with torch.device("meta"):
            shapes = {k: v.shape for k, v in vgg16(weights=None).state_dict().items() if k.startswith("features")}
        state = {k: torch.randn(s) * (0.02 if len(s) == 4 else 0.1) for k, s in shapes.items()}
    folder = tmp_path_factory.mktemp("torch")
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    torch.save(state, folder / "hub" / "checkpoints" / LPIPS_TRUNK)
    return folder, state


def test_lpips_only_with_weights_at_hand(trunk_folder, monkeypatch):
    """With the trunk's file there, "auto" is LPIPS and runs on those very weights, and no random number is spent."""
    folder, state = trunk_folder
    monkeypatch.setenv("TORCH_HOME", str(folder))
    before = torch.random.get_rng_state()
    loss = perceptual_loss("auto")
    assert torch.equal(before, torch.random.get_rng_state())
    assert loss.name == "LPIPS" and not loss.train().training
    weights = [m.weight for m in loss.model.net.modules() if isinstance(m, torch.nn.Conv2d)]
    expected = [v for k, v in state.items() if k.endswith("weight")]
    assert len(weights) == len(expected) == 13
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
    x, y = pictures(2, 32, 1).requires_grad_(), pictures(2, 32, 2).requires_grad_()
    distances = loss(x, y)
    assert distances.shape == (2,)
    distances.sum().backward()
    assert x.grad.abs().sum() > 0 and y.grad.abs().sum() > 0
    assert perceptual_loss("student").name == "PSIM-lab"


def test_without_weights_the_labs_own_network_stands_in(tmp_path, monkeypatch):
    """Nothing is downloaded: "auto" is PSIM-lab under its own name, and asking for LPIPS says how to get it."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("tried to download"))
    assert perceptual_loss("auto").name == "PSIM-lab"
    with pytest.raises(FileNotFoundError, match=f"{LPIPS_TRUNK}.*ldmlab fetch vgg16"):
        perceptual_loss("lpips")


def test_a_wrong_trunk_is_refused(tmp_path, monkeypatch):
    """A file of that name that is no VGG16 never becomes LPIPS."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    torch.save({"weight": torch.zeros(1)}, tmp_path / "hub" / "checkpoints" / LPIPS_TRUNK)
    with pytest.raises(ValueError, match="does not hold torchvision's VGG16"):
        perceptual_loss("lpips")
