"""Replays of tau_theta over tokens: the transformer of words and boxes."""

import torch

from ldmlab.checkpoints.compvis import TRANSFORMER_RULES, from_compvis
from ldmlab.diffusion.conditioning.transformer import TokenTransformer

from .case import Case, StateDict


def rename(state: StateDict) -> StateDict:
    """CompVis keys of BERTEmbedder -> ours; its head of word logits is trained by nothing and left out."""
    used = {key: value for key, value in state.items() if not key.startswith("transformer.to_logits")}
    return from_compvis(used, TRANSFORMER_RULES)


def token_transformer(case: Case, params: dict, part: str | None = None) -> TokenTransformer:
    """Our transformer of a recorded BERTEmbedder, with its weights; 30522 words, 77 at once, as in its defaults."""
    model = TokenTransformer(params.get("vocab_size", 30_522), params.get("max_seq_len", 77), params["n_embed"],
                             params["n_layer"])
    case.load_into(model, rename, part)
    return model.eval()


@torch.no_grad()
def replay_token_transformer(case: Case) -> None:
    case.compare("out.z", token_transformer(case, case.config)(case.tensor("in.tokens")))
    case.leave_out("out.logits", "logits over words, which no model uses")


REPLAYS = {"BERTEmbedder": replay_token_transformer, "TransformerEmbedder": replay_token_transformer}
