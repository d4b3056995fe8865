"""Who may use the service: the address that it listens on, a token, and certificates (TLS)."""

import hmac
import ipaddress
import os
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path

from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.ownership import read_guarded, read_secret

MAX_TOKEN_FILE = 4096  # bytes
MAX_CERTIFICATES = 1 << 20
MIN_TOKEN = 16  # characters: less can be guessed
_PORT = re.compile(r":\d*$")
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]+")  # what a header may hold (RFC 6750)


@dataclass(frozen=True)
class Token:
    """The secret that every request must send."""

    value: bytes

    def allows(self, authorization: bytes | None) -> bool:
        """True if the header `Authorization` has this token. Compares in constant time."""
        kind, _, given = (authorization or b"").partition(b" ")
        return kind.lower() == b"bearer" and hmac.compare_digest(given.strip(), self.value)

    def __repr__(self) -> str:
        return "Token(…)"


def read_token(path: Path) -> Token:
    """Read the token of a file that only its owner can read. Raises EdgelungError."""
    text = _read(path, "token").decode("ascii", "replace").strip()
    if len(text) < MIN_TOKEN or not _TOKEN.fullmatch(text):
        raise EdgelungError(
            f"{path} holds no token; expected one line of {MIN_TOKEN} characters or more out of "
            f"A-Z a-z 0-9 . _ ~ + / = -, such as that of: openssl rand -hex 32 > '{path}'"
        )
    return Token(text.encode())


@dataclass(frozen=True)
class TlsFiles:
    """Files of TLS, in PEM.

    Attributes:
        certificate: the service's certificate, followed by intermediate ones.
        key: its private key, without a password.
        client_ca: authorities that sign clients' certificates; None: clients need none.
    """

    certificate: Path
    key: Path
    client_ca: Path | None = None

    def context(self) -> ssl.SSLContext:
        """TLS 1.2 or newer with these files. Raises EdgelungError if one cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        _read(self.key, "private key")
        try:
            context.load_cert_chain(self.certificate, self.key, password=_refuse_password)
        except (OSError, ssl.SSLError) as error:
            raise EdgelungError(
                f"{self.certificate} and {self.key} cannot be used ({one_line(error)}); expected a "
                "certificate and its private key, both in PEM and without a password"
            ) from error
        if self.client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            data = _guarded(self.client_ca, "certificates of clients")
            try:
                context.load_verify_locations(cadata=data.decode("ascii", "replace"))
            except (OSError, ValueError) as error:  # ValueError: an empty file
                raise EdgelungError(
                    f"{self.client_ca} cannot be used ({one_line(error)}); expected certificates "
                    "in PEM"
                ) from error
        return context


def parse_tls(
    certificate: Path | None, key: Path | None, client_ca: Path | None
) -> TlsFiles | None:
    """The files of TLS that the options name; None without any. Raises EdgelungError."""
    if certificate is not None and key is not None:
        return TlsFiles(certificate, key, client_ca)
    if certificate is None and key is None and client_ca is None:
        return None
    raise EdgelungError(
        "found a part of the options of TLS; expected both --tls-cert and --tls-key"
    )


def resolve(host: str) -> str:
    """Resolve a host name to an address, IPv4 if there is one. Raises EdgelungError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise EdgelungError(
            f"--host {host} is no address: {one_line(error)}; expected one of this machine"
        ) from error
    addresses = [str(entry[4][0]) for entry in sorted(found, key=lambda entry: entry[0])]
    return addresses[0]


def check_address(address: str, token: Token | None, tls: TlsFiles | None) -> None:
    """Raise EdgelungError if other machines reach the address without a token or certificate."""
    if token is not None or (tls is not None and tls.client_ca is not None):
        return
    if not is_loopback(address):
        raise EdgelungError(
            f"--host {address} lets other machines in; expected --token-file, or --tls-cert, "
            "--tls-key and --tls-client-ca, or the default 127.0.0.1"
        )


def is_loopback(address: str) -> bool:
    """True if only this machine reaches the address."""
    return ipaddress.ip_address(address).is_loopback


def names_this_machine(host: bytes) -> bool:
    """True if the header `Host` is a name or an address that never means another machine.

    A page in a browser here may ask `http://its-own-name:8000` and let that name resolve to
    127.0.0.1 (DNS rebinding). The browser then takes our answer for one of the page's own server
    and lets the page read it. Only `Host` tells such a request from others.
    """
    name = host.decode("latin-1").strip().lower()
    if _PORT.search(name):
        name = name.rpartition(":")[0]
    if name == "localhost":
        return True
    try:
        return is_loopback(name.removeprefix("[").removesuffix("]"))
    except ValueError:  # another name
        return False


def bind(address: str, port: int) -> socket.socket:
    """Listen on an address. Raises EdgelungError if that is not possible."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family, backlog=1024)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else one_line(error)
        raise EdgelungError(
            f"cannot listen on {address}, port {port}: {reason}; choose another --port, or 0 for "
            "any that is free"
        ) from error


def url_of(bound: socket.socket, tls: TlsFiles | None) -> str:
    """The address that a client calls."""
    host, port = bound.getsockname()[:2]
    scheme = "http" if tls is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _read(path: Path, what: str) -> bytes:
    try:
        return read_secret(path, what, MAX_TOKEN_FILE if what == "token" else MAX_CERTIFICATES)
    except OSError as error:
        raise _unreadable(path, what, error) from error


def _guarded(path: Path, what: str) -> bytes:
    try:
        return read_guarded(path, what, MAX_CERTIFICATES)
    except OSError as error:
        raise _unreadable(path, what, error) from error


def _unreadable(path: Path, what: str, error: OSError) -> EdgelungError:
    return EdgelungError(f"cannot read the {what} {path}: {error.strerror or one_line(error)}")


def _refuse_password() -> str:
    return ""  # rather than ask at the terminal: OpenSSL then says that it is wrong
