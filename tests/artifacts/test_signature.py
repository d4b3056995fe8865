"""bundle.sig: both directions of the OpenSSF format, and everything else is refused.

The files in model_signing/ are signatures that `model_signing sign key` (1.1.1) wrote over the
folder of `FILES`, with keys that were thrown away: p256, p384 and p521 into the folder itself; the
others beside it: plain (outside), with --allow_symlinks (links), with --ignore-paths a.onnx
(subset), and through its Python API with BLAKE3 and in shards.
"""

import base64
import hashlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from signatures import KEY, OTHER_KEY, envelope, public, signed, statement

from edgelung.artifacts.keys import read_public_keys
from edgelung.artifacts.signature import SignatureError, UntrustedKeyError, sign, verify

MADE = Path(__file__).parent / "model_signing"
FILES = {"bundle.json": b"{}\n", "a/b.png": b"\x89PNG", "a.onnx": b"onnx", "é.txt": b"e"}
DIGESTS = {name: hashlib.sha256(data).hexdigest() for name, data in FILES.items()}
KEYS = [public(KEY)]


def refused(signature: bytes, digests: dict[str, str] = DIGESTS) -> str:
    """The one line with which a signature is refused."""
    with pytest.raises(SignatureError) as error:
        verify(signature, digests, KEYS, "bundle.sig")
    assert str(error.value).startswith("bundle.sig ")
    return str(error.value)


@pytest.mark.parametrize("name", ["p256", "p384", "p521"])
def test_what_model_signing_signed_is_accepted(name: str) -> None:
    key = read_public_keys(MADE / f"{name}.pem")[0]
    signature = (MADE / f"{name}.sig").read_bytes()
    assert verify(signature, DIGESTS, [public(KEY), key], "bundle.sig") is key
    with pytest.raises(SignatureError, match="was changed after it was signed"):
        verify(signature, DIGESTS | {"a.onnx": "0" * 64}, [key], "bundle.sig")


def test_a_signature_made_beside_the_folder_is_accepted() -> None:
    key = read_public_keys(MADE / "p256.pem")[0]
    assert verify((MADE / "outside.sig").read_bytes(), DIGESTS, [key], "bundle.sig") is key


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("links", "it allows links"),
        ("subset", "does not sign 'a.onnx', which lies in the folder"),
        ("blake3", "it uses the hash 'blake3'; expected 'sha256'"),
        ("shards", "it signs 'shards'; expected whole files"),
    ],
)
def test_what_model_signing_signs_in_another_way_is_refused(name: str, message: str) -> None:
    key = read_public_keys(MADE / "p256.pem")[0]
    with pytest.raises(SignatureError, match=re.escape(message)):
        verify((MADE / f"{name}.sig").read_bytes(), DIGESTS, [key], "bundle.sig")


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_what_was_signed_is_accepted(curve: ec.EllipticCurve) -> None:
    key = ec.derive_private_key(7, curve)
    signature = sign(DIGESTS, key, "bundle")
    assert verify(signature, DIGESTS, [public(key)], "x").key_id == public(key).key_id


def test_our_statement_is_the_one_of_model_signing_but_for_the_ignored_git_paths() -> None:
    def payload(signature: bytes) -> dict[str, Any]:
        return json.loads(base64.b64decode(json.loads(signature)["dsseEnvelope"]["payload"]))

    ours = payload(sign(DIGESTS, KEY, "signed"))
    theirs = payload((MADE / "p256.sig").read_bytes())
    ignored = theirs["predicate"]["serialization"].pop("ignore_paths")
    assert ours["predicate"]["serialization"].pop("ignore_paths") == ["bundle.sig"]
    assert set(ignored) == {"bundle.sig", ".git", ".github", ".gitattributes", ".gitignore"}
    assert ours == theirs


def test_another_key_is_not_trusted() -> None:
    with pytest.raises(UntrustedKeyError, match=r"expected one of lab\.pub\.pem"):
        verify(sign(DIGESTS, OTHER_KEY, "bundle"), DIGESTS, KEYS, "bundle.sig")


