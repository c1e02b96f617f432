"""Parts 2 and 6: the suite's GPU tests, and how many GPUs there are."""

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import torch

from gpu.parts import Context, Save

ROOT = Path(__file__).resolve().parents[2]


def run_tests(context: Context, save: Save) -> None:
    """pytest over the files with tests marked `gpu`; they skip themselves where there is no CUDA."""
    files = sorted(path for path in (ROOT / "tests").rglob("test_*.py") if re.search(r"mark\.gpu\b", path.read_text()))
    report = context.scratch / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-o", "addopts=", "-q", "-p", "no:cacheprovider",
               "--durations=5", f"--junitxml={report}", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=max(context.left - 2, 5),
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    save({"files": [str(file.relative_to(ROOT)) for file in files], "output": done.stdout[-2500:],
          "returncode": done.returncode, "tests": read_report(report) if report.exists() else []})


def read_report(path: Path) -> list[dict[str, Any]]:
    """Name, outcome, seconds and first words of the message of each test in a JUnit file."""
    found = []
    for case in ET.parse(path).getroot().iter("testcase"):
        outcome, message = "passed", ""
        for kind in ("failure", "error", "skipped"):
            if (child := case.find(kind)) is not None:
                outcome, message = kind, child.get("message", "")[:300]
        found.append({"name": case.get("name"), "outcome": outcome, "seconds": float(case.get("time", 0)),
                      "message": message})
    return found


def run_devices(context: Context, save: Save) -> None:
    n = torch.cuda.device_count()
    if n <= 1:
        save({"gpus": n, "note": "one GPU: nothing to measure" if n else "no GPU"})
    else:
        save({"gpus": n, "note": f"{n} GPUs: not measured, training uses one device"})
