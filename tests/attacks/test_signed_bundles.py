"""Attacks on signed bundles and engines: hashes are rewritten, so only the signature can tell.

Trust comes from keys that the user or the machine's administrator named, and from nowhere else.
"""

import base64
import contextlib
import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)
from signatures import (
    KEY,
    OTHER_KEY,
    digests_of,
    envelope,
    public,
    public_pem,
    signed,
    statement,
    trusting,
)
from tiny import reseal, tiny_bundle, tiny_model

import edgelung
from edgelung.artifacts import bundle as bundle_module
from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.artifacts.signature import SignatureError, UntrustedKeyError, sign
from edgelung.artifacts.summary import read_summary
from edgelung.artifacts.trust import Trust, choose_trust
from edgelung.cli.app import main
from edgelung.cli.defaults import read_defaults
from edgelung.cli.sign import sign_folder
from edgelung.core.errors import EdgelungError
from edgelung.engines.tensorrt.prebuilt import open_prebuilt

TRUST = trusting(KEY)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A tiny bundle that KEY signed."""
    folder = tiny_bundle(tmp_path / "bundle")
    sign_folder(folder, KEY)
    return folder


def refuse(folder: Path, message: str) -> None:
    """The folder is refused in one line because of its signature."""
    with pytest.raises((SignatureError, UntrustedKeyError), match=message) as error:
        open_bundle(folder, TRUST)
    assert "\n" not in str(error.value)


def test_classes_that_are_swapped_with_right_hashes_are_refused(bundle: Path) -> None:
    reseal(bundle, lambda manifest: manifest["classes"].reverse())
    assert open_bundle(bundle).classes == ("malignant", "benign")  # hashes say nothing
    refuse(bundle, "signs 'bundle.json' .* it was changed after it was signed")


def test_a_graph_with_a_back_door_and_right_hashes_is_refused(bundle: Path) -> None:
    model = tiny_model()
    weight = model.graph.initializer[1]
    weight.raw_data = bytes(len(weight.raw_data))
    (bundle / "model.fp32.onnx").write_bytes(model.SerializeToString())
    reseal(bundle)
    open_bundle(bundle)  # hashes and the graph's profile say nothing
    refuse(bundle, "it was changed after it was signed")


def test_a_bundle_that_was_made_anew_with_right_hashes_is_refused(
    bundle: Path, tmp_path: Path
) -> None:
    new = tiny_bundle(tmp_path / "new")
    (new / "report.html").write_text("<p>another</p>")
    reseal(new)
    shutil.copy(bundle / "bundle.sig", new)
    refuse(new, "it was changed after it was signed")


def test_a_signature_by_an_untrusted_key_is_refused(bundle: Path) -> None:
    sign_folder(bundle, OTHER_KEY)
    refuse(bundle, "was not made with a trusted key")


def test_the_hint_of_a_trusted_key_does_not_make_a_signature_trusted(bundle: Path) -> None:
    sign_folder(bundle, OTHER_KEY)
    content = json.loads((bundle / "bundle.sig").read_text())
    content["verificationMaterial"]["publicKey"]["hint"] = public(KEY).hint
    (bundle / "bundle.sig").write_text(json.dumps(content))
    refuse(bundle, "did not make this signature")


def test_a_bundle_whose_signature_was_taken_away_is_refused(bundle: Path) -> None:
    (bundle / "bundle.sig").unlink()
    refuse(bundle, "is not signed")


def test_allow_unsigned_does_not_accept_what_was_changed_after_signing(bundle: Path) -> None:
    reseal(bundle, lambda manifest: manifest["classes"].reverse())
    with pytest.raises(SignatureError, match="was changed after it was signed"):
        open_bundle(bundle, trusting(KEY, allow_unsigned=True))


def test_a_signature_over_a_subset_of_the_files_is_refused(bundle: Path) -> None:
    digests = digests_of(bundle)
    del digests["report.html"]
    (bundle / "bundle.sig").write_bytes(sign(digests, KEY, "bundle"))
    refuse(bundle, "does not sign 'report.html', which lies in the folder")


def test_ignored_paths_exempt_no_file(bundle: Path) -> None:
    digests = digests_of(bundle)
    del digests["model.fp32.onnx"]
    content = statement(digests)
    content["predicate"]["serialization"]["ignore_paths"] = ["model.fp32.onnx"]
    (bundle / "bundle.sig").write_bytes(signed(content))
    refuse(bundle, "does not sign 'model.fp32.onnx'")


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()])
def test_a_key_of_another_curve_cannot_sign_for_a_trusted_one(
    bundle: Path, curve: ec.EllipticCurve
) -> None:
    payload = json.dumps(statement(digests_of(bundle))).encode()
    content = envelope(payload, ec.derive_private_key(25, curve))  # KEY's number, another curve
    content["verificationMaterial"]["publicKey"]["hint"] = public(KEY).hint
    (bundle / "bundle.sig").write_text(json.dumps(content))
    refuse(bundle, "did not make this signature")


@pytest.mark.parametrize("signature", [b"", b"\x30\x06\x02\x01\x00\x02\x01\x00", b"\0" * 64])
def test_a_signature_of_zeros_is_no_signature(bundle: Path, signature: bytes) -> None:
    """r = s = 0: the fault of a verifier that skips the range check (CVE-2022-21449)."""
    content = envelope(json.dumps(statement(digests_of(bundle))).encode())
    content["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    (bundle / "bundle.sig").write_text(json.dumps(content))
    refuse(bundle, "did not make this signature")


def test_trusted_keys_beside_the_bundle_are_never_read(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGELUNG_CONFIG", str(bundle.parent / "user.toml"))
    (bundle.parent / "user.toml").touch()
    (bundle.parent / "edgelung.toml").write_text('[trust]\nkeys = "other.pem"\n')
    (bundle.parent / "other.pem").write_bytes(public_pem(OTHER_KEY))
    assert not choose_trust().keys
    with pytest.raises(EdgelungError, match=r"edgelung\.toml has 'trust'; known are infer"):
        read_defaults(bundle)


def test_a_file_that_only_claims_to_be_the_starter_is_not_accepted_as_it(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(starter_bundle(), tmp_path / "starter"))
    reseal(folder, lambda manifest: manifest["classes"].reverse())
    refuse(folder, "is not signed")


def test_a_starter_that_was_changed_in_the_package_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "_starter_folder", lambda: bundle)
    with pytest.raises(EdgelungError, match="starter of this installation was changed"):
        open_bundle(starter_bundle())


def flip(folder: Path, rng: random.Random) -> None:
    path = rng.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def resize(folder: Path, rng: random.Random) -> None:
    path = rng.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    data = path.read_bytes()
    path.write_bytes(rng.choice([data[:-1], data + b"\0", b"", data + data]))


def rename(folder: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(folder.rglob("*")))
    path.rename(path.with_name(f"{path.name}{rng.choice('~ é1')}"))


def remove(folder: Path, rng: random.Random) -> None:
    path = rng.choice(sorted(folder.rglob("*")))
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def add(folder: Path, rng: random.Random) -> None:
    name = rng.choice(["x", ".gitignore", ".git/x", "golden/01.png", "bundle.sig2", "é"])
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(rng.randbytes(3))


def add_folder(folder: Path, rng: random.Random) -> None:
    (folder / rng.choice(["x", "golden/x", ".git"])).mkdir()


def link(folder: Path, rng: random.Random) -> None:
    """A link to the same bytes, instead of a file or beside one."""
    path = rng.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    copy = Path(shutil.copy(path, folder.parent / f"copy-{rng.getrandbits(64):x}"))
    if rng.random() < 0.5:
        path.unlink()
    else:
        path = path.with_name("link")
    path.symlink_to(copy)


def swap(folder: Path, rng: random.Random) -> None:
    first, second = rng.sample([path for path in sorted(folder.rglob("*")) if path.is_file()], 2)
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


CHANGES: list[Callable[[Path, random.Random], None]] = [
    *(flip, resize, rename, remove, add, add_folder, link, swap)
]


def test_200_random_changes_of_a_signed_folder_are_refused_with_rewritten_hashes(
    bundle: Path, tmp_path: Path
) -> None:
    rng = random.Random(25)
    sealed = dict.fromkeys(("bundle.json", "bundle.json.sha256"), "")
    for number in range(200):
        folder = Path(shutil.copytree(bundle, tmp_path / str(number)))
        CHANGES[number % len(CHANGES)](folder, rng)
        # If only bundle.json was changed, to write it again would undo that.
        if digests_of(folder) | sealed != digests_of(bundle) | sealed:
            with contextlib.suppress(OSError, ValueError):  # bundle.json is gone or no JSON
                reseal(folder)  # whoever can change a file can do this too
        with pytest.raises(EdgelungError):
            open_bundle(folder, TRUST)
    assert open_bundle(bundle, TRUST).signature.is_trusted


ENGINE = {
    "file": "fp32.sm_89.engine",
    "variant": "fp32",
    "graph": "0" * 64,
    "target": "sm_89",
    "flavour": "tensorrt-rtx",
    "version": "1.7",
    "profile": "1/32/128",
    "contents": {
        "layers": 1,
        "linears": 1,
        "types": {"FLOAT": 1},
        "kinds": {},
        "quantized_linears": 0,
    },
}


def write_engines(folder: Path, program: bytes) -> None:
    """A folder of one engine, whose hashes are right."""
    (folder / "fp32.sm_89.engine").write_bytes(program)
    entry = ENGINE | {"sha256": hashlib.sha256(program).hexdigest(), "bytes": len(program)}
    (folder / "engines.json").write_text(json.dumps({"engines": [entry], "schema_version": 1}))


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """A folder of one engine that KEY signed."""
    folder = tmp_path / "bundle.engines"
    folder.mkdir()
    write_engines(folder, b"program")
    sign_folder(folder, KEY)
    return folder


def test_signed_engines_are_accepted(engines: Path) -> None:
    assert open_prebuilt(engines, TRUST).signature.state == "trusted"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: write_engines(folder, b"another program"),
        lambda folder: (folder / "bundle.sig").unlink(),
        lambda folder: (folder / "fp32.sm_89.engine").unlink(),
        lambda folder: (folder / "library.so").write_bytes(b"x"),
        lambda folder: (folder / "library.so").symlink_to("/dev/null"),
        lambda folder: (folder / "empty").mkdir(),
        lambda folder: sign_folder(folder, OTHER_KEY) and None,
    ],
)
def test_engines_that_were_changed_with_right_hashes_are_refused(
    engines: Path, change: Callable[[Path], object]
) -> None:
    change(engines)
    with pytest.raises(EdgelungError):
        open_prebuilt(engines, TRUST)


def test_the_starters_manifest_in_a_folder_of_engines_vouches_for_nothing(engines: Path) -> None:
    (engines / "bundle.sig").unlink()
    shutil.copy(starter_bundle() / "bundle.json", engines)
    for trust in (TRUST, Trust()):
        with pytest.raises(EdgelungError):
            open_prebuilt(engines, trust)


def test_a_file_that_no_engine_folder_lists_is_refused_without_keys_too(engines: Path) -> None:
    (engines / "library.so").write_bytes(b"x")
    with pytest.raises(EdgelungError, match=r"is not listed in engines\.json"):
        open_prebuilt(engines, Trust())


def test_an_engine_that_was_exchanged_after_the_check_is_not_loaded(engines: Path) -> None:
    from types import SimpleNamespace

    opened = open_prebuilt(engines, TRUST)
    write_engines(engines, b"PROGRAM")
    graph = SimpleNamespace(sha256="0" * 64, name="model.fp32.onnx")
    with pytest.raises(EdgelungError, match="was changed after"):
        opened.find(SimpleNamespace(version="1.7", title="TensorRT-RTX 1.7"), "sm_89", graph)


def run_main(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit code of a command, without a process of its own."""
    monkeypatch.setattr("sys.argv", ["edgelung", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def encrypted_key(path: Path) -> Path:
    path.write_bytes(
        KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"right"))
    )
    return path


