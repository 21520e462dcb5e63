"""Rules of the project that no tool checks: imports, sizes, documentation, public names."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import onnxprune
from onnxprune.cli.commands import main

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "onnxprune"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 450
ROOMS = (
    "model samples structure timing plans measure linear rewrite decide recover clean run search "
    "report verbs cli"
).split()
"""The folders in the order of the flow; a folder imports only from those before it."""

WITHOUT_ONNX = [
    *("structure/labels", "structure/structure", "measure/statistics", "plans/plan"),
    *("decide/score", "decide/allocate"),
]
HEAVY = ["numpy", "scipy", "onnx", "onnxruntime", "onnx_graphsurgeon", "PIL", "rich"]
TOO_LONG: dict[str, pytest.MarkDecorator] = {}


def name_of(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), str(file))


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the full names of all modules that are imported, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(file: Path) -> set[str]:
    """Return the first part below ``onnxprune`` of every import from the package."""
    names = (n.split(".") for n in imported(parsed(file)))
    return {parts[1] for parts in names if parts[0] == "onnxprune" and len(parts) > 1}


def third_party(file: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(parsed(file))}


def every_file(*marked: dict[str, pytest.MarkDecorator]) -> list[object]:
    marks = {name: mark for by_name in marked for name, mark in by_name.items()}
    return [
        pytest.param(f, id=name_of(f), marks=[marks[name_of(f)]] if name_of(f) in marks else [])
        for f in FILES
    ]


def modules_after(script: str) -> set[str]:
    """Run a script in a fresh process and return the names of what it imported."""
    script += "\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    return set(json.loads(process.stdout.splitlines()[-1]))


# -- imports ---------------------------------------------------------------------------------


def room(parts: Sequence[str]) -> int:
    """Return the place of a module in the order; the single modules are the ground floor."""
    return ROOMS.index(parts[0]) + 1 if parts and parts[0] in ROOMS else 0


@pytest.mark.parametrize("file", every_file())
def test_imports_only_go_down(file: Path) -> None:
    here = file.relative_to(PACKAGE).parts
    if here[-1] in ("__init__.py", "__main__.py") and len(here) == 1:
        return  # the front door
    names = [
        name.split(".")[1:] for name in imported(parsed(file)) if name.startswith("onnxprune.")
    ]
    assert [".".join(n) for n in names if room(n) > room(here[:-1])] == []


def dotted(file: Path) -> str:
    """Return the full name of a module; a package goes by the name of its folder."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def loads(file: Path) -> set[str]:
    """Return the modules of the package that a file imports when it runs, not only for types."""
    tree = parsed(file)
    typed = [n for n in ast.walk(tree) if isinstance(n, ast.If)]
    for_types = [n for n in typed if ast.unparse(n.test).endswith("TYPE_CHECKING")]
    ignored = {name for n in for_types for part in n.body for name in imported(part)}
    own = {dotted(f) for f in FILES} - {"onnxprune", dotted(file)}
    return (set(imported(tree)) - ignored) & own


def test_modules_import_in_no_circle() -> None:
    left = {dotted(file): loads(file) for file in FILES}
    while ready := {name for name, needed in left.items() if not needed & left.keys()}:
        left = {name: needed for name, needed in left.items() if name not in ready}
    assert {name: sorted(needed & left.keys()) for name, needed in left.items()} == {}


def test_every_folder_is_a_room() -> None:
    assert {f.name for f in PACKAGE.iterdir() if (f / "__init__.py").exists()} == set(ROOMS)
    tests = {f.name for f in (ROOT / "tests").iterdir() if any(f.glob("test_*.py"))}
    assert tests <= set(ROOMS)


def test_contributing_lists_the_rooms_in_order() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert re.findall(r"^\| `(\w+)/` \|", text, re.M) == ROOMS


def test_only_session_talks_to_onnxruntime() -> None:
    assert [name_of(f) for f in FILES if "onnxruntime" in third_party(f)] == ["model/session.py"]


def test_only_the_command_line_talks_to_click() -> None:
    assert {f.parent.name for f in FILES if "click" in third_party(f)} == {"cli"}


@pytest.mark.parametrize("name", WITHOUT_ONNX)
def test_deciding_needs_no_onnx(name: str) -> None:
    found = third_party(PACKAGE / f"{name}.py")
    assert not found & {"onnx", "onnx_graphsurgeon", "onnxruntime", "google"}


