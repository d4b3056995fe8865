"""The commands as users meet them: exit codes, one-line errors, a light infer."""

import csv
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from edgelung.artifacts.bundle import write_bundle

NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "torchvision", "matplotlib", "onnx"):
            raise ImportError(f"{name} is not for the workstation")
sys.meta_path.insert(0, Refuse())
from edgelung.cli import main
main()
"""


def test_infer_needs_neither_torch_nor_timm(
    bundle_folder: Path, tiles: Path, tmp_path: Path
) -> None:
    for engine in ("openvino", "onnxruntime"):
        words = ["infer", tiles, "--model", bundle_folder, "--engine", engine, "--verify"]
        words += ["--out", tmp_path / "out.csv"]
        result = subprocess.run(
            [sys.executable, "-c", NO_TORCH, *map(str, words)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        assert "agreement" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['edgelung', '--help']\n"
        "from edgelung.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'torch', 'PIL', 'onnxruntime', 'openvino', 'rich'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_infer_writes_one_row_per_file_and_a_summary(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    words = ["--json", "--batch-size", 7, "--unknown", "keep"]  # which is odd depends on the CPU
    result = cli("infer", tiles, "--model", bundle_folder, *words)
    assert result.returncode == 0, result.stderr
    summary = json.loads(result.stdout)
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "path",
        "status",
        "label",
        "confidence",
        "p_lung_aca",
        "p_lung_n",
        "p_lung_scc",
        "ood",
        "set",
        "stage",
        "error",
    ]
    assert len(rows) == summary["files"] == 110
    assert summary["statuses"] == {"ok": 108, "skipped": 2}
    assert "labelled" not in summary
    for row in rows:
        if row["status"] == "ok":
            chances = {name: float(row[f"p_{name}"]) for name in summary["labels"]}
            assert row["label"] == max(chances, key=lambda name: chances[name])
            assert float(row["confidence"]) == max(chances.values())
            assert sum(chances.values()) == pytest.approx(1, abs=1e-5)
    assert "Research use only" in result.stderr


@pytest.mark.parametrize("recorded", [True, False])
def test_infer_says_that_the_model_of_a_bundle_is_not_to_be_used(
    copied_bundle: Path, tiles: Path, tmp_path: Path, cli, recorded: bool
) -> None:
    """Recorded by `export`, or derived from the test figures of an older bundle."""
    content = json.loads((copied_bundle / "bundle.json").read_text("utf-8"))
    test = content["variants"]["fp32"]["test"]
    test["confusion"] = [[0, 1, 5], [0, 6, 0], [0, 0, 6]]
    test["recall"] = [0.0, 1.0, 1.0]
    del content["concerns"]
    text = "Do not use the model: it never predicts lung_aca (0 of 18 test tiles, 6 are of this "
    text += "class)."
    if recorded:
        content["concerns"] = [{"kind": "never-predicted", "text": text, "do_not_use": True}]
    write_bundle(copied_bundle, content)
    result = cli("infer", tiles / "lung_n", "--model", copied_bundle)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"{text}\n")
    summary = json.loads((tmp_path / "predictions.summary.json").read_text())
    assert summary["concerns"][0] == {
        "kind": "never-predicted",
        "text": text,
        "do_not_use": True,
    }


def test_verify_compares_with_full_precision(bundle_folder: Path, tiles: Path, cli) -> None:
    words = ["infer", tiles, "--model", bundle_folder, "--precision", "int8", "--verify", "--json"]
    result = cli(*words)
    verify = json.loads(result.stdout)["verify"]
    assert verify["tiles"] == 108
    assert verify["agreement"] == 1 - verify["differing_labels"] / 108
    assert 0 < verify["max_probability_difference"] < 0.2
    assert result.returncode == (0 if verify["agreement"] >= 0.99 else 4)
    sampled = json.loads(cli(*words, "--batch-size", 10, "--verify-every", 5).stdout)["verify"]
    # batches 0, 5 and 10; SYNTHETIC.txt and groups.csv come first
    assert sampled["tiles"] == 8 + 10 + 10


def test_a_subset_of_the_split(run: Path, bundle_folder: Path, tiles: Path, cli) -> None:
    words = ["infer", tiles, "--model", bundle_folder, "--files", run / "split.csv", "--json"]
    assert json.loads(cli(*words, "--subset", "test").stdout)["files"] == 18
    assert json.loads(cli(*words).stdout)["files"] == 108
    wrong = cli(*words, "--subset", "nope")
    assert wrong.returncode == 2
    assert "names no files in subset 'nope'" in wrong.stderr


def test_an_output_that_is_a_link_stays_one(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "rows.csv").touch()
    link = tmp_path / "latest.csv"
    link.symlink_to(tmp_path / "kept" / "rows.csv")
    some = sorted((tiles / "lung_n").iterdir())[0].relative_to(tiles)
    (tmp_path / "list").write_text(f"{some}\n")
    words = ["infer", tiles, "--model", bundle_folder, "--files", tmp_path / "list"]
    assert cli(*words, "--out", link).returncode == 0
    assert link.is_symlink()
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == [
        "rows.csv",
        "rows.summary.json",
    ]


def test_a_list_names_each_file_once(bundle_folder: Path, tiles: Path, tmp_path: Path, cli) -> None:
    """CRLF, a byte-order mark, blank lines, repeats and a line separator within a name."""
    import shutil

    folder = tmp_path / "in"
    folder.mkdir()
    names = ["1.jpeg", "2\u20283.jpeg"]
    for name in names:
        shutil.copy(tiles / "lung_n" / "lung_n_s0_0.jpeg", folder / name)
    listing = tmp_path / "list.txt"
    listing.write_bytes("\ufeff1.jpeg\r\n\r\n2\u20283.jpeg\r\n1.jpeg\r\n".encode())
    words = ["infer", folder, "--model", bundle_folder, "--files", listing]
    assert cli(*words).returncode == 0
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == names


def test_several_folders_share_one_csv(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    result = cli("infer", tiles / "lung_n", tiles / "lung_scc", "--model", bundle_folder, "--json")
    assert json.loads(result.stdout)["files"] == 72
    text = (tmp_path / "predictions.csv").read_text()
    assert "\nlung_n/lung_n_s0_0.jpeg," in text
    assert "\nlung_scc/lung_scc_s0_0.jpeg," in text


def test_the_csv_in_the_folder_is_no_input(bundle_folder: Path, tiles: Path, cli, tmp_path) -> None:
    import shutil

    folder = Path(shutil.copytree(tiles / "lung_n", tmp_path / "in"))
    for _ in range(2):
        result = cli("infer", folder, "--model", bundle_folder, "--out", folder / "p.csv", "--json")
        assert json.loads(result.stdout)["files"] == 36


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["infer", "gone", "--model", "BUNDLE"], "gone does not exist"),
        (["infer", "EMPTY", "--model", "BUNDLE"], "found no file at all"),
        (["infer", "TILES", "--model", "TILES"], "is no bundle"),
        (["infer", "TILES", "--model", "BUNDLE", "--engine", "tensorrt"], "tensorrt"),
        (
            ["infer", "TILES", "--model", "BUNDLE", "--engine", "x"],
            "'x' is unknown; expected one of auto",
        ),
        (["infer", "TILES", "--model", "BUNDLE", "--precision", "int4"], "'int4' is unknown"),
        (["infer", "TILES", "--model", "BUNDLE", "--batch-size", "0"], "batch-size"),
        (["infer", "", "--model", "BUNDLE"], "the name is empty"),
        (["export", "RUN", "--out", "new", "--target-speed", "inf"], "inf is not a finite number"),
        (["slide", "TILES", "--mpp", "inf"], "'--mpp': inf is not a finite number"),
        (["infer", "TEXT", "--model", "BUNDLE"], "no image among them"),
        (["infer", "TILES", "--nonsense"], "--nonsense"),
        (["infer", "TILES", "--model", "BUNDLE", "--out", "p.xlsx"], "ends in .csv"),
        (
            ["infer", "TILES", "--model", "BUNDLE", "--out", "gone/p.csv"],
            "--out gone/p.csv: the folder gone does not exist",
        ),
        (["infer", "TILES", "--model", "BUNDLE", "--subset", "test"], "--subset needs --files"),
        (["train", "gone", "--out", "new"], "gone is no folder"),
        (["train", "EMPTY", "--out", "new"], "holds no image"),
        (["train", "TILES/lung_n", "--out", "new"], "is it the folder above"),
        (["train", "TILES", "--out", "new", "--recipe", "qick"], "no recipe 'qick'"),
        (["train", "TILES", "--out", "new", "--set", "student.lr=x"], "student.lr"),
        (["train", "TILES", "--out", "new", "--set", "student.size=232"], "patch size"),
        (["train", "TILES", "--out", "new", "--set", "teacher.optimizer=x"], "optimizer 'x'"),
        (["train", "TILES", "--out", "new", "--groups", "ONEGROUP"], "group(s) of tiles"),
        (["train", "TILES", "--out", "/proc/new"], "/proc"),
        (["infer", "TILES", "TILES/lung_n", "--model", "BUNDLE"], "lies in it"),
        (["train", "TILES", "--out", "RUN"], "already exists"),
        (["train", "TILES", "--out", "new", "--resume"], "holds no unfinished run"),
        (["train", "TILES", "--out", "RUN", "--resume", "--recipe", "demo"], "leave the other"),
        (["export", "gone", "--out", "new"], "is no finished run"),
        (["export", "RUN", "--out", "BUNDLE"], "already exists"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_2(
    words: list[str],
    message: str,
    run: Path,
    bundle_folder: Path,
    tiles: Path,
    tmp_path: Path,
    cli,
) -> None:
    """Bar 7, at the command line."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "notes.txt").write_text("notes")
    rows = list(csv.DictReader((tiles / "groups.csv").open()))
    with (tmp_path / "one.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "group"])
        for row in rows:  # every tile of lung_n from one source
            one = row["class"] == "lung_n"
            writer.writerow([row["path"], "n" if one else row["cluster"]])
    places = {
        "RUN": run,
        "BUNDLE": bundle_folder,
        "EMPTY": tmp_path / "empty",
        "TEXT": tmp_path / "text",
        "ONEGROUP": tmp_path / "one.csv",
    }
    words = [str(places.get(w, w)).replace("TILES", str(tiles)) for w in words]
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    result = cli(*words)
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("edgelung: ")]
    assert len(lines) == 1
    assert result.stderr.endswith(lines[0] + "\n")
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "predictions.csv").exists()
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_list_is_not_written_over(bundle_folder: Path, tiles: Path, tmp_path: Path, cli) -> None:
    listing = tmp_path / "list.csv"
    listing.write_text("path\nlung_n/lung_n_s0_0.jpeg\n")
    other = tmp_path / "other.csv"
    other.write_text("my,own,data\n")
    words = ["infer", tiles, "--model", bundle_folder, "--files", listing]
    for out in (listing, other):
        before = out.read_text()
        assert cli(*words, "--out", out).returncode == 2
        assert out.read_text() == before
    for _ in range(2):  # predictions replace predictions
        assert cli(*words, "--out", tmp_path / "p.csv").returncode == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,subset\n,test\n", "line 2: a row without a path"),
        ("\n \n", "names no files"),
        ("path\n" + "x" * 140_000 + "\n", "field larger than field limit"),
    ],
)
def test_bad_lists_are_explained(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli, text: str, message: str
) -> None:
    (tmp_path / "list.csv").write_text(text)
    result = cli("infer", tiles, "--model", bundle_folder, "--files", tmp_path / "list.csv")
    assert result.returncode == 2
    assert message in result.stderr


