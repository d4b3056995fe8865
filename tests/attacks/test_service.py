"""`edgelung serve` against clients that mean harm, or are broken.

Each request has its answer or its connection is closed. Afterwards the service answers as before
and holds nothing. The requests are drawn at random from fixed kinds, with a fixed seed.
"""

import contextlib
import json
import random
import re
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from services import EXAMPLES, FakeEngine, Running, jpeg, process, serving

from edgelung.serving.limits import Limits

KNOWN = re.compile(rb"HTTP/1\.1 (200|400|401|404|405|408|413|415|422|429|431|500|503) ")
Draw = random.Random
SHORT = Limits(
    seconds=2, header_seconds=1, linger_seconds=0.5, write_seconds=1, body_bytes=2**20, tiles=64
)


def http(
    path: str, body: bytes, *headers: str, method: str = "POST", length: int | None = None
) -> bytes:
    stated = len(body) if length is None else length
    lines = [
        f"{method} {path} HTTP/1.1",
        "Host: localhost",
        "Connection: close",
        f"Content-Length: {stated}",
    ]
    return "\r\n".join([*lines, *headers, "", ""]).encode() + body


def tensors(
    header: object, tail: bytes, length: int | None = None, path: str = "edgelung_tiles"
) -> bytes:
    text = json.dumps(header).encode()
    return http(
        f"/v2/models/{path}/infer",
        text + tail,
        f"Inference-Header-Content-Length: {len(text) if length is None else length}",
    )


def entry(draw: Draw) -> dict[str, object]:
    """An input whose fields are right or wrong at random."""
    strange = [-1, 0, 1, 3, 224, 2**31, 2**63, 2**64, 1e300, None, "224", [], True]
    shape = draw.choice(
        [[1, 224, 224, 3], [draw.choice(strange) for _ in range(draw.randint(0, 9))]]
    )
    size = draw.choice([150528, draw.choice(strange), draw.randint(-9, 200_000)])
    return {
        "name": draw.choice(["tiles", "images", "x" * 300, "\x1b[2J", ""]),
        "datatype": draw.choice(["UINT8", "FP32", "BYTES", "uint8", 7]),
        "shape": shape,
        "parameters": draw.choice(
            [{"binary_data_size": size}, {}, [], {"shared_memory_region": "a"}]
        ),
    }


def damaged_image(draw: Draw) -> bytes:
    data = bytearray(draw.choice([p.read_bytes() for p in EXAMPLES.iterdir()]))
    for _ in range(draw.randint(1, 20)):
        data[draw.randrange(len(data))] = draw.randrange(256)
    return http("/v1/classify?path=a", bytes(data[: draw.randint(1, len(data))]))


def bomb(draw: Draw) -> bytes:
    plain = b"\0" * draw.choice([2**21, 2**24])
    data = zlib.compress(plain, 9)
    if draw.random() < 0.3:
        data = data[:-3]
    return http("/v1/classify", data, "Content-Encoding: deflate")


def json_bomb(draw: Draw) -> bytes:
    count = draw.choice([50, 2000, 100_000])
    start = draw.choice(['{"inputs":', "", '{"inputs":[{"data":', '{"id":', '{"a":{"b":'])
    unit = draw.choice(["[", '{"a":', "[[],", "1,", '"', "\\", "NaN,", "1e999,", "-"])
    return http("/v2/models/edgelung_tiles/infer", (start + unit * count).encode())


