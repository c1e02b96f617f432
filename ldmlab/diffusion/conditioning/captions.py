"""Captions as word pieces, by BERT's WordPiece [LDM v2, Sec. 4.3.1, App. E.2.1].

There are three vocabularies: that of the captions of `scenes`, shipped with the package; that of `bert-base-uncased`,
if its files are on this machine; and one trained on a data set's own captions. Nothing is downloaded.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jaxtyping import Int
from torch import Tensor

from ldmlab.atomic import atomic_write
from ldmlab.damage import DamagedFile, read_json, read_or_set_aside, reading, seal
from ldmlab.perception.files import file_hash

if TYPE_CHECKING:
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]  # missing in transformers' stubs

MAX_LENGTH = 77  # as released
MAX_PIECES = 30_522  # as BERT has
SCENES_VOCABULARY = Path(__file__).parents[2] / "weights" / "scenes-wordpiece"
BERT = "bert-base-uncased"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class CaptionTokenizer:
    """Captions -> (n, `max_length`) ids: [CLS], word pieces, [SEP], and [PAD] to the end; longer ones are truncated.

    `folder` contains a BERT vocabulary (vocab.txt). `known` are captions of the training data: ValueError if a word of
    them is [UNK], as the vocabulary is then of another language. In a `closed` vocabulary, made of the training
    captions, a word that is split into pieces was not in the training data, and `notes` reports it.
    """

    def __init__(
        self, folder: str | Path, max_length: int = MAX_LENGTH, *, closed: bool = False, known: Sequence[str] = ()
    ):
        if max_length < 3:
            raise ValueError(f"max_length must leave room for [CLS], a word and [SEP], got {max_length}")
        self.max_length, self.closed, self._bert = max_length, closed, _load(Path(folder))
        self.name = f"{Path(folder).name}, {len(self)} pieces"
        if unknown := self.unknown(known):
            raise ValueError(f"the vocabulary {folder} maps words of the captions to [UNK]: {', '.join(unknown[:10])}; "
                             f"it is not a vocabulary for them")

    def __len__(self) -> int:
        return len(self._bert)

    def __call__(self, captions: Sequence[str]) -> Int[Tensor, "n length"]:
        """Ids of the captions; an empty one is [CLS], [SEP] and padding."""
        return self._bert(list(captions), truncation=True, max_length=self.max_length, padding="max_length",
                          return_tensors="pt")["input_ids"]

    def pieces(self, caption: str) -> list[str]:
        """All word pieces of a caption, without special tokens and not truncated."""
        return self._bert.tokenize(caption)

    def save(self, folder: str | Path) -> Path:
        """Write the vocabulary to folder/vocab.txt, for `CaptionTokenizer(folder)`; returns the folder."""
        return write_vocabulary(self._bert.get_vocab(), folder)

    def unknown(self, captions: Iterable[str]) -> list[str]:
        """The words of the captions that are [UNK], sorted."""
        words = sorted({word for caption in captions for word in re.findall(r"[a-z]+", caption.lower())})
        return [word for word in words if self._bert.unk_token in self.pieces(word)]

    def notes(self, caption: str) -> list[str]:
        """Warnings about a caption: it is empty, is truncated, or has words that were not in the training data."""
        words, found = re.findall(r"[^\W_]+", caption.lower()), []
        if not words:
            return ["the caption is empty: the picture is drawn without a condition"]
        pieces = self.pieces(caption)
        if len(pieces) > self.max_length - 2:
            kept = self._bert.convert_tokens_to_string(pieces[: self.max_length - 2])
            found.append(f"the caption has {len(pieces)} word pieces, {self.max_length - 2} fit: what follows "
                         f"“…{kept[-30:]}” is cut off")
        odd = [word for word in dict.fromkeys(words) if self._odd(word)]
        if odd:
            found.append(f"the model has never seen {', '.join(f'“{word}”' for word in odd)}: it will guess")
        return found

    def _odd(self, word: str) -> bool:
        pieces = self.pieces(word)
        return self._bert.unk_token in pieces or (self.closed and len(pieces) > 1)


def write_vocabulary(pieces: Mapping[str, int], folder: str | Path) -> Path:
    """Write word pieces to folder/vocab.txt as BERT does, one a line in the order of their ids; returns the folder."""
    lines = "".join(f"{piece}\n" for piece in sorted(pieces, key=pieces.__getitem__))
    return atomic_write(Path(folder) / "vocab.txt", lines.encode()).parent


def train_vocabulary(captions: Sequence[str], folder: str | Path) -> Path:
    """Write a WordPiece vocabulary, folder/vocab.txt, in which every word of the captions is one piece.

    Single letters are pieces too, for other words. Equal captions give equal ids, which the trainers of `tokenizers` do
    not promise: a model is of no use with a vocabulary made anew in another order.
    """
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    counts = Counter(word for caption in captions
                     for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(caption)))
    letters = sorted({letter for word in counts for letter in word})
    words = sorted(counts, key=lambda word: (-counts[word], word))  # the most frequent first
    pieces = list(dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *words]))[:MAX_PIECES]
    return write_vocabulary({piece: i for i, piece in enumerate(pieces)}, folder)


def find_vocabulary(data: str, captions: Sequence[str], cache: Path) -> tuple[Path, bool]:
    """(folder, whether it is closed) of the vocabulary for a data set: that of `scenes`, BERT's if found, or its own.

    BERT's is searched for in the folder that LDMLAB_BERT names, then in the cache of transformers. A vocabulary of the
    data set's own is trained on `captions` and written below `cache`.
    """
    if data == "scenes":
        return SCENES_VOCABULARY, True
    if (bert := find_bert()) is not None:
        return bert, False
    key = hashlib.sha256("\n".join(captions).encode()).hexdigest()[:16]
    folder = cache / f"vocabulary-{key}"
    if read_or_set_aside(folder / "vocab.txt", _check_vocabulary) is None:
        print(f"the files of {BERT} were not found (LDMLAB_BERT may name a folder with its vocab.txt); "
              f"a vocabulary is trained on the {len(captions)} captions instead", flush=True)
        train_vocabulary(captions, folder)
        checksum = {"vocab.txt": file_hash(folder / "vocab.txt")}
        atomic_write(folder / "checksum.json", seal(json.dumps(checksum)))
    return folder, True


def _check_vocabulary(path: Path) -> bool:
    """True; DamagedFile where the file is none, or has not the hash that is stated beside it, if one is."""
    with reading(path):
        if missing := set(SPECIAL) - set(path.read_text(encoding="utf-8").splitlines()):
            raise DamagedFile(path, f"it lacks {', '.join(sorted(missing))}")
        stated = read_or_set_aside(path.with_name("checksum.json"), read_json) or {}
        if stated.get("vocab.txt", digest := file_hash(path)) != digest:
            raise DamagedFile(path, "its content does not have the hash stated in checksum.json")
    return True


def find_bert() -> Path | None:
    """The folder of BERT's vocab.txt, or None; FileNotFoundError if LDMLAB_BERT names one without it."""
    if named := os.environ.get("LDMLAB_BERT"):
        if not (Path(named) / "vocab.txt").is_file():
            raise FileNotFoundError(f"LDMLAB_BERT={named} has no vocab.txt, the vocabulary of {BERT} (232 kB)")
        return Path(named)
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(BERT, "vocab.txt")
    found = found or try_to_load_from_cache(f"google-bert/{BERT}", "vocab.txt")
    return Path(found).parent if isinstance(found, str) else None


def _load(folder: Path) -> "BertTokenizerFast":
    """BERT's tokenizer with the vocabulary of a folder; from the file alone, some versions read only special tokens.

    FileNotFoundError without a vocab.txt, ValueError for one that is not BERT's or is not read whole.
    """
    from transformers import BertTokenizerFast  # type: ignore[attr-defined]  # missing in transformers' stubs; slow

    path = folder / "vocab.txt"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no vocab.txt, a WordPiece vocabulary with one piece a line")
    bert, lines = BertTokenizerFast.from_pretrained(str(folder)), path.read_text(encoding="utf-8").splitlines()
    if missing := [token for token in SPECIAL[:4] if token not in lines]:
        raise ValueError(f"{path} lacks {', '.join(missing)}: it is no vocabulary of BERT")
    if len(bert) < len(lines):
        raise ValueError(f"transformers read {len(bert)} of the {len(lines)} pieces of {path}")
    return bert
