"""System calls on descriptors that somebody else chose, each of which may block for ever.

close() waits for the linger time of a TCP socket, for the server of a FUSE file, and frees the
pages of a memfd; F_ADD_SEALS waits for whoever else fills the same memfd. The same goes for what
lies unread in a unix socket, and for descriptors that the kernel passes on where there is no room
for them: it closes those on the thread that receives. So all of them are received, and closed in
threads: a few of each sender, so that nobody else waits for one that hangs.

What waits for nothing is F_GET_SEALS, which is about memfds alone, and fstat() of a memfd.
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

#: Threads of one sender; those that hang stay until the kernel lets them go.
_THREADS: Final = 4
#: Bytes of a memfd that are freed in no time.
_LIGHT: Final = 16 << 20
#: Seconds for the last resort.
_BRIEFLY: Final = 0.001
#: All that one message can bring: the kernel would close on this thread what there is no room for.
_ANCILLARY_SPACE: Final = ancillary_space(MOST_DESCRIPTORS)
_NOTHING: Final = bytes(struct.calcsize("=i"))
#: A plain number: arithmetic on a flag of the standard library costs more than the receiving.
_TRUNCATED: Final = int(socket.MSG_CTRUNC)
_RECEIVE: Final = int(socket.MSG_CMSG_CLOEXEC)

Result = TypeVar("Result")


def accept_descriptors_inline(sock: socket.socket | trio.socket.SocketType) -> None:
    """Have descriptors beside urgent data received: else the kernel closes them while we read."""
    with contextlib.suppress(OSError):  # EOPNOTSUPP: no urgent data either
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


class ForeignDescriptors:
    """The descriptors that one user sent, or all backends, from their arrival to their end.

    Args:
        most: how many there may be before no more are received. One message may exceed it.

    """

    def __init__(self, most: int) -> None:
        self._most = most
        #: Those that came and are not closed, and sockets that wait to be closed.
        self.held = 0
        self._jobs: deque[Callable[[], None]] = deque()
        self._threads = 0
        self._lock = threading.Lock()

    @property
    def is_full(self) -> bool:
        """Whether there are as many as may be, so that no more may be received."""
        return self.held >= self._most

    @property
    def is_stuck(self) -> bool:
        """Whether twice as many are left: connections that cannot be closed."""
        return self.held >= 2 * self._most

    def receive(self, sock: socket.socket, size: int) -> tuple[bytes, list[int]]:
        """Receive bytes, and the descriptors beside them, which are the caller's to close here.

        Raises:
            CallError: BUSY: descriptors would come, and there are as many as may be; the connection
                is of no use from here on.
            CallError: TOO_LARGE: there was no descriptor left for them.
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
        if not ancillary:
            return received, []
        descriptors = received_descriptors(ancillary)
        self.came(len(descriptors))
        if flags & _TRUNCATED:
            for descriptor in descriptors:
                self.close(descriptor)
            raise CallError(ErrorCode.TOO_LARGE, "the daemon has no room for these descriptors")
        return received, descriptors

    def came(self, count: int) -> None:
        """Count descriptors that were received; :meth:`close` is for each."""
        with self._lock:
            self.held += count

    def close(self, descriptor: int) -> None:
        """Close a descriptor that came, now if that cannot block; from any thread."""
        if _is_light(descriptor):
            self._close(descriptor)
        else:
            self._start(functools.partial(self._close, descriptor))

    def close_socket(self, sock: socket.socket | trio.socket.SocketType) -> None:
        """Close a connected unix socket of the daemon's own, whatever lies unread in it."""
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
        """Return what a function returns that does something to a descriptor.

        Args:
            function: is called in a thread, sooner or later, even where nobody waits any more.
            give_up: is called there with its result where nobody does.
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
        except RuntimeError:  # there are no more threads to be had: the next job tries again
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
        with contextlib.suppress(OSError):  # what a file system says of a file that it lost
            os.close(descriptor)
        self._gone()

    def _gone(self) -> None:
        with self._lock:
            self.held -= 1


class _Call(Generic[Result]):
    """A function for a thread, and a task that waits for its result, or does so no more."""

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
            if self._is_awaited:
                self._result = result
        if self._result is not result:
            self._drop(result)
            return
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self.done.set)

    def take(self) -> Result:
        """Return the result, or raise it."""
        assert self._result is not None
        result, self._result, self._is_awaited = self._result, None, False
        return result.unwrap()

    def abandon(self) -> None:
        """Wait no more; a result that was not taken is given up."""
        with self._lock:
            result, self._result, self._is_awaited = self._result, None, False
        if result is not None:
            self._drop(result)

    def _drop(self, result: outcome.Outcome[Result]) -> None:
        if isinstance(result, outcome.Value):
            self._give_up(result.value)


def _close_briefly(descriptor: int) -> None:
    """Close what there is no place for to wait, on this thread: a signal ends what it waits for."""
    handler = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, _BRIEFLY, _BRIEFLY)
    try:
        os.close(descriptor)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)


@functools.cache
def _memory_device() -> int:
    """Return the number of the device that all memfds are on, but those of huge pages."""
    descriptor = os.memfd_create("vuserd-look", os.MFD_CLOEXEC)
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def _is_light(descriptor: int) -> bool:
    """Tell whether it is a memfd with little to free; a file of a tmpfs may be the last of that."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        status = os.fstat(descriptor)
        return status.st_dev == _memory_device() and status.st_blocks * 512 <= _LIGHT
    except OSError:
        return False
