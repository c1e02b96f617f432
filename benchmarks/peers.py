"""diffusers as a peer: its models with the weights of ours, and how each library's denoiser is called."""

import torch
from torch import Tensor, nn

from ldmlab.checkpoints.diffusers_format.folders import describe
from ldmlab.checkpoints.diffusers_format.keys import to_theirs


def diffusers_twin(ours: nn.Module, side: int = 32, scale_factor: float = 1.0) -> nn.Module:
    """diffusers' class of a denoiser or first stage, with the weights of ours, on its device."""
    import diffusers

    described = describe(ours, sample_size=side, scale_factor=scale_factor)
    theirs = getattr(diffusers, described.pop("_class_name")).from_config(described)
    theirs.load_state_dict({key: value.clone() for key, value in to_theirs(ours).items()})
    return theirs.to(next(ours.parameters()).device)


def filled(model: nn.Module) -> nn.Module:
    """With small random numbers where the layers begin at zero: of zeros a comparison would show nothing."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.02)
    return model


def call_ours(model: nn.Module, z_t: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
    return model(z_t, t, context)


def call_diffusers(model: nn.Module, z_t: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
    return model(z_t, t, **({} if context is None else {"encoder_hidden_states": context})).sample


def call_original(model: nn.Module, z_t: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
    return model(z_t, t, context=context)
