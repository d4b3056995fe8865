"""Limits on a connection before its request has arrived and after its answer.

uvicorn has no deadline for the header of a request, no limit on its bytes, and no deadline for a
client that does not read its answer. This adds them. A stalled client holds one connection until
its deadline, and nothing else.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from edgelung.serving.limits import Limits

LINGERING = 512  # refused connections that still send; beyond them, no refusal is sent
READ_BYTES = 256 * 1024  # asyncio hands over up to so many bytes at once
ANSWER = (
    "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n"
    "connection: close\r\n\r\n"
)
WRONG = "400 Bad Request"
TOO_LONG = "431 Request Header Fields Too Large"
SLOW = "408 Request Timeout"
FULL = "503 Service Unavailable"


class _Transport:
    """A connection whose `close` first lets the client finish: see `GuardedProtocol._close`."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self._transport, self._close = transport, close
        self._is_closing = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        """True once `close` was called."""
        return self._is_closing or self._transport.is_closing()

    def write(self, data: bytes) -> None:
        """Send, unless the connection closes."""
        if not self.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """Close, now or once the client has."""
        if not self.is_closing():
            self._is_closing = True
            self._close()


class GuardedProtocol(HttpToolsProtocol):
    """HTTP/1.1 with deadlines and limits. `on_closed` is told why a connection was closed."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
        on_closed: Callable[[str], None],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits, self._on_closed = limits, on_closed
        self._deadline: asyncio.TimerHandle | None = None  # of the header, or of a refused body
        self._write_deadline: asyncio.TimerHandle | None = None
        self._overhead = 0  # bytes of this request that are no body
        self._body = 0
        self._has_header = False  # of the newest request
        self._is_whole = True  # no request is half received
        self._discards = False  # refused: what the client still sends is not looked at

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the deadline of the header; refuse a connection beyond the limit."""
        super().connection_made(transport)
        self._connection = transport
        self.transport = _Transport(transport, self._close)  # type: ignore[assignment]
        if len(self.connections) > self._limits.connections + LINGERING:
            self._on_closed("connections")
            transport.abort()
        elif len(self.connections) > self._limits.connections and not self._close_idle():
            self._refuse(FULL, "too many connections; send it again later", "connections")
        else:
            self._start(self._limits.header_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines."""
        self._cancel()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse, then look at what the request holds."""
        if self._discards:
            return
        self._overhead += len(data)  # `on_body` takes away what is body
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._overhead > self._limits.header_bytes + READ_BYTES + self._body:
            self._refuse(TOO_LONG, "headers, chunk marks or trailers are too long", "header-bytes")
        elif self._is_idle() and self._deadline is None:
            self._start(self._limits.header_seconds)

    def on_message_begin(self) -> None:
        """A request begins with its first byte."""
        super().on_message_begin()
        self._overhead = self._body = 0
        self._has_header = self._is_whole = False

    def on_headers_complete(self) -> None:
        """From here on, the request has its own deadline."""
        length = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if length > self._limits.header_bytes:
            self._refuse(TOO_LONG, f"{length} bytes of headers", "header-bytes")
        if self.parser.should_upgrade() and self._has_body():  # httptools would skip the body
            message = "found Upgrade and a body; expected HTTP/1.1 without Upgrade"
            self._refuse(WRONG, message, "bad-http")
        if len(self.pipeline) >= self._limits.pipelined:
            self._take_no_more()
        if self._discards or self.transport.is_closing():
            raise ConnectionAbortedError  # the parser stops here
        self._has_header = True
        self._cancel()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count what is body; uvicorn keeps it, or drops it once the request is answered."""
        self._overhead -= len(body)
        self._body += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is received as a whole."""
        self._is_whole = True
        self._cancel()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give the rest of a body that was refused a deadline, or of the next header."""
        super().on_response_complete()
        if self._is_idle() and not (self._is_whole or self.transport.is_closing()):
            limits = self._limits
            self._start(limits.linger_seconds if self._has_header else limits.header_seconds)

    def eof_received(self) -> bool:  # type: ignore[override]
        """A client that sends no more may still wait for its answer."""
        waits = self._is_whole and not self._is_idle() and self._connection.can_write_eof()
        if waits:
            self.cycle.keep_alive = False
        return waits

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, unless it has another one already."""
        self._refuse(WRONG, "this is no HTTP/1.1 request", "bad-http")

    def pause_writing(self) -> None:
        """The client does not read: wait, but not for ever."""
        super().pause_writing()
        self._write_deadline = self.loop.call_later(self._limits.write_seconds, self._abort)

    def resume_writing(self) -> None:
        """The client reads again."""
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None
        super().resume_writing()

    def _has_body(self) -> bool:
        """True if the header of the newest request says that a body follows."""
        return any(
            name == b"transfer-encoding" or (name == b"content-length" and value.strip(b"0"))
            for name, value in self.headers
        )

    def _is_idle(self) -> bool:
        """True if no request waits for an answer."""
        return self.cycle is None or self.cycle.response_complete

    def _start(self, seconds: float) -> None:
        self._cancel()
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _cancel(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        """The deadline has passed."""
        self._deadline = None
        if self.transport.is_closing() or self._has_header:
            self._abort()
        else:
            self._refuse(SLOW, "the header of the request did not come in time", "slow-header")

    def _abort(self) -> None:
        self._on_closed("slow-client")
        self._connection.abort()

    def _refuse(self, status: str, message: str, reason: str) -> None:
        """Answer without the app, and close."""
        if self._discards or self.transport.is_closing():
            return
        self._on_closed(reason)
        if self._is_idle():  # otherwise it would be taken for the answer to another request
            body = f'{{"error": "{message}"}}'
            head = ANSWER.format(status=status, length=len(body))
            self.transport.write(f"{head}{body}".encode())
        self._is_whole = False
        self.transport.close()

    def _close_idle(self) -> bool:
        """Close one connection that waits for no answer and sends nothing; False if none does."""
        for other in self.connections:
            if isinstance(other, GuardedProtocol) and other._is_idle() and other._is_between():
                self._on_closed("idle")
                other.transport.close()
                return True
        return False

    def _is_between(self) -> bool:
        """True after a request and before the next one."""
        return self._has_header and self._is_whole and not self.transport.is_closing()

    def _take_no_more(self) -> None:
        """Answer the requests that wait in this connection, drop what follows, and close."""
        self._on_closed("pipelined")
        self._discards, self._is_whole = True, False
        newest, _ = self.pipeline[0]
        newest.keep_alive = False

    def _close(self) -> None:
        """Close the connection, at the latest at a deadline.

        While the client still sends, closing would reset the connection, and the client would not
        see its answer. So first only this side is closed, and what still comes is dropped.
        """
        if self._is_whole or not self._connection.can_write_eof():  # TLS cannot close one side
            self._connection.close()
        else:
            self._discards = True
            self.flow.resume_reading()
            self._connection.write_eof()
        self._start(self._limits.linger_seconds)
