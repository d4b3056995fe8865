"""The policy: which keys count, who may name them, and what they decide."""

import os
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from signatures import KEY, OTHER_KEY, private_pem, public, public_pem, trusting
from tiny import tiny_bundle

from edgelung.artifacts import trust
from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.artifacts.keys import read_private_key, read_public_keys, write_key_pair
from edgelung.artifacts.signature import sign
from edgelung.artifacts.trust import OWN_WORK, STARTER_SHA256, SignatureState, Trust, choose_trust
from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_file


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A tiny bundle that KEY signed."""
    folder = tiny_bundle(tmp_path / "bundle")
    (folder / "bundle.sig").write_bytes(
        sign(open_bundle(folder, OWN_WORK).files.digests, KEY, "bundle")
    )
    return folder


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's edgelung.toml, which trusts the keys in the folder `keys` beside it: KEY."""
    path = tmp_path / "config" / "edgelung.toml"
    (path.parent / "keys").mkdir(parents=True, mode=0o755)
    (path.parent / "keys" / "lab.pem").write_bytes(public_pem(KEY))
    path.write_text('[trust]\nkeys = "keys"\n')
    monkeypatch.setenv("EDGELUNG_CONFIG", str(path))
    monkeypatch.setattr(trust, "system_config", lambda: tmp_path / "etc" / "edgelung.toml")
    return path


def test_a_bundle_that_a_trusted_key_signed_is_accepted(bundle: Path) -> None:
    check = open_bundle(bundle, trusting(OTHER_KEY, KEY)).signature
    assert (check.state, check.key_id) == ("trusted", public(KEY).key_id)
    assert "by lab.pub.pem" in check.text


def test_the_key_id_is_the_sha256_that_openssl_prints() -> None:
    """openssl pkey -pubin -outform DER | sha256sum"""
    der = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    import hashlib

    assert public(KEY).key_id == hashlib.sha256(der).hexdigest()


def test_a_foreign_bundle_needs_allow_unsigned(bundle: Path) -> None:
    with pytest.raises(EdgelungError, match="was not made with a trusted key"):
        open_bundle(bundle, trusting(OTHER_KEY))
    check = open_bundle(bundle, trusting(OTHER_KEY, allow_unsigned=True)).signature
    assert check.state == SignatureState.UNTRUSTED


def test_an_unsigned_bundle_needs_allow_unsigned(bundle: Path) -> None:
    (bundle / "bundle.sig").unlink()
    with pytest.raises(EdgelungError, match=r"is not signed .* --trust trusts lab\.pub\.pem only"):
        open_bundle(bundle, trusting(KEY))
    check = open_bundle(bundle, trusting(KEY, allow_unsigned=True)).signature
    assert check.state == SignatureState.UNSIGNED


