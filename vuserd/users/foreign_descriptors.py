"""Make system calls on descriptors that another process chose; each may block for ever.

close() waits for the linger time of a TCP socket or for the server of a FUSE file, and frees the
pages of a memfd; F_ADD_SEALS waits for another process that fills the same memfd. Closing a unix
socket closes the descriptors that lie unread in it, and where a receiver has no room for
descriptors the kernel closes them on the receiving thread. So all descriptors are received, and
closed in threads: a few for each sender, so that one that hangs delays only its own sender.

Two calls never wait: F_GET_SEALS, which is for memfds alone, and fstat() of a memfd.
"""

import contextlib
import fcntl
import functools
import os
import signal
import socket
import struct
import termios
import threading
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import outcome
import trio

from vuserd.errors import CallError, ErrorCode
from vuserd.wire.descriptors import MOST_DESCRIPTORS, ancillary_space, received_descriptors

#: Threads for each sender; a thread that hangs stays until the kernel lets it go.
_THREADS: Final = 4
#: Bytes of a memfd that can be freed on the daemon's thread.
_LIGHT: Final = 16 << 20
#: Seconds between the signals that interrupt a close() of the last resort.
_BRIEFLY: Final = 0.001
#: Room for all that one message can bring: the kernel would close the rest on this thread.
_ANCILLARY_SPACE: Final = ancillary_space(MOST_DESCRIPTORS)
_NOTHING: Final = bytes(struct.calcsize("=i"))
#: A plain number: arithmetic on a flag of the standard library costs more than receiving.
_TRUNCATED: Final = int(socket.MSG_CTRUNC)
_RECEIVE: Final = int(socket.MSG_CMSG_CLOEXEC)

Result = TypeVar("Result")


def accept_descriptors_inline(sock: socket.socket | trio.socket.SocketType) -> None:
    """Receive descriptors beside urgent data too, which the kernel would close as we read."""
    with contextlib.suppress(OSError):  # EOPNOTSUPP: no urgent data either
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


