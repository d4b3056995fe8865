"""`edgelung keygen`."""

from pathlib import Path
from typing import Annotated

import typer

from edgelung.cli.options import named_path


def keygen(
    name: Annotated[
        Path,
        typer.Argument(
            parser=named_path,
            metavar="NAME",
            help="Writes NAME.key.pem, the private key, and NAME.pub.pem, the public key.",
        ),
    ],
    encrypt: Annotated[
        bool,
        typer.Option(
            "--encrypt",
            help="Encrypt the private key with a password, which is asked for or read from "
            "EDGELUNG_KEY_PASSWORD.",
        ),
    ] = False,
) -> None:
    """Which key signs your bundles?

    Makes a new pair, ECDSA on P-256. Only you can read the private key (mode 0600): `edgelung sign`
    and `edgelung export --sign` use it. Give the public key to everyone who runs your bundles.
    Nothing is overwritten.
    """
    from edgelung.artifacts.keys import write_key_pair
    from edgelung.cli.command import print_next
    from edgelung.cli.password import read_password
    from edgelung.core.errors import visible
    from edgelung.core.terminal import out

    private, public = (name.with_name(f"{name.name}.{kind}.pem") for kind in ("key", "pub"))
    key = write_key_pair(private, public, read_password(private, new=True) if encrypt else None)
    for line in (f"private {private}", f"public  {public}", f"SHA-256 {key.key_id}"):
        out().print(visible(line), markup=False)
    print_next("sign", "BUNDLE", "--key", private)
