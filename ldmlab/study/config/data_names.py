"""The names under which the records and figures of a data set are filed."""

import os
from pathlib import Path

from ldmlab.data.dataset_names import TORCHVISION
from ldmlab.data.file_sets import file_set
from ldmlab.study.config.paths import runs_dir


def data_label(data: str) -> str:
    """The name of a data set in records and figures: for files their name and 8 digits of their fingerprint.

    Equal files have equal labels wherever they lie. ValueError for data that does not exist.
    """
    return file_set.data_label(data, runs_dir() / "data")


def labels_of(data: str) -> set[str]:
    """The names that records of a data set may have: its label, and its plain name, as earlier versions wrote it.

    `data` is given as to a notebook, or is such a name itself.
    """
    is_path = os.sep in data or data.endswith(".tar")
    plain = Path(data).stem
    former = {plain} - {"scenes", *TORCHVISION} if is_path else set()
    try:
        return former | {data_label(data)}
    except ValueError:  # not at hand: a name
        return former | {data}
