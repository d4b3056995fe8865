"""The service over HTTP, in a thread with a fake engine: limits, deadlines, access, the end."""

import contextlib
import gzip
import json
import logging
import os
import socket
import ssl
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from certificates import authority, client_files, private_key_with_password, server_files
from services import FakeEngine, Running, jpeg, serving, tile

from edgelung.core.errors import EdgelungError
from edgelung.core.ownership import others_can_read
from edgelung.serving.access import (
    TlsFiles,
    Token,
    bind,
    check_address,
    parse_tls,
    read_token,
    resolve,
)
from edgelung.serving.limits import Limits
from edgelung.serving.service import http_status, is_model_name
from edgelung.tiles.status import NO_FAILURE, Status

TOKEN = "0123456789abcdef"


def infer_body(*values: int) -> tuple[bytes, str]:
    tiles = np.stack([tile(value) for value in values])
    entry = {"name": "tiles", "datatype": "UINT8", "shape": list(tiles.shape)}
    head = json.dumps(
        {"inputs": [entry | {"parameters": {"binary_data_size": tiles.size}}]}
    ).encode()
    return head + tiles.tobytes(), str(len(head))


def ask_in_thread(running: Running, body: bytes) -> "tuple[threading.Thread, list[int]]":
    """Send an image from a thread; its status appears in the list."""
    statuses: list[int] = []
    thread = threading.Thread(
        target=lambda: statuses.append(running.ask("POST", "/v1/classify", body).status)
    )
    thread.start()
    return thread, statuses


def test_an_image_gets_its_row() -> None:
    with serving() as running:
        answer = running.ask("POST", "/v1/classify?path=a%20b/%C3%BC.jpeg", jpeg())
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert (answer.json["path"], answer.json["status"]) == ("a b/ü.jpeg", "ok")


@pytest.mark.parametrize(
    ("body", "status", "word"),
    [
        (b"", 422, "empty"),
        (b"no image at all", 422, "unsupported"),
        (jpeg()[:3000], 422, "truncated"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * 50, 422, "corrupt"),
    ],
)
def test_a_broken_image_is_a_row_that_says_why(body: bytes, status: int, word: str) -> None:
    with serving() as running:
        answer = running.ask("POST", "/v1/classify?path=a", body)
        assert (answer.status, answer.json["status"], answer.json["label"]) == (status, word, None)
        assert answer.json["error"]
        assert running.metric(f'edgelung_rows_total{{status="{word}"}}') == 1


def test_an_image_of_too_many_pixels_is_a_row_and_413() -> None:
    head = b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR"
    size = (60_000).to_bytes(4, "big") * 2 + b"\x08\x02\0\0\0"
    crc = zlib.crc32(b"IHDR" + size).to_bytes(4, "big")
    with serving() as running:
        answer = running.ask("POST", "/v1/classify", head + size + crc)
    assert (answer.status, answer.json["status"]) == (413, "too-large")


def test_every_status_of_a_row_has_a_status_of_http() -> None:
    for status in Status:
        assert (http_status(status) == 200) == (status in NO_FAILURE), status


def test_a_name_that_a_client_gives_is_checked_and_escaped() -> None:
    with serving() as running:
        answer = running.ask("POST", "/v1/classify?path=%FF%1B%5B2J%0A", jpeg())
        assert answer.json["path"] == "\\xff\x1b[2J\n"
        assert b"\x1b" not in answer.body  # JSON escapes it
        assert running.ask("POST", f"/v1/classify?path={'a' * 1025}", jpeg()).status == 400
        assert running.ask("POST", "/v1/classify?name=a", jpeg()).status == 400