IMAGES = {
    "name": "images",
    "datatype": "BYTES",
    "shape": [3, 1],
    "parameters": {"binary_data_size": 24},
}
STRANGE_ADDRESSES = (
    *("/v1/classify?path=%00%1b", "/v1/classify?" + "a&" * 99),
    *("//v2", "/../v2", "*", "/%ff"),
)
KINDS: dict[str, Callable[[Draw], bytes]] = {
    "noise": lambda draw: draw.randbytes(draw.randint(0, 4000)),
    "noise behind a request line": lambda draw: b"POST /v2 HTTP/1.1\r\n" + draw.randbytes(3000),
    "a damaged image": damaged_image,
    "a body that is cut off": lambda draw: http("/v1/classify", jpeg()[:999], length=5000),
    "a body that is longer than stated": lambda draw: http(
        "/v1/classify", jpeg(), length=draw.randint(0, 999)
    ),
    "a length that is no length": lambda draw: http(
        "/v1/classify", b"x", f"Content-Length: {draw.choice(['-1', '1e9', '9' * 40, 'x', ''])}"
    ),
    "two ways to say the length": lambda draw: http(
        "/v1/classify", b"0\r\n\r\n", "Transfer-Encoding: chunked"
    ),
    "chunks that lie": lambda draw: (
        b"POST /v1/classify HTTP/1.1\r\nConnection: close\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
        + draw.choice([b"ffffffffffffffff\r\n", b"-5\r\nabc", b"5\r\nabc"])
    ),
    "long headers": lambda draw: http("/v2", b"", f"A: {'x' * draw.randint(30_000, 200_000)}"),
    "many headers": lambda draw: http(
        "/v2", b"", *(f"A{i}: b" for i in range(draw.randint(1000, 9000)))
    ),
    "a long address": lambda draw: http("/" + "a" * draw.randint(1000, 100_000), b""),
    "a strange address": lambda draw: http(draw.choice(STRANGE_ADDRESSES), jpeg()),
    "another method": lambda draw: http(
        draw.choice(["/v2", "/v1/classify", "/metrics"]),
        b"",
        method=draw.choice(["PUT", "TRACE", "CONNECT", "OPTIONS", "BREW", "get", "PRI"]),
    ),
    "an upgrade": lambda draw: http(
        "/v2", b"", "Connection: Upgrade", f"Upgrade: {draw.choice(['websocket', 'h2c', 'x'])}"
    ),
    "an upgrade with a body": lambda draw: http(
        "/v1/classify", jpeg(), "Connection: Upgrade", "Upgrade: h2c"
    ),
    "hundreds of thousands of empty images": lambda draw: tensors(
        {"inputs": [IMAGES | {"shape": [200_000, 1], "parameters": {"binary_data_size": 800_000}}]},
        bytes(800_000),
        None,
        "edgelung",
    ),
    "unknown names": lambda draw: http(
        f"/v2/models/{draw.choice(['a', '%1b', 'edgelung/versions/0'])}/infer", b"{}"
    ),
    "tensors that lie": lambda draw: tensors(
        {"inputs": [entry(draw) for _ in range(draw.choice([1, 1, 1, 0, 2, 20]))]},
        bytes(draw.choice([0, 100, 150528, 150529])),
        draw.choice([None, None, 0, -1, 10**12]),
        draw.choice(["edgelung", "edgelung_tiles"]),
    ),
    "images that lie about their length": lambda draw: tensors(
        {"inputs": [IMAGES]},
        struct.pack("<I", draw.choice([0, 4, 2**31, 2**32 - 1])) + draw.randbytes(20),
        None,
        "edgelung",
    ),
    "a bomb of bytes": bomb,
    "a bomb of JSON": json_bomb,
    "a body that is too long": lambda draw: http(
        "/v1/classify", bytes(2**20 + draw.randint(1, 99))
    ),
    "many requests at once": lambda draw: (
        b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * draw.randint(2, 99)
        + http("/v2", b"", method="GET")
    ),
}


def attack(running: Running, kind: str, data: bytes, *, end: bool) -> str:
    """Send one hostile request; the kind, and the status of the answer or 'closed'."""
    answer = running.send(data, end=end)
    if not answer:
        return f"{kind}: closed"
    found = KNOWN.match(answer)
    assert found, (kind, answer[:100])
    return f"{kind}: {found[1].decode()}"


def storm(running: Running, count: int) -> Counter[str]:
    """So many hostile requests of all kinds in turn, eight at once; how often each status came."""
    draw = random.Random(7)
    kinds = list(KINDS)
    found: Counter[str] = Counter()
    with ThreadPoolExecutor(8) as clients:
        for first in range(0, count, 64):  # what is sent is made just before
            sent = [
                clients.submit(attack, running, kind, KINDS[kind](draw), end=draw.random() < 0.5)
                for kind in (kinds[n % len(kinds)] for n in range(first, min(first + 64, count)))
            ]
            found.update(one.result() for one in sent)
    return found