def test_200_random_changes_of_the_files_are_refused() -> None:
    rng = random.Random(25)
    signature = sign(DIGESTS, KEY, "bundle")
    for _ in range(200):
        changed, name = dict(DIGESTS), rng.choice(list(DIGESTS))
        digest = changed.pop(name)
        kind = rng.choice(["byte", "name", "added", "removed", "swapped"])
        if kind == "byte":
            changed[name] = hashlib.sha256(rng.randbytes(8)).hexdigest()
        elif kind == "name":
            place = rng.randrange(len(name) + 1)
            changed[f"{name[:place]}{rng.choice('x/ .-é')}{name[place:]}"] = digest
        elif kind == "added":
            changed |= {name: digest, f"{rng.getrandbits(32):x}": digest}
        elif kind == "swapped":
            other = rng.choice(list(changed))
            changed[name], changed[other] = changed[other], digest
        refused(signature, changed)


def test_no_byte_of_the_signature_can_be_flipped() -> None:
    signature = sign(DIGESTS, KEY, "bundle")
    for position in range(len(signature)):
        flipped = bytearray(signature)
        flipped[position] ^= 1 << position % 8
        with pytest.raises((SignatureError, UntrustedKeyError)):
            verify(bytes(flipped), DIGESTS, KEYS, "bundle.sig")


def test_the_second_form_of_an_ecdsa_signature_says_the_same() -> None:
    """Malleability does not matter: whoever makes it can only repeat what was signed."""
    from cryptography.hazmat.primitives.asymmetric.utils import (
        decode_dss_signature,
        encode_dss_signature,
    )

    order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551  # of P-256
    content = json.loads(sign(DIGESTS, KEY, "bundle"))
    entry = content["dsseEnvelope"]["signatures"][0]
    r, s = decode_dss_signature(base64.b64decode(entry["sig"]))
    entry["sig"] = base64.b64encode(encode_dss_signature(r, order - s)).decode()
    assert verify(json.dumps(content).encode(), DIGESTS, KEYS, "x") is KEYS[0]
    refused(json.dumps(content).encode(), DIGESTS | {"a.onnx": "0" * 64})


def changed_statement(change: Callable[[dict[str, Any]], object]) -> bytes:
    """A statement that the trusted key signed, and that `sign` would not write."""
    content = statement(DIGESTS)
    change(content)
    return signed(content)


