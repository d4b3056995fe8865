"""Recognise folders that edgelung wrote, by the files in them.

`find_files` skips these folders, so golden tiles and pictures of reports are never predicted or
trained on, even if a bundle or a run lies inside the folder of the tiles.
"""

import os
from collections.abc import Callable

from edgelung.core.folder import read_regular

RUN_CONFIG, RUN_SPLIT = "run.json", "split.csv"
BUNDLE_MANIFEST, BUNDLE_SEAL = "bundle.json", "bundle.json.sha256"
AUDIT_FIGURES, AUDIT_LINKS = "audit.json", "links.csv"
GROUPS = "groups.csv"  # of an audit, and beside the tiles that edgelung draws
REPORT_PAGE = "report.html"
ENGINES_MANIFEST = "engines.json"
SLIDE_RECORD, SLIDE_PAGE = "slide.json", "slide.html"
MAX_BYTES = 1 << 24  # of a JSON file that is looked at

_KINDS = {
    "run": (RUN_CONFIG, RUN_SPLIT),
    "bundle": (BUNDLE_MANIFEST, BUNDLE_SEAL),
    "audit": (AUDIT_FIGURES, AUDIT_LINKS),
    "slide": (SLIDE_RECORD, SLIDE_PAGE),
}
_SIGNATURE = b'"edgelung"'  # a key of each of the JSON files


def own_kind(folder: str, holds: Callable[[str], bool]) -> str:
    """What a folder is: 'run', 'bundle', 'audit', 'slide', or '' for data.

    `holds` tells whether the folder has an entry of a name. The JSON file must be edgelung's too:
    other programs write files of such names.
    """
    kind = next((kind for kind, files in _KINDS.items() if all(map(holds, files))), "")
    return kind if kind and _is_signed(os.path.join(folder, _KINDS[kind][0])) else ""


def _is_signed(path: str) -> bool:
    try:
        return _SIGNATURE in read_regular(path, MAX_BYTES)
    except OSError:
        return False
