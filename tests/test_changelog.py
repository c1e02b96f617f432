"""CHANGELOG.md leads a user's old imports to names that exist."""

import re
from pathlib import Path

import ldmlab

ROOT = Path(__file__).resolve().parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
ROWS = re.findall(r"^\| `([^`]+)` \| `(ldmlab[^`]+)` \|$", CHANGELOG, re.MULTILINE)


def module_file(name: str) -> Path | None:
    stem = ROOT / name.replace(".", "/")
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def is_there(name: str) -> bool:
    """A module, or a class, function or constant that a module defines; nothing is imported to find out."""
    if module_file(name) is not None:
        return True
    module, _, own = name.rpartition(".")
    source = module_file(module)
    return source is not None and bool(
        re.search(rf"^(class|def) {own}\b|^{own}\b[^(]*=", source.read_text(), re.MULTILINE))


def test_every_new_name_is_there():
    """Modules and names that are renamed later are renamed here too."""
    assert [new for _, new in ROWS if not is_there(new)] == []
    assert not is_there("ldmlab.report.nothing") and not is_there("ldmlab.nothing")


def test_no_old_name_is_listed_twice_and_the_version_is_there():
    """Each import is answered once, under a heading of this version."""
    old = [row for row, _ in ROWS]
    assert len(old) > 100 and len(set(old)) == len(old)
    assert f"## {ldmlab.__version__}\n" in CHANGELOG
