"""`edgelung serve` as a user starts it, with the starter: the answers are those of `infer`."""

import contextlib
import importlib.util
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from services import EXAMPLES, Running, process, read_answer
from snippets import ROOT, blocks

from edgelung import api
from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.artifacts.predictions import Predictions
from edgelung.core.system import saturates_int8
from edgelung.tiles.reader import read_tile

# ONNX Runtime, which runs INT8 where OpenVINO does not, gives other last digits in a batch of
# another size.
TOLERANCE = 2e-6 if saturates_int8() else 0

WHOLE = ("adenocarcinoma.jpeg", "normal.jpeg")
CUT = "cut.jpeg"


@pytest.fixture(scope="module")
def service(cache: Path) -> Iterator[Running]:
    """A service with the starter."""
    with process() as (running, _):
        yield running


@pytest.fixture(scope="module")
def lines(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """What `infer` writes for the examples."""
    out = tmp_path_factory.mktemp("rows") / "rows.jsonl"
    api.infer_folder(EXAMPLES, out)
    return out.read_bytes().splitlines(keepends=True)


@pytest.fixture(scope="module")
def exact(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Predictions:
    """The same with all digits."""
    out = tmp_path_factory.mktemp("rows") / "rows.parquet"
    api.infer_folder(EXAMPLES, out)
    return api.read_predictions(out)


def test_the_row_of_an_image_is_that_of_infer(service: Running, lines: list[bytes]) -> None:
    names = sorted(path.name for path in EXAMPLES.iterdir())
    assert len(names) == len(lines) == 3
    for name, line in zip(names, lines, strict=True):
        answer = service.ask("POST", f"/v1/classify?path={name}", (EXAMPLES / name).read_bytes())
        check_row(json.loads(answer.body), json.loads(line))
        assert TOLERANCE or answer.body == line
        assert answer.status == (422 if name == CUT else 200)


def check_row(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        is_float = isinstance(value, float)
        assert found[name] == (pytest.approx(value, abs=TOLERANCE) if is_float else value)


def test_the_rows_of_a_batch_of_images_are_those_of_infer(
    service: Running, lines: list[bytes]
) -> None:
    tail = b""
    for path in sorted(EXAMPLES.iterdir()):
        data = path.read_bytes()
        tail += len(data).to_bytes(4, "little") + data
    entry = {"name": "images", "datatype": "BYTES", "shape": [3, 1]}
    head = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": len(tail)}}]})
    answer = service.ask(
        "POST",
        "/v2/models/edgelung/infer",
        head.encode() + tail,
        Inference_Header_Content_Length=str(len(head)),
    )
    outputs = {output["name"]: output["data"] for output in answer.json["outputs"]}
    rows = [json.loads(line) for line in lines]
    assert outputs["status"] == [row["status"] for row in rows]
    assert outputs["label"] == [row["label"] or "" for row in rows]
    assert outputs["error"] == [row["error"] or "" for row in rows]
    assert outputs["stage"] == [row["stage"] or 0 for row in rows]
    for number, row in enumerate(rows):
        ood, probs = outputs["ood"][number], outputs["probs"][3 * number : 3 * number + 3]
        expected = [value for name, value in row.items() if name.startswith("p_")]
        rounded = [value and round(value, 6) for value in (ood, *probs)]
        assert rounded == [
            value and pytest.approx(value, abs=TOLERANCE) for value in (row["ood"], *expected)
        ]


def tiles() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    reader = open_bundle(starter_bundle()).reader
    return np.stack([read_tile(EXAMPLES / name, reader) for name in WHOLE])


def test_the_probabilities_of_tensors_are_those_of_infer(
    service: Running, exact: Predictions
) -> None:
    sent = tiles()
    entry = {"name": "tiles", "datatype": "UINT8", "shape": list(sent.shape)}
    body = json.dumps({"inputs": [entry | {"data": sent.ravel().tolist()}]}).encode()
    probs, ood = service.ask("POST", "/v2/models/edgelung_tiles/infer", body).json["outputs"]
    rows = [row for row in exact.rows if row.path in WHOLE]
    for output, shape, values in (
        (probs, [2, 3], [row.probabilities for row in rows]),
        (ood, [2, 1], [row.ood for row in rows]),
    ):
        assert output["shape"] == shape
        found = np.float32(output["data"]).reshape(np.shape(values))
        np.testing.assert_allclose(found, np.float32(values), rtol=0, atol=TOLERANCE)


def test_the_examples_of_the_how_to_page_run(service: Running, tmp_path: Path) -> None:
    page = ROOT / "docs" / "how-to" / "serve.md"
    curl, python = [one for one in blocks(page) if one.not_run.startswith("needs the service")]
    (tmp_path / "tiles").mkdir()
    Image.open(EXAMPLES / WHOLE[0]).save(tmp_path / "tiles" / "a.png")

    def run(words: list[str], text: str) -> str:
        """Run what a page says, on this service."""
        here = text.replace(":8000", f":{service.port}")
        return subprocess.run(
            [*words, here], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    (command,) = curl.commands
    row = json.loads(run(["bash", "-c"], command.text))
    assert (row["path"], row["label"]) == ("a.png", "lung_aca")
    if importlib.util.find_spec("tritonclient"):
        assert run([sys.executable, "-c"], python.body).startswith("[[")


def test_tritonclient_gets_the_rows_of_images(service: Running, exact: Predictions) -> None:
    client_module = pytest.importorskip("tritonclient.http")
    paths = sorted(EXAMPLES.iterdir())
    files = np.array([[path.read_bytes()] for path in paths], np.object_)
    given = client_module.InferInput("images", files.shape, "BYTES").set_data_from_numpy(files)
    client = client_module.InferenceServerClient(f"127.0.0.1:{service.port}")
    answer = client.infer("edgelung", [given])
    none = (np.nan,) * len(exact.classes)
    numbers = np.float32([row.probabilities or none for row in exact.rows])
    assert np.array_equal(answer.as_numpy("probs"), numbers, equal_nan=True)
    for name, values in (
        ("status", [row.status for row in exact.rows]),
        ("label", [row.label or "" for row in exact.rows]),
        ("error", [row.error for row in exact.rows]),
    ):
        assert [text.decode() for (text,) in answer.as_numpy(name)] == values
    assert answer.as_numpy("stage").tolist() == [[row.stage or 0] for row in exact.rows]


def test_tritonclient_works_unchanged(service: Running, exact: Predictions) -> None:
    client_module = pytest.importorskip("tritonclient.http")
    sent = tiles()
    client = client_module.InferenceServerClient(f"127.0.0.1:{service.port}")
    assert client.is_server_live()
    assert client.is_model_ready("edgelung_tiles", "1")
    assert client.get_model_metadata("edgelung_tiles")["inputs"][0]["shape"] == [-1, 224, 224, 3]
    rows = [row for row in exact.rows if row.path in WHOLE]
    for binary, compression in ((True, None), (False, None), (True, "gzip"), (True, "deflate")):
        given = client_module.InferInput("tiles", list(sent.shape), "UINT8")
        given.set_data_from_numpy(sent, binary_data=binary)
        answer = client.infer("edgelung_tiles", [given], request_compression_algorithm=compression)
        assert np.array_equal(
            answer.as_numpy("probs"), np.float32([row.probabilities for row in rows])
        )
        assert np.array_equal(answer.as_numpy("ood"), np.float32([[row.ood] for row in rows]))
    with pytest.raises(Exception, match="expected one of edgelung, edgelung_tiles"):
        client.infer("other", [given])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_under_load_leaves_no_request_without_its_answer(
    number: int, tmp_path: Path
) -> None:
    """Four clients ask without a pause until the service refuses or closes idle connections."""
    body = (EXAMPLES / WHOLE[0]).read_bytes()
    answered: list[int] = []
    lost: list[str] = []

    def load(running: Running, many: threading.Semaphore) -> None:
        connection = running.connect()
        while True:
            try:
                connection.request("POST", "/v1/classify", body)
            except OSError:  # closed before it was sent
                return
            try:
                answer = read_answer(connection)
            except OSError as error:
                lost.append(repr(error))
                return
            answered.append(answer.status)
            many.release()
            if answer.headers.get("connection") == "close":
                return

    with process() as (running, started):
        many = threading.Semaphore(0)
        clients = [threading.Thread(target=load, args=(running, many)) for _ in range(4)]
        for client in clients:
            client.start()
        for _ in range(12):
            assert many.acquire(timeout=60)
        started.send_signal(number)
        _, errors = started.communicate(timeout=60)
        for client in clients:
            client.join(60)
    assert started.returncode == 0
    assert errors.splitlines()[-1].startswith("stopped: every request that was accepted")
    assert not lost
    assert set(answered) <= {200, 503}
    assert answered.count(200) >= 12


STALLED = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n"


def test_a_stalled_client_does_not_hold_up_the_end() -> None:
    with (
        process("--deadline", "600") as (running, started),
        socket.create_connection(("127.0.0.1", running.port), timeout=60) as stalled,
    ):
        stalled.sendall(STALLED)
        assert running.ask("GET", "/v2/health/live").status == 200
        started.send_signal(signal.SIGTERM)
        assert stalled.recv(100).startswith(b"HTTP/1.1 408 ")
        started.communicate(timeout=60)
    assert started.returncode == 0


def test_a_second_signal_ends_the_service_at_once() -> None:
    with (
        process("--deadline", "600") as (running, started),
        socket.create_connection(("127.0.0.1", running.port), timeout=60) as stalled,
    ):
        stalled.sendall(STALLED)
        assert running.ask("GET", "/v2/health/live").status == 200
        while started.poll() is None:  # signals within a quarter of a second count as one
            started.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                started.wait(0.3)
    assert started.returncode == 128 + signal.SIGTERM


def test_what_cannot_be_served_is_one_line(cli, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, text in (
            (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines in"),
            (["--port", port], f"cannot listen on 127.0.0.1, port {port}"),
            (["--tls-cert", "a.pem"], "--tls-cert and --tls-key"),
            (["--token-file", "none"], "cannot read the token"),
            (["no-bundle"], "no-bundle"),
            (["--coverage", "0.123"], "no prediction sets of coverage"),
            (["--name", "a/b"], "cannot stand in a URL"),
        ):
            done = cli("serve", *words)
            assert done.returncode == 2, words
            assert text in done.stderr.splitlines()[-1]
            assert not done.stdout


@pytest.mark.parametrize("library", ["uvicorn", "uvloop", "prometheus_client"])
def test_a_library_that_is_missing_is_named(
    library: str, cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    done = cli("serve")
    assert done.returncode == 2
    assert "pip install 'edgelung[serve]'" in done.stderr
    assert library in done.stderr


def test_the_options_of_infer_decide_about_labels() -> None:
    words = ("--min-confidence", "0.999", "--coverage", "0.99", "--precision", "fp32")
    with process(*words, "--name", "lung") as (running, _):
        row = running.ask("POST", "/v1/classify", (EXAMPLES / WHOLE[0]).read_bytes()).json
        assert (row["status"], row["label"], row["set"]) == ("review", None, "lung_aca")
        outputs = running.ask("GET", "/v2/models/lung").json["outputs"]
        assert outputs[-1] == {"name": "set", "datatype": "BYTES", "shape": [-1, 1]}
        assert running.ask("GET", "/v2/models/lung/ready").status == 200
        assert 'precision="fp32"' in running.ask("GET", "/metrics").body.decode()


def test_infer_watch_offers_metrics(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    (inbox / "a.jpeg").write_bytes((EXAMPLES / WHOLE[0]).read_bytes())
    words = [
        "infer",
        str(inbox),
        "--watch",
        "--metrics-port",
        "0",
        "--out",
        str(tmp_path / "a.csv"),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "edgelung", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as started:
        assert started.stderr is not None
        line = next(line for line in started.stderr if "metrics are at" in line)
        running = Running(int(line.rpartition(":")[2].partition("/")[0]))
        while running.metric('edgelung_rows_total{status="ok"}') < 1:
            assert started.poll() is None
        assert running.metric("edgelung_confidence_count") == 1
        started.send_signal(signal.SIGINT)
        started.communicate(timeout=60)
    assert started.returncode == 0


def test_metrics_need_a_watch_and_a_port_that_is_free(cli) -> None:
    done = cli("infer", EXAMPLES, "--metrics-port", "0")
    assert done.returncode == 2
    assert "add --watch" in done.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = cli("infer", EXAMPLES, "--watch", "--metrics-port", taken.getsockname()[1])
    assert done.returncode == 2
    assert "the metrics cannot be offered" in done.stderr.splitlines()[-1]
