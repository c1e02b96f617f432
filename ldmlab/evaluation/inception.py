"""FID, IS, KID, precision and recall on Inception's features by torch-fidelity, as in [LDM v2, App. E.3].

The weights are a file of the manifest (`ldmlab/weights/manifest.json`), given by path or found in torch's hub folder;
`python -m ldmlab fetch inception` downloads them. Nothing is downloaded here.
"""

import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from ldmlab.data.images import to_uint8
from ldmlab.evaluation.distances import (
    INCEPTION,
    UNVERIFIED,
    FeatureMoments,
    Score,
    check_enough,
    frechet_score,
    kid_score,
    score_name,
)
from ldmlab.evaluation.neighbours import precision_recall_scores
from ldmlab.evaluation.uncertainty import frechet_interval, kernel_interval
from ldmlab.perception.files import WEIGHTS, file_hash, freeze
from ldmlab.perception.lab_networks import FeatureNet
from ldmlab.perception.pictures import check_pictures

KEEP = 50_000  # vectors kept for the kernel distance, precision and recall: as many as the paper samples


def manifest(name: str = "inception") -> dict[str, Any]:
    """Entry of a file of weights in the manifest: `file`, `other_names`, `url`, `size` in bytes, `sha256`."""
    return json.loads((WEIGHTS / "manifest.json").read_text())[name]


def _hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"


def find_inception() -> Path:
    """The file of Inception's weights in torch's hub folder ($TORCH_HOME), under any of its names.

    Raises FileNotFoundError with the missing file, its size and how to get it.
    """
    entry = manifest()
    for name in (entry["file"], *entry["other_names"]):
        if (_hub_folder() / name).exists():
            return _hub_folder() / name
    folder = str(_hub_folder()).replace(str(Path.home()), "~", 1)  # the message may be stored in a record
    raise FileNotFoundError(
        f"Inception's weights are missing: {entry['file']} ({entry['size'] / 1e6:.1f} MB, sha256 {entry['sha256']}). "
        f"With a network, `python -m ldmlab fetch inception` gets them; or put {entry['url']} "
        f"into {folder}, or give its path: InceptionNet(path). Without them, use KD-EffNet, on "
        "EfficientNet-Lite0"
    )


class InceptionNet(FeatureNet):
    """torch-fidelity's Inception v3, frozen: 2048 pooled features and 1008 logits of pictures in [-1, 1].

    Pictures are resized to 299 px as in TensorFlow 1: bilinear, without antialiasing. A file with another hash than the
    manifest's is accepted, but its scores are named FD-unverified. Raises FileNotFoundError without a file, and
    ValueError for other contents.
    """

    def __init__(self, path: Path | str | None = None):
        from torch_fidelity.feature_extractor_inceptionv3 import BasicConv2d, FeatureExtractorInceptionV3

        path = Path(path) if path is not None else find_inception()
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file; give that of Inception's weights, {manifest()['file']}")
        try:
            # torch-fidelity does not check that the file is free of code; this does.
            torch.load(path, map_location="meta", weights_only=True)
            layers = ["2048", "logits_unbiased"]
            extractor = FeatureExtractorInceptionV3(INCEPTION, layers, feature_extractor_weights_path=str(path))
        except (pickle.UnpicklingError, RuntimeError, TypeError, EOFError) as error:
            raise ValueError(f"{path} does not hold weights of torch-fidelity's Inception: {error}") from error
        # Folded BatchNorms and channels_last take two thirds of the time; features are equal up to rounding (1e-6).
        for block in extractor.modules():
            if isinstance(block, BasicConv2d):
                block.conv, block.bn = fuse_conv_bn_eval(block.conv, block.bn), nn.Identity()
        super().__init__((2048,), [extractor.to(memory_format=torch.channels_last)])
        self.dim, self.weights_hash = 2048, file_hash(path)
        self.name = INCEPTION if self.weights_hash == manifest()["sha256"] else UNVERIFIED
        freeze(self)

    def features(self, x: Float[Tensor, "n 3 h w"]) -> tuple[Float[Tensor, "n 2048"], Float[Tensor, "n 1008"]]:
        """Pooled features and logits (without bias) of pictures in [-1, 1], which are rounded to 8 bits first."""
        check_pictures(x)
        x_bytes = to_uint8(x).to(self.embed_mean.device)
        return self.stages[0](x_bytes.contiguous(memory_format=torch.channels_last))

    def embed(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 2048"]:
        """The features of FID, so that this network can be used wherever a `FeatureNet` is."""
        return self.features(x)[0]


def inception_scores(
    real: FeatureMoments,
    samples: Iterable[Float[Tensor, "_ 3 h w"]],
    net: InceptionNet,
    protocol: Mapping[str, Any] | None = None,
    *,
    splits: int = 10,
    num_resamples: int = 0,
    allow_few: bool = False,
) -> dict[str, Score]:
    """`fid`, `inception_score`, `kid`, `precision` and `recall` of batches of samples in [-1, 1].

    `real` are the reference's moments under `net`: `reference_moments(..., keep=inception.KEEP)`. Raises
    ValueError for fewer than 2049 pictures in either set unless `allow_few`; for the reference, before any sample is
    used. Intervals of FID and KID take `num_resamples` (0: none) eigenvalue problems of 2048 features, seconds each.
    """
    from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

    check_enough(net.dim, allow_few, real=real.n)
    fake = FeatureMoments(net.dim, keep=KEEP, extractor=net.name, weights_hash=net.weights_hash)
    name, logits = score_name("IS", real, fake), []
    with torch.inference_mode():
        for x in samples:
            features, batch_logits = net.features(x)
            fake.update(features)
            logits.append(batch_logits.cpu())
    if fake.n < splits:
        raise ValueError(f"the Inception score of {splits} parts needs as many samples, got {fake.n}")
    protocol = {"input_resize": "299 px, TensorFlow 1 bilinear, not antialiased", **(protocol or {})}
    fid, kid = frechet_score(real, fake, protocol, allow_few=allow_few), kid_score(real, fake, protocol)
    if num_resamples:
        fid = replace(fid, interval=frechet_interval(real, fake, num_resamples=num_resamples))
        kid = replace(kid, interval=kernel_interval(real, fake, over="fake"))
    isc = isc_features_to_metric(torch.cat(logits), splits)
    about = {**protocol, "splits": splits, "std_over_splits": isc[KEY_METRIC_ISC_STD]}
    score = Score(isc[KEY_METRIC_ISC_MEAN], name, "1", 0, fake.n, net.name, net.weights_hash, about)
    return {"fid": fid, "kid": kid, "inception_score": score, **precision_recall_scores(real, fake, protocol)}
