"""`python -m ldmlab COMMAND`: released files, and the checkpoints and caches under results/runs.

A command is one function that adds it, and its row in COMMANDS; what is slow is imported when the command runs.
"""

import argparse
import sys
import time
from collections.abc import Sequence

from ldmlab import __version__
from ldmlab.checkpoints.commands import add_fetch, add_inspect
from ldmlab.command_line import AddCommand, Parser, run_command
from ldmlab.study.config.paths import runs_dir


def add_cache(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """Add `cache list` and `cache prune [NAME ...] [--yes]`."""
    parser = subparsers.add_parser("cache", help="what lies under results/runs; remove what nothing refers to")
    actions = parser.add_subparsers(required=True, dest="action", metavar="{list,prune}")
    listing = actions.add_parser("list", help="names, sizes, when last used, and what each belongs to")
    listing.set_defaults(run=_list_cache)
    prune = actions.add_parser("prune", help="remove what nothing refers to, or what is named; models only by name")
    prune.add_argument("names", nargs="*", metavar="NAME", help="as `cache list` shows it")
    prune.add_argument("--yes", action="store_true", help="remove without asking")
    prune.set_defaults(run=_prune_cache)


COMMANDS: tuple[AddCommand, ...] = (add_fetch, add_inspect, add_cache)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the sub-command that `argv` names; its exit code."""
    return run_command("python -m ldmlab", "A workbench to reproduce latent diffusion models.", COMMANDS, argv,
                       version=f"ldmlab {__version__}")


def _list_cache(args: argparse.Namespace) -> None:
    from ldmlab.study.runs.storage import stored_entries

    entries = stored_entries()
    for family in dict.fromkeys(entry.family for entry in entries):
        members = [entry for entry in entries if entry.family == family]
        print(f"{family}: {len(members)}, {_megabytes(sum(entry.num_bytes for entry in members))}")
        for entry in members:
            notes = [entry.about, f"unused: {entry.unused}" if entry.unused else "", "in use" if entry.in_use else ""]
            day = time.strftime("%Y-%m-%d", time.localtime(entry.last_used))
            print(f"  {entry.name:<56} {_megabytes(entry.num_bytes):>11}  {day}  {'; '.join(filter(None, notes))}")
    unused = [entry for entry in entries if entry.unused]
    print(f"{runs_dir()}: {len(entries)} entries; `cache prune` would remove {len(unused)}, "
          f"{_megabytes(sum(entry.num_bytes for entry in unused))}")


def _prune_cache(args: argparse.Namespace) -> int:
    from ldmlab.study.runs.storage import named_entries, remove_entry, stored_entries

    entries = named_entries(args.names) if args.names else [entry for entry in stored_entries() if entry.unused]
    free = [entry for entry in entries if not entry.in_use]
    for entry in entries:
        reason = entry.unused or entry.about
        print(f"{entry.name:<58} {_megabytes(entry.num_bytes):>11}  "
              f"{reason if entry in free else 'skipped: a running process uses it'}")
    total = f"{len(free)} entries, {_megabytes(sum(entry.num_bytes for entry in free))}"
    if not free:
        print("nothing to remove")
        return 0
    if not args.yes:
        if not sys.stdin.isatty():
            print(f"{total} would be removed; nothing was: --yes removes them")
            return 0
        if input(f"remove {total}? [y/N] ").strip().lower() not in ("y", "yes"):
            return 0
    kept = [entry.name for entry in free if not remove_entry(entry)]
    print(f"removed {len(free) - len(kept)} of {total}" + (f"; in use meanwhile: {', '.join(kept)}" if kept else ""))
    return 0


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:.1f} MB"


if __name__ == "__main__":
    sys.exit(main())
