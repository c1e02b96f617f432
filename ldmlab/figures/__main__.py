"""`python -m ldmlab.figures tradeoff --data scenes --tier laptop` draws the trade-off from all its records."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ldmlab.figures.tradeoff import fig_tradeoff
from ldmlab.study.config.budgets import TIERS
from ldmlab.study.records.compare import data_name, study_records
from ldmlab.study.records.record import save_figure


def draw_tradeoff(data: str, tier: str, size: int = 0) -> tuple[Path, list[str]]:
    """Draw the trade-off from the records of a data set and tier, and write it to results/figures/.

    The largest group of comparable records is drawn. Returns the path and the names of the other records. `size` is
    the side of the pictures in pixels, 0 for any. ValueError if there are no records.
    """
    records, others = study_records(data, tier, size)
    if not records:
        at = f" at {size} px" if size else ""
        raise ValueError(f"results/04_tradeoff holds no record of data {data}, tier {tier}{at}")
    fig = fig_tradeoff(records)
    path = save_figure(fig, "tradeoff", data_name(records[0]), tier, records[0].params["size"])
    return path, [record.file_name for record in others]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors are printed in one line, with exit status 1."""
    parser = argparse.ArgumentParser(prog="python -m ldmlab.figures", description="Draw figures from results/.")
    parser.add_argument("figure", choices=["tradeoff"])
    parser.add_argument("--data", default="scenes", help="as given to the notebook")
    parser.add_argument("--tier", default="laptop", choices=TIERS)
    parser.add_argument("--size", type=int, default=0, help="side in pixels; default: the size of most records")
    args = parser.parse_args(arguments)
    try:
        path, left_out = draw_tradeoff(args.data, args.tier, args.size)
    except ValueError as error:
        parser.exit(1, f"{error}\n")
    print(path)
    if left_out:
        print(f"left out, since they are not comparable with the rest: {', '.join(left_out)}")


if __name__ == "__main__":
    main()
