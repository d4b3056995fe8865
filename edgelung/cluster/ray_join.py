"""Joining a Ray cluster: its address, and a Ray that prints and reports nothing."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

from edgelung.core.errors import EdgelungError, ExitCode, one_line
from edgelung.core.extras import load_extra
from edgelung.core.interrupts import end_process

AUTO, ADDRESS_VARIABLE = "auto", "RAY_ADDRESS"
# Nothing is reported to Ray's maker.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0"}
CONNECT_SECONDS = 5.0  # for a first connection to the head
JOIN_SECONDS = 60.0  # Ray itself would try for many minutes


def parse_address(text: str) -> str:
    """'auto' or HOST:PORT; raises EdgelungError for anything else.

    'auto' stands for what RAY_ADDRESS says, as in Ray's own commands.
    """
    source = "--ray"
    if text == AUTO and (named := os.environ.get(ADDRESS_VARIABLE)):
        source, text = ADDRESS_VARIABLE, named
    if text == AUTO:
        return text
    found = re.fullmatch(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", text)
    if found and 0 < int(found[2]) < 65536:
        return text
    hint = ""
    if "://" in text:
        hint = "; a ray:// address is of a client, but this machine has to be a node of the cluster"
    raise EdgelungError(f"{source} {text!r}: expected auto, or HOST:PORT of the head node{hint}")


def check_reachable(address: str) -> None:
    """Raise EdgelungError if nothing answers at HOST:PORT."""
    if address == AUTO:
        return
    try:
        connect(address)
    except OSError as error:
        raise EdgelungError(
            f"--ray {address}: nothing answers there ({error.strerror or one_line(error)}); "
            "expected the head of a Ray cluster, which `ray start --head` starts"
        ) from error


def connect(address: str) -> None:
    """Connect to HOST:PORT and hang up. Raises OSError."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()


@contextmanager
def joined(ray: ModuleType, address: str) -> Iterator[None]:
    """Within the context, this process is a driver of the cluster. Raises EdgelungError."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # What Ray would print stays in its own log files. It prints ends of workers on standard output,
    # where rows may go; this switch is the one that Ray's debugger turns.
    printing = load_extra("ray._private.worker", "--ray", "cluster")
    vars(printing)["_worker_logs_enabled"] = False
    logging.getLogger("ray").setLevel(logging.CRITICAL)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        # Ray puts the working folder on the import path of its workers, and a folder of tiles may
        # hold a file `numpy.py`.
        with _in_root(), _quiet() as stderr, _ending_if_stuck(address, stderr):
            ray.init(
                address=address,
                log_to_driver=False,
                configure_logging=False,
                logging_level=logging.CRITICAL,
            )
    except Exception as error:  # Ray raises many types: ConnectionError, RuntimeError, its own
        raise EdgelungError(
            f"--ray {address}: cannot join a Ray cluster ({one_line(error)}); this machine has to "
            "be a node of it: `ray start --address=HOST:PORT`, or `ray start --head` for a new one"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has set its own
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _ending_if_stuck(address: str, stderr: int) -> Iterator[None]:
    """End the process with one line if the context takes too long: Ray's code cannot be stopped."""

    def end() -> None:
        os.dup2(stderr, 2)
        end_process(
            ExitCode.USAGE,
            f"--ray {address}: could not join within {JOIN_SECONDS:g} s; what answers there is no "
            "head of a Ray cluster, or it is stuck. Nothing was predicted",
        )

    timer = threading.Timer(JOIN_SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _quiet() -> Iterator[int]:
    """Nothing reaches standard error: Ray's C++ code prints there until it knows its log files.

    Yields a descriptor of what it was.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # a service may have closed it
        yield 2
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield stderr
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nothing)


@contextmanager
def _in_root() -> Iterator[None]:
    folder = os.open(".", os.O_RDONLY)
    os.chdir("/")
    try:
        yield
    finally:
        os.fchdir(folder)
        os.close(folder)
