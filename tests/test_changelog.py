"""CHANGELOG.md leads a user's old imports to names that exist."""

import re
from pathlib import Path

import pytest

import ldmlab

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
ROWS = re.findall(r"^\| `([^`]+)` \| `(ldmlab[^`]+)` \|$", CHANGELOG, re.MULTILINE)


def module_file(name: str) -> Path | None:
    stem = ROOT / name.replace(".", "/")
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


@pytest.mark.parametrize("new", sorted({new for _, new in ROWS}))
def test_every_new_name_is_there(new):
    """A module, or a class, function or constant that a module defines; nothing is imported to find out."""
    if module_file(new) is None:
        module, _, name = new.rpartition(".")
        source = module_file(module)
        assert source, f"{new}: there is no module {module}"
        assert re.search(rf"^(class|def) {name}\b|^{name}\b[^(]*=", source.read_text(), re.MULTILINE), new


def test_no_old_name_is_listed_twice_and_the_version_is_there():
    """Each import is answered once, under a heading of this version."""
    old = [row for row, _ in ROWS]
    assert len(old) > 100 and len(set(old)) == len(old)
    assert f"## {ldmlab.__version__}\n" in CHANGELOG
