"""The other implementation of the format: what `model_signing` accepts of ours, and we of its.

EDGELUNG_MODEL_SIGNING names its command (`pip install model_signing==1.1.1 pyOpenSSL` in a virtual
environment of its own). Without it these tests are skipped; signatures that it made are tested in
every run (tests/artifacts/test_signature.py).
"""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from signatures import KEY, private_pem, public_pem, trusting
from test_signed_bundles import CHANGES, digests_of
from tiny import tiny_bundle

from edgelung.artifacts.bundle import open_bundle
from edgelung.cli.sign import sign_folder
from edgelung.core.errors import EdgelungError

COMMAND = os.environ.get("EDGELUNG_MODEL_SIGNING", "")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not COMMAND, reason="EDGELUNG_MODEL_SIGNING names no command"),
]
# Runs `model_signing` once per list of words, in one process: each start takes more than a second.
RUN_ALL = """
import json, sys
from model_signing._cli import main
codes = []
for words in json.load(sys.stdin):
    try:
        main(words, standalone_mode=False)
        codes.append(0)
    except SystemExit as ended:
        codes.append(ended.code or 0)
print(json.dumps(codes))
"""


def model_signing(*words: object) -> int:
    """The exit code of the command."""
    return subprocess.run([COMMAND, *map(str, words)], capture_output=True, check=False).returncode


def accepts(folders: Sequence[Path], key: Path) -> list[bool]:
    """Whether `model_signing verify key` accepts each folder."""
    verify = ("verify", "key", "--public_key", str(key))
    calls = [[*verify, "--signature", str(f / "bundle.sig"), str(f)] for f in folders]
    done = subprocess.run(
        [Path(COMMAND).with_name("python"), "-c", RUN_ALL],
        input=json.dumps(calls),
        capture_output=True,
        text=True,
        check=True,
    )
    return [code == 0 for code in json.loads(done.stdout.splitlines()[-1])]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A tiny bundle that KEY signed; lab.pem beside it is the public key."""
    folder = tiny_bundle(tmp_path / "bundle")
    sign_folder(folder, KEY)
    (tmp_path / "lab.pem").write_bytes(public_pem(KEY))
    return folder


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_model_signing_accepts_what_we_signed(
    bundle: Path, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    key = ec.derive_private_key(7, curve)
    sign_folder(bundle, key)
    (tmp_path / "k.pem").write_bytes(public_pem(key))
    words = ("--public_key", tmp_path / "k.pem", "--signature", bundle / "bundle.sig")
    assert model_signing("verify", "key", bundle, *words) == 0
    (bundle / "report.html").write_text("<p>changed</p>")
    assert model_signing("verify", "key", bundle, *words) == 1


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_we_accept_what_model_signing_signed(
    bundle: Path, tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    key = ec.derive_private_key(7, curve)
    (tmp_path / "k.pem").write_bytes(private_pem(key))
    (bundle / "bundle.sig").unlink()
    words = ("--private_key", tmp_path / "k.pem", "--signature", bundle / "bundle.sig")
    assert model_signing("sign", "key", bundle, *words) == 0
    assert open_bundle(bundle, trusting(key)).signature.state == "trusted"
    (bundle / "report.html").write_text("<p>changed</p>")
    with pytest.raises(EdgelungError):
        open_bundle(bundle, trusting(key))


def add_file(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")

    return change


# All that `model_signing verify key` accepts in a folder that it did not see when it was signed.
ACCEPTED_BY_MODEL_SIGNING = {
    "an empty folder": lambda folder: (folder / "empty").mkdir(),
    "an empty folder in a folder": lambda folder: (folder / "golden" / "empty").mkdir(),
    ".git, a folder": add_file(".git/hooks"),
    ".git, a file": add_file(".git"),
    ".github, a folder": add_file(".github/workflow"),
    ".gitignore": add_file(".gitignore"),
    ".gitattributes": add_file(".gitattributes"),
}


def test_what_model_signing_ignores_is_refused_by_us(bundle: Path, tmp_path: Path) -> None:
    folders = []
    for number, change in enumerate(ACCEPTED_BY_MODEL_SIGNING.values()):
        folders.append(Path(shutil.copytree(bundle, tmp_path / str(number))))
        change(folders[-1])
        with pytest.raises(EdgelungError):
            open_bundle(folders[-1], trusting(KEY))
    assert all(accepts(folders, tmp_path / "lab.pem"))


def test_200_random_changes_are_refused_by_model_signing_but_for_those(
    bundle: Path, tmp_path: Path
) -> None:
    """The changes of `test_signed_bundles`, without those of bundle.sig and without new hashes."""
    rng = random.Random(25)
    folders: list[Path] = []
    while len(folders) < 200:
        folder = Path(shutil.copytree(bundle, tmp_path / f"{len(folders)}-{rng.getrandbits(32)}"))
        rng.choice(CHANGES)(folder, rng)
        has_links = any(path.is_symlink() for path in folder.rglob("*"))
        signature = folder / "bundle.sig"
        same_signature = (
            signature.is_file() and signature.read_bytes() == (bundle / "bundle.sig").read_bytes()
        )
        signed_files = {
            name: digest
            for name, digest in digests_of(folder).items()
            if not name.startswith(".git")
        }
        if same_signature and (has_links or signed_files != digests_of(bundle)):
            folders.append(folder)
    assert not any(accepts(folders, tmp_path / "lab.pem"))
    assert accepts([bundle], tmp_path / "lab.pem") == [True]
