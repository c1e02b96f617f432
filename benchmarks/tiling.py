"""A megapixel picture through a first stage in tiles and in one piece: peak memory, seconds, difference, seams.

`python benchmarks/tiling.py [FILE.safetensors] [--picture FILE] [--side 1024] [--no-untiled]`. The model is that of a
run's file, or KL-f8 at the width of Tab. 8 with random weights, of which only the costs mean something. The picture
goes to z and back, each way in a process of its own. `peak_mib` is the most resident memory of that process,
`loaded_mib` with model and picture but before any work, `imported_mib` after its imports (on Linux a process begins
with its parent's peak, so the first one's, that of the tiles, is the one to subtract). Seconds are wall and processor
time: where a machine does other work, compare the latter. Rows of other models stay in the results. `--figure` needs a
file and draws what its model does.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from ldmlab.checkpoints.files import load_model
from ldmlab.data.images import to_float
from ldmlab.data.scenes.scene import render_scene
from ldmlab.evaluation.reconstruction import psnr
from ldmlab.figures.style import SMALL, styled
from ldmlab.first_stage.autoencoder import build_autoencoder
from ldmlab.first_stage.networks import AutoencoderConfig
from ldmlab.first_stage.tiling import Tiled
from ldmlab.study.config.paths import results_dir
from ldmlab.study.config.presets import study_spec
from ldmlab.study.records.record import environment

LEVEL = 127.5  # [-1, 1] in levels of 8 bits
SWEEP = [(1, 0), (1, 1 / 4), (1, 1 / 2), (1, 3 / 4), (2, 1 / 2), (2, 3 / 4)]  # tile / training size, overlap / tile


def first_stage(path: Path | None) -> tuple[str, torch.nn.Module]:
    """A name to print, and the model in eval mode."""
    if path is None:
        torch.manual_seed(0)
        config = study_spec(8, tier="paper").first_stage.autoencoder
        return "KL-f8 of Tab. 8, random weights", build_autoencoder(config).eval()
    tensors, meta = load_model(path)
    model = build_autoencoder(AutoencoderConfig(**meta["autoencoder"]))
    model.load_state_dict(tensors)
    return f"{meta['name']}, trained at {model.config.resolution} px", model.eval()


def load_picture(path: Path | None, side: int) -> torch.Tensor:
    """(1, 3, side, side) in [-1, 1]: a file's largest central square, or a scene of 512 pixels, enlarged."""
    if path is None:
        image = Image.fromarray(render_scene(0, "validation", 3, 512).image.permute(1, 2, 0).numpy())
    else:
        image = Image.open(path).convert("RGB")
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    image = image.resize((side, side), Image.Resampling.BICUBIC, (left, top, left + edge, top + edge))
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(side, side, 3)
    return to_float(pixels.permute(2, 0, 1)[None])


