"""The score network is the published one: reference features of the original, and the faults that near ports have."""

import copy
import json

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from ldmlab.perception.base import FeatureNet
from ldmlab.perception.efficientnet import EffNet
from ldmlab.perception.files import WEIGHTS
from ldmlab.perception.lab_networks import feature_net
from perception.effnet_reference import ENTRIES, FILE, pictures

GOLDEN = json.loads(FILE.read_text())
# Mean error that float16 weights may cause; the smallest fault below causes 30 times as much.
TOLERANCE = {"grey": 1e-4, "ramp": 2e-3, "scene": 4e-3}


@pytest.fixture(scope="module")
def net():
    """The shipped network."""
    return feature_net("effnet")


def errors(features_of):
    """Mean error of each picture's features against the reference, over that picture's tolerance."""
    found = {}
    with torch.inference_mode():
        for name, x in pictures().items():
            features = features_of(x)[0, ENTRIES]
            found[name] = ((features - torch.tensor(GOLDEN["features"][name])).abs().mean() / TOLERANCE[name]).item()
    return found


def of_inputs(net, change):
    """Features with another preparation of the resized pictures than ours."""
    return lambda x: FeatureNet.stage_maps(net, change(net.resized(x)))[-1].mean((2, 3))


def test_features_are_those_of_the_original_network(net):
    """timm's architecture with the package's float32 weights, on grey, a colour ramp and a scene."""
    assert max(errors(net.embed).values()) < 1
    assert net.name == "effnet" and net.dim == 1280


def test_a_port_that_is_almost_right_is_noticed(net):
    """Inputs in [0, 1], ImageNet's means, torch's padding, torch's epsilon: each alone breaks the test above."""
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    symmetric = copy.deepcopy(net)
    for module in symmetric.modules():
        if isinstance(module, torch.nn.ZeroPad2d):  # more left and above, as padding of k // 2 on both sides gives
            module.padding = module.padding[::-1]
    faults = {"[0, 1]": of_inputs(net, lambda x: (x + 1) / 2), "padding": symmetric.embed,
              "ImageNet's means": of_inputs(net, lambda x: ((x + 1) / 2 - mean) / std)}
    for fault, features_of in faults.items():
        found = errors(features_of)
        assert min(found.values()) > 10, (fault, found)
    for name in TOLERANCE:
        wrong, right = (torch.tensor(GOLDEN[key][name]) for key in ("features_at_eps_1e-5", "features"))
        assert (wrong - right).abs().mean() > 10 * TOLERANCE[name]


def test_sides_are_multiples_of_32(net):
    """At other sides the published copies of the network disagree: 112 px gives maps of 3 or of 4."""
    with pytest.raises(ValueError, match="multiples of 32 px; got 112"):
        EffNet(112)
    with pytest.raises(ValueError, match="got 112 x 128"):
        net.maps(torch.zeros(1, 3, 112, 128))
    assert net.maps(torch.zeros(1, 3, 64, 96))[-1].shape == (1, 1280, 2, 3)


def test_resizing_is_bicubic_and_antialiased(net):
    """As Pillow; a checkerboard of single pixels becomes flat grey; a scene has the stored values at 128 px."""
    at = torch.arange(256)
    board = ((at[:, None] + at) % 2 * 2.0 - 1).expand(1, 3, -1, -1)
    assert net.resized(board)[..., 2:-2, 2:-2].abs().max() < 0.01
    scene = pictures()["scene"]
    ours = net.resized(scene)
    assert ours[0, :, 40:44, 60:63].tolist() == [
        [pytest.approx(row, abs=2e-5) for row in channel] for channel in GOLDEN["scene_resized[:, 40:44, 60:63]"]]
    theirs = Image.fromarray(scene[0, 0].numpy()).resize((128, 128), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(bytearray(theirs.tobytes()), dtype=torch.float32).view(128, 128).clamp(-1, 1)
    torch.testing.assert_close(ours[0, 0], pixels, atol=1e-5, rtol=0)
    other = F.interpolate(scene, (128, 128), mode="bicubic").clamp(-1, 1)  # a = -0.75
    assert errors(lambda x: net.embed(other if x.shape[2] == 32 else x))["scene"] > 2


def test_features_do_not_depend_on_the_batch(net):
    """Distances near 0 are not made by how pictures are grouped: alone, in 17 or in 64."""
    x = torch.rand(64, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        whole = net.embed(x)
        for size in (1, 17):
            assert (net.embed(x[:size]) - whole[:size]).abs().max() < 1e-4


def test_card_licence_and_notice_are_shipped():
    """Apache-2.0 asks for its text, a notice, and a statement of what was changed."""
    card = json.loads((WEIGHTS / "effnet.json").read_text())
    assert card["license"] == "Apache-2.0" and "BatchNorm" in card["changes"] and card["dim"] == 1280
    assert "Apache License" in (WEIGHTS / "effnet.LICENSE").read_text()
    notice = (WEIGHTS / "effnet.NOTICE").read_text()
    assert card["source"]["package"] in notice and "changed" in notice
