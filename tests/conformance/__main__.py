"""Write docs/linux.md: see tests/conformance/requests.py."""

import sys
import tempfile
from pathlib import Path

from tests.conformance.requests import PAGE, markdown, of_linux, of_vuserd
from tests.running import find_backend
from tests.uml import rig_folder


def main() -> int:
    """Trace both, and write the page."""
    program = find_backend("rust")
    if program is None:
        print("there is no Rust virtiofsd: make backends")
        return 1
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as second:
        version, linux = of_linux(program, rig_folder(), Path(first))
        PAGE.write_text(markdown(version, linux, of_vuserd(program, Path(second))))
    print(f"{PAGE.name} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main())
