"""Captions as other tools write them: their encodings, and what is no caption."""

import json
import warnings

import pytest
from made_files import encoded, lay_out, picture, write_tar

from ldmlab.data.annotations.captions import MAX_TEXT_BYTES, decode_text, is_number_row
from ldmlab.data.images import open_dataset
from ldmlab.study.config.presets import study_spec
from ldmlab.study.runs.conditioners import check_annotations
from ldmlab.study.runs.pictures import Pictures

from .sets_of_files import annotated

PICTURE = encoded(picture())
NUM = 4


def opened(root):
    """Captions of the pictures by name, what was warned of, and the report's lines."""
    found, said, lines = annotated(root, 8)
    return {name: [a.caption, *a.more_captions] if a.caption else [] for name, a in found.items()}, said, lines


TEXT = "une forêt près du château"
READ = {
    "utf-8": TEXT.encode(), "utf-8 with a mark": TEXT.encode("utf-8-sig"), "utf-16": TEXT.encode("utf-16"),
    "utf-16 big": b"\xfe\xff" + TEXT.encode("utf-16-be"), "utf-16 without a mark": TEXT.encode("utf-16-le"),
    "utf-16 big without a mark": TEXT.encode("utf-16-be"), "utf-32": TEXT.encode("utf-32"),
    "cp1252": TEXT.encode("cp1252"), "CR": f"\r{TEXT}\r".encode(), "CRLF": f"{TEXT}\r\n\r\n".encode("utf-16"),
    "line separator": TEXT.replace(" ", "\u2028").encode(), "tabs": TEXT.replace(" ", "\t").encode(),
}


@pytest.mark.parametrize("how", READ)
def test_captions_in_every_common_encoding(how, tmp_path):
    """The same words come out; cp1252, which is a guess, is said with the files."""
    root = lay_out(tmp_path, {f"{k}.png": PICTURE for k in range(NUM)} | {f"{k}.txt": READ[how] for k in range(NUM)})
    captions, said, lines = opened(root)
    assert list(captions.values()) == [[TEXT]] * NUM and not said
    assert ("read as cp1252 (Windows)" in lines and "0.png" in lines) == (how == "cp1252")


LABELS = {
    "YOLO": "0 0.5 0.5 0.2 0.2\n1 0.1 0.1 0.2 0.2\n", "with confidence": "0 0.5 0.5 0.2 0.2 0.9",
    "whole picture": "3 0.5 0.5 1 1", "corners": "1 0 0 1 1", "segments": "0 0.1 0.1 0.9 0.1 0.9 0.9",
    "negative": "0 -0.01 0.5 0.2 1e-3", "commas": "0,0.5,0.5,0.2,0.2", "name": "car 0.5 0.5 0.2 0.2",
    "DOTA": "2753 2408 2861 2385 2888 2468 2805 2502 plane 0", "UTF-16": "0 0.5 0.5 0.2 0.2\r\n",
}


@pytest.mark.parametrize("kind", LABELS)
def test_label_rows_are_no_captions(kind, tmp_path, monkeypatch):
    """They are counted; where captions are needed there is a refusal with the cure, before any training."""
    monkeypatch.setenv("LDMLAB_ROOT", str(tmp_path / "root"))
    raw = LABELS[kind].encode("utf-16" if kind == "UTF-16" else "utf-8")
    files = {f"{k}.png": PICTURE for k in range(NUM)} | {f"{k}.txt": raw for k in range(NUM)}
    root = lay_out(tmp_path / "set", files)
    captions, said, _ = opened(root)
    assert list(captions.values()) == [[]] * NUM and "label rows" in said and "0.png" in said
    pictures = Pictures(*(open_dataset(root, size=8, split=split) for split in ("train", "validation")))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match="has no captions: .*label rows such as .*put captions into the .txt"):
            check_annotations(study_spec(8, tier="smoke", condition="text").diffusion, pictures)


@pytest.mark.parametrize("line", ["1984", "2024 2025", "7 of 9", "route 66 at 5.30", "4 8 15 16 23 42", "f/2.8 at 1/60",
                                  "1 2 3 4 fish", "3.14", "v 1.0 2.0 3.0"])
