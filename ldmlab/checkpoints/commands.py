"""The sub-commands `fetch` and `inspect`; torch is imported when one runs, not to print their help."""

import argparse
import json
from pathlib import Path

from ldmlab.command_line import Parser


def add_fetch(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """Add `fetch [NAME] [--folder FOLDER]`."""
    parser = subparsers.add_parser("fetch", help="download a released file and check it; without a name, list them")
    parser.add_argument("name", nargs="?", help="a name of the manifest, such as kl-f8, or lpips for its two networks")
    parser.add_argument("--folder", help="where it goes (default: $LDMLAB_CHECKPOINTS or ~/.cache/ldmlab/checkpoints, "
                        "torch's hub folder for the networks of metrics)")
    parser.set_defaults(run=_fetch)


def add_inspect(subparsers: "argparse._SubParsersAction[Parser]") -> None:
    """Add `inspect FILE [--sha256 HASH]`; it exits with the report's status."""
    parser = subparsers.add_parser("inspect", help="what a file of weights is, and which released model it fits")
    parser.add_argument("file", type=Path, help=".ckpt, .pt, .bin or .safetensors, or a folder of diffusers")
    parser.add_argument("--sha256", help="refuse the file unless it has this hash")
    parser.set_defaults(run=_inspect)


def _fetch(args: argparse.Namespace) -> None:
    from ldmlab.checkpoints.downloads.download import fetch, record_file, size_text
    from ldmlab.checkpoints.downloads.lpips import fetch_lpips
    from ldmlab.checkpoints.downloads.manifest import TRUNK_FILES, released_files

    if args.name is None:
        for row in released_files().values():
            print(f"{row.name:<26}{size_text(row):<20}{row.urls[0]}")
        for row in TRUNK_FILES.values():
            print(f"{'lpips':<26}{size_text(row):<20}{row.urls[0]}")
        return
    for path in fetch_lpips(args.folder) if args.name == "lpips" else [fetch(args.name, args.folder)]:
        print(path)
        if record_file(path).exists():
            record = json.loads(record_file(path).read_text())
            print(f"sha256 {record['sha256']}, {record['trust']}")


def _inspect(args: argparse.Namespace) -> int:
    from ldmlab.checkpoints.inspection import inspect_file

    report = inspect_file(args.file, args.sha256)
    print(report)
    return report.status
