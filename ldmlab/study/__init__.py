"""What the notebooks call. `start_run` is the first line of every set-up cell."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ldmlab.study.session import Run


def start_run(notebook: str, namespace: dict[str, Any]) -> "Run":
    """Check the notebook's parameters, before anything slow is imported; then say what will run, and where.

    `namespace` is the notebook's `globals()`. ParameterError names every wrong or unknown parameter and what is
    accepted.
    """
    from ldmlab.study.parameters import read_parameters

    params = read_parameters(notebook, namespace)
    from ldmlab.study.session import Run

    return Run(notebook, params.as_dict())
