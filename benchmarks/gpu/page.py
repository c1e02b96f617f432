"""The page of a GPU day: speeds, where the time goes, errors, and what else was found, from its JSON."""

import textwrap
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import blended_transform_factory

from ldmlab.figures.style import ACCENT, GREY, INK, SECOND, SMALL, format_number, small_print, styled

KINDS = {"ours": ACCENT, "released structure": GREY}
TINTS = {"convolution": "#2f6f8f", "matrix product": "#5c9bb8", "attention": "#b5543c",
         "norm, activation": "#7a8b3c", "norm, activation (compiled)": "#a3b46a", "layout, copies": "#c08a2d",
         "optimizer, EMA": "#7d5a96", "other": "#c9cbd0", "idle": "white"}


def part(result: dict[str, Any], number: int) -> dict[str, Any]:
    """What a part found; {} where it has not run."""
    return result["parts"].get(str(number), {}).get("result", {})


@styled
def page(result: dict[str, Any]) -> Figure:
    """Everything that the parts found; panels of parts that have not run say so."""
    speed = part(result, 3)
    rows = speed.get("rows", [])
    training = [row for row in rows if row["work"].startswith("training")]
    sampling = [row for row in rows if not row["work"].startswith("training")]
    words = [line for text in sentences(result) for line in textwrap.wrap(text, 128)]
    heights = [2.5 + 0.8 * len(_works(training)) + len(training), 2.5 + 0.8 * len(_works(sampling)) + len(sampling),
               3.5 + 1.5 * len(speed.get("profiles", {})), 13, 2 + 1.05 * len(words)]
    fig, axes = plt.subplots(5, 1, figsize=(8.2, 2.2 + 0.185 * sum(heights)), layout="constrained",
                             height_ratios=heights)
    fig.suptitle(_title(result), fontsize=10.5, x=0.01, ha="left", linespacing=1.5)
    _bars(axes[0], training, "Training: pictures per second; TFLOP/s; share of the measured peak")
    _bars(axes[1], sampling, "Sampling and decoding: pictures per second")
    _profiles(axes[2], speed.get("profiles", {}))
    _parity(axes[3], part(result, 1))
    _words(axes[4], result)
    small_print(fig, *_notes(result))
    return fig


def _title(result: dict[str, Any]) -> str:
    env = part(result, 1).get("environment", {})
    smi = env.get("nvidia_smi") or {}
    driver = smi.get("driver_version", "none") if isinstance(smi, dict) else "none"
    rehearsal = "REHEARSAL on a CPU: its numbers mean nothing\n" if result.get("rehearsal") else ""
    return (f"{rehearsal}A GPU day: {env.get('device_name', 'device not read')}\n"
            f"torch {env.get('torch')}, CUDA {env.get('cuda')}, driver {driver}; {result.get('made', '')}, commit "
            f"{(result.get('commit') or 'unknown')[:10]}, {result.get('wall_s', 0):.0f} s in all")


def _works(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["work"] for row in rows))


def _empty(ax: Axes, title: str) -> None:
    ax.set_title(title)
    ax.text(0.5, 0.5, "not measured", ha="center", va="center", color=GREY, transform=ax.transAxes)
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)


def _bars(ax: Axes, rows: list[dict[str, Any]], title: str) -> None:
    """Bars by work, each work on a scale of its own: its fastest way fills the same width."""
    if not rows:
        return _empty(ax, title)
    y, ticks, names = 0.0, [], []
    for work in _works(rows):
        own = [row for row in rows if row["work"] == work]
        top = max((row["per_s"] for row in own if "per_s" in row), default=1.0)
        ax.text(0, y + 0.05, work, fontsize=8, fontweight="bold", va="center")
        y += 1
        for row in own:
            ticks.append(y)
            batch = f", batch {row['batch']}" if "batch" in row and "batch" not in work else ""
            names.append(row["variant"] + batch)
            if "per_s" in row:
                width = row["per_s"] / top
                ax.barh(y, width, height=0.7, color=KINDS.get(row.get("kind", "ours"), ACCENT))
                ax.text(width + 0.01, y, _label(row), va="center", fontsize=SMALL + 0.4, in_layout=False)
            else:
                ax.text(0.01, y, row.get("error", "no value")[:90], va="center", fontsize=SMALL, color=SECOND,
                        in_layout=False)
            y += 1
        y += 0.8
    ax.set_yticks(ticks, names, fontsize=SMALL + 0.6)
    ax.set_ylim(y - 0.6, -0.7)
    ax.set_xlim(0, 1.5)
    ax.set_xticks([])
    ax.grid(visible=False)
    ax.spines["bottom"].set_visible(False)
    ax.set_title(title)


