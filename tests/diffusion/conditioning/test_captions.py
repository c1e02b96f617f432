"""Captions as word pieces: what comes out, what a user is told, and which vocabularies are refused."""

import pytest
import torch

from ldmlab.diffusion.conditioning.captions import (
    BERT,
    SCENES_VOCABULARY,
    CaptionTokenizer,
    find_bert,
    find_vocabulary,
    train_vocabulary,
)

CAPTION = "A striped red and white balloon above the sea at sunset, with the sun in the sky."


@pytest.fixture(scope="module")
def tokenizer():
    return CaptionTokenizer(SCENES_VOCABULARY, closed=True)


def test_a_caption_is_start_pieces_end_padding(tokenizer):
    """As released: [CLS] words [SEP], then [PAD] up to 77; capitals do not matter."""
    (ids,) = tokenizer([CAPTION])
    n = len(tokenizer.pieces(CAPTION))
    assert ids.shape == (77,) and (ids[n + 2:] == 0).all() and (ids[1:n + 1] > 4).all()
    assert (ids[0], ids[n + 1]) == (2, 3)
    assert torch.equal(ids, tokenizer([CAPTION.upper()])[0])


def test_every_word_of_the_world_is_whole(tokenizer):
    """A word in pieces would have to be learned from its letters."""
    words = CAPTION.lower().replace(",", "").replace(".", "").split()
    assert [tokenizer.pieces(word) for word in words] == [[word] for word in words]


def test_an_empty_caption_has_no_words_and_says_so(tokenizer):
    """It is the condition that says nothing."""
    assert (tokenizer([""])[0] != 0).sum() == 2
    assert "without a condition" in tokenizer.notes("  ")[0] and "without a condition" in tokenizer.notes("...")[0]


def test_two_hundred_words_are_cut_off_and_that_is_told(tokenizer):
    """The ids keep their length and their end, and the user learns where the caption ended."""
    caption = " ".join(["red"] * 200)
    ids, (note,) = tokenizer([caption])[0], tokenizer.notes(caption)
    assert ids.shape == (77,) and ids[-1] == 3
    assert "200 word pieces, 75 fit" in note


def test_words_never_trained_on_are_named(tokenizer):
    """The model draws something all the same; silence would look like understanding."""
    (note,) = tokenizer.notes("A zebra under a blue sky, with a zebra")
    assert note.count("zebra") == 1 and "blue" not in note
    assert tokenizer.notes(CAPTION) == []


def test_a_vocabulary_that_does_not_know_the_captions_is_refused(tmp_path):
    """Silent [UNK] for every word would train a model that is told nothing."""
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nballoon\n")
    with pytest.raises(ValueError, match="above, and, at"):
        CaptionTokenizer(tmp_path, known=[CAPTION])


def test_a_vocabulary_that_is_saved_comes_back(tokenizer, tmp_path):
    """Every piece under the id that the model was trained with, and the text in UTF-8."""
    again = CaptionTokenizer(tokenizer.save(tmp_path / "new"))
    assert torch.equal(again([CAPTION, "zebra"]), tokenizer([CAPTION, "zebra"])) and len(again) == len(tokenizer)
    train_vocabulary(["ein Käfer über dem See"], tmp_path / "mine")
    folder = CaptionTokenizer(tmp_path / "mine").save(tmp_path / "copy")
    assert (folder / "vocab.txt").read_bytes() == (tmp_path / "mine" / "vocab.txt").read_bytes()


@pytest.mark.parametrize("content, told", [(None, "no vocab.txt"), ("red\nblue\n", r"lacks \[PAD\]")])
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path, content, told):
    """Before any training, by name."""
    if content is not None:
        (tmp_path / "vocab.txt").write_text(content)
    with pytest.raises((ValueError, FileNotFoundError), match=told):
        CaptionTokenizer(tmp_path)


def test_a_data_set_without_bert_gets_a_vocabulary_of_its_own(tmp_path, monkeypatch, capsys):
    """Offline, one's own captions still train a model: every one of their words is whole, and this is said."""
    monkeypatch.delenv("LDMLAB_BERT", raising=False)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    captions = ["Ein rotes Haus am See", "ein Boot auf dem See"]
    folder, closed = find_vocabulary("mine", captions, tmp_path)
    tokenizer = CaptionTokenizer(folder, closed=closed, known=captions)
    assert tokenizer.pieces("rotes boot") == ["rotes", "boot"] and closed
    assert BERT in capsys.readouterr().out
    assert find_vocabulary("mine", captions, tmp_path)[0] == folder and capsys.readouterr().out == ""
    assert find_vocabulary("mine", captions[:1], tmp_path)[0] != folder


def test_bert_is_taken_where_it_is_at_hand(tmp_path, monkeypatch):
    """The variable names a folder; one without the file is an error, not another vocabulary."""
    monkeypatch.setenv("LDMLAB_BERT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="vocab.txt"):
        find_bert()
    train_vocabulary(["a red car"], tmp_path)
    assert find_vocabulary("mine", ["a red car"], tmp_path / "cache") == (tmp_path, False)