class ForeignDescriptors:
    """The descriptors that one user, or all backends, sent: from arrival until closed.

    Args:
        most: how many there may be before no more are received. One message may exceed it.

    """

    def __init__(self, most: int) -> None:
        self._most = most
        #: Descriptors that came and are not closed yet, and sockets that wait to be closed.
        self.held = 0
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._lock = threading.Lock()

    @property
    def is_stuck(self) -> bool:
        """Whether twice the limit is reached: connections pile up that cannot be closed."""
        return self.held >= 2 * self._most

    def receive(self, sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
        """Receive bytes and the descriptors beside them, which the caller closes by :meth:`close`.

        Raises:
            CallError: BUSY: descriptors would come, but the limit is reached; the connection is of
                no use from here on.
            CallError: TOO_LARGE: the process had no descriptor left for them.
            OSError: as recvmsg() does.

        """
        if self.held >= self._most:
            waiting, _, flags, _ = sock.recvmsg(size, 0, socket.MSG_PEEK)
            if flags & _TRUNCATED:
                raise CallError(
                    ErrorCode.BUSY,
                    f"the daemon has {self.held} descriptors of this user's, and takes no more"
                    " before it is rid of some",
                    limit=self._most,
                )
            size = len(waiting) or 1
        received, ancillary, flags, _ = sock.recvmsg(size, _ANCILLARY_SPACE, _RECEIVE)
        if not ancillary and not flags & _TRUNCATED:
            return received, []
        descriptors = received_descriptors(ancillary)
        self.came(len(descriptors))
        if flags & _TRUNCATED:
            for descriptor in descriptors:
                self.close(descriptor)
            raise CallError(ErrorCode.TOO_LARGE, "the daemon has no room for these descriptors")
        return received, descriptors

    def came(self, count: int) -> None:
        """Count descriptors that were received; each has to be closed by :meth:`close`."""
        with self._lock:
            self.held += count

    def close(self, descriptor: int) -> None:
        """Close a received descriptor, at once if that cannot block. Any thread may call this."""
        if _is_light(descriptor):
            self._close(descriptor)
        else:
            self._start(functools.partial(self._close, descriptor))

    def close_socket(self, sock: socket.socket | trio.socket.SocketType) -> None:
        """Close a connected unix socket of the daemon, whatever lies unread in it."""
        trio.lowlevel.notify_closing(sock.fileno())
        with contextlib.suppress(OSError):  # ENOTCONN
            sock.shutdown(socket.SHUT_RDWR)  # so that nothing more comes
        descriptor = sock.detach()
        if fcntl.ioctl(descriptor, termios.FIONREAD, _NOTHING) == _NOTHING:
            os.close(descriptor)
            return
        if self.held >= 3 * self._most:
            _close_briefly(descriptor)
            return
        self.came(1)
        self._start(functools.partial(self._close, descriptor))

    async def call(
        self,
        function: Callable[[], Result],
        give_up: Callable[[Result], None],
        seconds: float,
    ) -> Result:
        """Run a function that makes system calls on a descriptor, in a thread; return its result.

        Args:
            function: called sooner or later, even if the caller has stopped waiting by then.
            give_up: called with the result, in that thread, if the caller has stopped waiting.
            seconds: how long to wait.

        Raises:
            CallError: TIMEOUT.
            Exception: what the function raises.

        """
        job = _Call(function, give_up)
        self._start(job)
        try:
            with trio.fail_after(seconds):
                await job.done.wait()
            return job.take()
        except trio.TooSlowError:
            raise CallError(
                ErrorCode.TIMEOUT,
                f"what is done to a descriptor of this user's takes longer than {seconds:g} s",
            ) from None
        finally:
            job.abandon()

    def _start(self, job: Callable[[], None]) -> None:
        with self._lock:
            self._jobs.append(job)
            if self._threads >= _THREADS:
                return
            self._threads += 1
        try:
            trio.lowlevel.start_thread_soon(self._work, outcome.Outcome.unwrap, "vuserd-foreign")
        except RuntimeError:  # no thread can be started now: the next job tries again
            with self._lock:
                self._threads -= 1

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._jobs:
                    self._threads -= 1
                    return
                job = self._jobs.popleft()
            job()

    def _close(self, descriptor: int) -> None:
        with contextlib.suppress(OSError):  # a file system's last error about a file that it lost
            os.close(descriptor)
        self._gone()

    def _gone(self) -> None:
        with self._lock:
            self.held -= 1


class _Call(Generic[Result]):
    """A function to run in a thread, and the task that waits for its result or has given up."""

    def __init__(self, function: Callable[[], Result], give_up: Callable[[Result], None]) -> None:
        self.done = trio.Event()
        self._function = function
        self._give_up = give_up
        self._token = trio.lowlevel.current_trio_token()
        self._lock = threading.Lock()
        self._result: outcome.Outcome[Result] | None = None
        self._is_awaited = True

    def __call__(self) -> None:
        """Call the function, in a thread."""
        result = outcome.capture(self._function)
        with self._lock:
            is_awaited = self._is_awaited
            if is_awaited:
                self._result = result
        if not is_awaited:
            self._drop(result)
            return
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.done.set)

    def take(self) -> Result:
        """Return the function's result, or raise its exception."""
        assert self._result is not None
        result, self._result, self._is_awaited = self._result, None, False
        return result.unwrap()

    def abandon(self) -> None:
        """Stop waiting; a result that was not taken is passed to ``give_up``."""
        with self._lock:
            result, self._result, self._is_awaited = self._result, None, False
        if result is not None:
            self._drop(result)

    def _drop(self, result: "outcome.Outcome[Result]") -> None:
        if isinstance(result, outcome.Value):
            self._give_up(result.value)


def _close_briefly(descriptor: int) -> None:
    """Close a descriptor on this thread, as a last resort: signals interrupt a close that waits."""
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, _BRIEFLY, _BRIEFLY)
    try:
        os.close(descriptor)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@functools.cache
def _memory_device() -> int:
    """Return the device number of all memfds but those of huge pages."""
    descriptor = os.memfd_create("vuserd-look", os.MFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def _is_light(descriptor: int) -> bool:
    """Return whether it is a memfd with little to free.

    A file on another tmpfs is not: closing it may free that whole file system.
    """
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        status = os.fstat(descriptor)
        return status.st_dev == _memory_device() and status.st_blocks * 512 <= _LIGHT
    except OSError:
        return False