def test_images_are_known_by_their_first_bytes(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    import shutil

    folder = tmp_path / "in"
    folder.mkdir()
    sample = tiles / "lung_n" / "lung_n_s0_0.jpeg"
    for name in ("scan", "scan.dat", "scan.JPG"):
        shutil.copy(sample, folder / name)
    (folder / "notes.txt").write_text("notes")
    (folder / "slide.svs").write_text("not read")
    result = cli("infer", folder, "--model", bundle_folder, "--json")
    assert json.loads(result.stdout)["statuses"] == {"ok": 3, "skipped": 1, "slide": 1}
    assert result.returncode == 3


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_terminal_that_cannot_show_an_arrow(
    bundle_folder: Path, tiles: Path, cli, encoding: str
) -> None:
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    result = cli("infer", tiles, "--model", bundle_folder, env=environment)
    assert result.returncode == 0, result.stderr


def test_a_closed_pipe_keeps_the_exit_code(
    bundle_folder: Path, tiles: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "empty.jpg").touch()
    read, write = os.pipe()
    os.close(read)
    words = ["infer", folder, "--model", bundle_folder, "--out", tmp_path / "p.csv"]
    command = [Path(sys.executable).with_name("edgelung"), *words]
    for more in ([], ["--json"]):
        done = subprocess.run(
            [*command, *more], stdout=write, stderr=subprocess.PIPE, timeout=120, check=False
        )
        assert done.returncode == 3, done.stderr
    os.close(write)


def test_a_service_without_standard_output_gets_its_rows(
    bundle_folder: Path, tiles: Path, tmp_path: Path
) -> None:
    out = tmp_path / "rows.csv"
    words = [Path(sys.executable).with_name("edgelung"), "infer", tiles, "--model", bundle_folder]
    command = shlex.join([*map(str, words), "--out", str(out)])
    done = subprocess.run(
        f"exec {command} >&-", shell=True, stderr=subprocess.PIPE, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr
    assert out.exists()


def test_version_and_help_name_the_exit_codes(cli) -> None:
    assert cli("--version").stdout.startswith("edgelung ")
    text = cli("--help").stdout
    assert "Research use only" in text
    for code in ("0 all well", "2 wrong usage", "3 finished", "4 an accuracy gate"):
        assert code in " ".join(text.split())


@pytest.mark.slow
def test_the_plain_wheel_infers_without_torch(
    bundle_folder: Path, tiles: Path, tmp_path: Path
) -> None:
    """Bar 5: `pip install` of the wheel into an empty environment is all the workstation needs."""
    source = Path(__file__).parents[2]
    environment = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)
    pip = [environment / "bin" / "python", "-m", "pip"]
    wheels = tmp_path / "wheels"
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", wheels, source]
    subprocess.run(build, check=True, timeout=300)
    (wheel,) = wheels.glob("edgelung-*.whl")
    subprocess.run([*pip, "install", "-q", wheel], check=True, timeout=900)
    installed = subprocess.run([*pip, "list"], check=True, capture_output=True, text=True).stdout
    assert "torch" not in installed
    assert "timm" not in installed
    out = tmp_path / "out.csv"
    edgelung = environment / "bin" / "edgelung"
    words = ["infer", tiles, "--model", bundle_folder, "--out", out, "--verify"]
    subprocess.run([edgelung, *words], check=True, timeout=300, cwd=tmp_path)
    assert len(out.read_text().splitlines()) == 111
