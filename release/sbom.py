"""The SBOM (CycloneDX 1.6) of an environment: what cyclonedx-py finds, and what it cannot know.

Added are the SHA-256 of the wheel that each package came from, the parts inside our own wheel, and
licences that a package's metadata does not state. Runs with the tools of release/locks/release.txt.
"""

import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pins import normalize, sha256

OURS = "edgelung"
Component = dict[str, Any]

# Read in each package's LICENSE file: its metadata does not state them.
CONCLUDED = {"protobuf": "BSD-3-Clause"}


def make_sbom(environment: Path, wheels: Mapping[tuple[str, str], Path]) -> str:
    """Return the SBOM of a virtual environment as JSON.

    Args:
        environment: the environment's folder; edgelung is installed in it.
        wheels: the wheel that each package was installed from, by normalized name and version.

    Raises:
        ValueError: if a component has no wheel or no licence, or the SBOM breaks the schema.
        subprocess.CalledProcessError: if cyclonedx-py fails.
    """
    from cyclonedx.schema import SchemaVersion  # tools of the release: the tests do without
    from cyclonedx.validation.json import JsonStrictValidator

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "sbom.json"
        options = ["--output-reproducible", "--spec-version", "1.6", "--output-file", str(path)]
        tool = [sys.executable, "-m", "cyclonedx_py", "environment", *options, str(environment)]
        subprocess.run(tool, check=True)
        sbom = json.loads(path.read_text(encoding="utf-8"))
    text = json.dumps(complete(sbom, wheels), indent=1, ensure_ascii=False) + "\n"
    if error := JsonStrictValidator(SchemaVersion.V1_6).validate_str(text):
        raise ValueError(f"the SBOM breaks the schema of CycloneDX 1.6: {error}")
    return text


def complete(sbom: dict[str, Any], wheels: Mapping[tuple[str, str], Path]) -> dict[str, Any]:
    """Return the SBOM with hashes, licences, and edgelung with its parts as the main component."""
    components: list[Component] = sbom["components"]
    for component in components:
        name = normalize(component["name"])
        wheel = wheels.get((name, component["version"]))
        if wheel is None:
            raise ValueError(f"{name} is installed, but no wheel of it is in the folder")
        component["hashes"] = [{"alg": "SHA-256", "content": sha256(wheel)}]
        if not component.get("licenses"):
            if name not in CONCLUDED:
                raise ValueError(f"{name} states no licence: read its files, add it to CONCLUDED")
            licence = {"id": CONCLUDED[name], "acknowledgement": "concluded"}
            component["licenses"] = [{"license": licence}]
    (ours,) = [component for component in components if component["name"] == OURS]
    components.remove(ours)
    ours |= {"type": "application", "components": parts(wheels[OURS, ours["version"]])}
    sbom["metadata"]["component"] = ours
    return sbom


def parts(wheel: Path) -> list[Component]:
    """Return what the wheel of edgelung holds besides Python: kernels, the starter's weights."""
    found = []
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            if name.endswith(".onnx"):
                found.append(_part(archive, name) | _weights(archive))
            elif name.endswith((".so", ".fatbin")):
                text = "CPU kernel" if name.endswith(".so") else _cuda_kernels(archive)
                found.append(_part(archive, name) | {"type": "library", "description": text})
    return found


def _part(archive: zipfile.ZipFile, name: str) -> Component:
    digest = hashlib.sha256(archive.read(name)).hexdigest()
    return {
        "bom-ref": f"{OURS}:{name}",
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [{"license": {"id": "Apache-2.0", "acknowledgement": "declared"}}],
    }


def _cuda_kernels(archive: zipfile.ZipFile) -> str:
    record = json.loads(archive.read("edgelung/kernels/kernels.json"))
    return (
        f"CUDA kernels, compiled by {record['compiler']} for {', '.join(record['architectures'])}"
    )


def _weights(archive: zipfile.ZipFile) -> Component:
    """Return where the starter's weights come from, as its bundle.json states it."""
    origin = json.loads(archive.read("edgelung/starter/bundle.json"))["provenance"]
    data = {
        "type": "dataset",
        "name": "LC25000, lung tiles (Borkowski et al., arXiv 1912.12142)",
        "description": f"{origin['sets']['train']['tiles']} tiles in the training set",
    }
    return {
        "type": "machine-learning-model",
        "version": origin["created"],
        "description": f"Starter: {origin['student']}, trained from scratch with a CNN teacher",
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "classification of lung-histology tiles; research use only",
                "modelArchitecture": origin["student"],
                "datasets": [data],
            }
        },
    }
