"""`python -m ldmlab.checkpoints`: the older spelling of `python -m ldmlab fetch` and `inspect`."""

import sys
from collections.abc import Sequence

from ldmlab.checkpoints.commands import add_fetch, add_inspect
from ldmlab.command_line import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; its exit code."""
    return run_command("python -m ldmlab.checkpoints", "Released checkpoints.", (add_inspect, add_fetch), argv)


if __name__ == "__main__":
    sys.exit(main())
