"""Starts the service on a socket, and stops it so that every accepted request has its answer."""

import asyncio
import contextlib
import logging
import socket
import ssl
from _thread import start_new_thread
from collections.abc import Iterator
from functools import partial

import uvicorn
import uvloop

from edgelung.core.interrupts import stopping_on_signals
from edgelung.core.workers import Task
from edgelung.serving.access import Token
from edgelung.serving.app import Routes, make_app
from edgelung.serving.connection import GuardedProtocol
from edgelung.serving.exchange import Exchanges
from edgelung.serving.service import Service

# From the signal on: for half a second, requests on open connections are told that the service
# stops; after six, those that still wait are told too; before ten, the process has ended.
REFUSE_SECONDS = 0.5
ANSWER_SECONDS = 6.0
CLOSE_SECONDS = 1.0
END_SECONDS = 9.5
KEEP_ALIVE_SECONDS = 75  # as other servers: a connection that is closed sooner surprises clients


class Server(uvicorn.Server):
    """uvicorn's server, for one service and one socket. Any thread may call `stop`."""

    def __init__(
        self,
        service: Service,
        token: Token | None = None,
        tls: ssl.SSLContext | None = None,
        *,
        refuse_seconds: float = REFUSE_SECONDS,
    ) -> None:
        self._refuse_seconds = refuse_seconds
        self._service = service
        self._exchanges = Exchanges(service.limits)
        self._routes = Routes(service, self._exchanges)
        self._tls = tls
        checks_host = token is None and tls is None  # see `access.names_this_machine`
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # the app reports errors itself
        super().__init__(
            uvicorn.Config(
                make_app(service, self._routes, token, checks_host=checks_host),
                http=GuardedProtocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=int(ANSWER_SECONDS + CLOSE_SECONDS),
            )
        )

    def run_until_signal(self, bound: socket.socket) -> None:
        """Answer requests on a listening socket until SIGINT or SIGTERM, then close the service.

        For the main thread, which waits for signals while another one runs the event loop: so a
        signal is heard whatever the loop is doing.
        """
        loop = Task(partial(self.run_loop, bound))
        with stopping_on_signals(self.stop, END_SECONDS):
            start_new_thread(loop.run, ())
            try:
                loop.result()
            finally:
                self._service.close()

    def run_loop(self, bound: socket.socket) -> None:
        """Answer requests until `stop` was called."""
        uvloop.run(self.serve([bound]))

    def stop(self) -> None:
        """Answer what was accepted, then end `serve`."""
        self._routes.stopping = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept connections. In place of uvicorn's, which gives a TLS handshake 60 seconds."""
        limits = self._service.limits
        protocol = partial(
            GuardedProtocol,
            self.config,
            self.server_state,
            {},
            limits=limits,
            on_closed=self._service.metrics.connection_closed,
        )
        self.servers = [
            await asyncio.get_running_loop().create_server(
                protocol,
                sock=bound,
                backlog=self.config.backlog,
                ssl=self._tls,
                ssl_handshake_timeout=None if self._tls is None else limits.header_seconds,
            )
            for bound in sockets or ()
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Called by uvicorn once `stop` was called."""
        self._routes.stopping = True
        self._exchanges.deadlines.stop(ANSWER_SECONDS)
        for server in self.servers:
            server.close()
        await asyncio.sleep(self._refuse_seconds)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `run_until_signal`."""
        yield
