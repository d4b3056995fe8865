"""`edgelung sign`."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung.cli.command import report
from edgelung.cli.options import named_path

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

_SIGNED = "signed    %s (SHA-256 of the key: %s)"


def sign(
    folder: Annotated[
        Path,
        typer.Argument(
            parser=named_path,
            metavar="BUNDLE",
            help="Bundle, or folder of engines, that `edgelung export` wrote; or the rows of a "
            "finished run of `edgelung infer`.",
        ),
    ],
    key: Annotated[
        Path,
        typer.Option(
            parser=named_path,
            metavar="KEY",
            help="Private key in a PEM file: ECDSA on P-256, P-384 or P-521. The password of an "
            "encrypted key is asked for, or read from EDGELUNG_KEY_PASSWORD.",
        ),
    ],
) -> None:
    """Who made this bundle, or these predictions?

    Signs them, so that others can check that they come from you and were not changed. Every file
    is checked first; the signature is bundle.sig in the folder, and replaces an earlier one. Its
    format is OpenSSF model signing: `model_signing verify key` accepts it too. Of a run, rows and
    summary are signed together, beside the summary; `edgelung view --trust` checks it.
    """
    if folder.is_file():
        _sign_run(folder, read_signing_key(key))
    else:
        sign_folders([folder], read_signing_key(key))


def read_signing_key(path: Path) -> "EllipticCurvePrivateKey":
    """Read a private key; ask for its password if it is encrypted."""
    from edgelung.artifacts.keys import read_private_key
    from edgelung.cli.password import read_password

    return read_private_key(path, lambda: read_password(path))


def _sign_run(rows: Path, key: "EllipticCurvePrivateKey") -> None:
    from edgelung.artifacts.keys import PublicKey
    from edgelung.report.finished_run import open_finished_run
    from edgelung.report.signed_run import sign_run

    path = sign_run(open_finished_run(rows), key)
    report(_SIGNED, path, PublicKey.of(key.public_key(), name="").key_id)


def sign_folders(folders: Iterable[Path], key: "EllipticCurvePrivateKey") -> None:
    """Check and sign bundles and folders of engines, and report where the signatures are.

    Raises:
        EdgelungError: if a folder is damaged, is neither, or cannot be written.
    """
    from edgelung.artifacts.keys import PublicKey

    key_id = PublicKey.of(key.public_key(), name="").key_id
    for folder in folders:
        path = sign_folder(folder, key)
        report(_SIGNED, path, key_id)


def sign_folder(folder: Path, key: "EllipticCurvePrivateKey") -> Path:
    """Check every file of a bundle or of a folder of engines, then write bundle.sig into it.

    Returns:
        The path of bundle.sig.

    Raises:
        EdgelungError: as `sign_folders`.
    """
    from edgelung.artifacts.bundle import SIGNATURE, open_bundle
    from edgelung.artifacts.signature import sign as make_signature
    from edgelung.artifacts.trust import OWN_WORK
    from edgelung.core.files import atomic_write
    from edgelung.core.own_folders import ENGINES_MANIFEST
    from edgelung.engines.tensorrt.prebuilt import open_prebuilt

    is_engines = (folder / ENGINES_MANIFEST).is_file()
    opened = open_prebuilt(folder, OWN_WORK) if is_engines else open_bundle(folder, OWN_WORK)
    path = folder / SIGNATURE
    with atomic_write(path) as file:
        file.write(make_signature(opened.files.digests, key, folder.absolute().name))
    return path
