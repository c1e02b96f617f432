"""Records of a made world, as the notebooks would write them; in `WORLD` all that the paper says is so."""

import math
from copy import deepcopy

from ldmlab.study.config.notebooks import FS
from ldmlab.study.records.record import Record

STEPS, SHARED, LAST = (10, 20, 50, 100, 200), 400, 2400
KL = [(1, "none"), *((f, "kl") for f in FS[1:])]
VQ = [(f, "vq") for f in (4, 8, 16)]
SPACES = ("kl_none", "kl_rescaled", "vq_none", "vq_rescaled")

# By f and regularizer, unless said otherwise. Distances are KD-EffNet, alike under both samplers.
WORLD = {
    "shared": dict(zip(KL, (1900, 1500, 600, 600, 700, 1000), strict=True)) | {cell: 650 for cell in VQ},
    "half": {cell: 800 for cell in KL + VQ},
    "end": dict(zip(KL, (1900, 900, 300, 320, 500, 790), strict=True)) | dict(zip(VQ, (350, 200, 550), strict=True)),
    "eta_1": {},  # distances at the end under eta = 1, where they differ
    "to_reconstructions": dict(zip(KL, (1900, 500, 150, 80, 20, 10), strict=True)) | {cell: 80 for cell in VQ},
    "fid": {(1, "none"): 60, (8, "kl"): 20},
    "judged": {},  # accuracy of a class judge, where there is one
    "images_per_s": dict(zip(KL, (10, 20, 50, 80, 110, 200), strict=True)) | {cell: 60 for cell in VQ},
    "step_s": dict(zip(KL, (1.4, 0.4, 0.2, 0.1, 0.1, 0.1), strict=True)) | {cell: 0.1 for cell in VQ},
    "first_stage_s": 100.0,
    "flops": dict(zip(KL, (600, 300, 100, 50, 20, 10), strict=True)) | {cell: 50 for cell in VQ},
    "psnr": dict(zip(KL[1:], (34, 30, 26, 23, 20), strict=True)) | dict(zip(VQ, (29, 25, 22), strict=True)),
    "rkd": dict(zip(KL[1:], (50, 150, 240, 480, 780), strict=True)) | {cell: 300 for cell in VQ},
    "latent_std": {cell: 4.0 for cell in KL} | {cell: 1.05 for cell in VQ},
    "guidance": {1.0: 300, 1.5: 200},  # distance by guidance scale
    "seen_at": 0.2,  # bits per colour value after which nothing is seen to be missing
    "kd_1x": dict(zip(SPACES, (400, 350, 350, 350), strict=True)),
    "kd_2x": dict(zip(SPACES, (1200, 600, 600, 590), strict=True)),
    "layout_t": {"kl_none": 700, "kl_rescaled": 450},
    "by_steps": {(f, k): kd * (1.02 if k < 200 else 1) for f, kd in ((1, 1900), (4, 400), (8, 300)) for k in STEPS},
    "rate_by_steps": {(f, steps): rate / steps for f, rate in ((1, 200), (4, 900), (8, 1500)) for steps in STEPS},
}


def otherwise(changes):
    """The world with some of its values changed."""
    world = deepcopy(WORLD)
    for key, value in changes.items():
        if isinstance(value, dict):
            world[key].update(value)
        else:
            world[key] = value
    return world