def test_nothing_that_a_client_sends_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with serving(FakeEngine(fails_on=66)) as running:
        running.ask("POST", "/v1/classify?path=secret%1B", jpeg())
        running.send(b"GET /\x1bsecret HTTP/9.9\r\n\r\n")
        body, length = infer_body(66)
        answer = running.ask(
            "POST", "/v2/models/edgelung_tiles/infer", body, Inference_Header_Content_Length=length
        )
        assert (answer.status, answer.json["error"]) == (
            500,
            "the engine failed: the engine cannot",
        )
    ours = [
        record.getMessage()
        for record in caplog.records
        if record.name.startswith(("edgelung", "uvicorn"))
    ]
    assert ours == ["a batch of 1 tiles failed: the engine cannot"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v2/models/other", 404),
        ("GET", "/v2/models/edgelung/versions/2", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("GET", "/v2/", 404),
        ("GET", "/v1/classify", 405),
        ("DELETE", "/v2/models/edgelung", 405),
        ("POST", "/metrics", 405),
        ("GET", "/v2", 200),
        ("GET", "/v2/health/live", 200),
        ("GET", "/v2/health/ready", 200),
        ("GET", "/v2/models/edgelung", 200),
        ("GET", "/v2/models/edgelung_tiles/versions/1/ready", 200),
        ("HEAD", "/v2/health/ready", 200),
    ],
)
def test_routes(method: str, path: str, status: int) -> None:
    with serving() as running:
        assert running.ask(method, path).status == status


def test_a_body_with_another_protocol_is_refused_and_not_taken_for_empty() -> None:
    upgrade = {"Connection": "Upgrade, HTTP2-Settings", "Upgrade": "h2c", "HTTP2-Settings": "AA"}
    with serving() as running:
        answer = running.ask("POST", "/v1/classify", jpeg(), **upgrade)
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert "Upgrade" in answer.json["error"]
        assert running.ask("GET", "/v2", **upgrade).status == 200
        assert running.metric('edgelung_rows_total{status="empty"}') == 0


def test_a_bug_costs_one_request_and_is_said_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*values: object) -> None:
        raise LookupError("secret")

    with serving() as running:
        with monkeypatch.context() as patch:
            patch.setattr(running.service, "classify", fail)
            answer = running.ask("POST", "/v1/classify", jpeg())
        assert (answer.status, answer.json) == (500, {"error": "an internal error"})
        assert running.metric('edgelung_requests_total{code="500",route="/v1/classify"}') == 1
        assert running.ask("POST", "/v1/classify", jpeg()).status == 200


def test_a_request_beyond_the_limit_is_refused_at_once() -> None:
    engine = FakeEngine()
    with serving(engine, Limits(tiles=2)) as running:
        engine.may_run.clear()
        first, first_statuses = ask_in_thread(running, jpeg())
        assert engine.began.acquire(timeout=60)
        second, second_statuses = ask_in_thread(running, jpeg())
        while running.metric("edgelung_in_flight_tiles") < 2:
            pass
        answer = running.ask("POST", "/v1/classify", jpeg())
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
        assert running.ask("GET", "/v2/health/ready").status == 200
        engine.may_run.set()
        first.join()
        second.join()
        assert first_statuses + second_statuses == [200, 200]
        assert running.ask("POST", "/v1/classify", jpeg()).status == 200


def test_more_tiles_than_may_ever_wait_are_413() -> None:
    with serving(limits=Limits(tiles=2)) as running:
        body, length = infer_body(1, 2, 3)
        answer = running.ask(
            "POST", "/v2/models/edgelung_tiles/infer", body, Inference_Header_Content_Length=length
        )
    assert answer.status == 413


def test_an_answer_that_takes_too_long_is_503() -> None:
    engine = FakeEngine()
    with serving(engine, Limits(seconds=0.2)) as running:
        engine.may_run.clear()
        answer = running.ask("POST", "/v1/classify", jpeg())
        engine.may_run.set()
    assert (answer.status, answer.headers["retry-after"]) == (503, "1")


def test_a_body_that_does_not_come_is_408_and_holds_nobody_up() -> None:
    with (
        serving(limits=Limits(seconds=0.5)) as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=60) as stalled,
    ):
        stalled.sendall(
            b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nabc"
        )
        assert running.ask("POST", "/v1/classify", jpeg()).status == 200
        assert stalled.recv(1000).startswith(b"HTTP/1.1 408 ")


