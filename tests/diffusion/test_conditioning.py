"""Class conditions: tokens, the null class, and its dropout."""

import pytest
import torch

from ldmlab.diffusion.conditioning import ClassEmbedder


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


@pytest.mark.parametrize("bad", [dict(num_classes=0), dict(dim=0), dict(p_drop=1.5)])
def test_impossible_settings_are_refused(bad):
    """The error repeats what was given."""
    with pytest.raises(ValueError, match=str(next(iter(bad.values())))):
        ClassEmbedder(**{"num_classes": 3, "dim": 4, **bad})
