"""HTTP/1.1 with time limits: the server waits `PATIENCE_S` seconds for a client, and for few clients at once.

It waits for a client that has not sent a complete request (headers and body), or does not read the answer. uvicorn would wait for
ever and count such connections as work, so a thousand of them would keep all others out.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE_S = 15.0
MAX_WAITING = 256  # connections; one more closes the one that has been waited for longest

_TOO_LATE = b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


class PatientProtocol(H11Protocol):
    """One connection."""

    patience_s = PATIENCE_S
    max_waiting = MAX_WAITING

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.waited_since: float | None = None  # by the loop's clock; None: the next move is the server's
        self._timer: asyncio.TimerHandle | None = None
        self._unread = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._look()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._look()

    def pause_writing(self) -> None:
        self._unread = True
        super().pause_writing()
        self._look()

    def resume_writing(self) -> None:
        self._unread = False
        super().resume_writing()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._go_on()
        super().connection_lost(exc)

    def give_up(self) -> None:
        """Close a connection that was waited for."""
        self._go_on()
        if not self._unread and self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(_TOO_LATE)
            self.transport.close()
        else:
            self.transport.abort()

    def _look(self) -> None:
        """Begin to count when the next move is the peer's, and stop when it is not."""
        if self.transport.is_closing() or not (self._unread or self.conn.their_state in (h11.IDLE, h11.SEND_BODY)):
            return self._go_on()
        if self._timer is None:
            self.waited_since = self.loop.time()
            self._timer = self.loop.call_later(self.patience_s, self.give_up)
            waiting = [(one.waited_since, one) for one in self.connections if isinstance(one, PatientProtocol) and one.waited_since]
            if len(waiting) > self.max_waiting:
                min(waiting, key=lambda pair: pair[0])[1].give_up()
        return None

    def _go_on(self) -> None:
        self.waited_since = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
