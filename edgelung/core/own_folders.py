"""Recognise edgelung's own output folders by the files in them.

A search for tiles skips these folders. Golden tiles and the pictures of a report are not data, even
if a bundle or a run was written into the folder of the tiles.
"""

from collections.abc import Callable

RUN_CONFIG, RUN_SPLIT = "run.json", "split.csv"
BUNDLE_MANIFEST, BUNDLE_SEAL = "bundle.json", "bundle.json.sha256"
AUDIT_FIGURES, AUDIT_LINKS = "audit.json", "links.csv"
ENGINES_MANIFEST = "engines.json"

_KINDS = {
    "run": (RUN_CONFIG, RUN_SPLIT),
    "bundle": (BUNDLE_MANIFEST, BUNDLE_SEAL),
    "audit": (AUDIT_FIGURES, AUDIT_LINKS),
    "engines": (ENGINES_MANIFEST,),
}


def own_kind(holds: Callable[[str], bool]) -> str:
    """The kind of a folder: 'run', 'bundle', 'audit' or 'engines'; '' for any other folder.

    `holds` returns True if the folder has an entry of the given name.
    """
    return next((kind for kind, files in _KINDS.items() if all(map(holds, files))), "")
