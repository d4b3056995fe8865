"""The house: arrows point down, modules stay small, a file's name is written down once."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("edgelung", "train", "export", "kernels")
# From the bottom up: a room imports from its own level and from those below.
LEVELS = [
    {"edgelung.core", "edgelung.kernels"},
    {"edgelung.tiles"},
    {"edgelung.artifacts"},
    {"edgelung.evaluation"},
    {"edgelung.engines"},
    {"edgelung.inference"},
    {"edgelung.slides", "edgelung.report", "edgelung.serving"},
    {"edgelung.train", "edgelung.export", "edgelung.cluster"},
    {"edgelung.api", "edgelung.classifier", "edgelung.tools"},
    {"edgelung.cli"},
]
MOST_LINES, MOST_BODY_LINES, MOST_ANY_LINES = 400, 60, 70
# Names of files in a run folder and a bundle, and the module that owns each.
OWNED = {
    "edgelung.core.own_folders": [
        *("run.json", "split.csv", "bundle.json", "audit.json", "groups.csv", "report.html"),
    ],
    "edgelung.artifacts.run": ["metrics.json", "metrics.jsonl", "state.pt", "model.safetensors"],
    "edgelung.artifacts.bundle": ["MODEL_CARD.md"],
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts if parts[0] == "edgelung" else ("edgelung", *parts))
    return name.removesuffix(".__init__")


MODULES = {name_of(path): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}


def imports(path: Path, *, lazy: bool = True) -> set[str]:
    """Modules of edgelung that a module imports; with `lazy`, inside functions too."""
    found: set[str] = set()
    tree = ast.parse(path.read_text("utf-8"))
    nodes = ast.walk(tree) if lazy else tree.body
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name for name in submodules if name in MODULES} or {node.module}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] == "edgelung"}


def level_of(module: str) -> int | None:
    """The level of a module; None for the package itself, which everybody may import."""
    for level, rooms in enumerate(LEVELS):
        if any(module == room or module.startswith(f"{room}.") for room in rooms):
            return level
    return None


def test_every_module_has_a_level() -> None:
    outside = {"edgelung", "edgelung.__main__"}
    assert {name for name in MODULES if level_of(name) is None} == outside


def test_arrows_point_down() -> None:
    upward = [
        f"{name} imports {other}"
        for name, path in MODULES.items()
        if (own := level_of(name)) is not None
        for other in sorted(imports(path))
        if (level := level_of(other)) is not None and level > own
    ]
    assert not upward


def test_training_and_export_do_not_import_the_command_line() -> None:
    for name, path in MODULES.items():
        if name.startswith(("edgelung.train", "edgelung.export")):
            assert not any(other.startswith("edgelung.cli") for other in imports(path)), name


def test_no_import_cycle() -> None:
    arrows = {name: imports(path, lazy=False) & set(MODULES) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join([*trail, name])
        if name not in done:
            for other in arrows[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in arrows:
        visit(name, ())


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_and_functions_are_small(name: str) -> None:
    text = MODULES[name].read_text("utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.body[0].lineno + 1
            assert lines <= MOST_BODY_LINES, f"{node.name} has {lines} lines"


def test_any_stands_only_where_untyped_values_come_in() -> None:
    lines = [
        f"{name}:{number}"
        for name, path in MODULES.items()
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(r"\bAny\b", line.split("#")[0])
    ]
    assert len(lines) <= MOST_ANY_LINES, "\n".join(lines)


def test_a_file_name_stands_in_the_module_that_owns_it() -> None:
    strays = []
    for owner, names in OWNED.items():
        for module, path in MODULES.items():
            if module == owner:
                continue
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Constant) and node.value in names:
                    strays.append(f"{module}:{node.lineno} {node.value}")
    assert not strays


def test_inference_imports_no_torch() -> None:
    code = (
        "import sys, edgelung.cli.app, edgelung.inference.session, edgelung.engines.choose;"
        "print(sorted({'torch', 'timm', 'onnx', 'matplotlib', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
