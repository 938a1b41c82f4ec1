"""Messages between the loop and the solver's process: a length, then the text; nobody ever waits for the other end.

To the solver they are marshalled, which is ten times as fast as JSON and good enough between two processes of one Python.
What comes back is JSON: a sick process may send anything, and reading it must do no harm.
"""

from __future__ import annotations

import json
import marshal
import os
import struct
from collections.abc import Callable
from typing import Any

_LENGTH = struct.Struct(">I")
_MOST_BYTES = 1 << 26
"""No plan is as long; who says so talks nonsense."""


class Garbage(Exception):
    """What came is no message."""


def to_solver(message: Any) -> bytes:
    """Give a message to the solver as bytes."""
    text = marshal.dumps(message)
    return _LENGTH.pack(len(text)) + text


def to_loop(message: Any) -> bytes:
    """Give a message to the loop as bytes.

    >>> to_loop([1])
    b'\\x00\\x00\\x00\\x03[1]'
    """
    text = json.dumps(message, separators=(",", ":")).encode()
    return _LENGTH.pack(len(text)) + text


class Inbox:
    """Messages as they come in pieces.

    Parameters
    ----------
    read
        What reads a text: `json.loads`, or `marshal.loads` in the solver's process.

    Examples
    --------
    >>> inbox = Inbox(json.loads)
    >>> inbox.feed(to_loop({"a": 1})[:5])
    []
    >>> inbox.feed(to_loop({"a": 1})[5:])
    [{'a': 1}]
    """

    def __init__(self, read: Callable[[bytes], Any]) -> None:
        self._bytes, self._read = bytearray(), read

    def feed(self, piece: bytes) -> list[Any]:
        """Take bytes in; give the messages that are complete.

        Raises
        ------
        Garbage
            If they are none.
        """
        self._bytes += piece
        found = []
        while len(self._bytes) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes)
            if length > _MOST_BYTES:
                raise Garbage(f"a message of {length} bytes")
            end = _LENGTH.size + length
            if len(self._bytes) < end:
                break
            try:
                found.append(self._read(bytes(self._bytes[_LENGTH.size : end])))
            except (ValueError, RecursionError) as error:
                raise Garbage(str(error)) from None
            del self._bytes[:end]
        return found


class Outbox:
    """Writes as much as a pipe takes, and keeps the rest.

    Parameters
    ----------
    descriptor
        Of a pipe that is not blocking.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._left = b""

    def put(self, message: bytes) -> None:
        """Write a message after what is left of the ones before."""
        self._left += message
        self.flush()

    def flush(self) -> None:
        """Go on writing.

        Raises
        ------
        OSError
            If the other end is gone.
        """
        while self._left:
            try:
                written = os.write(self._descriptor, self._left)
            except BlockingIOError:
                return
            self._left = self._left[written:]
