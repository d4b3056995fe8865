"""A bundle that is damaged, newer, or not one: one clear line, exit code 2, nothing written."""

import json
import shutil
from pathlib import Path

import pytest

from edgelung.artifacts.bundle import SCHEMA_VERSION, open_bundle, write_bundle
from edgelung.core.errors import EdgelungError


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "bundle.json").read_text())


def reseal(folder: Path, manifest: dict) -> None:
    """Write a changed manifest with right hashes, as somebody with an editor and patience would."""
    manifest = {k: v for k, v in manifest.items() if k != "files"}
    write_bundle(folder, manifest)


def test_every_file_is_guarded_at_any_byte(copied_bundle: Path) -> None:
    paths = [path for path in sorted(copied_bundle.rglob("*")) if path.is_file()]
    assert len(paths) > 10
    for path in paths:
        data = path.read_bytes()
        for position in {0, len(data) // 3, len(data) // 2, len(data) - 1}:
            flipped = bytearray(data)
            flipped[position] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(EdgelungError) as error:
                open_bundle(copied_bundle)
            assert "\n" not in str(error.value)
            assert path.name.removesuffix(".sha256") in str(error.value)
        path.write_bytes(data)
    open_bundle(copied_bundle)


def test_every_byte_of_the_manifest_is_guarded(copied_bundle: Path) -> None:
    for name in ("bundle.json", "bundle.json.sha256"):
        path = copied_bundle / name
        data = path.read_bytes()
        for position in range(0, len(data), 41 if name == "bundle.json" else 1):
            flipped = bytearray(data)
            flipped[position] ^= 4
            path.write_bytes(flipped)
            with pytest.raises(EdgelungError):
                open_bundle(copied_bundle)
        path.write_bytes(data)


def test_a_newer_schema_says_update(copied_bundle: Path) -> None:
    manifest = manifest_of(copied_bundle) | {"schema_version": SCHEMA_VERSION + 1}
    (copied_bundle / "bundle.json").write_text(json.dumps(manifest))
    for _ in range(2):
        with pytest.raises(EdgelungError, match="update edgelung"):
            open_bundle(copied_bundle)
        (copied_bundle / "bundle.json.sha256").unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "golden/../../x", "a\\..\\b"])
def test_paths_out_of_the_bundle_are_refused(copied_bundle: Path, name: str) -> None:
    manifest = manifest_of(copied_bundle)
    manifest["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    text = json.dumps(manifest)
    (copied_bundle / "bundle.json").write_text(text)
    import hashlib

    digest = hashlib.sha256(text.encode()).hexdigest()
    (copied_bundle / "bundle.json.sha256").write_text(f"{digest}  bundle.json\n")
    with pytest.raises(EdgelungError, match="outside the bundle"):
        open_bundle(copied_bundle)


def test_a_graph_without_a_hash_is_refused(copied_bundle: Path, tmp_path: Path) -> None:
    manifest = manifest_of(copied_bundle)
    shutil.copy(copied_bundle / "model.fp32.onnx", tmp_path / "elsewhere.onnx")
    manifest["variants"]["fp32"]["file"] = "../elsewhere.onnx"
    reseal(copied_bundle, manifest)
    with pytest.raises(EdgelungError, match="has no hash"):
        open_bundle(copied_bundle)


@pytest.mark.parametrize("key", ["classes", "preprocessing", "variants", "golden"])
def test_missing_parts_are_named(copied_bundle: Path, key: str) -> None:
    manifest = manifest_of(copied_bundle)
    del manifest[key]
    reseal(copied_bundle, manifest)
    with pytest.raises(EdgelungError, match=key):
        open_bundle(copied_bundle)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["classes"], ["lung_aca", "lung_n", "lung_scc", "extra"]),
        (["classes"], ["a", "a", "a"]),
        (["classes"], "abc"),
        (["classes"], [1, 2, 3]),
        (["golden", 0, "probabilities", "fp32"], [0.5]),
        (["golden", 0, "probabilities", "fp32"], ["x", "y", "z"]),
        (["golden", 0, "probabilities"], {}),
        (["golden"], []),
        (["variants", "fp32", "gate"], None),
        (["variants"], {}),
        (["preprocessing", "size"], "64"),
    ],
)
def test_wrong_parts_are_refused(copied_bundle: Path, path: list, value: object) -> None:
    manifest = manifest_of(copied_bundle)
    part = manifest
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    reseal(copied_bundle, manifest)
    with pytest.raises(EdgelungError):
        open_bundle(copied_bundle)


def test_a_size_that_is_not_the_graphs_is_refused(copied_bundle: Path) -> None:
    manifest = manifest_of(copied_bundle)
    manifest["preprocessing"]["size"] = 32
    reseal(copied_bundle, manifest)
    with pytest.raises(EdgelungError, match=r"tiles uint8 \[N, 64, 64, 3\]; expected .*32, 32, 3"):
        open_bundle(copied_bundle)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "[" * 200_000, "\x00"])
def test_junk_for_a_manifest(copied_bundle: Path, text: str) -> None:
    (copied_bundle / "bundle.json").write_text(text)
    with pytest.raises(EdgelungError):
        open_bundle(copied_bundle)


def test_other_preprocessing_is_refused(copied_bundle: Path) -> None:
    manifest = manifest_of(copied_bundle)
    manifest["preprocessing"]["resize"] = "nearest"
    reseal(copied_bundle, manifest)
    with pytest.raises(EdgelungError, match="preprocessing"):
        open_bundle(copied_bundle)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(EdgelungError, match="is no bundle"):
            open_bundle(folder)


def test_on_the_command_line(copied_bundle: Path, tiles: Path, tmp_path: Path, cli) -> None:
    graph = copied_bundle / "model.fp32.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    out = tmp_path / "out.csv"
    out.write_text("kept")
    result = cli("infer", tiles, "--model", copied_bundle, "--out", out)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "model.fp32.onnx is damaged" in result.stderr
    assert out.read_text() == "kept"
