"""The clients' core and records, without a socket."""

from typing import Any, Final

import msgpack
import pytest

from tests.fake.rpc_server import Node
from vuserd.client import calls
from vuserd.client.core.connection import ClientCore
from vuserd.client.core.replies import ReplyDecoder
from vuserd.client.core.ticket import Ticket
from vuserd.client.errors import (
    BadReply,
    ConnectionLost,
    NotTaken,
    RemoteError,
)
from vuserd.client.records import Backend, ExportInfo
from vuserd.wire.address import (
    SYSTEM_SOCKET,
    Candidate,
    socket_address,
    socket_candidates,
    to_sockaddr,
)
from vuserd.wire.codec import (
    NEED_DATA,
    FramingError,
    Response,
    encode_notification,
    encode_request,
    encode_response,
    encode_response_of,
)


def receive(core: ClientCore, data: bytes) -> list[Ticket[Any]]:
    """Hand ``data`` to the core as a socket would."""
    done = []
    while data:
        buffer = core.receive_buffer()
        count = min(len(buffer), len(data))
        buffer[:count] = data[:count]
        data = data[count:]
        done += core.received(count)
    return done


def guesses(*addresses: str) -> tuple[Candidate, ...]:
    return tuple(Candidate(address, is_guessed=True) for address in addresses)


class TestAddress:
    def test_order(self) -> None:
        environ = {"VUSERD_SOCKET": "/v", "XDG_RUNTIME_DIR": "/run/user/1"}
        assert socket_candidates("/e", environ) == (Candidate("/e", is_guessed=False),)
        assert socket_candidates(None, environ) == (Candidate("/v", is_guessed=False),)
        del environ["VUSERD_SOCKET"]
        users = "/run/user/1/vuserd.sock"
        assert socket_candidates(None, environ) == guesses("@vuserd", users, SYSTEM_SOCKET)
        assert socket_candidates(None, {}) == guesses("@vuserd", SYSTEM_SOCKET)
        assert socket_address(None, environ) == "/run/user/1/vuserd.sock"
        assert socket_address(None, {}) == SYSTEM_SOCKET
        assert socket_address(None, {"VUSERD_SOCKET": ""}) == SYSTEM_SOCKET

    def test_abstract(self) -> None:
        assert to_sockaddr("@vuserd") == "\0vuserd"
        assert to_sockaddr("/run/x") == "/run/x"


RIG = {"netns": "lab", "socket": "@vuserd", "state": "failed", "exports": [], "clients": 0}
API = {"version": "1", "api_level": 1, "api_compatible": 1, "methods": [], "errors": []}


