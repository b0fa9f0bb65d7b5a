"""Frames between two processes of one verifier: all that is put within a turn of the event loop travels as one.

A frame is its length and a pickled list of messages, tuples whose first element is their kind. Both ends are the same
code of the same user on a socket that one has inherited from the other, so that what comes is trusted.
"""

import asyncio
import logging
import pickle
import select
import socket
from collections.abc import Callable, Mapping
from struct import Struct
from typing import Any, Final

logger = logging.getLogger(__name__)

Message = tuple[Any, ...]

MAX_UNSENT_BYTES: Final = 64 * 2**20
"""What may wait for the other end to read."""

_HEAD: Final = Struct("!I")
_READ_BYTES: Final = 2**18
_FINISH_S: Final = 5.0


class FrameLink:
    """One end of a socket pair.

    Args:
        connection: this end; the link closes it.
        handlers: called with the rest of each message, by its kind; may be replaced between frames.
        on_end: called once with the reason: the other end is gone, does not read, or sent what cannot be carried out.
        waits: what to do when the other end reads too slowly: hold up this process, or take it for lost.
        max_unsent_bytes: what may wait until then.
    """

    def __init__(
        self,
        connection: socket.socket,
        handlers: Mapping[str, Callable[..., object]],
        on_end: Callable[[str], object],
        *,
        waits: bool,
        max_unsent_bytes: int = MAX_UNSENT_BYTES,
    ) -> None:
        self._socket = connection
        self.handlers = handlers
        self._on_end = on_end
        self._waits = waits
        self._max_unsent_bytes = max_unsent_bytes
        self._loop = asyncio.get_running_loop()
        self._messages: list[Message] = []
        self._unsent = bytearray()
        self._received = bytearray()
        self._is_ended = False
        connection.setblocking(False)
        self._loop.add_reader(connection, self._read)

    def put(self, message: Message) -> None:
        """Sends a message at the end of this turn of the loop; one to an end that is gone is dropped."""
        if not self._messages:
            self._loop.call_soon(self._flush)
        self._messages.append(message)

    def finish(self) -> None:
        """Sends what there is and closes; waits some seconds for the other end if it must."""
        self._on_end = lambda reason: None
        self._flush()
        if not self._is_ended:
            self._socket.settimeout(_FINISH_S)
            try:
                self._socket.sendall(self._unsent)
            except OSError as error:
                logger.warning("the last messages were not taken: %s", error)
            self._end("finished")

    def close(self) -> None:
        """Takes and sends nothing more; nobody is told."""
        self._on_end = lambda reason: None
        self._end("closed")

    def _flush(self) -> None:
        if not self._messages:
            return
        data = pickle.dumps(self._messages, pickle.HIGHEST_PROTOCOL)
        self._messages = []
        if self._is_ended:
            return
        is_first = not self._unsent
        self._unsent += _HEAD.pack(len(data))
        self._unsent += data
        if is_first:
            self._send()
            if self._unsent:
                self._loop.add_writer(self._socket, self._send)
        while len(self._unsent) > self._max_unsent_bytes:
            if not self._waits:
                self._end(f"it has left more than {self._max_unsent_bytes} bytes unread")
                return
            poll = select.poll()
            poll.register(self._socket, select.POLLOUT)
            poll.poll()
            self._send()

    def _send(self) -> None:
        try:
            num_sent = self._socket.send(self._unsent)
        except BlockingIOError:
            return
        except OSError:  # it is gone; reading tells so, once what it has said before is taken
            num_sent = len(self._unsent)
        del self._unsent[:num_sent]
        if not self._unsent:
            self._loop.remove_writer(self._socket)

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end(f"it can no longer be read from: {error.strerror}")
            return
        if not data:
            self._end("it has closed its end")
            return
        received = self._received
        received += data
        begin = 0
        while len(received) - begin >= _HEAD.size and not self._is_ended:
            first = begin + _HEAD.size
            last = first + _HEAD.unpack_from(received, begin)[0]
            if last > len(received):
                break
            with memoryview(received) as view, view[first:last] as frame:
                messages = pickle.loads(frame)
            begin = last
            self._obey(messages)
        del received[:begin]

    def _obey(self, messages: list[Message]) -> None:
        handlers = self.handlers
        try:
            for message in messages:
                handlers[message[0]](*message[1:])
        except Exception as error:
            logger.exception("a message between processes could not be carried out")
            self._end(f"what it says cannot be carried out: {error!r}")

    def _end(self, reason: str) -> None:
        if self._is_ended:
            return
        self._is_ended = True
        self._loop.remove_reader(self._socket)
        self._loop.remove_writer(self._socket)
        self._socket.close()
        self._on_end(reason)
