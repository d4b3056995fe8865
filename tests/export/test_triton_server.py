"""The model repository in a real Triton server: the answers are those of `edgelung infer`.

EDGELUNG_TRITON names a virtual environment with nvidia-pytriton 0.7.0, whose server it brings, and
with edgelung of this working tree; CONTRIBUTING.md says how to make one. Only the Python backend
is in it: the model for tiles is not run.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import samples
from snippets import ROOT, blocks

from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.artifacts.predictions import Prediction, read_predictions
from edgelung.export.triton import FILES_MODEL, write_triton_repository

NAMED = os.environ.get("EDGELUNG_TRITON", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not NAMED, reason="EDGELUNG_TRITON names no environment with a Triton"),
]
OUTPUTS = ("label", "status", "error", "probs", "ood", "stage")


@dataclass(frozen=True)
class Triton:
    """The server of nvidia-pytriton, and the Python that its Python backend runs."""

    environment: Path

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    def packages(self) -> Path:
        (found,) = self.environment.glob("lib/python3.*/site-packages")
        return found

    def variables(self) -> dict[str, str]:
        """The backend's process finds its Python on PATH, as any program does."""
        path = f"{self.environment / 'bin'}:{os.environ['PATH']}"
        libraries = str(self.packages() / "nvidia_pytriton.libs")
        return os.environ | {"PATH": path, "LD_LIBRARY_PATH": libraries}

    def backends(self, folder: Path) -> Path:
        """A folder of backends: the Python one, with the program for this version of Python."""
        server = self.packages() / "pytriton" / "tritonserver"
        version = self.packages().parent.name.removeprefix("python")
        shutil.copytree(server / "backends", folder)
        stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
        shutil.copy(stub, folder / "python")
        return folder

    @contextmanager
    def serve(self, repository: Path, folder: Path) -> Iterator[tuple[int, list[str]]]:
        """Serve the model for image files until the block ends.

        Yields the HTTP port and the lines of the log; the port is 0 if the server ended.
        """
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        program = self.packages() / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        words = [
            *(program, f"--model-repository={repository}"),
            f"--backend-directory={self.backends(folder / 'backends')}",
            *("--model-control-mode=explicit", f"--load-model={FILES_MODEL}"),
            *("--http-address=127.0.0.1", f"--http-port={port}"),
            *("--allow-grpc=false", "--allow-metrics=false", "--exit-timeout-secs=5"),
        ]
        server = subprocess.Popen(
            words, env=self.variables(), stderr=subprocess.PIPE, text=True, errors="replace"
        )
        assert server.stderr is not None
        lines: list[str] = []
        try:
            for line in server.stderr:  # until it is ready or has ended
                lines.append(line)
                if "Started HTTPService" in line:
                    wait_until_it_listens(port)
                    break
            else:
                port = 0
            yield port, lines
        finally:
            server.terminate()
            try:
                server.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.communicate()


def wait_until_it_listens(port: int) -> None:
    """The server says that it has started a moment before it takes connections."""
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except ConnectionRefusedError:
            time.sleep(0.05)
    raise TimeoutError(f"nothing listens at port {port}")


@pytest.fixture(scope="module")
def triton() -> Triton:
    return Triton(Path(NAMED))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("triton") / "models"
    write_triton_repository(folder, open_bundle(starter_bundle()), None)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter's golden tiles, a file of each kind that is read, and each of them cut off."""
    folder = tmp_path_factory.mktemp("images")
    for tile in (starter_bundle() / "golden").iterdir():
        shutil.copy(tile, folder)
    for name, data in samples().items():
        (folder / name).write_bytes(data)
        (folder / f"cut-{name}").write_bytes(data[: len(data) * 2 // 3])
        (folder / f"changed-{name}").write_bytes(b"\0" + data[1:])
    (folder / "empty.png").touch()
    return folder


def ask(client: Any, paths: list[Path]) -> Any:
    """Send one request; returns a handle whose `get_result` waits for the answer."""
    http = pytest.importorskip("tritonclient.http")
    array = np.array([[path.read_bytes()] for path in paths], np.object_)
    tensor = http.InferInput("images", array.shape, "BYTES").set_data_from_numpy(array)
    return client.async_infer(FILES_MODEL, [tensor])


def rows_of_infer(triton: Triton, images: Path, out: Path) -> dict[str, Prediction]:
    """The rows of the command, from the packages that the server uses."""
    words = [triton.python, "-m", "edgelung", "infer", images, "--out", out]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 3, done.stderr
    return {row.path: row for row in read_predictions(out).rows}


def test_tritonclient_gets_the_rows_of_infer(
    triton: Triton, repository: Path, images: Path, tmp_path: Path
) -> None:
    http = pytest.importorskip("tritonclient.http", reason="pip install 'tritonclient[http]'")
    expected = rows_of_infer(triton, images, tmp_path / "rows.jsonl")
    paths = sorted(images.iterdir())
    with triton.serve(repository, tmp_path) as (port, lines):
        assert port, "".join(lines)
        requests = [paths[start : start + 5] for start in range(0, len(paths), 5)]
        with http.InferenceServerClient(f"127.0.0.1:{port}", concurrency=8) as client:
            handles = [ask(client, some) for some in requests]  # at once: the server batches them
            answers = [handle.get_result() for handle in handles]
    largest = 0.0
    for some, answer in zip(requests, answers, strict=True):
        columns = [answer.as_numpy(name) for name in OUTPUTS]
        for path, (label,), (status,), (error,), probs, (ood,), (stage,) in zip(
            some, *columns, strict=True
        ):
            row = expected.pop(path.name)
            assert (status.decode(), error.decode()) == (row.status, row.error), path.name
            assert label.decode() == (row.label or "")
            assert stage == (row.stage or 0)
            if row.probabilities is None:
                assert np.isnan([*probs, ood]).all()
            else:
                largest = max(largest, float(np.abs(probs - row.probabilities).max()))
                assert abs(ood - (row.ood or 0)) <= 1e-5
    assert not expected
    print(f"largest difference of a probability: {largest:.2g}")
    assert largest <= 1e-6


def test_more_images_than_a_batch_are_refused_with_a_reason(
    triton: Triton, repository: Path, images: Path, tmp_path: Path
) -> None:
    http = pytest.importorskip("tritonclient.http")
    with triton.serve(repository, tmp_path) as (port, lines):
        assert port, "".join(lines)
        with http.InferenceServerClient(f"127.0.0.1:{port}") as client:
            with pytest.raises(Exception, match="batch-size must be <= 32"):
                ask(client, [images / "00.jpeg"] * 33).get_result()
            answer = ask(client, [images / "00.jpeg"] * 32).get_result()
            assert answer.as_numpy("status").shape == (32, 1)


def test_the_client_of_the_documentation_runs(
    triton: Triton, repository: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tritonclient.http")
    (block,) = [b for b in blocks(ROOT / "docs/how-to/triton.md") if b.kind == "python"]
    with triton.serve(repository, tmp_path) as (port, lines):
        assert port, "".join(lines)
        code = block.body.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        assert code != block.body
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["adenocarcinoma.jpeg", "ok", "lung_aca"],
        ["cut.jpeg", "truncated"],
        ["normal.jpeg", "ok", "lung_n"],
    ]


def test_a_damaged_bundle_is_never_served(triton: Triton, repository: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(repository, tmp_path / "models"))
    graph = copied / FILES_MODEL / "1" / "bundle" / "model.int8.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with triton.serve(copied, tmp_path) as (port, lines):
        assert port == 0
        assert any("TritonModelException" in line and "is damaged" in line for line in lines)
