"""ECDSA keys in PEM files: those that sign, and those that are trusted.

`cryptography` is imported when a key is read, and not before: a run without keys does without it.
"""

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edgelung.core.errors import EdgelungError
from edgelung.core.files import WriteError
from edgelung.core.folder import read_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.hashes import HashAlgorithm

PASSWORD_ENVIRONMENT = "EDGELUNG_KEY_PASSWORD"
SUFFIX = ".pem"
CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}
EXPECTED = f"expected an ECDSA key on {', '.join(CURVES.values())}"
MAX_KEY_BYTES = 1 << 14  # a PEM file has some hundred bytes
MAX_KEYS = 256  # in a folder
_PEM_KEY = re.compile(rb"^-----BEGIN [A-Z ]*KEY-----", re.MULTILINE)


@dataclass(frozen=True)
class PublicKey:
    """A key that verifies signatures.

    Attributes:
        name: the name of its file.
        key_id: SHA-256 of its SubjectPublicKeyInfo in DER, in hexadecimal.
        hint: SHA-256 of its PEM text, by which the model-signing format names it.
    """

    name: str
    key_id: str
    hint: str
    _key: "ec.EllipticCurvePublicKey"

    @classmethod
    def of(cls, key: "ec.EllipticCurvePublicKey", name: str) -> "PublicKey":
        """Wrap a key of the library; `name` is the name of its file."""
        from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

        der, pem = (
            hashlib.sha256(key.public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo))
            for encoding in (Encoding.DER, Encoding.PEM)
        )
        return cls(name, der.hexdigest(), pem.hexdigest(), key)

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """True if this key made the ECDSA signature (DER) of the message."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec

        try:
            self._key.verify(signature, message, ec.ECDSA(hash_of_curve(self._key.curve)))
        except InvalidSignature:
            return False
        return True


def hash_of_curve(curve: "ec.EllipticCurve") -> "HashAlgorithm":
    """The hash that the model-signing format uses with a curve."""
    from cryptography.hazmat.primitives import hashes

    return {
        "secp256r1": hashes.SHA256(),
        "secp384r1": hashes.SHA384(),
        "secp521r1": hashes.SHA512(),
    }[curve.name]


def read_public_keys(path: Path) -> tuple[PublicKey, ...]:
    """Read a PEM file, or every file `*.pem` of a folder, sorted by name.

    Raises:
        EdgelungError: if a file is no public key, or the folder holds none.
    """
    names = os.listdir(path) if path.is_dir() else None
    return tuple(decode_public_key(file, _read(file)) for file in key_files(path, names))


def key_files(path: Path, names: Sequence[str] | None) -> list[Path]:
    """The files of keys at `path`: those of a folder with these `names`, or itself.

    Raises EdgelungError if there are none or too many.
    """
    if names is None:
        return [path]
    files = sorted(path / name for name in names if Path(name).suffix == SUFFIX)
    if not 0 < len(files) <= MAX_KEYS:
        raise EdgelungError(
            f"the folder {path} holds {len(files)} files *{SUFFIX}; expected 1 to {MAX_KEYS} "
            "public keys: name a folder of keys or one key"
        )
    return files


def decode_public_key(path: Path, data: bytes) -> PublicKey:
    """The public key in the bytes of a file. Raises EdgelungError if they hold anything else.

    Args:
        path: the file, for messages and the name of the key.
        data: its bytes, or the first MAX_KEY_BYTES + 1 of them.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    _check_pem(path, data)
    if b"PRIVATE KEY-----" in data:
        raise EdgelungError(
            f"{path} holds a private key; expected a public key. Keep the private key where only "
            f"its owner can read it, and name the public one (`openssl ec -in KEY -pubout`)"
        )
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EdgelungError(
            f"{path} is no public key; {EXPECTED}, in a PEM file such as `edgelung keygen` writes"
        ) from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise EdgelungError(f"{path} holds a key of another kind; {EXPECTED}")
    _check_curve(path, key.curve)
    return PublicKey.of(key, path.name)


def read_private_key(path: Path, password: Callable[[], str]) -> "ec.EllipticCurvePrivateKey":
    """Read the key that signs.

    Args:
        path: a PEM file: PKCS #8 or SEC 1, encrypted or not.
        password: called if the key is encrypted.

    Raises:
        EdgelungError: if the file holds no such key, or the password is wrong.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = _read(path)
    _check_pem(path, data)
    # PKCS #8 says so in its first line, SEC 1 in a header.
    encrypted = b"-----BEGIN ENCRYPTED " in data or b"Proc-Type: 4,ENCRYPTED" in data
    try:
        key = load_pem_private_key(data, password().encode() if encrypted else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if encrypted:
            raise EdgelungError(
                f"cannot decrypt the key {path}: the password is wrong or the file is damaged; "
                "run the same command again with the right password"
            ) from error
        raise EdgelungError(f"{path} is no private key; {EXPECTED}, in a PEM file") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise EdgelungError(f"{path} holds a key of another kind; {EXPECTED}")
    _check_curve(path, key.curve)
    return key


def write_key_pair(private: Path, public: Path, password: str | None) -> PublicKey:
    """Write a new P-256 key pair: the private key for its owner's eyes (mode 0600).

    Args:
        private, public: new files.
        password: encrypts the private key; None leaves it readable for whoever reads the file.

    Raises:
        EdgelungError: if one of the files exists or cannot be written; then none is left.
    """
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    encryption = (
        serialization.NoEncryption()
        if password is None
        else serialization.BestAvailableEncryption(password.encode())
    )
    private_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )
    public_pem = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _create(private, private_pem, 0o600)
    try:
        _create(public, public_pem, 0o644)
    except BaseException:
        private.unlink()
        raise
    return PublicKey.of(key.public_key(), public.name)


def _create(path: Path, data: bytes, mode: int) -> None:
    """Write a new file; O_EXCL refuses any existing one, also a link."""
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags, mode)
    except FileExistsError as error:
        raise EdgelungError(
            f"{path} exists; a key is never overwritten: choose another name"
        ) from error
    except OSError as error:
        raise WriteError(path, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink()
        raise WriteError(path, error) from error


def _read(path: Path) -> bytes:
    """Read a file, or as much of it as shows that it is too large for a key."""
    try:
        if not path.is_file():  # a FIFO would wait for its writer
            raise EdgelungError(f"{path} is no file; expected a key in a PEM file")
        return read_regular(path, MAX_KEY_BYTES + 1)
    except OSError as error:
        raise EdgelungError(f"cannot read the key {path}: {error.strerror}") from error


def _check_pem(path: Path, data: bytes) -> None:
    """Raise EdgelungError if the bytes are not those of a file of one PEM block."""
    if len(data) > MAX_KEY_BYTES:
        raise EdgelungError(f"{path} has more than {MAX_KEY_BYTES:,} bytes; {EXPECTED}")
    if (count := len(_PEM_KEY.findall(data))) != 1:
        raise EdgelungError(f"{path} holds {count} keys in PEM form; expected one")


def _check_curve(path: Path, curve: "ec.EllipticCurve") -> None:
    if curve.name not in CURVES:
        raise EdgelungError(f"{path} holds a key on the curve {curve.name}; {EXPECTED}")
