"""How edgelung's own output is told from data: each kind of folder holds a pair of files.

A search for tiles passes these folders over: golden tiles and the pictures of a report are no data,
even if somebody wrote the bundle or the run into the folder of the tiles.
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
    """What a folder is: 'run', 'bundle', 'audit', 'engines', or '' for data.

    `holds` tells whether the folder has an entry of a name.
    """
    return next((kind for kind, files in _KINDS.items() if all(map(holds, files))), "")