def is_well(running: Running) -> None:
    """The service answers, and nothing of earlier requests is left."""
    whole = (EXAMPLES / "normal.jpeg").read_bytes()
    answer = running.ask("POST", "/v1/classify?path=a", whole)
    assert (answer.status, answer.json["status"]) == (200, "ok")
    assert running.ask("GET", "/v2/health/ready").status == 200
    assert running.metric("edgelung_in_flight_tiles") == 0


def test_hostile_requests_have_an_answer_each() -> None:
    with serving(limits=SHORT) as running:
        found = storm(running, 10 * len(KINDS))
        is_well(running)
        assert running.server is not None
        assert running.server._exchanges.held.bytes == 0
        internal = running.metric('edgelung_requests_total{code="500",route="/v1/classify"}')
    assert internal == 0
    assert not [line for line in found if line.endswith(" 500")], found
    for kind in ("long headers", "a bomb of bytes", "a body that is too long"):
        assert not found[f"{kind}: 200"]


def test_stalled_clients_hold_nobody_up() -> None:
    """In the header, in the body, before the answer is read: a hundred at once."""
    body = jpeg()
    beginnings = (
        b"",
        b"POST /v1/cl",
        b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999\r\n\r\n"
        + body[:100],
        http("/v1/classify", body).replace(b"Connection: close\r\n", b"") * 3,
    )
    limits = Limits(seconds=600, header_seconds=600, write_seconds=600, tiles=512)
    with serving(limits=limits) as running:
        stalled = []
        for number in range(100):
            client = socket.create_connection(("127.0.0.1", running.port), timeout=60)
            client.sendall(beginnings[number % len(beginnings)])
            stalled.append(client)
        for _ in range(5):
            assert running.ask("POST", "/v1/classify", body).status == 200
        for client in stalled:
            client.close()
        is_well(running)


def test_clients_that_leave_before_the_answer_leave_nothing_behind() -> None:
    engine = FakeEngine()
    body = jpeg()
    with serving(engine, SHORT) as running:
        engine.may_run.clear()
        for _ in range(30):
            with socket.create_connection(("127.0.0.1", running.port), timeout=60) as client:
                client.sendall(http("/v1/classify", body))
        assert engine.began.acquire(timeout=60)
        engine.may_run.set()
        while running.metric("edgelung_in_flight_tiles") > 0:
            pass
        is_well(running)
        assert running.server is not None
        assert running.server._exchanges.held.bytes == 0


def test_a_client_that_does_not_read_its_answers_is_cut_off() -> None:
    """The answers of pipelined requests fill the buffers of both sides."""
    limits = Limits(write_seconds=0.3, linger_seconds=0.3)
    with serving(limits=limits) as running, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(60)
        client.connect(("127.0.0.1", running.port))
        requests = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 10
        with contextlib.suppress(OSError):  # reset, or a broken pipe
            while client.sendall(requests) is None:
                pass
        is_well(running)
        assert running.metric('edgelung_connections_closed_total{reason="slow-client"}') >= 1


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_ten_thousand_hostile_requests_do_not_move_a_real_service(cache: Path) -> None:
    """In the first half, the engine and the decoders still take the memory that they keep."""
    with process("--deadline", "2", "--max-mb", "1") as (running, started):
        found = storm(running, 5_000)
        is_well(running)
        before = resident(started.pid)
        found += storm(running, 5_000)
        is_well(running)
        grown = resident(started.pid) - before
        assert started.poll() is None
    assert grown < 16 * 2**20
    assert not [line for line in found if line.endswith(" 500")], found


def resident(process: int) -> int:
    """Bytes of memory that the process has now."""
    text = Path(f"/proc/{process}/statm").read_text()
    return int(text.split()[1]) * 4096
