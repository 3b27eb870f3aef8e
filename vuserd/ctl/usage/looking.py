"""The commands that show what is in an export: ls, tree, stat, find and du."""

from typing import Final

from vuserd.ctl.usage.arguments import FILE, count_argument, number_argument
from vuserd.ctl.usage.grammar import AddCommand, add_flags, add_target, add_targets

_COLOR: Final = ("auto", "always", "never")


def add_looking(command: AddCommand) -> None:
    """Add these commands."""
    ls = command(
        "ls",
        "list directories, hidden names included; without an operand, the exports",
        "ls -lh kernels:/boot",
        "ls -t 'kernels:/boot/vmlinuz-*'",
        own_h=True,
    )
    add_flags(
        ls,
        long=("-l", "with attributes"),
        human=("-h", "with -l: sizes such as 4.0K and 12M"),
        dots=("-a", "list '.' and '..', too"),
        single=("-1", "one name a line, also on a terminal"),
        recursive=("-R", "list what is below as well"),
        itself=("-d", "list directories themselves, not what is in them"),
        follow=("-L", "of a symlink, the attributes of the file that it leads to"),
        reverse=("-r", "in reverse order"),
    )
    ls.add_argument("-t", dest="sort", action="store_const", const="time", help="the newest first")
    ls.add_argument("-S", dest="sort", action="store_const", const="size", help="the largest first")
    ls.add_argument(
        "--color",
        metavar="WHEN",
        choices=_COLOR,
        default="auto",
        help="auto (on a terminal), always or never; by LS_COLORS, and NO_COLOR for never",
    )
    add_targets(ls, "*")
    tree = command(
        "tree", "list a directory with all below it", "tree kernels:/boot", "tree -L 1 kernels:"
    )
    tree.add_argument(
        "-L", dest="depth", metavar="DEPTH", type=count_argument, help="no deeper than this"
    )
    add_target(tree)
    stat = command(
        "stat",
        "show files' attributes",
        "stat kernels:/boot/Image",
        "stat --json -L kernels:/vmlinuz",
    )
    stat.add_argument(
        "-L", "--follow", action="store_true", help="of the file that a symlink leads to"
    )
    add_targets(stat)
    _add_find(command)
    du = command(
        "du",
        "show how much space directories take, in KiB",
        "du -sh kernels:/boot",
        "du -h -d 1 kernels:",
        own_h=True,
    )
    add_flags(du, human=("-h", "sizes such as 4.0K and 12M"))
    du.add_argument(
        "-s", dest="depth", action="store_const", const=0, help="of each operand the sum alone"
    )
    du.add_argument(
        "-d", dest="depth", metavar="DEPTH", type=number_argument, help="print no deeper than this"
    )
    add_targets(du)


def _add_find(command: AddCommand) -> None:
    find = command(
        "find",
        "print the files below that pass all tests",
        "find kernels: -name '*.dtb' -newer /srv/tftp/board.dtb",
        "find kernels:/boot -type f -size +10M",
        "find kernels: -maxdepth 2 -type d -print0 | xargs -0 -n 1 vuserctl du -s",
    )
    find.add_argument("-name", metavar="PATTERN", help="the name matches a shell's pattern")
    find.add_argument("-iname", metavar="PATTERN", help="the same, in capital letters or small")
    find.add_argument("-type", metavar="TYPE", help="f, d, l, p, s, c or b; several as f,l")
    find.add_argument(
        "-size",
        metavar="SIZE",
        help="so many c (bytes), k, M or G, else of 512 bytes, rounded up; +: more, -: fewer",
    )
    find.add_argument(
        "-newer", metavar="FILE", help=f"modified after this file: {FILE}, else a local one"
    )
    find.add_argument(
        "-maxdepth", dest="depth", metavar="DEPTH", type=number_argument, help="descend no deeper"
    )
    find.add_argument(
        "-print0", dest="zero", action="store_true", help="a null byte behind each name"
    )
    add_targets(find)
