"""Write the threat table of SECURITY.md; with ``--check``, only say whether it is up to date."""

import sys

from tests.attacks.threats import SECURITY, collect, with_table


def main(arguments: list[str]) -> int:
    """Return 1 where the table was to be checked and is another one."""
    rows = collect()
    before = SECURITY.read_text()
    after = with_table(before, rows)
    if "--check" in arguments:
        if after != before:
            print("SECURITY.md is not what the tests say: python -m tests.attacks")
            return 1
    else:
        SECURITY.write_text(after)
    print(f"{len(rows)} threats")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
