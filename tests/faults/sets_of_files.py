"""Small data sets for the tests beside: pictures as bytes, folders, tar files, and all names that are used."""

import warnings

from made_files import encoded, lay_out, picture

from ldmlab.data.images import open_dataset


def png(seed: int = 0, side: int = 8) -> bytes:
    """A picture of noise, another one for each seed."""
    return encoded(picture(seed, side, side))


def folder(root, names, first: int = 0):
    """Write a picture of its own under each name; returns the folder."""
    return lay_out(root, {name: png(seed) for seed, name in enumerate(names, first)})


def annotated(root, size: int):
    """Annotations by the name of the picture, of both splits, what was warned of, and the report's lines."""
    found, lines = {}, []
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for split in ("train", "validation"):
            data = open_dataset(root, size=size, split=split)
            found |= {data._source.names[number]: annotation for number, annotation in
                      zip(data._pixels.numbers, data.annotations(), strict=True)}
            lines += data.annotation_report
    return found, " ".join(str(w.message) for w in said), "\n".join(lines)


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