def test_without_keys_every_bundle_is_accepted_and_cryptography_is_not_imported(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "cryptography"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert open_bundle(bundle, choose_trust()).signature.state == SignatureState.UNCHECKED
    (bundle / "bundle.sig").unlink()
    assert open_bundle(bundle, choose_trust()).signature.state == SignatureState.UNSIGNED


def test_the_configuration_decides_where_no_option_does(bundle: Path, config: Path) -> None:
    check = open_bundle(bundle).signature
    assert (check.state, check.key_file) == ("trusted", "lab.pem")
    (bundle / "bundle.sig").unlink()
    with pytest.raises(EdgelungError, match=r"edgelung\.toml trusts lab\.pem only"):
        open_bundle(bundle)


def test_the_keys_of_user_and_system_add_up(config: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir(mode=0o755)
    (tmp_path / "etc" / "site.pem").write_bytes(public_pem(OTHER_KEY))
    (tmp_path / "etc" / "edgelung.toml").write_text('[trust]\nkeys = "site.pem"\n')
    assert [key.name for key in choose_trust().keys] == ["site.pem", "lab.pem"]


def test_the_systems_keys_count_if_the_users_file_is_switched_off(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.rename(tmp_path / "config" / "system.toml")
    monkeypatch.setattr(trust, "system_config", lambda: tmp_path / "config" / "system.toml")
    monkeypatch.setenv("EDGELUNG_CONFIG", "off")
    assert [key.name for key in choose_trust().keys] == ["lab.pem"]


def test_the_systems_file_gives_no_defaults(config: Path, tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir(mode=0o755)
    (tmp_path / "etc" / "edgelung.toml").write_text("[infer]\nthreads = 1\n")
    with pytest.raises(EdgelungError, match="has 'infer'; known are trust"):
        choose_trust()


def test_the_option_replaces_the_configuration(config: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.pem").write_bytes(public_pem(OTHER_KEY))
    assert [key.name for key in choose_trust(tmp_path / "mine.pem").keys] == ["mine.pem"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[trust]\nkeys = "gone.pem"\n', "which .* names: No such file"),
        ("[trust]\nkeys = 3\n", "Expected `str`"),
        ("[trust]\n", "missing required field `keys`"),
        ('[trust]\nkeys = "keys"\nallow_unsigned = true\n', "has 'allow_unsigned'; known are keys"),
        ("trust = 3\n", "trust is a value"),
    ],
)
def test_a_mistake_in_the_configuration_trusts_nobody(
    config: Path, text: str, message: str
) -> None:
    config.write_text(text)
    with pytest.raises(EdgelungError, match=message):
        choose_trust()


@pytest.mark.parametrize("place", ["edgelung.toml", ".", "keys", "keys/lab.pem"])
@pytest.mark.parametrize("mode", [0o020, 0o002])
def test_keys_that_others_can_change_are_not_trusted(config: Path, place: str, mode: int) -> None:
    path = config.parent / place
    path.chmod(path.stat().st_mode | mode)
    with pytest.raises(EdgelungError, match=r"others can write to .*; run: chmod go-w"):
        choose_trust()


@pytest.mark.parametrize("place", ["edgelung.toml", ".", "keys/lab.pem"])
def test_keys_that_another_user_owns_are_not_trusted(config: Path, place: str) -> None:
    if os.geteuid():
        pytest.skip("only root can give a file away")
    os.chown(config.parent / place, 12345, -1)
    with pytest.raises(EdgelungError, match="belongs to the user 12345"):
        choose_trust()


@pytest.mark.parametrize("hops", [1, 2])
def test_a_link_in_a_folder_that_others_can_write_to_names_no_keys(
    config: Path, tmp_path: Path, hops: int
) -> None:
    shared, keys = tmp_path / "shared", config.parent / "keys"
    shared.mkdir()
    keys.rename(config.parent / "real")
    (shared / "hop1").symlink_to(config.parent / "real")
    (shared / "hop2").symlink_to("hop1")
    keys.symlink_to(shared / f"hop{hops}")
    assert [key.name for key in choose_trust().keys] == ["lab.pem"]
    shared.chmod(0o777)
    with pytest.raises(EdgelungError, match=r"others can write to .*/shared "):
        choose_trust()


def test_a_link_of_another_user_names_no_keys(config: Path, tmp_path: Path) -> None:
    if os.geteuid():
        pytest.skip("only root can give a link away")
    shared, keys = tmp_path / "shared", config.parent / "keys"
    shared.mkdir()
    shared.chmod(0o1777)
    keys.rename(config.parent / "real")
    (shared / "hop").symlink_to(config.parent / "real")
    keys.symlink_to(shared / "hop")
    assert choose_trust().keys
    os.lchown(shared / "hop", 12345, -1)
    with pytest.raises(EdgelungError, match=r"/hop belongs to the user 12345"):
        choose_trust()


def test_the_starter_is_the_one_whose_hash_the_code_knows() -> None:
    assert sha256_file(starter_bundle() / "bundle.json") == STARTER_SHA256


def test_the_starter_is_accepted_whatever_is_trusted() -> None:
    assert open_bundle(starter_bundle(), trusting(KEY)).signature.state == SignatureState.STARTER


def test_a_new_pair_signs_and_verifies(tmp_path: Path) -> None:
    private, public_file = tmp_path / "k.key.pem", tmp_path / "k.pub.pem"
    key = write_key_pair(private, public_file, "sésame")
    assert private.stat().st_mode & 0o777 == 0o600
    assert b"ENCRYPTED" in private.read_bytes()
    read = read_private_key(private, lambda: "sésame")
    assert public(read).key_id == key.key_id == read_public_keys(public_file)[0].key_id


@pytest.mark.parametrize("existing", ["k.key.pem", "k.pub.pem"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_new_pair_overwrites_nothing(tmp_path: Path, existing: str, kind: str) -> None:
    path = tmp_path / existing
    if kind == "file":
        path.write_text("mine")
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(EdgelungError, match="a key is never overwritten"):
        write_key_pair(tmp_path / "k.key.pem", tmp_path / "k.pub.pem", None)
    assert [file.name for file in tmp_path.iterdir()] == [existing]
    assert kind == "link" or path.read_text() == "mine"


def rsa_pem() -> bytes:
    key = rsa.generate_private_key(65537, 1024)
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"garbage", "holds 0 keys in PEM form; expected one"),
        (b"", "holds 0 keys"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "is no public key"),
        (public_pem(KEY) * 2, "holds 2 keys"),
        (private_pem(KEY), "holds a private key; expected a public key"),
        (rsa_pem(), "holds a key of another kind"),
        (public_pem(ec.derive_private_key(5, ec.SECP256K1())), "on the curve secp256k1"),
        (b"\0" * 20_000, "has more than 16,384 bytes"),
    ],
    ids=range(8),
)
def test_a_folder_of_keys_with_anything_else_in_it_is_refused(
    tmp_path: Path, data: bytes, message: str
) -> None:
    (tmp_path / "a.pem").write_bytes(public_pem(KEY))
    (tmp_path / "b.pem").write_bytes(data)
    with pytest.raises(EdgelungError, match=message):
        choose_trust(tmp_path)


def test_a_folder_without_keys_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README").write_text("keys")
    with pytest.raises(EdgelungError, match=r"holds 0 files \*\.pem"):
        choose_trust(tmp_path)


def test_a_key_that_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.pem")
    with pytest.raises(EdgelungError, match="is no file"):
        choose_trust(tmp_path)


def test_no_policy_is_less_than_the_configured_one(bundle: Path, config: Path) -> None:
    """Only a process that wrote the folder itself passes `OWN_WORK`."""
    (bundle / "bundle.sig").unlink()
    assert open_bundle(bundle, OWN_WORK).signature.state == SignatureState.UNSIGNED
    assert Trust() == OWN_WORK
    with pytest.raises(EdgelungError, match="is not signed"):
        open_bundle(bundle)
