"""Conditions that stand beside z_t: what they take of a batch, what the denoiser sees, what is refused."""

import pytest
import torch

from ldmlab.data.degradation import degrade
from ldmlab.data.images import to_float
from ldmlab.diffusion.conditioning.spatial import LabelMap, LowResolution, MaskedPicture, WithPictures
from ldmlab.diffusion.conditioning.tokens import conditioned


def pictures(n=3, size=32):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("f, factor, channels", [(4, 4, 3), (8, 4, 12), (8, 2, 48), (2, 4, 3), (1, 8, 3)])
def test_low_resolution_fits_any_latent(f, factor, channels):
    """The small picture has the latent's size whatever f is, and loses nothing where it is larger."""
    condition = LowResolution(f, factor)
    y = condition.condition({"image": pictures()})
    c = condition(y)
    assert c.shape == (3, channels, 32 // f, 32 // f) and condition.channels == channels
    assert condition.picture_size(y) == (32, 32)
    if f >= factor:
        assert torch.equal(c.flatten().sort().values, y.flatten().sort().values)


@pytest.mark.parametrize("degradation", ["bicubic", "bsr"])
def test_what_is_told_depends_on_the_generator_alone(degradation):
    """The same step spoils the same pictures alike, another step otherwise: training resumes exactly."""
    condition, batch = LowResolution(4, 4, degradation), {"image": pictures()}
    first, again, other = (condition.condition(batch, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert torch.equal(first, other) == (degradation == "bicubic")
    assert torch.equal(to_float(degrade(batch["image"], 4)), condition.condition(batch)) == (degradation == "bicubic")


def test_masked_picture_hides_its_hole():
    """What lies in the hole does not reach the model; where the hole is does."""
    condition = MaskedPicture(4, 3, lambda x: torch.nn.functional.avg_pool2d(x, 4))
    y = condition.condition({"image": pictures()}, torch.Generator().manual_seed(0))
    assert y.shape == (3, 4, 32, 32) and set(y[:, 3].unique().tolist()) == {0.0, 1.0}
    other = y.clone()
    other[:, :3] = torch.where(y[:, 3:] == 1, -y[:, :3], y[:, :3])
    assert torch.equal(condition(y), condition(other)) and condition(y).shape == (3, 4, 8, 8)
    moved = y.clone()
    moved[:, 3] = y[:, 3].flip(2)
    assert not torch.equal(condition(y), condition(moved))


def test_label_map_learns_and_names_unknown_labels():
    """The rescaler is trained with the denoiser; a label that the data lacks is an error, not another label."""
    condition = LabelMap(4, 5, 3)
    y = condition.condition({"map": torch.randint(0, 5, (2, 16, 24), dtype=torch.uint8)})
    c = condition(y)
    assert c.shape == (2, 3, 4, 6)
    c.square().sum().backward()
    assert condition.rescaler.channel_mapper.weight.grad.abs().sum() > 0
    condition.check(y)
    with pytest.raises(ValueError, match="labels are 0 to 4; got 0 to 7"):
        condition.check(torch.tensor([[[0, 7]]]).expand(1, 4, 2))


@pytest.mark.parametrize("condition, y, message", [
    (LowResolution(8, 2), torch.zeros(1, 3, 10, 8), "multiples of f = 8, got 20 x 16"),
    (LowResolution(4, 4), torch.zeros(1, 1, 8, 8), r"\(b, 3, h, w\)"),
    (MaskedPicture(4, 3, lambda x: x), torch.zeros(1, 3, 8, 8), r"\(b, 4, H, W\)"),
    (MaskedPicture(4, 3, lambda x: x), torch.zeros(1, 4, 8, 2), "got 8 x 2; pad them first"),
    (LabelMap(4, 5, 3), torch.zeros(1, 1, 8, 8, dtype=torch.long), r"\(b, H, W\)"),
])
def test_conditions_that_do_not_fit_are_refused(condition, y, message):
    """Before any work, with what was given and what is accepted."""
    with pytest.raises(ValueError, match=message):
        condition.check(y)


def test_the_denoiser_sees_z_t_first():
    """As released: noisy latent, then condition."""
    seen = {}

    class Denoiser(torch.nn.Module):
        def forward(self, x, t):
            seen["x"] = x
            return x[:, :3]

    condition = LowResolution(4, 4)
    y, z_t = torch.rand(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    conditioned(Denoiser(), condition, y)(z_t, torch.zeros(2))
    assert torch.equal(seen["x"], torch.cat([z_t, y], 1))


class _Maps:
    """A set of `n` pictures; the left half of each map is its picture's number."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def maps(self, numbers):
        maps = torch.zeros(len(numbers), 2, 4, dtype=torch.uint8)
        maps[:, :, :2] = torch.tensor(numbers, dtype=torch.uint8)[:, None, None]
        return maps


class _Numbered(torch.utils.data.Dataset):
    """Pictures and latents that are their own numbers; from n on they are mirror images."""

    first_stage, is_decoded = "hash", True

    def __init__(self, n):
        self.images = _Maps(n)

    def __len__(self):
        return 2 * len(self.images)

    def __getitems__(self, indices):
        return {"moments": torch.tensor(indices), "image": torch.tensor(indices)}


def test_maps_are_mirrored_with_their_pictures():
    """Index i + n is the mirror image of picture i, for latent, picture and map alike."""
    data = _Numbered(4)
    batch = WithPictures(data, data, maps=True).__getitems__([1, 5])
    assert batch["image"].tolist() == [1, 5]
    assert batch["map"][:, 0].tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_pictures_of_other_latents_are_refused():
    """A set of another size is never paired."""
    with pytest.raises(ValueError, match="8 latents"):
        WithPictures(_Numbered(4), _Numbered(3))
