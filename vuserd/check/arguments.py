"""Define the arguments of ``vuserd check`` for the parser, without importing the checks."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's own arguments."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the configuration file (default: the one that vuserd serve reads)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
