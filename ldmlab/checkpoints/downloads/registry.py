"""Where a file lies in the package index that pip or uv is configured to use.

It is looked up without pip, which need not be installed, and which builds an archive that it downloads: `pip download`
runs the archive's set-up after checking its hash, with build tools whose hashes nobody checks [pypa/pip#1884].
"""

import os
import re
import sys
from collections.abc import Mapping
from configparser import Error, RawConfigParser
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from ldmlab.checkpoints.downloads.transfer import FetchError, read_page, without_password

PYPI = "https://pypi.org/simple"


def index_urls(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Addresses of the package indexes: those of uv's and pip's variables, else of pip's files, else PyPI.

    FetchError for a file of pip's that cannot be read.
    """
    stated = _pip_files(environ) | {
        name: environ[variable] for name, variable in (("index-url", "PIP_INDEX_URL"), ("no-index", "PIP_NO_INDEX"),
                                                       ("extra-index-url", "PIP_EXTRA_INDEX_URL"))
        if environ.get(variable)}
    first = environ.get("UV_DEFAULT_INDEX") or environ.get("UV_INDEX_URL") or stated.get("index-url") or PYPI
    no_index = stated.get("no-index", "").lower() in ("1", "true", "yes", "on")
    urls = [] if no_index else [first, *stated.get("extra-index-url", "").split()]
    urls += f"{environ.get('UV_INDEX', '')} {environ.get('UV_EXTRA_INDEX_URL', '')}".split()
    named = (re.sub(r"^[\w.-]+=", "", url) for url in urls)  # uv writes name=address
    return list(dict.fromkeys(url.rstrip("/") for url in named))


def _pip_files(environ: Mapping[str, str]) -> dict[str, str]:
    """Options of pip's configuration files; later files, and sections of commands, override earlier ones."""
    own, home, name = environ.get("PIP_CONFIG_FILE"), Path.home(), "pip.ini" if os.name == "nt" else "pip.conf"
    shared = environ.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    places = [*(Path(folder, "pip") for folder in reversed(shared.split(os.pathsep))), Path("/etc"),
              Path("/Library/Application Support/pip"), Path(environ.get("PROGRAMDATA") or "/etc", "pip"),
              home / ".pip", home / "Library/Application Support/pip",
              Path(environ.get("APPDATA") or environ.get("XDG_CONFIG_HOME") or home / ".config", "pip"),
              Path(sys.prefix)]
    files = [] if own == os.devnull else [*(place / name for place in places), *([Path(own)] if own else ())]
    options: dict[str, str] = {}
    for file in files:
        if file.is_file():
            parser = RawConfigParser()
            try:
                parser.read_string(file.read_text(encoding="utf-8"))
            except (Error, OSError, UnicodeDecodeError) as error:
                raise FetchError(f"pip's configuration {file} cannot be read: {type(error).__name__}") from error
            for section in ("global", "download", "install"):
                options |= dict(parser[section]) if parser.has_section(section) else {}
    return options


def find_in_index(project: str, file: str, urls: list[str]) -> tuple[list[str], list[str]]:
    """Addresses of a project's file in the indexes of these addresses, and what is wrong with the others.

    Pages are those of the simple repository API, of http, https or file addresses.
    """
    found, problems = [], []
    for url in urls:
        page = f"{url}/{project}/{'index.html' if urlsplit(url).scheme == 'file' else ''}"
        try:
            text, page = read_page(page)
        except FetchError as error:
            problems.append(str(error))
            continue
        links = _Links(text).targets
        fitting = [link for link in links if unquote(urlsplit(link).path).rpartition("/")[2] == file]
        found += [urldefrag(urljoin(page, link))[0] for link in fitting]
        if not fitting:
            problems.append(f"{without_password(page)} does not list {file}")
    return list(dict.fromkeys(found)), problems


class _Links(HTMLParser):
    """Targets of all links of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.targets: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep the target of a link."""
        self.targets += [value for name, value in attrs if tag == "a" and name == "href" and value]
