"""Download one address to one file, with resume and checks of the server's answers.

It uses urllib, which supports proxies, redirects and certificates; torch.hub cannot resume, and huggingface_hub only
downloads from its own addresses.
"""

import base64
import errno
import json
import shutil
from collections.abc import Iterator
from http.client import HTTPException, HTTPResponse
from itertools import chain
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen
from urllib.response import addinfourl  # of file addresses, and HTTPError is one

from ldmlab.atomic import DiskFull
from ldmlab.progress import Progress

_CHUNK = 1 << 20
_TIMEOUT_S = 60.0  # without a byte


class FetchError(OSError):
    """A file could not be downloaded; the message has the reason and the cure. The final file was not written."""


def transfer(url: str, part: Path, size: int | None, progress: Progress) -> None:
    """Download `url` to `part`, resuming if it holds a part; start again where the server cannot resume or has changed.

    `size` is the expected size in bytes, if known. Size and tag of the server's file are stored beside `part`.
    `progress` is called with (bytes, total bytes). Raises FetchError or DiskFull; `part` then keeps the received bytes.
    """
    seen = part.with_suffix(".seen")
    had = file_size(part) if seen.exists() else 0
    before = json.loads(seen.read_text()) if had else {}
    if had and before["total"] == had:
        return  # complete already; a later step failed, perhaps for lack of space
    headers = {"User-Agent": "ldmlab"}
    if had:
        headers["Range"] = f"bytes={had}-"
        if before["tag"]:
            headers["If-Range"] = before["tag"]
    address, url = url, without_password(url)
    with _open(address, headers) as response:
        rest = int(response.headers.get("Content-Length") or 0)
        resumes = f"bytes {had}-" in response.headers.get("Content-Range", "")
        start = had if response.status == 206 and resumes else 0
        total = start + rest if rest else 0
        if had and (response.status == 416 or (response.status == 206 and (not start or before["total"] != total))):
            discard(part)
            return transfer(address, part, size, progress)
        if size and total not in (0, size):
            raise FetchError(f"{url} offers {total} bytes, but the manifest states {size}")
        chunks = _chunks(url, response)
        first = next(chunks, b"")
        if "html" in response.headers.get("Content-Type", "") or (start == 0 and first.lstrip()[:1] == b"<"):
            raise FetchError(f"{url} returns a web page instead of the file")
        if total:
            check_free_space(part.parent, total - start)
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        tag = "" if tag.startswith("W/") else tag  # a weak tag does not guarantee the same bytes
        seen.write_text(json.dumps({"url": url, "tag": tag, "total": total}))
        done = start
        progress(done, total)
        try:
            with open(part, "ab" if start else "wb") as file:
                for chunk in chain([first], chunks):
                    file.write(chunk)
                    done += len(chunk)
                    progress(done, total)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _disk_full(part.parent, max(total - done, _CHUNK)) from error
            raise
    if done != (size or total or done) or not done:
        raise FetchError(f"{url} broke off after {done} of {size or total} bytes")


def read_page(url: str) -> tuple[str, str]:
    """Text of a web page, at most 1 MB of it, and its address after redirects; FetchError where it cannot be read."""
    with _open(url, {"User-Agent": "ldmlab", "Accept": "text/html"}) as response:
        text = next(_chunks(without_password(url), response), b"").decode(errors="replace")
        moved = response.url != without_password(url)
    return text, response.url if moved else url


def without_password(url: str) -> str:
    """An address without the user's name and password, which urllib does not take there and nobody should read."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if "@" in parts.netloc else url


def _open(address: str, headers: dict[str, str]) -> HTTPResponse | addinfourl:
    url, parts = without_password(address), urlsplit(address)
    request = Request(url, headers=headers)
    if parts.username is not None:
        pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}".encode()
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(pair).decode()}")
    try:
        response = urlopen(request, timeout=_TIMEOUT_S)
    except HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return error
        error.close()
        gone = " (the file has been removed)" if error.code in (404, 410) else ""
        raise FetchError(f"{url} answers {error.code} {error.reason}{gone}") from error
    except (OSError, HTTPException) as error:
        raise FetchError(f"{url} cannot be reached ({getattr(error, 'reason', error)}); is there a network?") from error
    if url.startswith("https:") and not response.url.startswith("https:"):
        response.close()
        raise FetchError(f"{url} leads to {response.url}, which is not encrypted and can be tampered with")
    return response


def _chunks(url: str, response: HTTPResponse | addinfourl) -> Iterator[bytes]:
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise FetchError(f"the connection to {url} broke: {error!r}") from error


def discard(part: Path) -> None:
    """Delete a partial download."""
    part.unlink(missing_ok=True)
    part.with_suffix(".seen").unlink(missing_ok=True)


def file_size(path: Path) -> int:
    """Size of a file in bytes; 0 if it does not exist."""
    return path.stat().st_size if path.exists() else 0


def check_free_space(folder: Path, size: int) -> None:
    """Raise DiskFull where `size` more bytes do not fit on the disk of `folder`."""
    if size > shutil.disk_usage(folder).free:
        raise _disk_full(folder, size)


def _disk_full(folder: Path, size: int) -> DiskFull:
    free = shutil.disk_usage(folder).free
    return DiskFull(errno.ENOSPC, f"disk full: {folder} needs {megabytes(size)} more, {megabytes(free)} are free; the "
                                  "partial download is kept. Free space, or give another folder")


def megabytes(size: int) -> str:
    """A number of bytes as text, in MB (10^6)."""
    return f"{size / 1e6:.1f} MB"
