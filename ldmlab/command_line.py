"""Sub-commands, errors of one line and exit codes, shared by all commands."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

# Adds one sub-command, whose `run(args)` default does its work and returns an exit code, or None for 0.
AddCommand = Callable[["argparse._SubParsersAction[Parser]"], None]


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; --help lists what is accepted\n")


def run_command(
    prog: str, description: str, commands: Sequence[AddCommand], argv: Sequence[str] | None = None, version: str = ""
) -> int:
    """Run the sub-command that `argv` names; its exit code: 0 is success, 1 an error, 2 a wrong command line.

    A ValueError or OSError of the sub-command is printed as one line; other exceptions are bugs, and pass.
    """
    parser = Parser(prog=prog, description=description)
    if version:
        parser.add_argument("--version", action="version", version=version)
    subparsers = parser.add_subparsers(required=True, dest="command", metavar="COMMAND")
    for add in commands:
        add(subparsers)
    args = parser.parse_args(argv)
    try:
        return args.run(args) or 0
    except (ValueError, OSError) as error:
        print(f"{prog} {args.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
