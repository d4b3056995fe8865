"""The service under load, beside the folder run and services as people write them.

    cd benchmarks
    python serve.py TILES768 --json results/serve.json
    python serve.py TILES768 --requests 100000 --json results/serve-memory.json

The second command only sends so many requests to `edgelung serve`, 32 at once, and records its
memory at the start, ten times on the way and at the end.

Runs the services in turn on a free port of this machine, each in a process of its own, and loads
them with wrk (`apt install wrk`), which needs little of the cores: one thread, 1 to 64 connections,
each sends its next image as soon as it has its answer. For the latency at half load, connections
pause between their requests. The folder run gets the same images in the same run; its clock begins
with its first tile. A client of wrk waits for its answer, so a slow answer also delays its next
request. Also the memory of the service after each load.

The others are FastAPI with PyTorch and LitServe with PyTorch, with random weights: only their speed
is measured. They run in an environment that this script makes (PINS, with pip, so it needs a
registry) and that takes torch and timm from its own. --shared marks figures from a machine that had
other work to do.
"""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import machine
from rich.console import Console
from rich.table import Table

from edgelung.core.system import versions

EDGELUNG = Path(sys.executable).with_name("edgelung")
HERE = Path(__file__).parent
LOAD = HERE / "serve_load.lua"
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
DIFFERENT = 200  # images that are sent in turn
START_SECONDS, STOP_SECONDS = 120, 20
MEMORY_CLIENTS, MEMORY_STEPS = 32, 10
SERVING_PACKAGES = ("uvicorn", "starlette", "httptools", "uvloop", "torchvision")
PINS = ("fastapi==0.165.0", "python-multipart==0.0.34", "litserve==0.2.19")
ENVIRONMENT = Path(sys.prefix) / "serve-environment"
FASTAPI = ("-m", "uvicorn", "serve_fastapi:app", "--log-level", "warning", "--port")
OTHERS = {  # the words of the command; the port follows
    "FastAPI + PyTorch": FASTAPI,
    "LitServe + PyTorch": ("serve_litserve.py",),
}
console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path, help="a folder of JPEG tiles")
    parser.add_argument("--bundle", type=Path, help="default: the starter")
    parser.add_argument("--files", type=int, default=2000, help="of the folder run")
    parser.add_argument("--seconds", type=float, default=20, help="of each load")
    parser.add_argument("--clients", type=int, nargs="+", default=list(CLIENTS))
    parser.add_argument("--requests", type=int, help="only measure memory over so many requests")
    parser.add_argument("--shared", action="store_true", help="the machine had other work to do")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        sys.exit("found no wrk; expected it on the path: apt install wrk")
    images = sorted(path for path in options.tiles.rglob("*") if path.suffix in (".jpeg", ".jpg"))
    images = images[:: max(1, len(images) // DIFFERENT)][:DIFFERENT]
    if not images:
        sys.exit(f"{options.tiles} holds no .jpeg file")
    if options.requests:
        result = measure_memory(options, images)
        console.print(json.dumps(result["memory"], indent=2), markup=False)
    else:
        with tempfile.TemporaryDirectory() as work:
            result = measure(options, images, Path(work))
        show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def measure(options: argparse.Namespace, images: list[Path], work: Path) -> dict[str, Any]:
    """All figures but those of `measure_memory`."""
    python = make_environment(ENVIRONMENT)
    folder = work / "tiles"
    folder.mkdir()
    for number in range(options.files):
        source = images[number % len(images)]
        (folder / f"{number:06d}.jpeg").write_bytes(source.read_bytes())
    folder_rates = [folder_run(options, folder)]
    loads: dict[str, list[dict[str, Any]]] = {}
    memory = []
    with edgelung_service(options) as (port, process):
        for clients in options.clients:
            loads.setdefault("edgelung serve", []).append(
                load(f"http://127.0.0.1:{port}/v1/classify", clients, options.seconds, images)
            )
            memory.append({"clients": clients, "resident_mb": resident_mb(process.pid)})
        best = max(loads["edgelung serve"], key=lambda one: float(one["requests_per_second"]))
        half = half_load(port, float(best["requests_per_second"]), options, images)
    for name, words in OTHERS.items():
        with other_service(python, words) as port:
            url = f"http://127.0.0.1:{port}/predict"
            loads[name] = [
                load(url, clients, options.seconds, images, multipart=True)
                for clients in options.clients
            ]
    folder_rates.append(folder_run(options, folder))  # before and after: the machine drifts
    one_client = loads["edgelung serve"][0] if options.clients[0] == 1 else None
    return {
        "shared_machine": options.shared,
        "machine": machine.describe(),
        "packages": versions(SERVING_PACKAGES) | dict(pin.split("==") for pin in PINS),
        "wrk": version_of_wrk(),
        "images": len(images),
        "image_bytes": round(sum(path.stat().st_size for path in images) / len(images)),
        "seconds": options.seconds,
        "folder_run_tiles_per_second": folder_rates,
        "loads": loads,
        "half_load": half,
        "one_client_p50_ms": one_client["p50_ms"] if one_client else None,
        "memory": memory,
    }


def measure_memory(options: argparse.Namespace, images: list[Path]) -> dict[str, Any]:
    """Memory of the service over `--requests` requests."""
    begin = time.monotonic()
    with edgelung_service(options) as (port, process):
        memory = [{"requests": 0, "resident_mb": resident_mb(process.pid)}]
        words = ["wrk", "-t1", f"-c{MEMORY_CLIENTS}", "-d24h", "--timeout", "60s", "-s", LOAD]
        words += [f"http://127.0.0.1:{port}/v1/classify", "--", 0, 0, *images]
        with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True) as client:
            for step in range(1, MEMORY_STEPS + 1):
                while (done := answered(port)) < options.requests * step / MEMORY_STEPS:
                    if client.poll() is not None:
                        sys.exit(f"wrk ended after {done} requests")
                    time.sleep(0.5)
                memory.append({"requests": done, "resident_mb": resident_mb(process.pid)})
            client.send_signal(signal.SIGINT)  # it then prints its figures
            text, _ = client.communicate()
    return {
        "shared_machine": options.shared,
        "machine": machine.describe(),
        "packages": versions(SERVING_PACKAGES),
        "images": len(images),
        "seconds": round(time.monotonic() - begin, 1),
        "load": {"clients": MEMORY_CLIENTS} | json.loads(text.splitlines()[-1]),
        "memory": memory,
    }


def answered(port: int) -> int:
    """How many images the service has answered, by its own metrics."""
    with urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    ours = (line for line in lines if line.startswith("edgelung_requests_total{"))
    return sum(int(float(line.split()[-1])) for line in ours if "/v1/classify" in line)


def folder_run(options: argparse.Namespace, folder: Path) -> float:
    """Tiles per second of `edgelung infer`, by its own clock."""
    words = ["infer", folder, "--out", folder.parent / "rows.csv", "--restart", "--json"]
    words += ["--model", options.bundle] if options.bundle else []
    done = subprocess.run([EDGELUNG, *map(str, words)], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["tiles_per_second"])


@contextmanager
def edgelung_service(
    options: argparse.Namespace,
) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """`edgelung serve`; yields its port and process."""
    words = ["serve", *([str(options.bundle)] if options.bundle else []), "--port", "0", "--json"]
    with subprocess.Popen([EDGELUNG, *words], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            url = json.loads(process.stdout.readline())["url"]
            yield int(url.rpartition(":")[2]), process
        finally:
            process.terminate()


def make_environment(place: Path) -> Path:
    """The Python of an environment with PINS, made if it is missing. Torch is that of this one."""
    python, stamp = place / "bin" / "python", place / "pins.json"
    content = json.dumps([PINS, sys.prefix])
    if not stamp.exists() or stamp.read_text() != content:
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        (site,) = (place / "lib").glob("python3*/site-packages")
        own = [entry for entry in sys.path if entry.endswith("site-packages")]
        (site / "own.pth").write_text("\n".join(own or [sysconfig.get_path("purelib")]) + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PINS], check=True)
        stamp.write_text(content)
    return python


@contextmanager
def other_service(python: Path, words: Sequence[str]) -> Iterator[int]:
    """A service of OTHERS; yields its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = int(free.getsockname()[1])
    command = [python, *words, str(port)]
    with subprocess.Popen(command, cwd=HERE, start_new_session=True) as process:
        try:
            wait_for(port, process)
            yield port
        finally:  # LitServe has processes of its own
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(STOP_SECONDS)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Until the service accepts connections."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return
    sys.exit(f"{process.args!r} did not start; it needs what PINS names, torch and timm")


def half_load(
    port: int, rate: float, options: argparse.Namespace, images: list[Path]
) -> dict[str, Any]:
    """The latency when half as many requests come as the service can answer."""
    clients = max(options.clients)
    pause = 2 * clients / rate  # seconds between the requests of one client, on average
    url = f"http://127.0.0.1:{port}/v1/classify"
    found = load(url, clients, options.seconds, images, pause=pause)
    return found | {"of_capacity": round(float(found["requests_per_second"]) / rate, 2)}


def load(
    url: str,
    clients: int,
    seconds: float,
    images: list[Path],
    *,
    multipart: bool = False,
    pause: float = 0,
) -> dict[str, Any]:
    """Load a service with wrk. Milliseconds, and requests per second that were answered by 200."""
    warm_up = max(1, round(seconds / 10))
    found: dict[str, Any] = {}
    for duration in (warm_up, max(1, round(seconds))):
        words = ["wrk", "-t1", f"-c{clients}", f"-d{duration}s", "--timeout", "60s"]
        words += ["-s", LOAD, url, "--", int(multipart), pause, *images]
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
        found = json.loads(done.stdout.splitlines()[-1])
    return {"clients": clients} | found


def resident_mb(process: int) -> float:
    """Memory that the process has now."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS:"))
    return round(int(line.split()[1]) / 1024, 1)


def version_of_wrk() -> str:
    """What `wrk -v` says; its exit code is no sign of an error."""
    done = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False)
    return (done.stdout + done.stderr).splitlines()[0].split(" Copyright")[0].strip()


def show(result: dict[str, Any]) -> None:
    """The table."""
    note = " on a SHARED machine: compare within this run only" if result["shared_machine"] else ""
    table = Table(
        "service", "clients", "tiles/s", "p50 ms", "p99 ms", "not 200", title=f"load{note}"
    )
    rows = [(name, one) for name, loads in result["loads"].items() for one in loads]
    for name, one in [*rows, ("edgelung serve, half load", result["half_load"])]:
        numbers = (one["requests_per_second"], one["p50_ms"], one["p99_ms"], one["not_200"])
        table.add_row(name, str(one["clients"]), *map(str, numbers))
    console.print(table)
    console.print(f"folder run, tiles/s: {result['folder_run_tiles_per_second']}", markup=False)
    console.print(f"memory: {result['memory']}", markup=False)


if __name__ == "__main__":
    main()