def of_serialization(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["predicate"]["serialization"].update(fields)


def first_resource(**fields: object) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["predicate"]["resources"][0].update(fields)


def test_the_statement_of_these_tests_is_accepted_unchanged() -> None:
    assert verify(changed_statement(lambda content: None), DIGESTS, KEYS, "x") is KEYS[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(_type="https://in-toto.io/Statement/v0.1"), "it signs"),
        (lambda c: c.update(predicateType="https://model_signing/Digests/v0.1"), "it signs"),
        (lambda c: c.update(subject=c["subject"] * 2), "its subject"),
        (lambda c: c.update(subject=[]), "its subject"),
        (lambda c: c["subject"][0]["digest"].update(sha256="0" * 64), "its subject"),
        (lambda c: c["subject"][0]["digest"].update(sha512="0"), "its subject"),
        (lambda c: c.update(extra=1), "unknown field `extra`"),
        (lambda c: c["predicate"].update(extra=1), "unknown field `extra`"),
        (of_serialization(follow_links=True), "unknown field `follow_links`"),
        (of_serialization(method="shards"), "it signs 'shards'"),
        (of_serialization(shard_size=1e9), "it signs"),
        (of_serialization(hash_type="blake2"), "it uses the hash 'blake2'"),
        (of_serialization(allow_symlinks=True), "it allows links"),
        (of_serialization(ignore_paths=["a.onnx"]), "it ignores 'a.onnx' and signs 'a.onnx'"),
        (of_serialization(ignore_paths=["a"]), "it ignores 'a' and signs 'a/b.png'"),
        (of_serialization(ignore_paths=["."]), "it ignores the path '.'"),
        (of_serialization(ignore_paths=["../x"]), "it ignores the path '../x'"),
        (of_serialization(ignore_paths=["/"]), "it ignores the path '/'"),
        (first_resource(algorithm="sha512"), "it uses the hash 'sha512'"),
        (first_resource(digest="0" * 63), "expected 64 hex digits"),
        (first_resource(digest="F" * 64), "expected 64 hex digits"),
        (first_resource(name="/a/b.png"), "absolute"),
        (first_resource(name="../a"), "'..'"),
        (first_resource(name="a//b.png"), "an empty part"),
        (first_resource(name="./a/b.png"), "'.'"),
        (first_resource(name="a/b.png/"), "an empty part"),
        (first_resource(name="a\\b.png"), "a backslash"),
        (first_resource(name="a\x1b[2J"), "cannot be printed"),
        (first_resource(name="\ud800"), "cannot be printed"),
        (first_resource(name="a" * 1025), "1025 characters"),
        (lambda c: c["predicate"]["resources"].reverse(), "expected each path once, sorted"),
        (
            lambda c: c["predicate"].update(resources=c["predicate"]["resources"][:1] * 2),
            "expected each path once, sorted",
        ),
        (lambda c: c["predicate"]["resources"].pop(), "its subject"),
    ],
)
def test_a_statement_that_is_not_strictly_ours_is_refused(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    assert message in refused(changed_statement(change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(mediaType="application/json"), "media type 'application/json'"),
        (lambda c: c.update(extra=1), "unknown field `extra`"),
        (lambda c: c["dsseEnvelope"].update(payloadType="text/plain"), "type 'text/plain'"),
        (lambda c: c["dsseEnvelope"].update(signatures=[]), "holds 0 signatures; expected one"),
        (
            lambda c: c["dsseEnvelope"].update(signatures=c["dsseEnvelope"]["signatures"] * 2),
            "holds 2 signatures; expected one",
        ),
        (lambda c: c["dsseEnvelope"].update(payload="e30"), "not base64"),
        (lambda c: c["dsseEnvelope"].update(payload="e3 0="), "not base64"),
        (lambda c: c["verificationMaterial"].update(certificate={}), "unknown field"),
        (lambda c: c["verificationMaterial"].update(tlogEntries=[{}]), "length <= 0"),
        (lambda c: c.update(verificationMaterial={}), "missing required field `publicKey`"),
        (lambda c: c["dsseEnvelope"].update(payload="e30="), "did not make this signature"),
    ],
)
def test_an_envelope_that_is_not_strictly_ours_is_refused(
    change: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = envelope(json.dumps(statement(DIGESTS)).encode())
    change(content)
    assert message in refused(json.dumps(content).encode())


def test_a_payload_of_another_type_does_not_pass_as_a_statement() -> None:
    content = envelope(json.dumps(statement(DIGESTS)).encode(), payload_type="text/plain")
    content["dsseEnvelope"]["payloadType"] = "application/vnd.in-toto+json"
    assert "did not make this signature" in refused(json.dumps(content).encode())


GOOD = signed(statement(DIGESTS))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\x80",
        GOOD[:-1],
        GOOD + b"{}",
        GOOD + b"\0",
        GOOD + b"\n",
        b" " + GOOD,
        b"[" * 100_000 + b"]" * 100_000,
        GOOD.replace(b'{"mediaType"', b'{"mediaType": "x", "mediaType"', 1),
        GOOD.replace(b'"payload":', b'"payload": "e30=", "payload":', 1),
        GOOD.replace(b" ", b" " * (1 << 24), 1),
    ],
    ids=range(11),
)
def test_bytes_that_are_not_one_signature_are_refused(text: bytes) -> None:
    refused(text)


def test_a_payload_with_a_key_twice_is_refused() -> None:
    payload = json.dumps(statement(DIGESTS)).replace('{"_type"', '{"_type": "x", "_type"', 1)
    assert "a key twice" in refused(json.dumps(envelope(payload.encode())).encode())


def test_an_old_signature_without_a_hint_is_tried_with_every_key() -> None:
    content = envelope(json.dumps(statement(DIGESTS)).encode())
    content["verificationMaterial"]["publicKey"] = {}
    text = json.dumps(content).encode()
    assert verify(text, DIGESTS, [public(OTHER_KEY), *KEYS], "x") is KEYS[0]
    with pytest.raises(UntrustedKeyError):
        verify(text, DIGESTS, [public(OTHER_KEY)], "x")


@pytest.mark.parametrize("name", ["../x", "/x", "a//b", "a\\b", "a\nb", ""])
def test_a_path_that_could_not_be_verified_is_not_signed(name: str) -> None:
    with pytest.raises(SignatureError, match="cannot sign the file"):
        sign({name: "0" * 64}, KEY, "bundle")
