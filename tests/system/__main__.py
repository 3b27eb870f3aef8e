"""Make what these tests take long to make, beside other work: python -m tests.system.

It needs no more than Python. A test that wants one of them meanwhile waits for it.
"""

import shutil

from tests.system.checkout import kernel_package
from tests.system.machine import make_base, why_not

if __name__ == "__main__":
    if why_not() is None:
        make_base()
    if shutil.which("apt-get") is not None:
        kernel_package()
