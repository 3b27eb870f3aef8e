"""Memory that is lent to the daemon for the time that a file takes."""

from typing import NamedTuple, TypeVar

from vuserd.client import calls
from vuserd.client.calls import Call
from vuserd.client.core.conversation import Talk
from vuserd.client.core.procedure import Procedure
from vuserd.client.core.ticket import Carrier
from vuserd.client.errors import ClientError, RemoteError
from vuserd.client.files.transfer import NOT_LENT, Source, lent_places, lent_size
from vuserd.client.memory import SharedMemory

T = TypeVar("T")


class OpenFile(NamedTuple):
    """The file, open on one connection: on another one its number is that of another file."""

    source: Source
    talk: Talk
    core: Carrier

    def ask(self, call: Call[T]) -> Procedure[T]:
        """Do a call that is about it, which an error names, whatever the call says."""
        try:
            return (yield from self.talk.ask(call, self.core))
        except ClientError as error:
            if error.filename is None:
                error.filename = calls.filename_of(self.source.export, self.source.path)
            raise


class Loan:
    """Memory that is lent to the daemon for the chunks of a file."""

    def __init__(self, memory: SharedMemory, identifier: int) -> None:
        self._memory, self._identifier = memory, identifier
        with memoryview(memory.mapping()) as view:
            self.places = lent_places(identifier, view)

    def end(self, file: OpenFile) -> Procedure[None]:
        """Take it back from the daemon, and let go of it."""
        try:
            yield from file.talk.clean_up(calls.detach(self._identifier), file.core)
        finally:
            # An error's traceback may keep the places, and so all of the memory, for long.
            for place in self.places:
                place.view.release()
            self._memory.close()


def lend(file: OpenFile, size: int) -> Procedure[Loan | None]:
    """Lend memory to the daemon for ``size`` bytes of a file; None where there is no room."""
    room = lent_size(size)
    if room is None:
        return None
    try:
        memory = SharedMemory(None, room)
    except OSError:
        return None  # no descriptor or memory left here
    try:
        return (yield from _attach(file, memory))
    except BaseException as error:
        memory.close()
        if isinstance(error, RemoteError):
            if error.code in NOT_LENT:
                return None
        elif isinstance(error, OSError):
            return None  # likewise
        raise


def _attach(file: OpenFile, memory: SharedMemory) -> Procedure[Loan]:
    export, path, number = file.source
    identifier = yield from file.ask(
        calls.attach_for_transfer(memory.fileno(), memory.size, number)
    )
    try:  # its backend's room shows with this
        yield from file.ask(calls.load(identifier, 0, export, path, length=1, file=number))
        return Loan(memory, identifier)
    except BaseException:
        yield from file.talk.clean_up(calls.detach(identifier), file.core)
        raise
