"""Captions from the text or JSON file beside a picture: its encoding found, and label files told from captions."""

import codecs
import json
import re

from ldmlab.data.annotations.report import AnnotationReport

MAX_TEXT_BYTES = 1 << 20  # of a file beside a picture
_MARKS = (  # the longer ones first: that of UTF-32 begins with that of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"), (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
NUMBER_ROWS = ("text files of label rows such as '0 0.5 0.5 0.2 0.2', which are no captions; put captions into the "
               ".txt, and boxes into annotations/instances.json in COCO's format")


def decode_text(raw: bytes) -> tuple[str, str]:
    """The text of a file and its encoding: by its mark, else UTF-8, else UTF-16 by its zeros, else Windows' cp1252.

    Raises ValueError, which says why, for what is no text in any of these.
    """
    encoding = next((name for mark, name in _MARKS if raw.startswith(mark)), "")
    if not encoding and b"\0" in raw:
        even, odd = raw[::2].count(0), raw[1::2].count(0)
        if len(raw) % 2 or max(even, odd) < 0.4 * len(raw) // 2 or min(even, odd):
            raise ValueError("with NUL bytes, which are no text")
        encoding = "utf-16-be" if even else "utf-16-le"
    try:
        text = raw.decode(encoding or "utf-8")
    except UnicodeDecodeError:
        try:
            if encoding:
                raise
            encoding, text = "cp1252", raw.decode("cp1252")
        except UnicodeDecodeError:
            raise ValueError("in an unknown encoding; save them as UTF-8") from None
    text = text.removeprefix("\ufeff")
    controls = sum(c < " " and not c.isspace() or c == "\x7f" for c in text)
    if "\0" in text or controls > 0.05 * len(text):
        raise ValueError("with control characters, which are no text")
    return text, encoding or "utf-8"


def is_number_row(line: str) -> bool:
    """Whether a line is a label row: a class and at least four coordinates, as YOLO, DOTA and others write them."""
    tokens = line.replace(",", " ").replace(";", " ").split()
    numbers = [t for t in tokens if _NUMBER.fullmatch(t)]
    if len(tokens) < 5 or len(numbers) < 4 or len(tokens) - len(numbers) > 1:
        return False
    if len(numbers) >= 8 and len(tokens) > len(numbers):
        return True
    return sum("." in t for t in numbers) >= 2 or (len(numbers) == len(tokens) and all(
        0 <= float(t) <= 1 for t in numbers[1:]))


def captions_of_text(raw: bytes, name: str, report: AnnotationReport) -> list[str]:
    """Captions of a .txt, one a line; what is none is counted in `report` under this name."""
    text = _text(raw, name, report)
    if text is None:
        return []
    lines = [" ".join(line.split()) for line in re.split(r"\r\n|\r|\n", text)]
    lines = [line for line in lines if line]
    captions = [line for line in lines if not is_number_row(line)]
    if len(captions) < len(lines):
        report.leave_out(NUMBER_ROWS, name)
    elif not lines:
        report.leave_out("text files without a word", name)
    return captions


def captions_of_json(raw: bytes, name: str, report: AnnotationReport) -> list[str]:
    """Captions of a .json, under "caption" or "text": a text or a list of them."""
    text = _text(raw, name, report)
    if text is None:
        return []
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        report.leave_out("JSON files that are damaged", name)
        return []
    if not isinstance(fields, dict):
        return []
    if not fields.keys() & {"caption", "text"}:
        report.note("JSON files hold neither 'caption' nor 'text'", name)
    found: object = next((fields[k] for k in ("caption", "text") if fields.get(k) not in (None, "", [])), [])
    captions = []
    for line in found if isinstance(found, list) else [found]:
        if isinstance(line, int | float) and not isinstance(line, bool):
            line = str(line)
        if isinstance(line, str) and line.strip():
            captions.append(" ".join(line.split()))
        else:
            report.leave_out("captions in JSON that are no text", name)
    return captions


def _text(raw: bytes, name: str, report: AnnotationReport) -> str | None:
    if len(raw) > MAX_TEXT_BYTES:
        report.leave_out(f"text files of more than {MAX_TEXT_BYTES:,} bytes", name)
        return None
    try:
        text, encoding = decode_text(raw)
    except ValueError as error:
        report.leave_out(f"text files {error}", name)
        return None
    if encoding == "cp1252":
        report.note("text files are read as cp1252 (Windows), not being UTF-8", name)
    return text
