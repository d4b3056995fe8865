"""Every command and Python snippet of README, tutorials and how-to pages runs, or says why not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from slide_files import write_svs
from snippets import PAGES, REASONS, ROOT, Block, blocks, is_like

IDS = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.fixture
def workspace(tiles: Path, tmp_path: Path) -> Path:
    """The folder that the pages speak of: `tiles/` with groups, and the clone's `examples/`."""
    folder = tmp_path / "work"
    shutil.copytree(tiles, folder / "tiles")
    groups = folder / "tiles" / "groups.csv"
    groups.write_text(groups.read_text().replace("cluster", "group", 1))
    shutil.copytree(ROOT / "examples", folder / "examples")
    for name in ("case-17.svs", "CMU-1-Small-Region.svs"):
        write_svs(folder / name, 600, 500)
    (folder / "scans").mkdir()
    write_svs(folder / "scans" / "case-18.svs", 600, 500)
    return folder


def run_page(chosen: list[Block], folder: Path, small: list[str]) -> None:
    """Run the blocks in order; `train` gets the overrides that make it take seconds."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for block in chosen:
        seen = set()
        for command in block.commands:
            text = command.text
            if text.startswith("edgelung train"):
                settings = [*small, "distill.features_epochs=0"]
                text += "".join(f" --set '{setting}'" for setting in settings)
            done = subprocess.run(
                ["bash", "-o", "pipefail", "-c", text],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
            )
            assert done.returncode in block.exit_codes | {0}, f"{command.text}\n{done.stderr}"
            seen.add(done.returncode)
            if command.output:
                assert is_like(command.output, done.stdout), f"{command.text}\n{done.stdout}"
        assert not block.commands or seen & block.exit_codes, block.body
    if code := "".join(block.body for block in chosen if block.kind == "python"):
        words = [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_the_quick_blocks_of_a_page_run(
    page: Path, workspace: Path, run: Path, bundle_folder: Path, small: list[str]
) -> None:
    """On a run and a bundle that the test session has made already."""
    for name, source in (("runs", run), ("bundles", bundle_folder)):
        (workspace / name).mkdir()
        (workspace / name / "first").symlink_to(source)
    run_page([b for b in blocks(page) if not b.not_run and not b.slow], workspace, small)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_all_blocks_of_a_page_run(
    page: Path, workspace: Path, run: Path, bundle_folder: Path, small: list[str]
) -> None:
    """From the tiles on; pages that begin after training find the run and the bundle there."""
    chosen = [block for block in blocks(page) if not block.not_run]
    text = "".join(block.body for block in chosen)
    for name, source in (("runs", run), ("bundles", bundle_folder)):
        if f"--out {name}/first" not in text:
            (workspace / name).mkdir()
            (workspace / name / "first").symlink_to(source)
    run_page(chosen, workspace, small)


def test_a_block_that_is_not_run_says_why() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.not_run:
                assert block.not_run.startswith(REASONS), f"{page.name}: {block.not_run}"


def test_most_blocks_run() -> None:
    """Those that another test runs count as run."""
    found = [block for page in PAGES for block in blocks(page)]
    not_run = [block for block in found if block.not_run and "; tests/" not in block.not_run]
    assert len(found) >= 50
    assert len(not_run) <= 22, [block.body for block in not_run]


def test_commands_stand_in_blocks_that_are_run() -> None:
    """Not in indented code, which no test reads; `make` has its own tests."""
    for page in PAGES:
        for line in page.read_text(encoding="utf-8").splitlines():
            if line.startswith("    ") and not line.startswith("    make "):
                assert not line.strip().startswith(("$ ", "edgelung ", "pip ")), f"{page}: {line}"


@pytest.mark.data
def test_the_slide_tutorial_shows_what_is_printed(real_tiles: Path, tmp_path: Path) -> None:
    """On the real slide: the other tests run the command on a made one."""
    slide = real_tiles / "slides" / "CMU-1-Small-Region.svs"
    if not slide.is_file():
        pytest.skip(f"{slide} is not there")
    shutil.copy(slide, tmp_path)
    page = ROOT / "docs" / "tutorials" / "slide-to-qupath.md"
    (block,) = blocks(page)
    program = [sys.executable, "-m", "edgelung", *block.commands[0].text.split()[1:]]
    done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shown = page.read_text(encoding="utf-8").partition("```text\n")[2].partition("```")[0]
    printed = done.stdout.splitlines() + done.stderr.splitlines()
    assert sorted(shown.splitlines()) == sorted(printed)


def test_an_output_that_differs_is_found() -> None:
    assert is_like("a.jpeg,ok,0.98\n", "a.jpeg,ok,0.97\n")
    assert not is_like("a.jpeg,ok,0.98\n", "a.jpeg,ok,0.78\n")
    assert not is_like("a.jpeg,ok,0.98\n", "b.jpeg,ok,0.98\n")
