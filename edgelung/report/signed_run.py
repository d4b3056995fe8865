"""The signature of a finished run: who vouches for its rows and its summary.

The signature covers the two files by their names and hashes, in the format of a bundle's signature,
and lies beside the summary: rows.summary.json.sig.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from edgelung.artifacts.bundle_files import MAX_SIGNATURE_BYTES
from edgelung.artifacts.signature import sign
from edgelung.artifacts.trust import SignatureCheck, Trust
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_write
from edgelung.core.folder import read_regular
from edgelung.report.finished_run import FinishedRun

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

SUFFIX = ".sig"


def sign_run(run: FinishedRun, key: "EllipticCurvePrivateKey") -> Path:
    """Sign the rows and the summary of a run; replaces an earlier signature.

    Returns:
        The path of the signature.

    Raises:
        EdgelungError: if the rows are not those that the run wrote, or the disk cannot be written.
    """
    if not run.is_unchanged:
        raise EdgelungError(
            f"{run.file} was changed after the run ended (its SHA-256 is not that in "
            f"{run.summary_file.name}); only rows as a run wrote them are signed. Predict again"
        )
    path = _signature_of(run)
    with atomic_write(path) as file:
        file.write(sign(run.digests, key, run.summary_file.name))
    return path


def check_run(run: FinishedRun, trust: Trust) -> SignatureCheck:
    """Check who signed the rows and the summary of a run.

    Raises:
        EdgelungError: if keys are trusted and none of them signed exactly these two files.
    """
    path = _signature_of(run)
    try:
        signature = read_regular(path, MAX_SIGNATURE_BYTES)
    except FileNotFoundError:
        signature = None
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror}; sign the run again") from error
    return trust.check(path.parent, run.digests, signature, path.name)


def _signature_of(run: FinishedRun) -> Path:
    return run.summary_file.with_name(run.summary_file.name + SUFFIX)
