"""The manifest names every released model once, by an address that can be asked, and says what it does not know."""

import re

import pytest
import torch

from ldmlab.checkpoints.downloads.download import default_folder
from ldmlab.checkpoints.downloads.manifest import (
    DIFFUSERS,
    TRUNK_ARCHIVE,
    TRUNK_FILES,
    find_released_file,
    released_files,
)
from ldmlab.evaluation.inception import InceptionNet, find_inception
from ldmlab.evaluation.inception import manifest as inception_manifest
from ldmlab.perception.losses import perceptual_loss
from ldmlab.perception.trunks import TRUNKS

FIRST_STAGES = "kl-f4 kl-f8 kl-f16 kl-f32 vq-f4 vq-f4-noattn vq-f8 vq-f8-n256 vq-f16".split()
MODELS = """celeba256 ffhq256 lsun_churches256 lsun_beds256 cin256 cin256-v2 text2img256 txt2img-1p4B-eval bsr_sr
layout2img-openimages256 semantic_synthesis256 semantic_synthesis512 inpainting_big""".split()


def test_every_released_model_can_be_fetched():
    """The nine first stages and the thirteen models of the model zoo, each under the name of its preset row."""
    assert {row.preset for row in released_files().values() if row.preset} == {*FIRST_STAGES, *MODELS}
    assert all(find_released_file(name).preset == name for name in (*FIRST_STAGES, *MODELS))
    assert set(DIFFUSERS) <= set(MODELS)


def test_no_two_rows_meet():
    """Two rows that shared a file, or an address, would overwrite or stand in for each other."""
    rows = released_files().values()
    assert len({row.file for row in rows}) == len(rows)
    assert len({url for row in rows for url in row.urls}) == sum(len(row.urls) for row in rows)


@pytest.mark.parametrize("row", released_files().values(), ids=lambda row: row.name)
def test_a_row_is_complete(row):
    """Addresses nobody on the way can change, well-formed hashes with their source, a licence, a plain file name."""
    assert row.urls and all(url.startswith("https://") and " " not in url for url in row.urls)
    assert row.source and row.license and re.fullmatch(r"[\w.-]+", row.file)
    assert (row.member is not None) == row.urls[0].endswith(".zip")
    for digest in (row.sha256, row.copy and row.copy.sha256):
        assert digest is None or re.fullmatch(r"[0-9a-f]{64}", digest)
    assert row.copy is None or row.copy.source.startswith("https://")


def test_networks_of_metrics_go_where_they_are_looked_for(monkeypatch, tmp_path):
    """Inception where FID looks, with the hash that gives FID its name."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    inception = find_released_file("inception")
    (tmp_path / "checkpoints").mkdir()
    (default_folder(inception) / inception.file).touch()
    assert find_inception() == default_folder(inception) / inception.file
    assert inception.sha256 == inception_manifest()["sha256"] and inception.hub


def test_sources_of_the_trunks_are_complete():
    """A source for each trunk of LPIPS, with sizes and hashes; torchvision's names begin with their own hashes."""
    assert TRUNK_FILES.keys() == TRUNKS.keys()
    for row in (*TRUNK_FILES.values(), TRUNK_ARCHIVE):
        assert row.size and re.fullmatch(r"[0-9a-f]{64}", row.sha256) and row.license and row.source
    for row in TRUNK_FILES.values():
        assert row.sha256.startswith(row.file.removesuffix(".pth").rpartition("-")[2]) and row.file in row.urls[0]
    with pytest.raises(ValueError, match="python -m ldmlab fetch lpips"):
        find_released_file("vgg16")


def test_lpips_names_the_command_and_does_without_it(monkeypatch, tmp_path):
    """A missing trunk says where it should lie, what fetches it, and what to ask for instead."""
    monkeypatch.setenv("LDMLAB_CHECKPOINTS", str(tmp_path))
    cures = "lpips-vgg16.safetensors.*python -m ldmlab fetch lpips.*-p perceptual student"
    with pytest.raises(FileNotFoundError, match=cures):
        perceptual_loss("lpips")


def test_the_command_that_an_error_names_exists(monkeypatch, tmp_path):
    """A network that is missing says `fetch NAME`, and the manifest has that name, with the file that was missing."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="python -m ldmlab fetch") as error:
        InceptionNet()
    row = find_released_file(re.search(r"fetch (\w+)", str(error.value))[1])
    assert row.hub and row.file in str(error.value) and f"{row.size / 1e6:.1f} MB" in str(error.value)


def test_an_unknown_name_lists_the_known():
    """A typing error costs one look at the message."""
    with pytest.raises(ValueError, match="no released file 'kl-f9'; accepted are kl-f4, kl-f8"):
        find_released_file("kl-f9")