def test_a_header_that_does_not_come_is_408() -> None:
    with serving(limits=Limits(header_seconds=0.2)) as running:
        assert running.send(b"").startswith(b"HTTP/1.1 408 ")
        assert running.send(b"GET / HT").startswith(b"HTTP/1.1 408 ")
        second = running.send(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\nGET / HT")
        assert second.startswith(b"HTTP/1.1 200 ")
        assert b"HTTP/1.1 408 " in second
        assert running.metric('edgelung_connections_closed_total{reason="slow-header"}') == 3


def test_headers_that_are_too_long_are_431() -> None:
    with serving() as running:
        line = b"A: " + b"x" * 1000 + b"\r\n"
        many = running.send(b"GET / HTTP/1.1\r\n" + line * 40 + b"\r\n")
        assert many.startswith(b"HTTP/1.1 431 ")
        endless = running.send(b"GET / HTTP/1.1\r\nA: " + b"x" * 1_000_000)
        assert endless.startswith(b"HTTP/1.1 431 ")
        trailers = running.send(
            b"POST /v1/classify HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: "
            + b"x" * 10**6
        )
        assert not trailers.startswith(b"HTTP/1.1 2")


def test_a_body_that_is_too_long_is_413_whether_it_says_so_or_not() -> None:
    with serving(limits=Limits(body_bytes=1000)) as running:
        stated = running.ask("POST", "/v1/classify", b"x" * 200_000)
        assert stated.status == 413
        chunks = b"".join(b"100\r\n" + b"x" * 256 + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
        head = (
            b"POST /v1/classify HTTP/1.1\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        assert running.send(head + chunks).startswith(b"HTTP/1.1 413 ")
        assert running.metric('edgelung_requests_total{code="413",route="/v1/classify"}') == 2


def test_large_bodies_together_are_limited_and_small_ones_pass() -> None:
    limits = Limits()
    large = jpeg() + bytes(2**21)
    with serving(limits=limits) as running:
        assert running.server is not None
        held = running.server._exchanges.held
        held.bytes = limits.held_bytes - 10
        assert running.ask("POST", "/v1/classify", large).status == 429
        assert running.ask("POST", "/v1/classify", jpeg()).status == 200
        assert (
            running.ask(
                "POST", "/v1/classify", gzip.compress(jpeg()), Content_Encoding="gzip"
            ).status
            == 200
        )
        assert (
            running.ask(
                "POST", "/v1/classify", gzip.compress(large), Content_Encoding="gzip"
            ).status
            == 429
        )
        held.bytes = 0
        assert running.ask("POST", "/v1/classify", large).status != 429
        assert held.bytes == 0


def test_a_compressed_body_is_decompressed_within_the_limit() -> None:
    body = jpeg()
    with serving(limits=Limits(body_bytes=10**6)) as running:

        def ask(data: bytes, encoding: str) -> int:
            return running.ask("POST", "/v1/classify", data, Content_Encoding=encoding).status

        assert ask(gzip.compress(body), "gzip") == 200
        assert ask(zlib.compress(body), "deflate") == 200
        assert ask(gzip.compress(b"\0" * 2_000_000), "gzip") == 413
        assert ask(gzip.compress(body)[:-5], "gzip") == 400
        assert ask(gzip.compress(body) + b"x", "gzip") == 400
        assert ask(body, "gzip") == 400
        assert ask(body, "br") == 415
        assert ask(body, "gzip, gzip") == 415


def test_a_connection_too_many_is_refused_unless_another_is_idle() -> None:
    with (
        serving(limits=Limits(connections=1)) as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=60) as one,
    ):
        one.sendall(b"GET /v2 HT")
        assert running.send(b"GET /v2 HTTP/1.1\r\n\r\n").startswith(b"HTTP/1.1 503 ")
        one.sendall(b"TP/1.1\r\nHost: localhost\r\n\r\n")
        assert one.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert running.ask("GET", "/v2").status == 200
        assert one.recv(1000) == b""  # closed, since it was idle


def test_connections_that_are_refused_and_stay_are_limited_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgelung.serving.connection.LINGERING", 1)
    with serving(limits=Limits(connections=1)) as running, contextlib.ExitStack() as stack:
        one, two, three = (
            stack.enter_context(socket.create_connection(("127.0.0.1", running.port), timeout=60))
            for _ in range(3)
        )
        assert two.recv(1000).startswith(b"HTTP/1.1 503 ")
        assert three.recv(1000) == b""
        one.sendall(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert one.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_a_client_that_goes_away_is_no_error() -> None:
    engine = FakeEngine()
    with serving(engine) as running:
        engine.may_run.clear()
        body = jpeg()
        with socket.create_connection(("127.0.0.1", running.port)) as client:
            head = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
            client.sendall(head % len(body) + body)
            assert engine.began.acquire(timeout=60)
        engine.may_run.set()
        assert running.ask("POST", "/v1/classify", body).status == 200


def test_metrics_count_requests_rows_and_batches() -> None:
    with serving() as running:
        running.ask("POST", "/v1/classify", jpeg())
        body, length = infer_body(1, 2)
        running.ask(
            "POST", "/v2/models/edgelung_tiles/infer", body, Inference_Header_Content_Length=length
        )
        assert running.metric('edgelung_requests_total{code="200",route="/v1/classify"}') == 1
        assert running.metric('edgelung_rows_total{status="ok"}') == 3
        assert running.metric("edgelung_confidence_count") == 3
        assert running.metric("edgelung_ood_score_sum") == 3
        assert running.metric("edgelung_batch_tiles_sum") == 3
        assert running.metric("edgelung_waiting_tiles") == 0
        before = running.ask("GET", "/metrics").body
        for path in ("/a", "/b", "/v2/models/x", "/v2/models/y"):
            running.ask("GET", path)
        lines = len(running.ask("GET", "/metrics").body.splitlines()) - len(before.splitlines())
        assert lines < 60  # new names of clients are no new series


def test_a_token_is_asked_for_everywhere_but_for_the_health() -> None:
    with serving(token=Token(TOKEN.encode())) as running:
        for path in ("/v2", "/metrics", "/v2/models/edgelung", "/nothing"):
            answer = running.ask("GET", path)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer"), path
        assert running.ask("POST", "/v1/classify", jpeg()).status == 401
        for wrong in ("Bearer", "Bearer x", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN}0"):
            assert running.ask("GET", "/v2", Authorization=wrong).status == 401, wrong
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert running.ask("GET", path).status == 200
        right = f"Bearer {TOKEN}"
        assert running.ask("POST", "/v1/classify", jpeg(), Authorization=right).status == 200


def test_the_file_of_a_token_is_for_its_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    assert read_token(file) == Token(TOKEN.encode())
    assert TOKEN not in repr(read_token(file))
    file.chmod(0o604)
    with pytest.raises(EdgelungError, match=r"others can read the token .*chmod 600"):
        read_token(file)
    file.chmod(0o602)
    with pytest.raises(EdgelungError, match="others can write"):
        read_token(file)
    file.chmod(0o600)
    for text in ("", "short", "two words that are long enough", "ü" * 20):
        file.write_text(text)
        with pytest.raises(EdgelungError, match="holds no token"):
            read_token(file)
    with pytest.raises(EdgelungError, match="cannot read the token"):
        read_token(tmp_path / "missing")


@pytest.mark.parametrize(
    ("mode", "user", "group", "can_read"),
    [
        (0o600, 1000, 1000, False),
        (0o440, 0, 0, False),  # as systemd makes credentials
        (0o440, 1000, 0, True),
        (0o440, 0, 1000, True),
        (0o404, 0, 0, True),
    ],
)
def test_a_secret_of_root_may_be_for_the_group_of_root(
    mode: int, user: int, group: int, can_read: bool
) -> None:
    assert others_can_read(os.stat_result((mode, 0, 0, 1, user, group, 0, 0, 0, 0))) is can_read


def test_others_are_let_in_only_with_a_token_or_certificates(tmp_path: Path) -> None:
    files = TlsFiles(tmp_path, tmp_path)
    mutual = TlsFiles(tmp_path, tmp_path, tmp_path)
    for host in ("127.0.0.1", "::1", "localhost", "127.5.0.1"):
        check_address(resolve(host), None, None)
    for host in ("0.0.0.0", "::", "192.0.2.7", "0"):
        for tls in (None, files):
            with pytest.raises(EdgelungError, match="lets other machines in"):
                check_address(resolve(host), None, tls)
        check_address(resolve(host), Token(b"x"), None)
        check_address(resolve(host), None, mutual)
    for host in ("", "no-such-host.invalid", "a" * 99):
        with pytest.raises(EdgelungError, match="is no address"):
            resolve(host)


def test_half_of_tls_is_refused(tmp_path: Path) -> None:
    assert parse_tls(None, None, None) is None
    for given in ((tmp_path, None, None), (None, tmp_path, None), (None, None, tmp_path)):
        with pytest.raises(EdgelungError, match="--tls-cert and --tls-key"):
            parse_tls(*given)


def test_a_port_that_is_in_use_is_one_line() -> None:
    with (
        bind("127.0.0.1", 0) as bound,
        pytest.raises(EdgelungError, match=r"cannot listen on 127\.0\.0\.1.*choose another --port"),
    ):
        bind("127.0.0.1", bound.getsockname()[1])


def test_tls_lets_in_only_clients_with_a_certificate_of_the_authority(tmp_path: Path) -> None:
    ours, other = authority(), authority()
    certificate, key, ca = server_files(ours, tmp_path)
    tls = TlsFiles(certificate, key, ca)
    known = client_files(ours, tmp_path / "known")
    stranger = client_files(other, tmp_path / "stranger")

    def context(files: tuple[Path, Path] | None) -> ssl.SSLContext:
        made = ssl.create_default_context(cafile=str(ca))
        if files:
            made.load_cert_chain(*files)
        return made

    with serving(tls=tls.context(), client_tls=context(known)) as running:
        assert running.ask("POST", "/v1/classify", jpeg()).status == 200
        for files in (None, stranger):
            running.tls = context(files)
            with pytest.raises(OSError):  # noqa: PT011 (an SSLError or a reset connection)
                running.ask("GET", "/v2")
        assert not running.send(b"GET /v2 HTTP/1.1\r\n\r\n").startswith(b"HTTP/")


def test_a_client_that_stays_silent_in_the_handshake_is_cut_off(tmp_path: Path) -> None:
    certificate, key, ca = server_files(authority(), tmp_path)
    client_tls = ssl.create_default_context(cafile=str(ca))
    with (
        serving(
            limits=Limits(header_seconds=0.2),
            tls=TlsFiles(certificate, key).context(),
            client_tls=client_tls,
        ) as running,
        socket.create_connection(("127.0.0.1", running.port), timeout=20) as silent,
    ):
        with contextlib.suppress(ConnectionError):
            assert silent.recv(1) == b""  # the end; without a deadline, a timeout
        assert running.ask("GET", "/v2/health/live").status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200),
        ("LocalHost:8000", 200),
        ("127.0.0.1:8000", 200),
        ("127.0.1.1", 200),
        ("[::1]:8000", 200),
        ("rebound.example:8000", 421),
        ("127.0.0.1.rebound.example", 421),
        ("localhost.rebound.example:80", 421),
        ("0.0.0.0:8000", 421),
        ("192.0.2.1", 421),
        ("", 421),
    ],
)
def test_only_names_of_this_machine_are_answered(local: Running, host: str, status: int) -> None:
    """A page whose own name resolves to 127.0.0.1 could read the answers (DNS rebinding)."""
    for path in ("/v2", "/v2/models/edgelung", "/metrics"):
        answer = local.ask("GET", path, Host=host)
        assert answer.status == status, path
    assert local.ask("POST", "/v1/classify", jpeg(), Host=host).status == status
    assert local.ask("GET", "/v2/health/live", Host=host).status == 200


