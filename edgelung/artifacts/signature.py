"""bundle.sig: a signature over all files of a folder, in the OpenSSF model-signing format.

A Sigstore bundle (JSON) holds a DSSE envelope; its payload is an in-toto statement that lists every
file with its SHA-256. `model_signing verify key` accepts what `sign` writes, and `verify` accepts
what `model_signing sign key` wrote. Both are pure functions: they see digests, not files.

An ECDSA signature (r, s) has a second valid form (r, n - s), and JSON has many spellings. So other
bytes of bundle.sig can be valid too. They say the same about the same files: nothing depends on the
bytes of bundle.sig.

Formats: https://github.com/sigstore/model-transparency, https://github.com/secure-systems-lab/dsse
"""

import base64
import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

from msgspec import Meta, Struct, field

from edgelung.artifacts.bundle_files import MAX_SIGNATURE_BYTES, SIGNATURE
from edgelung.artifacts.keys import PublicKey, hash_of_curve
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.typed_json import TOO_DEEP, Json, convert

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

MAX_NAME_CHARACTERS = 1024

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
_SHA256 = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


class SignatureError(EdgelungError):
    """The signature is malformed, or it is not a signature of these files."""


class UntrustedKeyError(EdgelungError):
    """The signature was made with none of the trusted keys."""


class _KeyHint(Struct, forbid_unknown_fields=True):
    hint: str | None = None


class _Material(Struct, forbid_unknown_fields=True):
    public_key: _KeyHint = field(name="publicKey")
    # Entries of a public log, which signatures by a key do not have.
    log_entries: Annotated[list[Json], Meta(max_length=0)] = field(name="tlogEntries", default=[])


class _DsseSignature(Struct, forbid_unknown_fields=True):
    sig: str
    keyid: str = ""


class _Envelope(Struct, forbid_unknown_fields=True):
    payload: str
    payload_type: str = field(name="payloadType")
    signatures: list[_DsseSignature]


class _SigstoreBundle(Struct, forbid_unknown_fields=True):
    media_type: str = field(name="mediaType")
    material: _Material = field(name="verificationMaterial")
    envelope: _Envelope = field(name="dsseEnvelope")


class _Subject(Struct, forbid_unknown_fields=True):
    name: str
    digest: dict[str, str]


class _Serialization(Struct, forbid_unknown_fields=True, omit_defaults=True):
    method: str
    hash_type: str
    allow_symlinks: bool
    ignore_paths: list[str] = []
    shard_size: float | None = None


class _Resource(Struct, forbid_unknown_fields=True):
    name: str
    algorithm: str
    digest: str


class _Predicate(Struct, forbid_unknown_fields=True):
    serialization: _Serialization
    resources: list[_Resource]


class _Statement(Struct, forbid_unknown_fields=True):
    type: str = field(name="_type")
    subject: list[_Subject]
    predicate_type: str = field(name="predicateType")
    predicate: _Predicate