@pytest.mark.parametrize("name", WITHOUT_ONNX)
def test_deciding_loads_no_onnx(name: str) -> None:
    loaded = modules_after(f"import onnxprune.{name.replace('/', '.')}")
    assert "numpy" in loaded
    assert not loaded & {"onnx", "onnx_graphsurgeon", "onnxruntime"}


def test_rules_know_labels_only() -> None:
    for file in FILES:
        if file.parent.name == "rules":
            assert own_imports(file) <= {"structure", "arrays", "errors", "model"}
            names = {n for n in imported(parsed(file)) if n.startswith("onnxprune.model.")}
            assert {n.split(".")[2] for n in names} <= {"equation"}
            assert not third_party(file) & {"onnx", "onnxruntime"}


@pytest.mark.parametrize(
    "args", [[], ["--help"], ["prune", "--help"], ["apply", "-h"], ["--version"], ["prune"]]
)
def test_help_loads_nothing_heavy(args: list[str]) -> None:
    call = f"""
from onnxprune.cli.commands import main
try:
    main({args})
except SystemExit:
    pass
"""
    loaded = modules_after(call if args else "import onnxprune")
    assert "onnxprune" in loaded
    assert not loaded & set(HEAVY)


def test_dependencies_are_declared() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    declared = text[text.index("dependencies = [") :].split("]")[0].replace("-", "_")
    distribution = {"PIL": "pillow", "google": "onnx"}  # protobuf comes with onnx
    outside = set().union(*map(third_party, FILES)) - set(sys.stdlib_module_names) - {"onnxprune"}
    for name in outside:
        extra = name == "matplotlib"  # asked for where it is missing
        place = text[text.index("plot = [") :].split("]")[0] if extra else declared
        assert f'"{distribution.get(name, name)}>=' in place, name


# -- files -----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", every_file(TOO_LONG))
def test_modules_are_short(file: Path) -> None:
    assert len(file.read_text().splitlines()) <= MAX_LINES


@pytest.mark.parametrize("file", every_file())
def test_everything_public_has_a_docstring(file: Path) -> None:
    tree = parsed(file)
    assert ast.get_docstring(tree), "the module"
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    public = [n for n in tree.body if isinstance(n, kinds) and not n.name.startswith("_")]
    for owner in list(public):
        if isinstance(owner, ast.ClassDef):
            inner = [n for n in owner.body if isinstance(n, kinds)]
            public += [n for n in inner if not n.name.startswith("_")]
    assert [n.name for n in public if not ast.get_docstring(n)] == []


def test_no_module_is_a_drawer() -> None:
    drawers = {"util", "utils", "helper", "helpers", "common", "misc", "lib", "tools"}
    names = {part.removesuffix(".py") for f in FILES for part in Path(name_of(f)).parts}
    assert not names & drawers


def test_package_is_typed() -> None:
    assert (PACKAGE / "py.typed").exists()


# -- what the project promises ---------------------------------------------------------------


def test_public_names() -> None:
    assert list(onnxprune.__all__) == sorted(set(onnxprune.__all__))
    for name in onnxprune.__all__:
        assert getattr(onnxprune, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        onnxprune.nothing  # noqa: B018


def test_public_names_stay_when_modules_are_loaded() -> None:
    """Importing a submodule binds its name in the package."""
    for file in FILES:
        if not file.stem.startswith("_"):
            __import__(f"onnxprune.{name_of(file).removesuffix('.py').replace('/', '.')}")
    modules = [n for n in onnxprune.__all__ if isinstance(getattr(onnxprune, n), type(ast))]
    assert modules == []


def test_public_names_match_what_type_checkers_see() -> None:
    tree = parsed(PACKAGE / "__init__.py")
    block = next(n for n in tree.body if isinstance(n, ast.If))
    seen = {a.name for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    assert seen == set(onnxprune.__all__)


@pytest.mark.parametrize("command", sorted(main.commands))
def test_readme_mentions_every_command(command: str) -> None:
    text = (ROOT / "README.md").read_text()
    assert re.search(rf"onnxprune {command}\b", text)


def test_changelog_mentions_the_version() -> None:
    changelog = ROOT / "CHANGELOG.md"
    if not changelog.exists():
        pytest.skip("there is no changelog")
    headings = [line for line in changelog.read_text().splitlines() if line.startswith("## ")]
    assert any(re.search(rf"(?<![\d.]){re.escape(onnxprune.__version__)}\b", h) for h in headings)
