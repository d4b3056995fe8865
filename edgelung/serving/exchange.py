"""One request from its body to its refusal: limits, deadline, decompression."""

import asyncio
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from edgelung.core.errors import one_line
from edgelung.serving.limits import FREE_BYTES, MIB, Deadlines, HeldBytes, Holding, Limits
from edgelung.serving.refusal import Refusal, bad_request, too_large, unavailable

Handler = Callable[[Request, bytes], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]
_WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}


class Exchanges:
    """Reads the bodies of requests within the limits, and answers in time."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.held = HeldBytes(limits.held_bytes)
        self.deadlines = Deadlines(limits.seconds)

    def posted(self, handler: Handler, check: Callable[[], None]) -> Endpoint:
        """An endpoint that reads the body and calls the handler, both within one deadline.

        `check` raises Refusal if the body need not be read at all.
        """

        async def endpoint(request: Request) -> Response:
            is_read = False
            try:
                async with self.deadlines.of_request():
                    check()
                    async with self._body(request) as body:
                        is_read = True
                        return await handler(request, body)
            except TimeoutError as error:
                if is_read:
                    raise unavailable("no answer in time; send it again later") from error
                raise Refusal(408, "the body of the request did not come in time") from error
            except ClientDisconnect:  # nobody reads this
                return Response(status_code=400)

        return endpoint

    @asynccontextmanager
    async def _body(self, request: Request) -> AsyncIterator[bytes]:
        """The body, decompressed. Its bytes count as held until the context ends."""
        limit = self._limits.body_bytes
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding not in ("", "identity", *_WINDOW_BITS):
            raise Refusal(
                415,
                f"the body is encoded as {one_line(encoding, 40)}; expected gzip, deflate or none",
            )
        stated = request.headers.get("content-length", "")
        if stated.isdecimal() and int(stated) > limit:
            raise _too_long(limit)
        with self.held.of_request() as holding:
            body = bytearray()
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise _too_long(limit)
                holding.add(len(chunk))
                body += chunk
            data = bytes(body)
            del body
            if encoding in _WINDOW_BITS:
                data = await self._decompressed(data, _WINDOW_BITS[encoding], holding)
            yield data

    async def _decompressed(self, data: bytes, window_bits: int, holding: Holding) -> bytes:
        """Decompress a body, on another thread."""
        limit = self._limits.body_bytes
        for most in sorted({min(FREE_BYTES, limit), limit}):
            if most > FREE_BYTES:
                holding.add(most)  # the size is known only afterwards
            found = await asyncio.to_thread(_decompress, data, window_bits, most)
            if found is not None:
                return found
        raise _too_long(limit)


def _decompress(data: bytes, window_bits: int, most: int) -> bytes | None:
    """Decompress; None for more than `most` bytes. Raises Refusal for damaged data."""
    inflater = zlib.decompressobj(window_bits)
    try:
        found = inflater.decompress(data, most + 1)
    except zlib.error as error:
        raise bad_request(f"the body cannot be decompressed: {one_line(error)}") from error
    if len(found) > most:
        return None
    if not inflater.eof or inflater.unused_data:
        raise bad_request("the compressed body is cut off, or other bytes follow it")
    return found


def _too_long(limit: int) -> Refusal:
    return too_large(f"the body is longer than {limit / MIB:g} MiB, the limit (--max-mb)")


def refused(refusal: Refusal) -> Response:
    """The answer to a request that is refused."""
    return JSONResponse({"error": refusal.message}, refusal.status, refusal.headers)