def sign(digests: Mapping[str, str], private_key: "EllipticCurvePrivateKey", name: str) -> bytes:
    """Return the text of bundle.sig.

    Args:
        digests: POSIX path in the folder → SHA-256 in hexadecimal, of every file but bundle.sig.
        private_key: an ECDSA key on P-256, P-384 or P-521.
        name: the folder's name, which is informative: a renamed folder keeps its signature.

    Raises:
        SignatureError: if a path could not be verified again.
    """
    from cryptography.hazmat.primitives.asymmetric import ec

    names = sorted(digests, key=_order)
    for path in names:
        if fault := _path_fault(path):
            raise SignatureError(f"cannot sign the file {path!r}: {fault}; rename it")
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": _root(digests[path] for path in names)}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [SIGNATURE],
            },
            "resources": [
                {"name": path, "algorithm": "sha256", "digest": digests[path]} for path in names
            ],
        },
    }
    payload = json.dumps(statement).encode("ascii")
    public_key = PublicKey.of(private_key.public_key(), name="")
    signature = private_key.sign(
        _pre_authentication(PAYLOAD_TYPE, payload), ec.ECDSA(hash_of_curve(private_key.curve))
    )
    bundle = {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {"publicKey": {"hint": public_key.hint}, "tlogEntries": []},
        "dsseEnvelope": {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }
    return json.dumps(bundle).encode("ascii")


def verify(
    signature: bytes, digests: Mapping[str, str], keys: Sequence[PublicKey], where: str
) -> PublicKey:
    """Return the trusted key that signed exactly these files.

    Args:
        signature: the bytes of bundle.sig.
        digests: POSIX path in the folder → SHA-256 in hexadecimal, of every file but bundle.sig.
        keys: the trusted keys.
        where: the path of bundle.sig, for messages.

    Raises:
        UntrustedKeyError: if another key signed.
        SignatureError: if the signature is malformed, was not made by the key that it names, or
            signs other files: one more, one fewer, other bytes.
    """
    bundle = _parse(signature, _SigstoreBundle, where)
    if bundle.media_type != MEDIA_TYPE:
        _refuse(where, f"it has the media type {bundle.media_type!r}", repr(MEDIA_TYPE))
    envelope = bundle.envelope
    if envelope.payload_type != PAYLOAD_TYPE:
        _refuse(where, f"it has the payload type {envelope.payload_type!r}", repr(PAYLOAD_TYPE))
    if len(envelope.signatures) != 1:
        _refuse(where, f"it holds {len(envelope.signatures)} signatures", "one")
    payload = _decode(envelope.payload, where)
    key = _signing_key(
        bundle.material.public_key.hint,
        _decode(envelope.signatures[0].sig, where),
        _pre_authentication(PAYLOAD_TYPE, payload),
        keys,
        where,
    )
    # Nothing of the payload is parsed before its signature holds.
    _compare(_signed_digests(_parse(payload, _Statement, where), where), digests, where)
    return key


def _signing_key(
    hint: str | None, signature: bytes, message: bytes, keys: Sequence[PublicKey], where: str
) -> PublicKey:
    """The key whose signature this is; `hint` names it, except in old signatures."""
    candidates = [key for key in keys if not hint or key.hint == hint]
    for key in candidates:
        if key.verifies(signature, message):
            return key
    if hint and candidates:
        _refuse(
            where,
            f"it names the key {candidates[0].name}, which did not make this signature",
            "the signature as it was written",
        )
    known = ", ".join(key.name for key in keys)
    raise UntrustedKeyError(
        f"{where} was not made with a trusted key; expected one of {known}. Ask the maker for "
        "the public key and name it with --trust, or use --allow-unsigned if you know where the "
        "files are from"
    )


def _signed_digests(statement: _Statement, where: str) -> dict[str, str]:
    """POSIX path → SHA-256 of the files that a statement lists; every field is checked."""
    if (statement.type, statement.predicate_type) != (STATEMENT_TYPE, PREDICATE_TYPE):
        found = f"{statement.type!r} about {statement.predicate_type!r}"
        _refuse(where, f"it signs {found}", f"{STATEMENT_TYPE!r} about {PREDICATE_TYPE!r}")
    serialization, resources = statement.predicate.serialization, statement.predicate.resources
    if serialization.method != "files" or serialization.shard_size is not None:
        _refuse(where, f"it signs {serialization.method!r}", "whole files (method 'files')")
    if serialization.allow_symlinks:
        _refuse(where, "it allows links", "a signature made without --allow_symlinks")
    if other := {serialization.hash_type, *(entry.algorithm for entry in resources)} - {"sha256"}:
        _refuse(where, f"it uses the hash {min(other)!r}", "'sha256'")
    names = [entry.name for entry in resources]
    for name in names:
        if fault := _path_fault(name):
            _refuse(where, f"it signs the path {name!r}: {fault}", "a path inside the folder")
    for ignored in serialization.ignore_paths:
        _check_ignored(ignored, names, where)
    for first, second in itertools.pairwise(names):
        if _order(first) >= _order(second):
            _refuse(where, f"it lists {second!r} after {first!r}", "each path once, sorted")
    for entry in resources:
        if not _SHA256.fullmatch(entry.digest):
            _refuse(where, f"{entry.name!r} has the digest {entry.digest!r}", "64 hex digits")
    root = _root(entry.digest for entry in resources)
    if len(statement.subject) != 1 or statement.subject[0].digest != {"sha256": root}:
        _refuse(where, "its subject is not the digest of its files", f"one subject, {root}")
    return {entry.name: entry.digest for entry in resources}


def _check_ignored(ignored: str, names: Sequence[str], where: str) -> None:
    """Refuse an ignored path that exempts a signed file, or is no path inside the folder.

    Ignored paths exempt nothing here, since `_compare` looks at every file. They are checked for
    the sake of other verifiers.
    """
    if fault := _path_fault(ignored):
        _refuse(where, f"it ignores the path {ignored!r}: {fault}", "a path inside the folder")
    for name in names:
        if name == ignored or name.startswith(f"{ignored}/"):
            _refuse(where, f"it ignores {ignored!r} and signs {name!r}", "one of both")


def _compare(signed: Mapping[str, str], found: Mapping[str, str], where: str) -> None:
    """Refuse any difference between what was signed and what is there."""
    remedy = "copy the folder again, or ask its maker"
    for name in sorted(signed.keys() | found.keys()):
        if name not in signed:
            raise SignatureError(
                f"{where} does not sign {name!r}, which lies in the folder; expected no file that "
                f"is not signed: {remedy}"
            )
        if name not in found:
            raise SignatureError(
                f"{where} signs {name!r}, which is missing in the folder; expected every signed "
                f"file: {remedy}"
            )
        if signed[name] != found[name]:
            raise SignatureError(
                f"{where} signs {name!r} with the SHA-256 {signed[name][:12]}…, the file has "
                f"{found[name][:12]}…; it was changed after it was signed: {remedy}"
            )


def _parse(data: bytes, kind: type[T], where: str) -> T:
    """Parse JSON strictly: one value and nothing around it, no key twice, no unknown field."""
    if len(data) > MAX_SIGNATURE_BYTES:
        _refuse(where, f"it has {len(data):,} bytes", f"at most {MAX_SIGNATURE_BYTES:,}")
    if data != data.strip():
        _refuse(where, "it begins or ends with white space", "the signature as it was written")
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
        return convert(value, kind)
    except RecursionError:
        _refuse(where, TOO_DEEP, "a signature")
    except ValueError as error:  # not UTF-8, not JSON, or not these fields
        _refuse(where, one_line(error), "what `edgelung sign` or `model_signing sign key` writes")


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("it has a key twice")
    return result


def _decode(text: str, where: str) -> bytes:
    """Decode base64 in its one canonical form."""
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError:
        data = b""
    if base64.b64encode(data).decode() != text:
        _refuse(where, "a field is not base64", "the signature as it was written")
    return data


def _refuse(where: str, found: str, expected: str) -> NoReturn:
    raise SignatureError(
        f"{where} is no valid signature: {found}; expected {expected}. Copy the folder again, or "
        "have it signed again"
    )


def _path_fault(path: str) -> str:
    """Why `path` is no canonical POSIX path inside a folder; '' if it is one."""
    if not path or len(path) > MAX_NAME_CHARACTERS:
        return f"it has {len(path)} characters, expected 1 to {MAX_NAME_CHARACTERS}"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "it is absolute or has an empty part, '.' or '..'"
    if not path.isprintable() or "\\" in path:
        return "it has a backslash or a character that cannot be printed"
    return ""


def _order(path: str) -> tuple[str, ...]:
    """Paths are sorted part by part, as model_signing does: 'a/b' before 'a.b'."""
    return tuple(path.split("/"))


def _root(digests: Iterable[str]) -> str:
    """The digest of all files: SHA-256 of their digests, one after the other."""
    return hashlib.sha256(b"".join(map(bytes.fromhex, digests))).hexdigest()


def _pre_authentication(payload_type: str, payload: bytes) -> bytes:
    """What DSSE signs: type and payload with their lengths."""
    return b"DSSEv1 %d %s %d %s" % (
        *(len(payload_type), payload_type.encode("ascii")),
        *(len(payload), payload),
    )
