"""``vuserd`` that ends with its parent: by SIGTERM, once its standard input is at its end.

The parent holds the other end of that pipe, and the kernel closes it however the parent ends.
"""

import os
import runpy
import signal
import threading


def _end_at_eof() -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_at_eof, daemon=True).start()
    runpy.run_module("vuserd", run_name="__main__", alter_sys=True)
