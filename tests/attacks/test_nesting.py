"""JSON and TOML from outside that are nested deeply: one line, never a RecursionError."""

import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

import edgelung
from edgelung.artifacts.bench_result import read_bench
from edgelung.artifacts.summary import read_summary, rows_name_of
from edgelung.core import typed_json
from edgelung.core.config import read_section
from edgelung.core.errors import EdgelungError
from edgelung.engines.tensorrt.prebuilt import open_prebuilt

DEPTHS = [40, 500, 990, 100_000]  # parsed by all; by json, not by what comes after; by none
OLD_RUN = Path(__file__).parents[1] / "artifacts" / "run-0.1"


class Section(msgspec.Struct):
    model: object = None


def json_lists(depth: int) -> str:
    return "[" * depth + "]" * depth


def json_objects(depth: int) -> str:
    return '{"a":' * depth + "1" + "}" * depth


TOML: dict[str, Callable[[int], str]] = {
    "arrays": lambda n: f"model = {json_lists(n)}",
    "tables": lambda n: "model = " + "{a=" * n + "1" + "}" * n,
    "dotted keys": lambda n: "model" + ".a" * min(n, 2_000) + " = 1",
}


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", TOML)
def test_deeply_nested_settings_are_refused(tmp_path: Path, kind: str, depth: int) -> None:
    path = tmp_path / "edgelung.toml"
    path.write_text(f"[infer]\n{TOML[kind](depth)}\n")
    with pytest.raises(EdgelungError, match=r"nested too deeply|a line is longer") as error:
        read_section(path, "infer", Section)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("kind", TOML)
def test_a_deeply_nested_recipe_is_refused(tmp_path: Path, kind: str, depth: int) -> None:
    recipe = pytest.importorskip("edgelung.train.recipe")
    (tmp_path / "own.toml").write_text(TOML[kind](depth))
    with pytest.raises(EdgelungError, match=r"nested too deeply|a line is longer"):
        recipe.load_recipe(str(tmp_path / "own.toml"), [])
    with pytest.raises(EdgelungError):
        recipe.load_recipe("demo", [f"student.size={json_lists(depth)}"])


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("nested", [json_lists, json_objects])
@pytest.mark.parametrize("name", ["run.json", "metrics.json", "metrics.jsonl", "config.json"])
def test_deeply_nested_files_of_a_run_are_refused(
    tmp_path: Path, name: str, nested: Callable[[int], str], depth: int
) -> None:
    """In a field of any kind, so that the rest of the file is right."""
    run = Path(shutil.copytree(OLD_RUN, tmp_path / "run"))
    path = next(run.rglob(name))
    text = path.read_text().splitlines()[0] if name.endswith("l") else path.read_text()
    path.write_text(text.replace("{", f'{{"x": {nested(depth)}, ', 1))
    opened = edgelung.open_run(run)
    with pytest.raises(EdgelungError, match="nested too deeply"):
        _ = (opened.config, opened.metrics, opened.history, opened.folder.read_model_config())


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("nested", [json_lists, json_objects])
def test_other_deeply_nested_files_are_refused(
    tmp_path: Path, nested: Callable[[int], str], depth: int
) -> None:
    path = tmp_path / "engines.json"
    path.write_text(nested(depth))
    assert rows_name_of(path) is None
    for read in (read_bench, read_summary, lambda path: open_prebuilt(path.parent)):
        with pytest.raises(EdgelungError):
            read(path)


def test_a_key_of_many_parts_is_refused_before_it_is_parsed() -> None:
    with pytest.raises(ValueError, match="a line is longer than 8,192 characters"):
        typed_json.parse_toml("a" + ".a" * 1_000_000 + " = 1")


def test_what_edgelung_writes_is_far_from_the_limit() -> None:
    for path in [*OLD_RUN.rglob("*.json"), *Path(edgelung.__file__).parent.rglob("*.json")]:
        typed_json.parse(path.read_bytes())