def peak_mib() -> float:
    """Most memory this process has held so far, MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@torch.inference_mode()
def reconstruct(model: torch.nn.Module, x: torch.Tensor) -> dict:
    """Most probable z, x_rec, and what each way cost."""
    result = {}
    for name, work in (("encode", lambda: model.encode(x)), ("decode", lambda: model.decode(result["z"]))):
        wall, cpu = time.perf_counter(), time.process_time()
        out = work()
        result[f"{name}_s"], result[f"{name}_cpu_s"] = time.perf_counter() - wall, time.process_time() - cpu
        result["z" if name == "encode" else "x_rec"] = out.mode() if name == "encode" and model.reg == "kl" else out
    return result


def child(args: argparse.Namespace) -> None:
    """One way through one model; results go to a file."""
    imported = peak_mib()
    name, model = first_stage(args.file)
    x = load_picture(args.picture, args.side)
    loaded, default = peak_mib(), Tiled(model)
    sizes = [(default.tile, default.overlap)]
    if args.way == "sweep":
        sizes = [(int(a * default.tile), int(a * default.tile * b)) for a, b in SWEEP]
        sizes = [(t, o) for t, o in sizes if o % model.f == 0 and (t, o) != (default.tile, default.overlap)]
    results = []
    for tile, overlap in sizes if args.way != "one piece" else [(None, None)]:
        way = model if tile is None else Tiled(model, tile, overlap)
        num = 1 if tile is None else way.num_tiles(args.side, args.side)
        results.append({"model": name, "tile": tile, "overlap": overlap, "tiles": num, **reconstruct(way, x)})
    if args.way != "sweep":
        results[0] |= {"imported_mib": imported, "loaded_mib": loaded, "peak_mib": peak_mib()}
    torch.save(results, args.child)


def run(args: argparse.Namespace, way: str) -> list[dict]:
    """What a child of this script found."""
    print(f"{args.file or 'random weights'}: {way} ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "results.pt"
        command = [sys.executable, __file__, "--child", out, "--way", way, "--side", args.side]
        command += ["--picture", args.picture] if args.picture else []
        command += [args.file] if args.file else []
        subprocess.run([str(part) for part in command], check=True)
        return torch.load(out, weights_only=True)


def seam(x_rec: torch.Tensor, x: torch.Tensor, period: int) -> float:
    """How much the lines where tiles may meet stand out: the error's mean step from one column (row) to the next, by
    the column's place in a tile, worst over median. The pattern of a first stage's own latent cells counts too."""
    worst = 0.0
    for dim in (2, 3):
        steps = (x_rec - x).diff(dim=dim).abs().mean([d for d in range(4) if d != dim])
        places = steps[: len(steps) // period * period].view(-1, period).mean(0)
        worst = max(worst, float(places.max() / places.median()))
    return worst


def compare(result: dict, x: torch.Tensor, whole: dict | None, period: int) -> dict:
    """The numbers of a result: costs, how near to the picture and to the result in one piece."""
    numbers = {key: value for key, value in result.items() if not torch.is_tensor(value)}
    numbers |= {"psnr_db": float(psnr(x, result["x_rec"].clamp(-1, 1))), "seam": seam(result["x_rec"], x, period)}
    if whole is not None and result["tile"]:
        difference = result["x_rec"] - whole["x_rec"]
        z_rms = (result["z"] - whole["z"]).square().mean().sqrt()
        numbers["difference_max_levels"] = float(difference.abs().max()) * LEVEL
        numbers["difference_rms_levels"] = float(difference.square().mean().sqrt()) * LEVEL
        numbers["z_difference_rms_over_std"] = float(z_rms / whole["z"].std())
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in numbers.items()}


@styled
def figure(x: torch.Tensor, tiled: dict, whole: dict, hard: dict):
    """The picture, in tiles, the difference; and a part of it: no overlap, overlap, in one piece."""
    from matplotlib import pyplot as plt

    gain, side = 4, x.shape[2]
    part = (slice(None), slice(side // 2, side * 11 // 16), slice(side // 8, side * 13 // 32))
    difference = (tiled["x_rec"] - whole["x_rec"])[0] * gain
    panels = [(x[0], f"picture, {side} px"),
              (tiled["x_rec"][0], f"tiles of {tiled['tile']} px, overlap {tiled['overlap']}"),
              (difference, f"tiles less one piece, × {gain}, on grey"),
              (hard["x_rec"][0][part], "a part: tiles without overlap"),
              (tiled["x_rec"][0][part], "tiles with overlap"), (whole["x_rec"][0][part], "in one piece")]
    fig, axes = plt.subplots(2, 3, figsize=(7.2, 4.3), layout="constrained", height_ratios=(3, 2))
    for ax, (image, title) in zip(axes.flat, panels, strict=True):
        ax.imshow((image.clamp(-1, 1) / 2 + 0.5).permute(1, 2, 0).numpy(), interpolation="antialiased")
        ax.set_title(title)
        ax.set_axis_off()
    fig.supxlabel(tiled["model"], fontsize=SMALL)
    return fig


def save_figure(fig, path: Path) -> None:
    """In 256 colours: enough to look at, a third of the bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path, dpi=150)
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)


def enough_memory(config: AutoencoderConfig, side: int) -> bool:
    """Whether a picture fits in one piece: some maps at its full size. Attention holds no table of cells by cells."""
    need = 4 * 8 * config.ch * max(config.ch_mult[:2]) * (side // config.patch) ** 2
    try:
        free = next(int(line.split()[1]) * 1024 for line in open("/proc/meminfo") if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        free = math.inf
    if need > free:
        print(f"in one piece: left out, it may need {need / 2**30:.0f} GiB and {free / 2**30:.0f} GiB are free")
    return need <= free


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, nargs="?", help="first_stage.safetensors of a run")
    parser.add_argument("--picture", type=Path, help="a picture; default: an enlarged scene")
    parser.add_argument("--side", type=int, default=1024)
    parser.add_argument("--no-untiled", action="store_true", help="in tiles only")
    parser.add_argument("--out", type=Path, default=results_dir() / "benchmarks" / "tiling.json")
    parser.add_argument("--figure", type=Path, help="where the figure goes, if one is wanted")
    for hidden in ("--child", "--way"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)

    x = load_picture(args.picture, args.side)
    [tiled] = run(args, "tiles")
    sweep = run(args, "sweep") if args.file else []
    whole = None
    if not args.no_untiled and enough_memory(first_stage(args.file)[1].config, args.side):
        [whole] = run(args, "one piece")
    if args.figure and sweep and whole:
        save_figure(figure(x, tiled, whole, next(row for row in sweep if not row["overlap"])), args.figure)
    about = {"side": args.side, "picture": args.picture.name if args.picture else "scene", "env": environment("cpu")}
    rows = [about | compare(row, x, whole, tiled["tile"]) for row in [tiled, *([whole] if whole else []), *sweep]]
    stored = json.loads(args.out.read_text()) if args.out.exists() else []
    rows += [row for row in stored if row["model"] != tiled["model"]]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    for row in rows:
        print({key: value for key, value in row.items() if key != "env"})


if __name__ == "__main__":
    main()
