"""`python -m ldmlab.checkpoints inspect FILE`, `python -m ldmlab.checkpoints fetch NAME`."""

import argparse
import sys

from ldmlab.checkpoints.download import add_fetch
from ldmlab.checkpoints.inspection import add_inspect


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command; the exit code, 0 where all is well."""
    parser = argparse.ArgumentParser(prog="python -m ldmlab.checkpoints", description="Released checkpoints.")
    subparsers = parser.add_subparsers(required=True, metavar="{inspect,fetch}")
    add_inspect(subparsers)
    add_fetch(subparsers)
    args = parser.parse_args(argv)
    return args.run(args) or 0


if __name__ == "__main__":
    sys.exit(main())
