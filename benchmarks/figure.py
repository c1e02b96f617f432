"""The tables of results/benchmarks as figures: every goal beside what was measured, and every way beside the floor.

`python benchmarks/figure.py [--folder results/benchmarks]` draws `goals.png` and one figure a table. Nothing is timed.
"""

import argparse
import json
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmlab.atomic import atomic_write
from ldmlab.figures.style import ACCENT, GREY, INK, SECOND, SMALL, format_number, log_axis, small_print, styled
from ldmlab.study.config.paths import results_dir

KINDS = {"ours": ACCENT, "peer": GREY, "floor": INK}


def tables(folder: Path) -> dict[str, list[dict]]:
    """Rows of each table made by the harness; other files are left alone."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        if isinstance(content, dict) and "table" in content:
            found[content["table"]] = content["rows"]
    return found


def _about(rows: list[dict]) -> str:
    """Machine and versions, once each."""
    seen = {f"{row['env']['device_name']}, threads {row['env']['threads']}, torch {row['env']['torch']}"
            for row in rows}
    peers = {f"{name} {row['env'][name]}" for row in rows for name in ("diffusers", "torch-fidelity", "scipy")
             if name in row["env"]}
    originals = {row["env"]["original"] for row in rows if row["env"].get("original")}
    return "; ".join([*sorted(seen), *sorted(peers), *(f"original: {name}" for name in sorted(originals))])


@styled
def goals(found: dict[str, list[dict]]) -> Figure | None:
    """How many times as fast as each peer, with intervals of 95 %; the tick is what was asked."""
    entries = [(row, goal) for rows in found.values() for row in rows for goal in row["goals"] if not row["void"]]
    if not entries:
        return None
    fig, ax = plt.subplots(figsize=(8.2, 0.6 + 0.31 * len(entries)), layout="constrained")
    for y, (_, goal) in enumerate(entries):
        tint = ACCENT if goal["met"] else SECOND
        low, high = goal["low"] or goal["ratio"], goal["high"] or goal["ratio"]
        ax.plot([low, high], [y, y], color=tint, linewidth=1.6)
        ax.plot([goal["ratio"]], [y], "o", color=tint, markersize=4)
        ax.text(max(high, goal["at_least"]) * 1.07, y, f"{goal['ratio']:.3g} ({low:.3g} to {high:.3g})", va="center",
                fontsize=SMALL, color=tint)
        ax.plot([goal["at_least"]] * 2, [y - 0.36, y + 0.36], color=INK, linewidth=1.4)
    ax.axvline(1, color=GREY, linewidth=0.7)
    names = [f"{row['work']}\n{row['variant']} over {goal['peer']}" for row, goal in entries]
    ax.set_yticks(range(len(entries)), names, fontsize=SMALL - 1.1, linespacing=1.15)
    ax.set_ylim(len(entries) - 0.4, -0.6)
    log_axis(ax.xaxis)
    ax.set_xlim(right=3 * max(max(goal["high"] or goal["ratio"], goal["at_least"]) for _, goal in entries))
    ax.set_xlabel("times as fast (tick: goal; blue: the interval's lower end reaches it)")
    small_print(fig, _about([row for row, _ in entries]))
    return fig


def _panel(ax: Axes, rows: list[dict]) -> None:
    """Work done per second by each way, the floor beside."""
    rows = sorted(rows, key=lambda row: (row["kind"] == "floor", list(KINDS).index(row["kind"])))
    for y, row in enumerate(rows):
        floor, tint = row["kind"] == "floor", KINDS[row["kind"]]
        ax.barh(y, row["per_s"], height=0.66, color="none" if floor else tint, edgecolor=tint,
                linestyle="--" if floor else "-", linewidth=0.8, alpha=1.0 if row["exact"] else 0.55)
        ax.text(row["per_s"], y, f" {format_number(row['per_s'])}", va="center", fontsize=SMALL, color=INK)
    ax.set_yticks(range(len(rows)), [row["variant"] for row in rows], fontsize=SMALL + 0.4)
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    if max(row["per_s"] for row in rows) > 30 * min(row["per_s"] for row in rows):
        log_axis(ax.xaxis)
        ax.set_xlim(right=4 * max(row["per_s"] for row in rows))
    else:
        ax.set_xlim(0, 1.17 * max(row["per_s"] for row in rows))
    ax.set_title(rows[0]["work"] + (" (void: the machine was not quiet)" if rows[0]["void"] else ""), fontsize=8)
    ax.set_xlabel(f"{rows[0]['unit']} per second", fontsize=SMALL + 0.6)


@styled
def table_figure(rows: list[dict]) -> Figure:
    """A panel a work."""
    works = list(dict.fromkeys(row["work"] for row in rows))
    panels = [[row for row in rows if row["work"] == work] for work in works]
    fig, axes = plt.subplots(len(panels), 1, figsize=(6.6, sum(0.75 + 0.19 * len(panel) for panel in panels)),
                             layout="constrained", squeeze=False, height_ratios=[2 + len(panel) for panel in panels])
    for ax, panel in zip(axes[:, 0], panels, strict=True):
        _panel(ax, panel)
    pale = "Pale bars give another result (bf16, another order of updates, another resampler), as their names say. "
    dashed = " Dashed: the same work at the rate of this machine's fastest large operation, or of a copy."
    small_print(fig, pale * any(not row["exact"] for row in rows) + "Medians of rounds in shuffled order, all ways in "
                "one process." + dashed * any(row["kind"] == "floor" for row in rows), _about(rows))
    return fig


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=results_dir() / "benchmarks")
    args = parser.parse_args()
    found = tables(args.folder)
    if not found:
        raise SystemExit(f"{args.folder} holds no table; python benchmarks/training.py makes the first")
    figures = {"goals": goals(found)} | {name: table_figure(rows) for name, rows in found.items()}
    for name, fig in figures.items():
        if fig is not None:
            path = atomic_write(args.folder / f"{name}.png", lambda part, fig=fig: fig.savefig(part, format="png"))
            print(path)


if __name__ == "__main__":
    main()
