"""The starter bundle of the package out of an exported one.

    edgelung export RUN --out BUNDLE --int8 --early-exit
    python benchmarks/starter.py BUNDLE

It keeps full precision and the INT8 variants for CPUs: with the one for GPUs it would pass 36 MB.
"""

import argparse
import json
import shutil
from pathlib import Path

from edgelung.artifacts.bundle import MANIFEST, open_bundle, write_bundle
from edgelung.artifacts.bundle_files import SIGNATURE
from edgelung.artifacts.manifest import BundleManifest
from edgelung.artifacts.trust import OWN_WORK
from edgelung.core.typed_json import convert
from edgelung.report.pages import model_card

KEPT = ("fp32", "int8", "int8-early-exit")
STARTER = Path(__file__).parents[1] / "edgelung" / "starter"
LIMIT = 36_000_000  # bytes


def main() -> None:
    """Copy, leave out, seal again, verify."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    bundle = open_bundle(parser.parse_args().bundle)
    folder = STARTER.with_name("starter.new")
    shutil.copytree(bundle.folder, folder)
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    for name in set(manifest["variants"]) - set(KEPT):
        entry = manifest["variants"].pop(name)
        for part in (entry, entry.get("early_exit")):
            if part:
                (folder / part["file"]).unlink()
        for tile in manifest["golden"]:
            del tile["probabilities"][name]
            tile["ood"].pop(name, None)
    manifest["name"] = f"edgelung starter ({manifest['name'].split(' of ')[0]})"
    for key in ("schema_version", "files"):
        del manifest[key]
    (folder / "report.html").unlink()  # it speaks of all variants
    (folder / SIGNATURE).unlink(missing_ok=True)  # of the bundle as it was
    card = model_card(convert(manifest, BundleManifest))
    (folder / "MODEL_CARD.md").write_text(card, encoding="utf-8")
    write_bundle(folder, convert(manifest, BundleManifest))
    starter = open_bundle(folder, OWN_WORK)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > LIMIT:
        raise SystemExit(f"{size} bytes; at most {LIMIT} are wanted")
    shutil.rmtree(STARTER, ignore_errors=True)
    folder.rename(STARTER)
    print(f"{STARTER}: {', '.join(starter.variants)}, {size} bytes")
    print(f"write into edgelung/artifacts/trust.py: STARTER_SHA256 = {starter.sha256!r}")


if __name__ == "__main__":
    main()
