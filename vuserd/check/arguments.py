"""The arguments of ``vuserd check``, apart from what checks: the parser needs no more of it."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command's own arguments."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the configuration file (default: the one that vuserd serve reads)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
