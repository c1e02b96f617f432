"""The pictures of one study, and what is known of them."""

from dataclasses import dataclass

from ldmlab.data.annotations import Annotation
from ldmlab.data.images import ImageSet, open_dataset
from ldmlab.study.paths import runs_dir
from ldmlab.study.progress import reports
from ldmlab.study.specs import StudySpec


@dataclass
class Pictures:
    """Training and validation pictures of one study, decoded once."""

    train: ImageSet
    val: ImageSet

    def annotations(self, split: str = "train") -> list[Annotation]:
        """What is known of each picture of "train" or "val": read or rendered once, and kept."""
        images = getattr(self, split)
        with reports(f"annotations of {images.name}, {images.split}", "pictures") as report:
            return images.annotations(report, cache_dir=runs_dir() / "data")


def open_pictures(spec: StudySpec) -> Pictures:
    """The pictures of a spec; a data set with fewer than asked for gives all it has."""
    data, cache = spec.data, runs_dir() / "data"
    open_split = lambda split, num: open_dataset(  # noqa: E731
        data.name, size=data.size, split=split, num=num or None, seed=0).in_memory(cache_dir=cache)
    return Pictures(open_split("train", data.num_train), open_split("validation", data.num_val))
