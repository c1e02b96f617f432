"""Small data sets for the tests beside: pictures as bytes, folders, tar files, and all names that are used."""

import io
import tarfile

import numpy as np
from PIL import Image

from ldmlab.data.images import open_dataset


def png(seed: int = 0, side: int = 8) -> bytes:
    """A picture of noise, another one for each seed."""
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(root, names, first: int = 0):
    """Write a picture of its own under each name; returns the folder."""
    for seed, name in enumerate(names, first):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))
    return root


def tar(path, members: dict[str, bytes]):
    """Write a tar file; returns its path."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def opened(path, **options):
    """The sets of pictures by split, of the splits that there are."""
    sets = {}
    for split in ("train", "validation", "test"):
        try:
            sets[split] = open_dataset(path, size=8, split=split, **options)
        except ValueError as error:
            if "has no" not in str(error):
                raise
    return sets


def used(path) -> dict[str, list[str]]:
    """Names of the pictures that are used, by split."""
    return {split: list(images._source.names) for split, images in opened(path).items()}


def check_report(path):
    """The report on a data set, whose numbers add up: every file that was found is counted once."""
    report = next(iter(opened(path).values())).report
    assert report.found == sum(report.used.values()) + sum(report.beside.values()) + report.num_left_out
    return report
