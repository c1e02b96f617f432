"""Where things lie, whatever the working directory: papermill runs in the caller's folder, JupyterLab in notebooks/."""

import os
from pathlib import Path


def project_root() -> Path:
    """The folder that holds results/: $LDMLAB_ROOT, else the checkout of this package, else the working directory."""
    if named := os.environ.get("LDMLAB_ROOT"):
        return Path(named).expanduser().resolve()
    checkout = Path(__file__).resolve().parents[3]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def results_dir() -> Path:
    """Records, figures and reference notebooks: small, and worth committing."""
    return project_root() / "results"


def runs_dir() -> Path:
    """Checkpoints and caches: large, ignored by git, and made again by the same command."""
    return results_dir() / "runs"


PACKAGE = Path(__file__).parents[2]  # the code that runs, wherever its results go