def test_numbers_may_be_a_caption(line, tmp_path):
    """A year is one, and so are lists of whole numbers."""
    assert not is_number_row(line)


LEFT_OUT = {
    "empty": (b"", "without a word"), "blank": (b" \n\t\r\n", "without a word"), "NUL": (b"a red\0 cat", "NUL bytes"),
    "JPEG": (encoded(picture(), "JPEG"), "NUL bytes"), "controls": (b"\x01\x02\x03\x04", "control characters"),
    "Shift JIS": ("赤い猫".encode("shift-jis"), "unknown encoding; save them as UTF-8"),
    "cut UTF-16": ("a cat".encode("utf-16")[:-1], "unknown encoding"),
    "huge": (b"a " * (MAX_TEXT_BYTES // 2 + 1), f"more than {MAX_TEXT_BYTES:,} bytes"),
}


@pytest.mark.parametrize("what", LEFT_OUT)
def test_what_is_no_text_is_left_out_and_counted(what, tmp_path):
    """The other pictures keep their captions, in a folder and a tar."""
    raw, reason = LEFT_OUT[what]
    files = {f"{k}.png": PICTURE for k in range(NUM)} | {f"{k}.txt": b"a cat" for k in range(NUM)} | {"1.txt": raw}
    for root in (lay_out(tmp_path / "set", files), write_tar(tmp_path / "set.tar", files)):
        captions, said, _ = opened(root)
        assert captions == {f"{k}.png": [] if k == 1 else ["a cat"] for k in range(NUM)}
        assert f"1 text files {'of ' * (what == 'huge')}" in said and reason in said and "1.png" in said


JSON = {
    "null, then text": ({"caption": None, "text": "a cat"}, ["a cat"], ""), "a year": ({"caption": 1984}, ["1984"], ""),
    "list": ({"caption": ["a cat", "", None, "cats"]}, ["a cat", "cats"], "2 captions in JSON that are no text"),
    "dict": ({"caption": {"en": "a cat"}}, [], "1 captions in JSON that are no text"),
    "other keys": ({"prompt": "a cat"}, [], ""), "number": (7, [], ""),
}


@pytest.mark.parametrize("what", JSON)
def test_json_beside_a_picture(what, tmp_path):
    """Texts and numbers are captions; others are counted."""
    content, expected, reason = JSON[what]
    beside = {"1.json": json.dumps(content).encode("utf-16")}
    root = lay_out(tmp_path, {f"{k}.png": PICTURE for k in range(NUM)} | beside)
    captions, said, lines = opened(root)
    assert captions["1.png"] == expected and reason in said
    assert ("neither 'caption' nor 'text'" in lines) == (what == "other keys")


def test_damaged_json_beside_a_picture_is_counted(tmp_path):
    """Broken and deeply nested JSON cost one caption."""
    files = {f"{k}.png": PICTURE for k in range(NUM)} | {"0.json": b"{'caption'", "1.json": b"[" * 100_000}
    _, said, _ = opened(lay_out(tmp_path, files))
    assert said.count("JSON files that are damaged") == 1 and "2 JSON files" in said or said.count("1 JSON files") == 2


@pytest.mark.parametrize("name", ["0.txt", "0.TXT", "0.png.txt", "0.caption"])
def test_spellings_of_a_text_file(name, tmp_path):
    """Of any case, with the picture's ending or kohya's."""
    captions, _, _ = opened(lay_out(tmp_path, {f"{k}.png": PICTURE for k in range(NUM)} | {name: b"a cat"}))
    assert captions["0.png"] == ["a cat"]


def test_an_encoding_is_never_guessed_for_what_has_a_mark():
    """A file that begins with a mark is of that encoding or of none."""
    with pytest.raises(ValueError, match="unknown encoding"):
        decode_text(b"\xef\xbb\xbf\xff\xff")
    assert decode_text(b"caf\xe9") == ("café", "cp1252") and decode_text(b"") == ("", "utf-8")