@pytest.mark.parametrize("hosts", [("a.example", "localhost"), ("localhost", "a.example")])
def test_every_host_that_a_request_names_counts(local: Running, hosts: tuple[str, str]) -> None:
    lines = "".join(f"Host: {host}\r\n" for host in hosts)
    answer = local.send(f"GET /v2 HTTP/1.1\r\nConnection: close\r\n{lines}\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 421 ")


def test_a_client_that_ends_with_its_request_gets_the_whole_answer(local: Running) -> None:
    """Also if the loop sees the end before it has sent what was written in its last step."""
    assert local.server is not None
    assert local.ask("GET", "/v2").status == 200  # it has started
    loop = local.server.servers[0].get_loop()
    for _ in range(3):
        loop.call_soon_threadsafe(time.sleep, 0.1)  # both wait for the loop by then
        answer = local.send(b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n", end=True)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b"}")


def test_a_request_without_a_host_comes_from_no_browser(local: Running) -> None:
    assert local.send(b"GET /v2 HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


def test_a_token_lets_a_service_have_any_name() -> None:
    with serving(token=Token(b"0123456789abcdef")) as running:
        authorization = "Bearer 0123456789abcdef"
        host = "service.example"
        assert running.ask("GET", "/v2", Host=host, Authorization=authorization).status == 200
        assert running.ask("GET", "/v2", Host=host).status == 401


@pytest.fixture(scope="module")
def local() -> Iterator[Running]:
    """A service that only this machine reaches."""
    with serving() as running:
        yield running


def test_files_of_tls_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    certificate, key, ca = server_files(authority(), tmp_path)
    key.chmod(0o644)
    with pytest.raises(EdgelungError, match="others can read the private key"):
        TlsFiles(certificate, key).context()
    key.chmod(0o600)
    certificate.chmod(0o600)
    with pytest.raises(EdgelungError, match="cannot be used"):
        TlsFiles(key, certificate).context()
    with pytest.raises(EdgelungError, match="expected certificates in PEM"):
        TlsFiles(certificate, key, key).context()
    ca.write_bytes(b"")
    with pytest.raises(EdgelungError, match="expected certificates in PEM"):
        TlsFiles(certificate, key, ca).context()
    key.write_bytes(private_key_with_password())
    with pytest.raises(EdgelungError, match="without a password"):
        TlsFiles(certificate, key).context()


def test_the_end_answers_what_was_accepted_and_refuses_what_comes() -> None:
    engine = FakeEngine()
    with serving(engine, refuse_seconds=0.5) as running:
        assert running.server is not None
        open_ = running.connect()
        open_.request("GET", "/v2/health/ready")
        assert open_.getresponse().read()
        engine.may_run.clear()
        thread, statuses = ask_in_thread(running, jpeg())
        assert engine.began.acquire(timeout=60)
        running.server.stop()
        open_.request("POST", "/v1/classify", jpeg())
        late = open_.getresponse()
        assert late.status == 503
        assert late.getheader("connection") == "close"
        open_.close()
        engine.may_run.set()
        thread.join()
        assert statuses == [200]
        assert running.ended.wait(60)
        with pytest.raises(OSError, match="refused"):
            running.ask("GET", "/v2/health/ready")


def test_what_has_no_answer_when_the_time_is_up_is_told_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edgelung.serving.server.ANSWER_SECONDS", 0.2)
    engine = FakeEngine()
    with serving(engine) as running:
        assert running.server is not None
        engine.may_run.clear()
        thread, statuses = ask_in_thread(running, jpeg())
        assert engine.began.acquire(timeout=60)
        running.server.stop()
        thread.join()
        engine.may_run.set()
    assert statuses == [503]


@pytest.mark.parametrize("name", ["first", "a", "9_b.c-d", "x" * 64])
def test_a_name_that_a_url_can_hold_is_taken(name: str) -> None:
    assert is_model_name(name)


@pytest.mark.parametrize("name", ["", "..", "a/b", "my bundle", "ü", "a-", ".a", "x" * 65, "a\n"])
def test_a_name_that_a_url_cannot_hold_is_refused(name: str) -> None:
    assert not is_model_name(name)
