"""One address into one file: resumed where a try broke off, and checked against what the server promises.

The transfer is urllib, which brings proxies, redirects and certificates: torch.hub cannot resume, huggingface_hub only
knows its own addresses, and what is left to write is a Range header and the checks around it.
"""

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from http.client import HTTPException, HTTPResponse
from itertools import chain
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from ldmlab.atomic import DiskFull

Report = Callable[[int, int], None]  # (bytes that have arrived, bytes in all or 0 where the server does not say)

_CHUNK = 1 << 20
_PATIENCE_S = 60.0  # without a byte, then the connection counts as broken


class FetchError(OSError):
    """A file could not be fetched; the message says why and what to do. Nothing lies under the final name."""


def transfer(url: str, part: Path, size: int | None, show: Report) -> None:
    """Add to `part` what it lacks; begin anew where the server cannot go on, or has another file by now.

    `size` is what the whole must have, if known. What the server said goes to a file beside `part`. Raises FetchError,
    and DiskFull; `part` then keeps what has arrived.
    """
    seen = part.with_suffix(".seen")
    had = length(part) if seen.exists() else 0
    before = json.loads(seen.read_text()) if had else {}
    if had and before["total"] == had:
        return  # whole already; what came after it failed, for want of room perhaps
    headers = {"User-Agent": "ldmlab"}
    if had:
        headers["Range"] = f"bytes={had}-"
        if before["tag"]:
            headers["If-Range"] = before["tag"]
    with _open(url, headers) as response:
        rest = int(response.headers.get("Content-Length") or 0)
        goes_on = f"bytes {had}-" in response.headers.get("Content-Range", "")
        start = had if response.status == 206 and goes_on else 0
        total = start + rest if rest else 0
        if had and (response.status == 416 or (response.status == 206 and (not start or before["total"] != total))):
            forget(part)
            return transfer(url, part, size, show)
        if size and total not in (0, size):
            raise FetchError(f"{url} offers {total} bytes, but the manifest states {size}")
        chunks = _chunks(url, response)
        first = next(chunks, b"")
        if "html" in response.headers.get("Content-Type", "") or (start == 0 and first.lstrip()[:1] == b"<"):
            raise FetchError(f"{url} gives a web page instead of the file")
        if total:
            need_room(part.parent, total - start)
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        tag = "" if tag.startswith("W/") else tag  # a weak tag does not promise the same bytes
        seen.write_text(json.dumps({"url": url, "tag": tag, "total": total}))
        done = start
        show(done, total)
        try:
            with open(part, "ab" if start else "wb") as file:
                for chunk in chain([first], chunks):
                    file.write(chunk)
                    done += len(chunk)
                    show(done, total)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _disk_full(part.parent, max(total - done, _CHUNK)) from error
            raise
    if done != (size or total or done) or not done:
        raise FetchError(f"{url} broke off after {done} of {size or total} bytes")


def _open(url: str, headers: dict[str, str]) -> HTTPResponse | HTTPError:
    try:
        response = urlopen(Request(url, headers=headers), timeout=_PATIENCE_S)
    except HTTPError as error:
        if error.code == 416 and "Range" in headers:
            return error
        error.close()
        gone = " (it is not there any more)" if error.code in (404, 410) else ""
        raise FetchError(f"{url} answers {error.code} {error.reason}{gone}") from error
    except (OSError, HTTPException) as error:
        raise FetchError(f"{url} cannot be reached ({getattr(error, 'reason', error)}); is there a network?") from error
    if url.startswith("https:") and not response.url.startswith("https:"):
        response.close()
        raise FetchError(f"{url} leads to {response.url}, which anybody on the way can change")
    return response


def _chunks(url: str, response: HTTPResponse) -> Iterator[bytes]:
    try:
        while chunk := response.read(_CHUNK):
            yield chunk
    except (OSError, HTTPException) as error:
        raise FetchError(f"the connection to {url} broke: {error!r}") from error


def forget(part: Path) -> None:
    """Throw away what has arrived."""
    part.unlink(missing_ok=True)
    part.with_suffix(".seen").unlink(missing_ok=True)


def length(path: Path) -> int:
    """Bytes that have arrived."""
    return path.stat().st_size if path.exists() else 0


def need_room(folder: Path, size: int) -> None:
    """DiskFull where `size` more bytes do not fit, before they are written."""
    if size > shutil.disk_usage(folder).free:
        raise _disk_full(folder, size)


def _disk_full(folder: Path, size: int) -> DiskFull:
    free = shutil.disk_usage(folder).free
    return DiskFull(errno.ENOSPC, f"disk full: {folder} needs {mb(size)} more, {mb(free)} are free; what has arrived "
                                  "is kept. Make room, or name another folder")


def mb(size: int) -> str:
    """Bytes as a reader wants them."""
    return f"{size / 1e6:.1f} MB"
