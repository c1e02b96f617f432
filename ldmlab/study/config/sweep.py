"""The runs of a study, one for each f, as the Snakefile takes them from `snakemake --config`; needs no torch."""

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldmlab.data.dataset_names import TORCHVISION
from ldmlab.study.config.budgets import TIERS, Budget, budget_of
from ldmlab.study.config.notebooks import FS
from ldmlab.study.config.parameters import read_parameters
from ldmlab.study.config.paths import results_dir

_ACCEPTED = ("fs", "reg", "data", "tier", "seed")
DATA_VARIABLE = "LDMLAB_STUDY_DATA"
_HEX = "data_hex"  # how `Sweep.passed_on` writes data
_MAX_NAME = 80  # letters of a data set's name in file names


@dataclass(frozen=True)
class Sweep:
    """A study: the f of its runs, and the parameters that they share. `data` of a file or folder is absolute."""

    fs: tuple[int, ...]
    reg: str
    data: str
    tier: str
    seed: int

    @property
    def budget(self) -> Budget:
        """The row of its tier: minutes, memory and threads of one run."""
        return budget_of(self.tier)

    @property
    def path(self) -> str:
        """Path of its executed notebooks up to `_f<f>.ipynb`: relative inside the working directory, else absolute.

        The name of the data has only letters, digits, `_`, `.` and `-`, and of a path a hash beside it, since folders
        of one name are different data. ValueError where results/ lies in a folder whose name has braces.
        """
        name = re.sub(r"[^\w.-]", "_", Path(self.data).stem, flags=re.ASCII)[:_MAX_NAME]
        if os.path.isabs(self.data):
            name += "-" + hashlib.sha256(os.fsencode(self.data)).hexdigest()[:8]
        folder, here = results_dir(), Path.cwd()
        if set("{}") & set(str(folder)):
            raise ValueError(f"{folder} has braces in its name, in which Snakemake and papermill look for variables; "
                             "set LDMLAB_ROOT to a folder without")
        folder = folder.relative_to(here) if folder.is_relative_to(here) else folder
        return str(folder / "executed" / "study" / f"{name}_{self.tier}_{self.reg}_s{self.seed}")

    @property
    def changed(self) -> float:
        """When the data last changed, by the times of its folder and subfolders; 0 for data sets by name.

        A job that has run is run again where this differs. Files that are overwritten in place are not noticed.
        """
        if not os.path.isabs(self.data) or not os.path.exists(self.data):
            return 0.0
        inside = [entry.path for entry in os.scandir(self.data)] if os.path.isdir(self.data) else []
        return max(os.stat(path).st_mtime for path in (self.data, *filter(os.path.isdir, inside)))

    def passed_on(self) -> list[str]:
        """The same study as arguments of `--config` that hold nothing that a shell, YAML or Snakemake would change."""
        return [f"fs={','.join(map(str, self.fs))}", f"reg={self.reg}", f"tier={self.tier}", f"seed={self.seed}",
                f"{_HEX}=x{os.fsencode(self.data).hex()}"]


def read_sweep(config: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Sweep:
    """The study that `--config fs=4,8 reg=kl data=scenes tier=laptop seed=0` describes, checked; all are optional.

    Snakemake reads values of --config as YAML, in which `a: b` and `1e5` are no text: LDMLAB_STUDY_DATA of the
    environment gives data as they are. A relative path of data is one from the working directory. Raises ValueError,
    before any job is started, for a name or value that is not accepted, and for data that are not there.
    """
    if unknown := sorted(set(config) - {*_ACCEPTED, _HEX}):
        raise ValueError(f"--config {', '.join(unknown)}: accepted are {', '.join(_ACCEPTED)}; memory, threads and "
                         "minutes of a run are changed by --set-resources and --set-threads")
    given = {"reg": "kl", "data": environ.get(DATA_VARIABLE) or "scenes", "tier": "laptop", "seed": 0, **config}
    if hexed := given.pop(_HEX, None):
        given["data"] = os.fsdecode(bytes.fromhex(str(hexed)[1:]))
    fs = _factors(given.pop("fs", None))
    if given["tier"] == "auto":
        raise ValueError(f"tier=auto: the jobs of one study must not differ in tier; name one of {' '.join(TIERS)}")
    own = {"f": fs[0], "size": 0, "perceptual": "", "compile": False}
    values = read_parameters("04_tradeoff", {**own, **given}).as_dict()
    return Sweep(fs, values["reg"], _located(values["data"]), values["tier"], values["seed"])


def _factors(given: Any) -> tuple[int, ...]:
    """The f of a study, all of them by default: from 8, "4,8", "4 8" or [4, 8]."""
    found = FS if given is None else re.findall(r"[^\s,\[\]'\"()]+", str(given))
    if not found or not all(str(f) in map(str, FS) for f in found):
        raise ValueError(f"fs = {given!r}: accepted are some of {' '.join(map(str, FS))}, such as fs=4,8")
    return tuple(sorted({int(f) for f in found}))


def _located(data: str) -> str:
    """Data as a job finds them from any folder."""
    path = os.path.expanduser(data)
    if data == "scenes" or (data.lower() in TORCHVISION and not os.path.isdir(path)):
        return data
    return os.path.abspath(path)
