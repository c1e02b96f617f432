"""Conditions: what each kind reads, its tokens, what stands for nothing, and dropout."""

import pytest
import torch
from torch.utils.data import Dataset

from ldmlab.data.annotations.annotation import Annotation, Box
from ldmlab.diffusion.conditioning.boxes import BoxTokenizer
from ldmlab.diffusion.conditioning.captions import SCENES_VOCABULARY, CaptionTokenizer
from ldmlab.diffusion.conditioning.tokens import ClassEmbedder, Conditioned, LayoutEmbedder, TextEmbedder
from ldmlab.diffusion.conditioning.transformer import TokenTransformer

KINDS = ("class", "text", "layout")
KNOWN = [
    Annotation(2, "A red car in the snow.", (Box("car", 1, 0.2, 0.3, 0.7, 0.9),)),
    Annotation(0, "", ()),
]


def make(kind: str, p_drop: float = 0.0):
    """A small conditioner of each kind."""
    torch.manual_seed(0)
    if kind == "class":
        return ClassEmbedder(3, 8, p_drop)
    if kind == "text":
        tokenizer = CaptionTokenizer(SCENES_VOCABULARY, 12, closed=True)
        return TextEmbedder(tokenizer, TokenTransformer(len(tokenizer), 12, 8, 1, 2, 4), p_drop)
    tokenizer = BoxTokenizer(5, 65, 2)
    return LayoutEmbedder(tokenizer, TokenTransformer(65, tokenizer.length, 8, 1, 2, 4), p_drop)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_reads_encodes_and_has_a_null(kind):
    """One interface: items of one length in, tokens out, and a null like a picture of which nothing is known."""
    tau = make(kind).eval()
    y = tau.read(KNOWN)
    tokens, null = tau(y), tau.null(3)
    assert len(y) == 2 and tokens.shape == (2, *null.shape[1:]) and null.shape[0] == 3 and tau.injected_as == "tokens"
    assert not torch.allclose(tokens[0], null[0])
    assert torch.equal(null[0], null[2])


def test_nothing_known_reads_as_the_null():
    """An empty caption is the null caption; a picture without boxes differs from it by its crop alone."""
    text, layout = make("text"), make("layout")
    assert torch.equal(text.read(KNOWN)[1], text.null_condition)
    empty = layout.read(KNOWN)[1]
    assert torch.equal(empty[:-2], layout.null_condition[:-2]) and not torch.equal(empty, layout.null_condition)


@pytest.mark.parametrize("kind", KINDS)
def test_whole_items_are_dropped_only_while_training(kind):
    """p_drop = 1 leaves nothing of any item; in evaluation all are there."""
    tau = make(kind, p_drop=1.0)
    y = tau.read(KNOWN)
    assert torch.equal(tau.train()(y), tau.null(2))
    assert not torch.allclose(tau.eval()(y)[0], tau.null(1)[0])


@pytest.mark.parametrize("kind", ["text", "layout"])
def test_the_loss_trains_the_transformer_through_attention(kind):
    """tau_theta learns with the denoiser: every parameter gets a gradient, those of all places included."""
    tau = make(kind).train()
    tau(tau.read(KNOWN)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tau.transformer.layers.parameters())


@pytest.mark.parametrize("kind", ["text", "layout"])
def test_a_transformer_that_is_too_small_is_refused(kind):
    """Better now than at an index error in the middle of training."""
    tokenizer = make(kind).tokenizer
    with pytest.raises(ValueError, match="too small"):
        {"text": TextEmbedder, "layout": LayoutEmbedder}[kind](tokenizer, TokenTransformer(10, 4, 8, 1))


def test_a_sequence_longer_than_the_transformer_is_refused():
    """The error names both lengths."""
    with pytest.raises(ValueError, match="up to 4 tokens, got 5"):
        TokenTransformer(10, 4, 8, 1)(torch.zeros(1, 5, dtype=torch.long))


class _Latents(Dataset):
    first_stage, is_decoded = "abc", True

    def __len__(self):
        return 4

    def __getitems__(self, indices):
        return {"moments": torch.tensor(indices)}


def test_latents_meet_their_own_conditions():
    """Batches carry y of the same indices, mirror images included; another number of conditions is refused."""
    pairs = Conditioned(_Latents(), torch.arange(4) * 10)
    batch = pairs.__getitems__([3, 0])
    assert (batch["y"] == batch["moments"] * 10).all() and pairs.first_stage == "abc"
    with pytest.raises(ValueError, match="got 3"):
        Conditioned(_Latents(), torch.arange(3))


def test_one_token_per_label_and_a_null_class():
    """Labels give the rows of the table as single tokens; missing labels and index num_classes give the null one."""
    embed = ClassEmbedder(10, 6).eval()
    tokens = embed(torch.tensor([0, 9, 10, -1]))
    assert tokens.shape == (4, 1, 6)
    assert torch.equal(tokens[:2, 0], embed.embedding.weight[[0, 9]])
    assert torch.equal(tokens[2:], embed.null(2))


def test_labels_are_dropped_only_while_training():
    """p_drop of the labels become the null class in training; in evaluation none do, and nothing random is drawn."""
    embed, y = ClassEmbedder(3, 4, p_drop=0.2), torch.zeros(5000, dtype=torch.long)
    null, state = embed.null(1)[0], torch.get_rng_state()
    assert not (embed.eval()(y) == null).any()
    assert torch.equal(state, torch.get_rng_state())
    dropped = (embed.train()(y) == null).all((1, 2)).float().mean().item()
    assert dropped == pytest.approx(0.2, abs=0.03)


def test_the_null_token_learns():
    """Gradient reaches the null row through dropped labels, or guidance would start from noise."""
    embed = ClassEmbedder(3, 4, p_drop=1.0).train()
    embed(torch.tensor([0, 1])).sum().backward()
    assert (embed.embedding.weight.grad[-1] == 2).all() and (embed.embedding.weight.grad[:-1] == 0).all()


def test_an_unknown_class_is_refused_before_sampling():
    """The table would answer with an index error, or on a GPU with none; no class is -1 or the last row."""
    embed = ClassEmbedder(3, 4)
    embed.check(torch.tensor([-1, 0, 3]))
    with pytest.raises(ValueError, match="0 to 2.* got 4"):
        embed.check(torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"text has n items of shape \(12,\), got \(2,\)"):
        make("text").check(torch.tensor([0, 1]))


@pytest.mark.parametrize("bad", [dict(num_classes=0), dict(dim=0), dict(p_drop=1.5)])
def test_impossible_settings_are_refused(bad):
    """The error repeats what was given."""
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        ClassEmbedder(**{"num_classes": 3, "dim": 4, **bad})
