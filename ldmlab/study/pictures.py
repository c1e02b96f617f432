"""The pictures of one study, and what is known of them."""

from dataclasses import dataclass

from ldmlab.data.annotations import Annotation
from ldmlab.data.images import MAX_BYTES, ImageSet, open_dataset
from ldmlab.study.paths import runs_dir
from ldmlab.study.progress import reports
from ldmlab.study.specs import DataSpec, StudySpec


@dataclass
class Pictures:
    """Training and validation pictures of one study: decoded once, or at each use where they are too many to keep."""

    train: ImageSet
    val: ImageSet

    def annotations(self, split: str = "train") -> list[Annotation]:
        """What is known of each picture of "train" or "val": read or rendered once, and kept."""
        images = getattr(self, split)
        with reports(f"annotations of {images.name}, {images.split}", "pictures") as report:
            return images.annotations(report, cache_dir=runs_dir() / "data")


def open_pictures(spec: StudySpec) -> Pictures:
    """The pictures of a spec; a data set with fewer than asked for gives all it has."""
    data = spec.data
    return Pictures(open_split(data, "train", data.num_train), open_split(data, "validation", data.num_val))


def open_split(data: DataSpec, split: str, num: int) -> ImageSet:
    """`num` pictures of a split, or all at 0: kept, unless they are too many, which is told."""
    images = open_dataset(data.name, size=data.size, split=split, num=num or None, seed=0)
    if images.num_bytes > MAX_BYTES:
        print(f"{images.name}, {split}: {len(images):,} pictures would take {images.num_bytes / 1e9:.1f} GB decoded, "
              f"and up to {MAX_BYTES / 1e9:.1f} GB are kept; each is read again whenever it is used", flush=True)
        return images
    with reports(f"pictures of {images.name}, {split}", "pictures") as report:
        return images.in_memory(cache_dir=runs_dir() / "data", progress=report)
