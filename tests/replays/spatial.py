"""Replays of picture to picture: the rescaler of label maps, and the degradation of super-resolution."""

import torch

from ldmlab.data.degradation import bicubic, bsr
from ldmlab.data.images import to_float
from ldmlab.diffusion.conditioning.spatial_ops import SpatialRescaler

from .case import Case


def spatial_rescaler(case: Case, params: dict, part: str | None = None) -> SpatialRescaler:
    """Our rescaler of the recorded arguments, with its weights; its keys are the same."""
    names = {"method": "method", "multiplier": "factor", "bias": "bias"}
    given = {names[name]: value for name, value in params.items() if name in names}
    num_stages, c_in = params.get("n_stages", 1), params.get("in_channels", 3)
    model = SpatialRescaler(num_stages, c_in, params.get("out_channels"), **given)
    case.load_into(model, lambda state: state, part)
    return model


@torch.no_grad()
def replay_spatial_rescaler(case: Case) -> None:
    case.compare("out.y", spatial_rescaler(case, case.config)(case.tensor("in.x")))


def replay_bsr(case: Case) -> None:
    """Chance is drawn elsewhere, so by size and strength: how far recorded and our pictures are from bicubic ones."""
    factor, ours, recorded = case.config["sf"], [], []
    for key in case.recorded("in.img"):
        x = case.tensor(key).permute(2, 0, 1).contiguous()
        out = key.replace("in.", "out.")
        small = bicubic(to_float(x)[None], factor)[0]
        made = [bsr(x, factor, seed)[-1].picture for seed in range(30)]
        assert made[0].permute(1, 2, 0).shape == case.tensor(out).shape
        ours += [(to_float(picture) - small).square().mean().sqrt() for picture in made]
        recorded.append((to_float(case.tensor(out).permute(2, 0, 1).contiguous()) - small).square().mean().sqrt())
        case.leave_out(out, "equal only with the same random numbers and codecs")
    ours, recorded = torch.stack(ours), torch.stack(recorded)
    assert 0.8 * ours.min() < recorded.min() and recorded.max() < 1.25 * ours.max(), f"{case.name}: {recorded}"
    assert ours.quantile(0.1) < recorded.mean() < ours.quantile(0.9), f"{case.name}: {recorded}"


REPLAYS = {"SpatialRescaler": replay_spatial_rescaler, "image_degradation.light": replay_bsr}