def _label(row: dict[str, Any]) -> str:
    text = f"{format_number(row['per_s'])}/s"
    if "flops_per_s" in row:
        text += f"  {row['flops_per_s'] / 1e12:.3g} TFLOP/s"
    if "share_of_peak" in row:
        text += f"  {100 * row['share_of_peak']:.0f} %"
    if "memory_gb" in row:
        text += f"  {row['memory_gb']:.0f} GB"
    return text


def _profiles(ax: Axes, profiles: dict[str, Any]) -> None:
    """Where the time of a step goes, stacked."""
    title = "Where a training step's time goes on the device, %"
    good = {name: found["shares"] for name, found in profiles.items() if "shares" in found}
    if not good:
        return _empty(ax, title)
    for y, shares in enumerate(good.values()):
        left = 0.0
        for kind, tint in TINTS.items():
            width = 100 * shares.get(kind, 0.0)
            ax.barh(y, width, left=left, height=0.62, color=tint, edgecolor=GREY if kind == "idle" else "white",
                    linewidth=0.5)
            if width > 3.5:
                dark = kind in ("idle", "other", "norm, activation (compiled)")
                ax.text(left + width / 2, y, f"{width:.0f}", ha="center", va="center", fontsize=SMALL + 0.4,
                        color=INK if dark else "white")
            left += width
    ax.set_yticks(range(len(good)), [textwrap.fill(name, 38) for name in good], fontsize=SMALL + 0.6)
    ax.set_ylim(len(good) - 0.4, -0.6)
    ax.set_xlim(0, 100)
    ax.grid(visible=False)
    seen = [kind for kind in TINTS if any(shares.get(kind, 0) > 0.002 for shares in good.values())]
    patches = [plt.Rectangle((0, 0), 1, 1, facecolor=TINTS[kind], edgecolor=GREY, linewidth=0.5) for kind in seen]
    ax.legend(patches, seen, ncols=min(len(seen), 4), fontsize=SMALL + 0.4, loc="upper center",
              bbox_to_anchor=(0.4, -0.17 if len(good) > 1 else -0.3))
    ax.set_title(title)


def _parity(ax: Axes, found: dict[str, Any]) -> None:
    """The largest error of each group, on a logarithmic axis."""
    title = "Errors: recorded cases by module, samples against the CPU, accelerated against eager"
    points: dict[str, dict[str, float]] = {}
    for dtype in ("float32", "bfloat16"):
        for name, group in found.get(f"golden, {dtype}", {}).get("groups", {}).items():
            points.setdefault(name.rpartition(".")[2] if name.count(".") > 2 else name, {})[dtype] = group["max_error"]
    samplers = found.get("samplers", {})
    for name, errors in samplers.items():
        if isinstance(errors, dict):
            points[f"samples, {name}"] = {"float32": errors["float32"], "bfloat16": errors["bfloat16 weights"]}
    for name, error in found.get("accelerated", {}).items():
        if not isinstance(error, dict):
            points[name] = {"bfloat16" if "bf16" in name else "float32": error}
    if not points:
        return _empty(ax, title)
    for x, errors in enumerate(points.values()):
        for dtype, tint in (("float32", ACCENT), ("bfloat16", SECOND)):
            if errors.get(dtype) is not None:
                ax.plot(x, max(errors[dtype], 1e-9), "o", color=tint, markersize=4)
    for dtype, tint in (("float32, TF32 off", ACCENT), ("bfloat16", SECOND)):
        ax.plot([], [], "o", color=tint, label=dtype)
    ax.set_yscale("log")
    ax.set_ylim(5e-10, 5)
    ax.set_xticks(range(len(points)), points, rotation=60, ha="right", rotation_mode="anchor", fontsize=SMALL)
    ax.set_xlim(-0.7, len(points) - 0.3)
    ax.set_ylabel("largest relative error")
    ax.legend(ncols=2, loc="upper right", fontsize=SMALL + 0.6)
    ax.set_title(title)


def _words(ax: Axes, result: dict[str, Any]) -> None:
    """Over the whole width of the page, whatever the axes have."""
    ax.set_axis_off()
    fig = ax.get_figure(root=True)
    lines = [line for text in sentences(result) for line in textwrap.wrap(text, 128, subsequent_indent="   ")]
    ax.text(0.01, 1.0, "\n".join(lines), va="top", fontsize=SMALL + 1, linespacing=1.5, in_layout=False,
            transform=blended_transform_factory(fig.transFigure, ax.transAxes))


