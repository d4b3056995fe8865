"""Keys, and signatures that a maker of bundles would not write."""

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from edgelung.artifacts.keys import PublicKey
from edgelung.artifacts.trust import Trust

KEY = ec.derive_private_key(25, ec.SECP256R1())
OTHER_KEY = ec.derive_private_key(26, ec.SECP256R1())
PAYLOAD_TYPE = "application/vnd.in-toto+json"
HASHES = {256: hashes.SHA256(), 384: hashes.SHA384(), 521: hashes.SHA512()}


def public(key: ec.EllipticCurvePrivateKey, name: str = "lab.pub.pem") -> PublicKey:
    """The public half of a key."""
    return PublicKey.of(key.public_key(), name)


def trusting(*keys: ec.EllipticCurvePrivateKey, allow_unsigned: bool = False) -> Trust:
    """A policy that trusts these keys."""
    return Trust(tuple(map(public, keys)), "--trust", allow_unsigned)


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public half in PEM form."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key in PEM form."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def digests_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder but bundle.sig."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and path != folder / "bundle.sig"
    }


def statement(digests: Mapping[str, str]) -> dict[str, Any]:
    """The statement that model_signing would sign, to be changed."""
    names = sorted(digests, key=lambda name: name.split("/"))
    root = hashlib.sha256(b"".join(bytes.fromhex(digests[name]) for name in names)).hexdigest()
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "bundle", "digest": {"sha256": root}}],
        "predicateType": "https://model_signing/signature/v1.0",
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": ["bundle.sig", ".git"],
            },
            "resources": [
                {"name": name, "algorithm": "sha256", "digest": digests[name]} for name in names
            ],
        },
    }


def envelope(
    payload: bytes, key: ec.EllipticCurvePrivateKey = KEY, payload_type: str = PAYLOAD_TYPE
) -> dict[str, Any]:
    """A Sigstore bundle whose signature holds, over any payload."""
    message = b"DSSEv1 %d %s %d %s" % (
        *(len(payload_type), payload_type.encode()),
        *(len(payload), payload),
    )
    signature = key.sign(message, ec.ECDSA(HASHES[key.curve.key_size]))
    return {
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {"publicKey": {"hint": public(key).hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }


def signed(content: object, key: ec.EllipticCurvePrivateKey = KEY) -> bytes:
    """bundle.sig over any statement."""
    return json.dumps(envelope(json.dumps(content).encode(), key)).encode()