def make(world, seeds=(0, 1, 2, 3), wobble=0.01, tier="laptop", data="scenes", cells=KL + VQ, interval=0.0):
    """The records of a world, each seed off by `wobble`; `interval` is the half-width of scores, as a share."""
    made = []

    def record(notebook, f, reg, seed, metrics, curves):
        made.append(Record(
            notebook, f"LDM-{f}", {"f": f, "reg": reg, "data": data, "size": 32, "tier": tier, "seed": seed},
            metrics=metrics, curves=curves, inputs={"data": "a" * 64}, env={"device": "cpu", "threads": 1},
            protocol={"sampler": "ddim", "num_steps": 20, "eta": 0.0, "guidance_scale": 1.0, "ema": True}))

    for order, seed in enumerate(seeds):
        # Not symmetric over the seeds, and other for each cell, so that no spread is 0 once seed 0 is left out.
        shift = wobble * (order - (len(seeds) - 1) / 2)
        factor = math.exp(shift)

        def entry(value, by=factor, eta=0.0):
            found = {"value": value * by, "n_fake": 512, "n_real": 1024, "extractor": "effnet",
                     "protocol": {"sampler": "ddim", "num_steps": 50, "eta": eta, "guidance_scale": 1.0}}
            return found | ({"interval": {"low": value * (by - interval), "high": value * (by + interval),
                                          "level": 0.95, "method": "bootstrap"}} if interval else {})

        for f, reg in cells:
            cell, last = (f, reg), SHARED if f == 1 else LAST
            end = {"": world["end"][cell], "_eta1": world["eta_1"].get(cell, world["end"][cell])}
            near = world["to_reconstructions"][cell]
            metrics = {"flops": entry(world["flops"][cell], 1.0), "latent_std": {"value": [world["latent_std"][cell] * (
                factor if f > 1 else 1.0)]}, "first_stage_train_s": {"value": world["first_stage_s"] * (f > 1)}}
            for eta, (suffix, value) in enumerate(end.items()):
                metrics |= {f"kd_effnet{suffix}": entry(value, eta=eta),
                            f"kd_effnet_to_reconstructions{suffix}": entry(near, eta=eta)}
                metrics |= {f"{name}{suffix}": entry(world[key][cell], eta=eta)
                            for name, key in (("fid", "fid"), ("judged_accuracy", "judged")) if cell in world[key]}
            if f > 1:
                metrics |= {"rkd_effnet": entry(world["rkd"][cell]),
                            "psnr": {"value": world["psnr"][cell] + 20 * shift, "n_fake": 512, "n_real": 512}}
            points = [[100, 1.5 * world["shared"][cell]], [SHARED, world["shared"][cell]]]
            points += [] if f == 1 else [[LAST // 2, world["half"][cell]], [LAST, end[""]]]
            curve = [[step, value * factor] for step, value in points]
            record("04_tradeoff", f, reg, seed, metrics, {
                "kd_effnet": curve, "kd_effnet_eta1": curve,
                "images_per_s": [[steps, world["images_per_s"][cell] * factor * 20 / steps] for steps in STEPS],
                "train_s": [[step, world["step_s"][cell] * step * factor] for step in range(100, last + 1, 100)]})
        for notebook in ("03_diffusion", "08_class_conditional", "10_layout_to_image"):
            record(notebook, 8, "kl", seed, {}, {"kd_effnet_by_guidance": [
                [scale, kd * (factor if scale > 1 else 1)] for scale, kd in world["guidance"].items()]})
        seen = 3 * world["seen_at"] * factor
        record("05_rate_distortion", 1, "none", seed, {"bits_per_dim": {"value": 5.9}}, {
            "progressive_bpp": [[900, 0.001], [500, seen], [0, seen + 5]],
            "progressive_rmse": [[900, 60.0], [500, 4.5], [0, 1.0]]})
        metrics = {f"layout_t_{name}": entry(value, factor ** (1 - 2 * i))
                   for i, (name, value) in enumerate(world["layout_t"].items())}
        for i, name in enumerate(SPACES):
            metrics |= {f"kd_effnet_{size}_{name}{suffix}": entry(world[f"kd_{size}"][name], factor ** (1 + i), eta)
                        for size in ("1x", "2x") for eta, suffix in enumerate(("", "_eta1"))}
        record("06_snr_rescaling", 8, "kl", seed, metrics, {})
        for f in (1, 4, 8):
            curve = [[k, world["by_steps"][f, k] * factor ** (2 if k == 50 else 1)] for k in STEPS]
            record("07_sampling", f, "none" if f == 1 else "kl", seed, {}, {
                "kd_effnet_by_steps": curve, "kd_effnet_by_steps_eta1": curve,
                "images_per_s": [[k, world["rate_by_steps"][f, k] * factor] for k in STEPS]})
    return made