def sentences(result: dict[str, Any]) -> list[str]:
    """The findings that are no bars: the peak, the goal, tests, resume, tier gpu, cuts."""
    speed, found = part(result, 3), []
    if "flops_per_s" in (peak := speed.get("peak", {})):
        found.append(f"Peak: {peak['flops_per_s'] / 1e12:.0f} TFLOP/s of a large bf16 matrix product (datasheet, "
                     f"dense: {peak['datasheet'] / 1e12:.0f}); a large copy {peak['bytes_per_s'] / 1e12:.2f} TB/s.")
    best = [row for row in speed.get("rows", []) if row["work"] == "training LDM-4" and "share_of_peak" in row]
    if best:
        row = max(best, key=lambda row: row["share_of_peak"])
        goal = speed["goals"]["share"]
        found.append(f"Goal: {100 * goal:.0f} % of the measured peak in training LDM-4 at 256 px; best "
                     f"{100 * row['share_of_peak']:.1f} % ({row['variant']}, batch {row['batch']}), of the datasheet's "
                     f"{100 * row['share_of_datasheet']:.1f} %: {'met' if row['share_of_peak'] >= goal else 'missed'}.")
    same = [row for row in best if row["batch"] == best[0]["batch"]]
    theirs, ours = ([row for row in same if row.get("kind") == kind] for kind in ("released structure", "ours"))
    if theirs and ours:
        fast, slow = (max(rows, key=lambda row: row["per_s"]) for rows in (ours, theirs))
        ratio, shipped = fast["per_s"] / slow["per_s"], fast["per_s"] / theirs[0]["per_s"]
        found.append(f"At batch {fast['batch']}, {fast['variant']} is {ratio:.2f} times as fast as the released "
                     f"structure in {slow['variant']}, {shipped:.2f} times as in {theirs[0]['variant']}.")
    if tests := part(result, 2).get("tests"):
        count = {kind: sum(test["outcome"] == kind for test in tests) for kind in ("passed", "failure", "error",
                                                                                  "skipped")}
        found.append("GPU tests: " + ", ".join(f"{n} {kind}" for kind, n in count.items() if n) + "".join(
            f"; {test['name']}: {test['message'][:90]}" for test in tests if test["outcome"] in ("failure", "error")))
    for name in ("deterministic algorithms", "as shipped"):
        if entry := part(result, 4).get(name):
            text = entry.get("error") or "; ".join(
                f"{stage.replace('_', ' ')} {'equal bit for bit' if entry[stage]['bit_equal'] else 'off by '}"
                f"{'' if entry[stage]['bit_equal'] else format(entry[stage]['max_error'], '.1e')}"
                for stage in ("first_stage", "diffusion"))
            found.append(f"Killed twice by SIGKILL and continued, against undisturbed, {name}: {text}.")
    for f in (4, 8):
        minutes = part(result, 5).get(f"f = {f}", {}).get("predicted_minutes", {})
        if "all" in minutes:
            found.append(f"Tier {part(result, 5)['tier']}, f = {f}: {minutes['all']:.0f} minutes predicted: first "
                         f"stage {minutes['first stage']:.1f}, denoiser {minutes['denoiser']:.1f}, scored samples "
                         f"{minutes['scored samples']:.1f}; drawing and encoding come on top.")
    if note := part(result, 6).get("note"):
        found.append(f"Several GPUs: {note}.")
    compiled = part(result, 0).get("compile_s", {})
    if seconds := {name: s for name, s in compiled.items() if not isinstance(s, dict)}:
        found.append("Compilation from cold, beside parts 1 and 2: " + ", ".join(
            f"{name} {s:.0f} s" for name, s in seconds.items()) + ".")
    found += [f"Part {number}, {entry['title']}: {entry['cut']}." for number, entry in sorted(result["parts"].items())
              if entry.get("cut")]
    return found


def _notes(result: dict[str, Any]) -> list[str]:
    golden = part(result, 1).get("golden, float32", {})
    num, left = golden.get("cases", 0), len(golden.get("not_run", {}))
    cases = f"{left} of {num} recorded cases were not run: not to be moved to the device, or no time was left."
    return ["Each work has its own scale: its fastest way has the full width. Blue: ours. Grey: the released code's "
            "structure (stored attention weights, recomputed; AdamW and averages tensor by tensor) around our UNet's "
            "convolutions. LDM-4 is the model of CelebA-HQ, LDM-8 that of LSUN-Churches, 256 px, unconditional. "
            "FLOP: 2 per multiply-add, training three times the forward pass, recomputation not counted. GB: peak of "
            "tensors.", "Medians of three windows of two seconds. Sampling counts DDIM's steps in the latent space: 10 "
            "at batch 64, 50 at batch 1; the decoder stands apart.", cases * bool(golden)]
