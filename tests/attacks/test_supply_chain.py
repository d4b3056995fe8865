"""Packages that are not the ones that were tested do not get into an installation."""

import functools
import re
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.markers import Marker, default_environment
from packaging.requirements import Requirement
from packaging.version import Version
from pins import LOCKS, Pin, merge, normalize, read_pins, sha256
from sbom import complete, parts
from wheelhouse import fits, restrict

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
PYTHONS = {"3.11": "3.11.9", "3.12": "3.12.7"}
DIGEST = "ab" * 32


@functools.cache
def lock(name: str) -> list[Pin]:
    return read_pins(LOCKS / f"{name}.txt")


def environment(python: str) -> dict[str, str]:
    linux = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64"}
    versions = {"python_version": python, "python_full_version": PYTHONS[python]}
    return {**{k: str(v) for k, v in default_environment().items()}, **linux, **versions}


def direct(extra: str, where: dict[str, str]) -> Iterator[Requirement]:
    """The direct dependencies of the base and of an extra, with those of extras that it names."""
    texts = EXTRAS[extra] if extra != "base" else PROJECT["project"]["dependencies"]
    for requirement in map(Requirement, texts):
        if requirement.name == "edgelung":
            for named in requirement.extras:
                yield from direct(named, where)
        elif requirement.marker is None or requirement.marker.evaluate(where):
            yield requirement


def pinned(name: str, where: dict[str, str]) -> dict[str, Pin]:
    fitting = [pin for pin in lock(name) if not pin.marker or Marker(pin.marker).evaluate(where)]
    found = {normalize(pin.name): pin for pin in fitting}
    assert len(found) == len(fitting), "a package is pinned twice"
    return found


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("extra", ["base", *EXTRAS])
def test_every_dependency_is_pinned_to_a_version_in_its_range(extra: str, python: str) -> None:
    """If this fails: `make locks`."""
    where = environment(python)
    pins = pinned(extra, where)
    for requirement in [*direct("base", where), *(direct(extra, where))]:
        pin = pins.get(normalize(requirement.name))
        assert pin is not None, f"{requirement.name} is not in {extra}.txt"
        assert requirement.specifier.contains(pin.version), f"{pin.name} {pin.version}"


def test_all_locks_agree_on_versions_and_files() -> None:
    everything = {(pin.name, pin.version, pin.hashes) for pin in lock("all")}
    for path in LOCKS.glob("*.txt"):
        assert {(pin.name, pin.version, pin.hashes) for pin in lock(path.stem)} <= everything


def test_no_lock_names_an_index_a_path_or_a_local_build() -> None:
    for path in LOCKS.glob("*.txt"):
        lines = path.read_text(encoding="utf-8").splitlines()
        foreign = [line for line in lines if re.search(r"://|/|^-| @ |\+", line)]
        assert not foreign, path.name
        for pin in lock(path.stem):
            assert Version(pin.version).local is None
            assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in pin.hashes)


@pytest.mark.parametrize(
    "line", ["rich==15.0.0", "rich>=13 --hash=sha256:" + DIGEST, "-r other.txt", "./local.whl"]
)
def test_a_line_that_is_no_pin_with_hashes_is_refused(line: str, tmp_path: Path) -> None:
    bad = tmp_path / "lock.txt"
    bad.write_text(f"mdurl==0.1.2 \\\n    --hash=sha256:{DIGEST}\n{line}\n", encoding="utf-8")
    with pytest.raises(ValueError, match="not a pin with hashes"):
        read_pins(bad)


def test_a_pin_is_written_as_it_was_read(tmp_path: Path) -> None:
    pins = merge(["base", "tiff"])
    written = tmp_path / "requirements.txt"
    written.write_text("".join(map(str, pins)), encoding="utf-8")
    assert read_pins(written) == pins


def test_a_package_that_one_lock_has_for_all_pythons_is_there_for_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pins.LOCKS", tmp_path)
    for name, marker in (("one", " ; python_version < '3.12'"), ("two", "")):
        (tmp_path / f"{name}.txt").write_text(f"rich==15.0.0{marker} --hash=sha256:{DIGEST}\n")
    assert [pin.marker for pin in merge(["one", "two"])] == [""]


def test_a_downloaded_wheel_that_is_not_in_the_lock_is_refused(tmp_path: Path) -> None:
    wheel = tmp_path / "mdurl-0.1.2-py3-none-any.whl"
    wheel.write_bytes(b"another file")
    pin = Pin("mdurl", "0.1.2", "", frozenset({DIGEST}))
    with pytest.raises(ValueError, match="not in the lock"):
        restrict([pin], tmp_path, built=set())
    listed = Pin("mdurl", "0.1.2", "", frozenset({DIGEST, sha256(wheel)}))
    assert restrict([listed], tmp_path, built=set())[0].hashes == {sha256(wheel)}


def our_wheel(folder: Path) -> Path:
    wheel = folder / "edgelung-1.0-cp311-abi3-manylinux_2_27_x86_64.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("edgelung/kernels/_resize.abi3.so", b"code")
        archive.writestr("edgelung/starter/model.fp32.onnx", b"weights")
        bundle = (ROOT / "edgelung" / "starter" / "bundle.json").read_bytes()
        archive.writestr("edgelung/starter/bundle.json", bundle)
    return wheel


def test_the_sbom_names_the_kernel_and_the_weights_inside_our_wheel(tmp_path: Path) -> None:
    kernel, weights = parts(our_wheel(tmp_path))
    assert kernel["name"] == "edgelung/kernels/_resize.abi3.so"
    assert weights["type"] == "machine-learning-model"
    assert "LC25000" in str(weights["modelCard"])


def test_an_sbom_with_a_package_of_unknown_origin_or_licence_is_refused(tmp_path: Path) -> None:
    licence = [{"license": {"id": "MIT"}}]
    ours = {"name": "edgelung", "version": "1.0", "licenses": licence}
    wheels = {("edgelung", "1.0"): our_wheel(tmp_path)}
    other = {"name": "other", "version": "2.0", "licenses": licence}
    with pytest.raises(ValueError, match="no wheel"):
        complete({"components": [dict(ours), dict(other)], "metadata": {}}, wheels)
    wheel = tmp_path / "other-2.0-py3-none-any.whl"
    wheel.write_bytes(b"")
    wheels["other", "2.0"] = wheel
    with pytest.raises(ValueError, match="no licence"):
        complete({"components": [dict(ours), {**other, "licenses": []}], "metadata": {}}, wheels)
    sbom = complete({"components": [dict(ours), dict(other)], "metadata": {}}, wheels)
    assert sbom["components"][0]["hashes"] == [{"alg": "SHA-256", "content": sha256(wheel)}]
    assert sbom["metadata"]["component"]["name"] == "edgelung"


def test_a_wheel_of_another_python_is_not_taken_for_what_was_installed() -> None:
    platform = "manylinux_2_28_x86_64.whl"
    assert fits(Path(f"a-1-cp311-cp311-{platform}"), "cp311")
    assert fits(Path(f"a-1-cp39-abi3-{platform}"), "cp311")
    assert fits(Path("a-1-py2.py3-none-any.whl"), "cp311")
    assert not fits(Path(f"a-1-cp312-cp312-{platform}"), "cp311")
    assert not fits(Path(f"a-1-cp312-none-{platform}"), "cp311")
