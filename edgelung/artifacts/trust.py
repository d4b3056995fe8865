"""The policy: whose bundles this workstation runs.

Trusted public keys are named by `--trust`, or by the table [trust] of edgelung.toml:

    [trust]
    keys = "trusted-keys"   # a PEM file or a folder of them; relative to this file

Only the user's file and the system's count (`core.config`), and only if nobody else can write them
or the keys. Once keys are trusted, a bundle without a signature by one of them is refused unless
`--allow-unsigned` is given. The starter needs none: its hash is part of this code.

Without keys nothing is checked, and `cryptography` is not imported.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from msgspec import Struct

from edgelung.artifacts.bundle_files import SIGNATURE
from edgelung.artifacts.keys import (
    MAX_KEY_BYTES,
    PublicKey,
    decode_public_key,
    key_files,
    read_public_keys,
)
from edgelung.artifacts.signature import UntrustedKeyError, verify
from edgelung.core.config import (
    SECTIONS,
    decode_section,
    read_section,
    system_config,
    user_config,
)
from edgelung.core.errors import EdgelungError
from edgelung.core.own_folders import BUNDLE_MANIFEST
from edgelung.core.ownership import guarded_names, read_guarded

SECTION = "trust"
MAX_CONFIG_BYTES = 1 << 20
# SHA-256 of bundle.json of the starter, which holds the hashes of its other files.
STARTER_SHA256 = "6bd393bdf2bf50a450b2e7a31e11a4bcf7a4be37bb294116a62d98a45cb62eeb"


class TrustTable(Struct, frozen=True, kw_only=True):
    """The table [trust] of edgelung.toml."""

    keys: str


class SignatureState(StrEnum):
    """What is known about the maker of a folder."""

    TRUSTED = "trusted"
    STARTER = "starter"
    UNSIGNED = "unsigned"
    UNTRUSTED = "untrusted key"
    UNCHECKED = "not checked"


class SignatureCheck(Struct, frozen=True, omit_defaults=True):
    """The result of the check, as the summary of a run keeps it.

    Attributes:
        state: 'trusted': signed by a trusted key. 'starter': the bundle of the package, by its
            hash. 'unsigned': no signature. 'untrusted key': accepted because of --allow-unsigned.
            'not checked': signed, but no key is trusted on this machine.
        key_id: SHA-256 of the SubjectPublicKeyInfo of the key that signed, in hexadecimal.
        key_file: the name of the file of that key.
    """

    state: SignatureState
    key_id: str | None = None
    key_file: str | None = None

    @property
    def is_trusted(self) -> bool:
        """True if a trusted key signed, or the bundle is the starter."""
        return self.state in (SignatureState.TRUSTED, SignatureState.STARTER)

    @property
    def text(self) -> str:
        """The result in words, for one line on the screen."""
        return {
            SignatureState.TRUSTED: f"by {self.key_file} (SHA-256 of the key: {self.key_id})",
            SignatureState.STARTER: "no: the starter, known to edgelung by its hash",
            SignatureState.UNSIGNED: "no: nothing proves who made it",
            SignatureState.UNTRUSTED: "by a key that is not trusted; used as asked",
            SignatureState.UNCHECKED: "yes, not checked: no key is trusted here (see --trust)",
        }[self.state]


@dataclass(frozen=True)
class Trust:
    """The keys that are trusted in this run. Without keys every folder is accepted.

    Attributes:
        keys: the trusted keys.
        origin: what names them, for messages.
        allow_unsigned: accept folders that are unsigned or signed by another key.
    """

    keys: tuple[PublicKey, ...] = ()
    origin: str = ""
    allow_unsigned: bool = False

    def check(
        self,
        folder: Path,
        digests: Mapping[str, str],
        signature: bytes | None,
        name: str = SIGNATURE,
    ) -> SignatureCheck:
        """Check who signed the files of a folder.

        Args:
            folder: the folder, for messages.
            digests: POSIX path → SHA-256 in hexadecimal, of every file that is signed.
            signature: the bytes of the signature; None if there is none.
            name: the file name of the signature, in the folder.

        Raises:
            UntrustedKeyError: if keys are trusted and none of them signed.
            SignatureError: if the signature is malformed or was made for other files, whatever
                `allow_unsigned` says.
        """
        if signature is None:
            if self.keys and not self.allow_unsigned:
                raise UntrustedKeyError(
                    f"{folder} is not signed (no {name} in it), and {self.origin} trusts "
                    f"{_names(self.keys)} only; ask its maker to sign it with `edgelung sign`, or "
                    "use --allow-unsigned if you know where it is from"
                )
            return SignatureCheck(SignatureState.UNSIGNED)
        if not self.keys:
            return SignatureCheck(SignatureState.UNCHECKED)
        try:
            key = verify(signature, digests, self.keys, str(folder / name))
        except UntrustedKeyError:
            if not self.allow_unsigned:
                raise
            return SignatureCheck(SignatureState.UNTRUSTED)
        return SignatureCheck(SignatureState.TRUSTED, key.key_id, key.name)


# For folders that this process has just written itself.
OWN_WORK = Trust()


def choose_trust(
    option: str | os.PathLike[str] | None = None, allow_unsigned: bool = False
) -> Trust:
    """The policy of a run: the keys that `--trust` names, else those of the configuration.

    Raises:
        EdgelungError: if a key cannot be read, or others than this user and root can change the
            configuration or its keys.
    """
    if option is not None:
        return Trust(read_public_keys(Path(option)), "--trust", allow_unsigned)
    sources = [found for place in _config_files() if (found := _configured_keys(*place))]
    keys = {key.key_id: key for _, found in sources for key in found}
    origin = " and ".join(str(path) for path, _ in sources)
    return Trust(tuple(keys.values()), origin, allow_unsigned)


def is_starter(digests: Mapping[str, str]) -> bool:
    """True for the starter, which needs no signature.

    `digests`: of a bundle's files, which were compared with its bundle.json: all else that may lie
    in a folder is not covered by that hash.
    """
    return digests.get(BUNDLE_MANIFEST) == STARTER_SHA256


def check_starter(digests: Mapping[str, str]) -> None:
    """Raise EdgelungError if the bundle in the package is not the one that this code knows."""
    if not is_starter(digests):
        raise EdgelungError(
            "the starter of this installation was changed: its bundle.json has another SHA-256 "
            "than this edgelung knows; install edgelung again, or name a bundle"
        )


def _config_files() -> list[tuple[Path, tuple[str, ...]]]:
    """The files that may name keys, and the tables that each may have."""
    user = user_config()
    return [(system_config(), (SECTION,)), *([(user, SECTIONS)] if user else [])]


def _configured_keys(
    path: Path, tables: tuple[str, ...]
) -> tuple[Path, tuple[PublicKey, ...]] | None:
    """The file and its keys; None if there is no such file, or no table [trust] in it."""
    if read_section(path, SECTION, TrustTable, tables) is None:
        return None
    try:
        data = read_guarded(path, "configuration", MAX_CONFIG_BYTES)
        source = decode_section(path, data, SECTION, TrustTable, tables)
        if source is None:
            raise EdgelungError(f"{path} changed while it was read; run the same command again")
        place = path.absolute().parent / Path(source.values.keys).expanduser()
        keys = tuple(
            decode_public_key(file, read_guarded(file, "trusted key", MAX_KEY_BYTES + 1))
            for file in key_files(place, guarded_names(place, "trusted keys"))
        )
    except OSError as error:
        raise EdgelungError(
            f"cannot read {error.filename}, which {path} [{SECTION}] names: {error.strerror}; "
            "correct the file"
        ) from error
    return path, keys


def _names(keys: tuple[PublicKey, ...], limit: int = 5) -> str:
    names = [key.name for key in keys]
    return ", ".join(names[:limit]) + (" …" if len(names) > limit else "")