class TestCore:
    def test_replies_in_any_order_and_any_pieces(self) -> None:
        core = ClientCore()
        tickets = [core.begin(calls.readlink("k", str(n))) for n in range(3)]
        size = len(core.outgoing)
        core.outgoing.sent(3)
        assert len(core.outgoing) == size - 3
        frames = b"".join(encode_response(t.msgid, None, f"to {t.msgid}") for t in tickets[::-1])
        done: list[Ticket[Any]] = []
        for byte in frames:
            done += receive(core, bytes([byte]))
        assert done == tickets[::-1]
        assert [t.result() for t in tickets] == [f"to {t.msgid}" for t in tickets]

    @pytest.mark.parametrize("piece", [1, 2, 7, 13, 1000])
    def test_payloads_go_straight_to_their_buffers(self, piece: int) -> None:
        core = ClientCore()
        buffers = [bytearray(10), bytearray(10), bytearray(10)]
        reads = [core.begin(calls.read_into("k", "f", 0, buffer)) for buffer in buffers]
        link = core.begin(calls.readlink("k", "l"))
        frames = (
            encode_response(reads[1].msgid, None, b"0123456789")
            + encode_response(link.msgid, None, "target")
            + encode_response(reads[0].msgid, None, b"")
            + encode_response(reads[2].msgid, None, b"abc")
        )
        for start in range(0, len(frames), piece):
            receive(core, frames[start : start + piece])
        assert [read.result() for read in reads] == [0, 10, 3]
        assert buffers[1] == b"0123456789"
        assert buffers[2][:3] == b"abc"
        assert link.result() == "target"
        buffers[1].clear()  # no view of it is left

    def test_the_buffer_itself_is_received_into(self) -> None:
        core = ClientCore()
        destination = bytearray(100_000)
        ticket = core.begin(calls.read_into("k", "f", 0, destination))
        frame = encode_response(ticket.msgid, None, bytes(100_000))
        assert len(core.receive_buffer()) == 13
        receive(core, frame[:13])
        assert core.in_payload
        view = core.receive_buffer()
        assert view.obj is destination
        assert len(view) == len(frame) - 13

    @pytest.mark.parametrize("arrived", [0, 5, 40, 80])
    def test_an_abandoned_payload_is_dropped(self, arrived: int) -> None:
        core = ClientCore()
        buffer = bytearray(80)
        ticket = core.begin(calls.read_into("k", "f", 0, buffer))
        other = core.begin(calls.readlink("k", "l"))
        frames = encode_response(ticket.msgid, None, b"x" * 80)
        receive(core, frames[:arrived])
        core.abandon(ticket)
        core.abandon(ticket)
        before = bytes(buffer)
        receive(core, frames[arrived:] + encode_response(other.msgid, None, "to"))
        assert other.result() == "to"
        assert bytes(buffer) == before
        buffer.clear()
        with pytest.raises(ConnectionLost, match="given up"):
            ticket.result()

    def test_an_abandoned_calls_error_is_dropped(self) -> None:
        core = ClientCore()
        ticket = core.begin(calls.read_into("k", "f", 0, bytearray(8)))
        core.abandon(ticket)
        assert receive(core, encode_response(ticket.msgid, {"code": "EIO"}, None)) == []
        assert core.begin(calls.status()).msgid != ticket.msgid

    def test_more_bytes_than_asked_for(self) -> None:
        core = ClientCore()
        ticket = core.begin(calls.read_into("k", "f", 0, bytearray(4)))
        other = core.begin(calls.readlink("k", "l"))
        receive(core, encode_response(ticket.msgid, None, b"12345"))
        receive(core, encode_response(other.msgid, None, "to"))
        with pytest.raises(BadReply, match="more bytes"):
            ticket.result()
        assert other.result() == "to"

    @pytest.mark.parametrize(("result", "good"), [(b"1234", True), (b"12345", False), (7, False)])
    def test_a_payload_of_another_encoders(self, result: Any, good: bool) -> None:
        core = ClientCore()
        buffer = bytearray(4)
        ticket = core.begin(calls.read_into("k", "f", 0, buffer))
        wide_msgid = b"\xcf" + ticket.msgid.to_bytes(8, "big")
        receive(core, b"\x94\x01" + wide_msgid + b"\xc0" + msgpack.packb(result))
        if good:
            assert ticket.result() == 4
            assert buffer == result
        else:
            with pytest.raises(BadReply):
                ticket.result()

    @pytest.mark.parametrize(
        "frame",
        [
            b"\xc1",
            b"\x05",
            encode_request(1, "m", []),
            encode_response(99, None, None),
        ],
    )
    def test_what_no_daemon_sends_ends_the_connection(self, frame: bytes) -> None:
        core = ClientCore()
        ticket = core.begin(calls.exports())
        assert receive(core, frame) == [ticket]
        with pytest.raises(ConnectionLost):
            ticket.result()
        with pytest.raises(NotTaken):
            core.begin(calls.exports()).result()

    def test_a_notification_is_passed_over(self) -> None:
        core = ClientCore()
        ticket = core.begin(calls.exports())
        receive(core, encode_notification("later", []) + encode_response(ticket.msgid, None, []))
        assert ticket.result() == []

    @pytest.mark.parametrize(
        ("call", "result"),
        [
            (calls.exports(), {}),
            (calls.exports(), [{"name": "k"}]),
            (calls.exports(), [5]),
            (calls.exports(), [{"name": "k", "state": "failed", "reason": 5}]),
            (calls.exports(), [{"name": "k", "state": "ready", "backend": "C"}]),
            *(
                (calls.exports(), [{"name": "k", "state": "ready", "backend": {"kind": "C"} | odd}])
                for odd in ({"version": 5}, {"pid": "5"}, {"generation": "1"})
            ),
            (calls.stat("k", ""), {}),
            (calls.stat("k", ""), None),
            (calls.stat("k", ""), Node().stat() | {"size": "1"}),
            (calls.stat("k", ""), Node().stat() | {"type": 1}),
            (calls.readlink("k", ""), 5),
            (calls.readdir("k", ""), {"entries": 5}),
            (calls.readdir("k", ""), {"entries": [{"name": "x", "type": 5, "ino": 1}]}),
            (calls.readdir("k", ""), []),
            (calls.readdir("k", ""), {"entries": [], "next": 1.5}),
            (calls.statfs("k"), {"blocks": 1}),
            (calls.status(), []),
            (calls.reload(), 5),
            (calls.reload("k"), [5]),
            (calls.rigs(), [{"netns": "lab"}]),
            (calls.rigs(), [{"netns": 5}]),
            (calls.rigs(), [RIG | {"reason": 5}]),
            (calls.api_info(), None),
            (calls.api_info(), API | {"methods": [5]}),
            (calls.load(1, 0, "k", "f"), {"length": -1}),
        ],
    )
    def test_an_answer_of_another_shape(self, call: calls.Call[Any], result: Any) -> None:
        core = ClientCore()
        ticket = core.begin(call)
        receive(core, encode_response(ticket.msgid, None, result))
        with pytest.raises(BadReply):
            ticket.result()

    def test_a_token_that_cannot_be_sent_back(self) -> None:
        core = ClientCore()
        ticket = core.begin(calls.readdir("k", ""))
        page = b"\x82\xa7entries\x90\xa4next\xa1\xff"
        receive(core, encode_response_of(ticket.msgid, page))
        with pytest.raises(BadReply, match="no text"):
            ticket.result()

    def test_what_may_be_missing(self) -> None:
        exported = calls.exports().decode(
            [{"name": "k", "state": "ready", "backend": {"kind": "C"}}]
        )
        assert exported == [ExportInfo("k", "ready", Backend("C", None, None, None), None)]
        assert calls.rigs().decode([RIG])[0].reason is None

    def test_a_call_with_its_own_time(self) -> None:
        assert calls.within(0.5, calls.statfs("k")).params == ["k", {"timeout": 0.5}]
        timed = calls.within(2, calls.stat("k", "f", follow=False))
        assert timed.params == ["k", "f", {"follow": False, "timeout": 2}]

    def test_an_answer_that_cannot_be_decoded(self) -> None:
        core = ClientCore()
        ticket = core.begin(calls.status())
        receive(core, msgpack.packb([1, ticket.msgid, None, {5: 5}]))
        with pytest.raises(
            ConnectionLost, match=r"not its protocol: not MessagePack: .*int.* is not"
        ):
            ticket.result()

    def test_result_before_it_is_there(self) -> None:
        with pytest.raises(RuntimeError):
            ClientCore().begin(calls.exports()).result()

    def test_msgids_come_round(self) -> None:
        core = ClientCore()
        core._next_msgid = 2**32 - 1
        tickets = [core.begin(calls.exports()) for _ in range(3)]
        core._next_msgid = tickets[0].msgid
        assert [t.msgid for t in [*tickets, core.begin(calls.exports())]] == [2**32 - 1, 0, 1, 2]

    def test_a_read_only_buffer(self) -> None:
        with pytest.raises(ValueError, match="read-only"):
            calls.read_into("k", "f", 0, memoryview(b"abc"))

    def test_errors_of_any_shape(self) -> None:
        error = RemoteError.from_wire({"code": "ENOENT", "message": "no such file", "errno": 2})
        assert (error.code, error.fields, str(error)) == (
            "ENOENT",
            {"errno": 2},
            "no such file (ENOENT)",
        )
        assert RemoteError.from_wire("oops").message == "oops"
        assert RemoteError.from_wire({}).code == "INTERNAL"


