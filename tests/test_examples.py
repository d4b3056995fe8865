"""The notebooks in examples/: every cell runs, in order, and no output is kept in them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))

# Runs each code cell in one namespace, as a kernel does, and shows the value of its last line.
RUN_CELLS = """
import ast, json, sys
namespace = {"__name__": "__main__"}
for number, cell in enumerate(json.load(open(sys.argv[1], encoding="utf-8"))["cells"]):
    if cell["cell_type"] != "code":
        continue
    tree = ast.parse("".join(cell["source"]))
    shown = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, f"cell {number}", "exec"), namespace)
    if shown is not None:
        value = eval(compile(ast.Expression(shown.value), f"cell {number}", "eval"), namespace)
        print("" if value is None else repr(value))
    print(f"cell {number} ran")
"""


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_every_cell_of_a_notebook_runs(notebook: Path, run: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "first").symlink_to(run)
    done = subprocess.run(
        [sys.executable, "-c", RUN_CELLS, notebook],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    code = [number for number, cell in enumerate(cells) if cell["cell_type"] == "code"]
    assert [f"cell {n} ran" for n in code] == [
        line for line in done.stdout.splitlines() if line.endswith(" ran")
    ]
    assert "balanced accuracy:" in done.stdout  # the run was there


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_holds_no_outputs(notebook: Path) -> None:
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


def test_there_is_a_notebook() -> None:
    assert NOTEBOOKS
