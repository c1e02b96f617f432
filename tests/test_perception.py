"""The networks that look: shipped, frozen, different from each other, and honest about their names."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldmlab.damage import DamagedFile
from ldmlab.data.images import to_float
from ldmlab.perception.files import WEIGHTS
from ldmlab.perception.lab_networks import ARCHITECTURES, FdNet, feature_net, fold_batchnorm
from ldmlab.perception.losses import LpipsLoss, PsimLoss, perceptual_loss
from ldmlab.perception.pictures import check_pair, check_pictures
from ldmlab.perception.trunks import TRUNKS, contents_hash
from ldmlab.tensor_files import save_tensors

NAMES = sorted(set(ARCHITECTURES) - {"effnet"})  # ldmlab's own


def pictures(n: int = 4, size: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
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
    for name in ("fd-lab", "referee"):
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
    with pytest.raises(ValueError, match="'effnet', .*'fd-lab'"):
        feature_net("inception")
    with pytest.raises(ValueError, match="'student', 'lpips', got 'auto'"):
        perceptual_loss("auto")


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
    net, x = FdNet(), pictures()
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
def trunk():
    """AlexNet with random numbers, in a file of the project's own layout; and its tensors."""
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * (0.02 if len(shape) == 4 else 0.1)
            for name, shape in TRUNKS["alex"].shapes.items()}


def test_lpips_runs_on_the_weights_it_is_given(trunk, tmp_path):
    """Those very weights, no random number spent, gradients to both pictures, never in training mode."""
    path = save_tensors(tmp_path / "made.safetensors", trunk, {})
    before = torch.random.get_rng_state()
    loss = LpipsLoss("alex", path)
    assert torch.equal(before, torch.random.get_rng_state())
    assert loss.name == "LPIPS-Alex" and not loss.train().training and loss.weights_hash == contents_hash(trunk)
    weights = [m.weight for m in loss.model.net.modules() if isinstance(m, torch.nn.Conv2d)]
    expected = [value for name, value in trunk.items() if name.endswith("weight")]
    assert len(weights) == len(expected) == 5
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
    x, y = pictures(2, 32, 1).requires_grad_(), pictures(2, 32, 2).requires_grad_()
    distances = loss(x, y)
    assert distances.shape == (2,)
    distances.sum().backward()
    assert x.grad.abs().sum() > 0 and y.grad.abs().sum() > 0


def test_other_weights_are_never_lpips(trunk, tmp_path, monkeypatch):
    """A file under LPIPS's name with other numbers, or another network's tensors, is refused by name."""
    monkeypatch.setenv("LDMLAB_CHECKPOINTS", str(tmp_path))
    save_tensors(TRUNKS["alex"].path, trunk, {})
    with pytest.raises(DamagedFile, match="lpips-alexnet.safetensors .*have? sha256 .*fetch lpips"):
        LpipsLoss("alex")
    save_tensors(TRUNKS["vgg"].path, trunk, {})
    with pytest.raises(DamagedFile, match="does not hold VGG16"):
        LpipsLoss("vgg")
    with pytest.raises(ValueError, match="'vgg', 'alex', got 'squeeze'"):
        LpipsLoss("squeeze")


# Made once with the package lpips 0.1.4 on torchvision's weights; the same networks give 0.7219 and 0.1376 for the two
# pairs of pictures that the package publishes as 0.722 and 0.138, with AlexNet.
GOLDEN = {"vgg": (0.855309, 0.890429, 0.693311, 0.382541), "alex": (0.692516, 0.807526, 0.63934, 0.094401)}


def drawn(size: int) -> torch.Tensor:
    """Four pictures without random numbers: ramps of colour, stripes, a disc, and the three together."""
    v, u = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    ramp, stripes = torch.stack([u, v, -u]), torch.stack([(9 * u + 4 * v).sin(), (15 * v).cos(), (11 * u).sin()])
    disc = torch.where(u**2 + v**2 < 0.4, 0.8, -0.6).expand(3, -1, -1)
    return torch.stack([ramp, stripes, disc, (ramp + stripes + disc) / 3]).clamp(-1, 1)


@pytest.mark.parametrize("net", GOLDEN)
def test_golden_values_of_lpips(net):
    """LPIPS is LPIPS: pictures of 64 px against themselves in another order, and against a version in fewer colours."""
    if not TRUNKS[net].path.exists():
        pytest.skip("`python -m ldmlab fetch lpips` has not been run")
    x = drawn(64)
    y = torch.cat([x[[1, 2, 3]], (x[3:] * 3).round() / 3])
    with torch.inference_mode():
        assert LpipsLoss(net)(x, y).tolist() == pytest.approx(GOLDEN[net], abs=2e-5)


@pytest.mark.skipif("LDMLAB_LPIPS_EXAMPLES" not in os.environ, reason="no pictures of the package's repository")
def test_published_values_of_alexnet():
    """The two numbers that LPIPS's authors publish, on their pictures: ex_ref.png, ex_p0.png and ex_p1.png."""
    folder = Path(os.environ["LDMLAB_LPIPS_EXAMPLES"])
    ref, *others = (to_float(torch.from_numpy(np.array(Image.open(folder / f"ex_{name}.png").convert("RGB")))
                             .permute(2, 0, 1)[None]) for name in ("ref", "p0", "p1"))
    with torch.inference_mode():
        found = [LpipsLoss("alex")(ref, other).item() for other in others]
    assert found == pytest.approx([0.722, 0.138], abs=5e-4)
