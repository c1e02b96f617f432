"""What the notebooks call. `start_run` is the first line of every set-up cell."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldmlab.study.released import ReleasedRun
    from ldmlab.study.report import Report
    from ldmlab.study.session import Run


def start_run(notebook: str, namespace: dict[str, Any]) -> "Run | ReleasedRun | Report":
    """Check the notebook's parameters, before anything slow is imported; then say what will run, and where.

    `namespace` is the notebook's `globals()`. A notebook with an f gets a `Run`, one with a released model a
    `ReleasedRun`; the others train nothing and get a `Report`.
    ParameterError names every wrong or unknown parameter and what is accepted.
    """
    from ldmlab.study.parameters import read_parameters

    params = read_parameters(notebook, namespace)
    if "model" in params.values:
        from ldmlab.study.released import ReleasedRun

        return ReleasedRun(notebook, params.as_dict())
    if "f" not in params.values:
        from ldmlab.study.report import Report

        return Report(notebook, params.as_dict())
    from ldmlab.study.session import Run

    return Run(notebook, params.as_dict())