class TestLongReplies:
    """Those that are walked before objects are made of them."""

    LONG: Final = ["n" * 4000] * 2000

    @pytest.mark.parametrize("piece", [1 << 16, 1 << 20, 1 << 30])
    def test_one_between_others(self, piece: int) -> None:
        results = [[1], self.LONG, [2], self.LONG, [3]]
        stream = b"".join(encode_response(n, None, each) for n, each in enumerate(results))
        decoder, found = ReplyDecoder(), []
        for offset in range(0, len(stream), piece):
            decoder.feed(stream[offset : offset + piece])
            while (message := decoder.next_message()) is not NEED_DATA:
                assert isinstance(message, Response)
                found.append(message.result)
        assert found == results
        assert decoder.buffered == 0

    def test_an_array_longer_than_any_page(self) -> None:
        results = [list(range(1 << 14)), list(range((1 << 14) + 1)), [3]]
        decoder = ReplyDecoder()
        decoder.feed(b"".join(encode_response(n, None, each) for n, each in enumerate(results)))
        found = [decoder.next_message() for _ in results]
        assert found == [Response(n, None, each) for n, each in enumerate(results)]
        assert decoder.next_message() is NEED_DATA
        assert decoder.buffered == 0

    @pytest.mark.alike(0)
    def test_one_of_too_many_values(self) -> None:
        decoder = ReplyDecoder()
        maps = b"\xdc\x40\x00" + b"\x80" * (1 << 14)
        decoder.feed(b"\x94\x01\x01\xc0\xdc\x02\x00" + maps * 64)
        assert decoder.next_message() is NEED_DATA
        decoder.feed(maps * 256)
        for _ in range(2):
            with pytest.raises(FramingError, match="1048576 values at most"):
                decoder.next_message()
        assert decoder.buffered == 0
