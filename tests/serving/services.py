"""Services for the tests: in a thread of this process, or started as a user starts them."""

import contextlib
import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgelung.artifacts.bundle import Bundle, open_bundle, starter_bundle
from edgelung.core.precision import Precision
from edgelung.engines.base import Engine, Output, Tiles
from edgelung.engines.choose import Chosen
from edgelung.inference.record import LabelRule
from edgelung.inference.session import LoadedEngines
from edgelung.serving import IMAGES_MODEL
from edgelung.serving.access import Token
from edgelung.serving.limits import Limits
from edgelung.serving.metrics import ServiceMetrics
from edgelung.serving.server import Server
from edgelung.serving.service import Service

SIZE = 224
WAIT = 60  # seconds for what is to happen: the machine may be busy


class FakeEngine:
    """Predicts by a tile's first pixel. It can be held, and fail on tiles of one value."""

    name, device, float_type = "fake", "CPU", "fp32"

    def __init__(self, concurrency: int = 1, fails_on: int | None = None) -> None:
        self.concurrency, self._fails_on = concurrency, fails_on
        self.batches: list[int] = []
        self.began = threading.Semaphore(0)  # released as each batch begins
        self.may_run = threading.Event()
        self.may_run.set()

    def infer(self, tiles: Tiles) -> Output:
        self.batches.append(len(tiles))
        self.began.release()
        assert self.may_run.wait(WAIT)
        first = tiles[:, 0, 0, 0]
        if self._fails_on is not None and (first == self._fails_on).any():
            raise RuntimeError("the engine cannot")
        probabilities = np.zeros((len(tiles), 3), np.float32)
        probabilities[:, 0] = first / 255
        probabilities[:, 1] = 1 - probabilities[:, 0]
        return Output(probabilities, np.ones(len(tiles), np.float32))

    def close(self) -> None:
        pass


def loaded(engine: Engine, bundle: Bundle, batch_size: int = 16) -> LoadedEngines:
    chosen = Chosen(engine, bundle.variants[Precision.INT8], "for a test", 0.0)
    return LoadedEngines(chosen, None, batch_size, 2)


def tile(value: int) -> Tiles:
    """One tile of noise whose first pixel is `value`: a plain one would be blank."""
    pixels = np.random.default_rng(value).integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
    pixels[0, 0, 0] = value
    return pixels


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Running:
    """A service that answers on a port of this machine."""

    port: int
    service: Service | None = None
    server: Server | None = None
    tls: ssl.SSLContext | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def connect(self) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection(
                "127.0.0.1", self.port, timeout=WAIT, context=self.tls
            )
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own; `_` in the name of a header is `-`."""
        connection = self.connect()
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            return read_answer(connection)
        finally:
            connection.close()

    def send(self, data: bytes, *, end: bool = False) -> bytes:
        """Send bytes as they are; everything that comes back until the service closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT) as client:
            received = b""
            with contextlib.suppress(OSError):  # it has closed while this was sending
                client.sendall(data)
                if end:
                    client.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while part := client.recv(65536):
                    received += part
            return received

    def metric(self, line: str) -> float:
        """The value of a line of /metrics; 0 if it is not there."""
        for found in self.ask("GET", "/metrics").body.decode().splitlines():
            if found.startswith(line + " "):
                return float(found.rpartition(" ")[2])
        return 0


def read_answer(connection: http.client.HTTPConnection) -> Answer:
    response = connection.getresponse()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Answer(response.status, headers, response.read())


@contextmanager
def serving(
    engine: Engine | None = None,
    limits: Limits | None = None,
    token: Token | None = None,
    tls: ssl.SSLContext | None = None,
    client_tls: ssl.SSLContext | None = None,
    batch_size: int = 16,
    rule: LabelRule | None = None,
    refuse_seconds: float = 0,
) -> Iterator[Running]:
    """A service in a thread, with a fake engine and the real reader."""
    bundle = open_bundle(starter_bundle())
    service = Service(
        bundle,
        loaded(engine or FakeEngine(), bundle, batch_size),
        rule or LabelRule(),
        IMAGES_MODEL,
        limits or Limits(),
        ServiceMetrics(),
    )
    server = Server(service, token, tls, refuse_seconds=refuse_seconds)
    bound = socket.create_server(("127.0.0.1", 0))
    running = Running(bound.getsockname()[1], service, server, client_tls)

    def run() -> None:
        server.run_loop(bound)
        running.ended.set()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        server.stop()
        thread.join(WAIT)
        service.close()
        bound.close()


PROGRAM = [sys.executable, "-m", "edgelung", "serve"]


@contextmanager
def process(*words: str) -> Iterator[tuple[Running, "subprocess.Popen[str]"]]:
    """`edgelung serve` as a user starts it, on a free port; killed at the end if it still runs."""
    started = subprocess.Popen(
        [*PROGRAM, "--port", "0", "--json", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        if not line:
            assert started.stderr is not None
            raise AssertionError(started.stderr.read())
        yield Running(int(json.loads(line)["url"].rpartition(":")[2])), started
    finally:
        if started.poll() is None:
            started.kill()
        started.communicate()


def jpeg(value: int = 0, size: int = SIZE) -> bytes:
    """A JPEG of noise."""
    import simplejpeg

    pixels = np.random.default_rng(value).integers(0, 255, (size, size, 3)).astype(np.uint8)
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=90)
    return encoded


EXAMPLES = Path(__file__).parents[2] / "examples" / "tissue"