@pytest.mark.parametrize(("password", "message"), [("wrong", "cannot decrypt"), ("", "is empty")])
def test_a_wrong_password_is_one_line_and_exit_code_2(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    password: str,
    message: str,
) -> None:
    monkeypatch.setenv("EDGELUNG_KEY_PASSWORD", password)
    before = (bundle / "bundle.sig").read_bytes()
    key = encrypted_key(tmp_path / "k.pem")
    assert run_main(monkeypatch, "sign", bundle, "--key", key) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error
    assert (bundle / "bundle.sig").read_bytes() == before


def test_an_encrypted_key_signs_with_the_password_of_the_environment(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign_folder(bundle, OTHER_KEY)
    monkeypatch.setenv("EDGELUNG_KEY_PASSWORD", "right")
    key = encrypted_key(tmp_path / "k.pem")
    assert run_main(monkeypatch, "sign", bundle, "--key", key) == 0
    assert open_bundle(bundle, TRUST).signature.state == "trusted"


def test_without_a_terminal_a_password_is_not_waited_for(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("EDGELUNG_KEY_PASSWORD", raising=False)
    monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
    key = encrypted_key(tmp_path / "k.pem")
    assert run_main(monkeypatch, "sign", bundle, "--key", key) == 2
    assert (
        "there is no terminal to ask for it; set EDGELUNG_KEY_PASSWORD" in capsys.readouterr().err
    )


def test_a_damaged_bundle_is_not_signed(bundle: Path) -> None:
    (bundle / "bundle.sig").unlink()
    (bundle / "report.html").write_text("<p>changed</p>")
    with pytest.raises(EdgelungError, match="is damaged"):
        sign_folder(bundle, KEY)
    assert not (bundle / "bundle.sig").exists()


def test_the_api_opens_only_what_a_named_key_signed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(public_pem(OTHER_KEY))
    for call in (
        lambda: edgelung.load(bundle, trust=tmp_path / "other.pem"),
        lambda: edgelung.infer_folder(
            bundle, tmp_path / "rows.csv", model=bundle, trust=tmp_path / "other.pem"
        ),
    ):
        with pytest.raises(UntrustedKeyError):
            call()
    assert not (tmp_path / "rows.csv").exists()


def test_infer_refuses_a_foreign_bundle_and_records_who_signed_a_trusted_one(
    bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    tiles = Path(shutil.copytree(bundle / "golden", tmp_path / "tiles"))
    (tmp_path / "other.pem").write_bytes(public_pem(OTHER_KEY))
    (tmp_path / "lab.pem").write_bytes(public_pem(KEY))
    words = ("infer", tiles, "--model", bundle, "--engine", "onnxruntime")
    out = ("--out", tmp_path / "rows.csv")
    assert run_main(monkeypatch, *words, *out, "--trust", tmp_path / "other.pem") == 2
    assert not (tmp_path / "rows.csv").exists()
    assert run_main(monkeypatch, *words, *out, "--trust", tmp_path / "lab.pem") == 0
    assert f"signed    by lab.pem (SHA-256 of the key: {public(KEY).key_id})" in "".join(
        capsys.readouterr().out.splitlines()
    )
    summary = read_summary(tmp_path / "rows.summary.json")
    assert summary.signature is not None
    assert (summary.signature.state, summary.signature.key_id) == ("trusted", public(KEY).key_id)
