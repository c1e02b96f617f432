"""What the notebooks call. `start_run` is the first line of every set-up cell."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldmlab.experiments.released.run import ReleasedRun
    from ldmlab.report import Report
    from ldmlab.study.runs.run import Run


def start_run(notebook: str, namespace: dict[str, Any]) -> "Run | ReleasedRun | Report":
    """Check the notebook's parameters, before anything slow is imported; then say what will run, and where.

    `namespace` is the notebook's `globals()`. The notebook's row in `study.config.notebooks` names the class of its
    run: a `Run` where there is an f, a `ReleasedRun` of a released model, a `Report` of what other notebooks recorded.
    ParameterError names every wrong or unknown parameter and what is accepted; OSError where results cannot be written.

    >>> from ldmlab.study import start_run
    >>> params = dict(f=8, reg="kl", data="scenes", size=0, tier="smoke", seed=0, perceptual="")
    >>> run = start_run("07_sampling", params)
    07_sampling: LDM-8, data scenes at 32 px, tier smoke, seed 0, on ...
    >>> run.spec.name
    'LDM-8'
    """
    from ldmlab.atomic import check_writable
    from ldmlab.study.config.notebooks import load_run_class
    from ldmlab.study.config.parameters import read_parameters
    from ldmlab.study.config.paths import results_dir

    params = read_parameters(notebook, namespace)
    check_writable(results_dir())  # before any work, whose numbers would be lost
    return load_run_class(notebook)(notebook, params.as_dict())
