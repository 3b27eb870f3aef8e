"""Write docs/faults.md from the tests; with ``--check``, only say whether it is up to date."""

import sys

from tests.faults.catalogue import CATALOGUE, collect, markdown


def main(arguments: list[str]) -> int:
    """Return 1 where the page was to be checked and is another one."""
    rows = collect()
    page = markdown(rows)
    if "--check" in arguments:
        if not CATALOGUE.exists() or CATALOGUE.read_text() != page:
            print("docs/faults.md is not what the tests say: python -m tests.faults")
            return 1
    else:
        CATALOGUE.write_text(page)
    print(f"{len(rows)} faults, {sum(1 for row in rows if row.open)} of them do not hold yet")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
