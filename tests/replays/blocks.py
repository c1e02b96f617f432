"""Building blocks of autoencoder and UNet, each by itself, at inputs so small that normalisations show their eps."""

import pytest
import torch

from . import diffusion, first_stage
from .case import Case


def replay_blocks(case: Case) -> None:
    """`BLOCKS[name](settings)` gives (module, rename); a case with blocks not built yet is skipped, naming them."""
    builders = {**first_stage.BLOCKS, **diffusion.BLOCKS}
    not_built = []
    for name, settings in case.config["modules"].items():
        if name in diffusion.NOT_IN_ANY_MODEL:
            case.leave_out(f"out.{name}", "a block of the original that none of its models contains")
            continue
        if name not in builders:
            not_built.append(name)
            continue
        module, rename = builders[name](settings)
        case.load_into(module, rename, part=name)
        inputs = [case.tensor(key) for key in sorted(case.recorded(f"in.{name}."))]
        with torch.no_grad():
            case.compare(f"out.{name}", module.eval()(*inputs))
    if not_built:
        pytest.skip(f"{case.name}: all equal, but for what is not built yet: {', '.join(not_built)}")
