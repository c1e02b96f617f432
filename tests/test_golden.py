"""Numeric parity: every case recorded from the original implementation is replayed on our modules.

The cases concerning what is built are copied to tests/golden; `LDMLAB_GOLDENS` names another folder of the same
layout (`index.json`, `goldens/`). A case whose module is not built yet is skipped by its name.
"""

import json
import os
from pathlib import Path

import pytest
from replays import REPLAYS
from replays.case import Case

ROOT = Path(os.environ.get("LDMLAB_GOLDENS", Path(__file__).parent / "golden"))
INDEX = json.loads((ROOT / "index.json").read_text())["cases"]


@pytest.mark.parametrize("name", sorted(INDEX))
def test_replay(name):
    """Our module, given the original's weights and inputs, gives the original's outputs."""
    entry = INDEX[name]
    replay = REPLAYS.get(entry["module"])
    if replay is None:
        pytest.skip(f"{name}: {entry['module']} is not built yet")
    case = Case.load(ROOT, name, entry)
    replay(case)
    assert not case.unchecked(), f"{name}: recorded, but not compared: {case.unchecked()}"
