"""The layers of the project: an import that is not drawn here, a circle or a shadowing name fails."""

import ast
import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
STANDARD = sys.stdlib_module_names
METHOD = {"torch", "torchvision", "numpy", "pyarrow"}
ALLOWED = {
    "mmfa": METHOD | {"mmfa"},
    "studies": {"pydantic", "studies", "mmfa"},
    "tune": {
        "mmfa", "studies", "tune", "ray", "optuna", "mlflow", "numpy", "scipy", "sklearn", "sqlalchemy", "rich",
        "psutil", "torch",
    },
}  # fmt: skip
EXTRA = {
    "mmfa/data": {"PIL", "scipy", "filelock"},
    "mmfa/checkpoint.py": {"safetensors"},
    "mmfa/gallery.py": {"filelock"},
    "mmfa/pictures.py": {"PIL"},
    "mmfa/retrieval.py": {"PIL"},
    "tune/mirror.py": {"pyarrow"},
    "tune/nodes.py": {"filelock"},
    "tune/preflight.py": {"filelock"},
    "tune/api.py": {"pandas"},
    "tune/picture_charts.py": {"matplotlib", "threadpoolctl"},
    "tune/report": {"jinja2", "markupsafe", "matplotlib", "pyarrow"},
}
MMFA_FOR_STUDIES = {"mmfa.config", "mmfa.errors"}


def files():
    return sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))


def imports(path, *, inner=True):
    """Yield the modules that a file imports; ``inner`` includes those inside functions and under TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if inner else tree.body
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layers(path):
    place = str(path.relative_to(ROOT))
    package = place.split("/")[0]
    allowed = set(ALLOWED[package])
    for where, more in EXTRA.items():
        if place.startswith(where):
            allowed |= more
    for module in imports(path):
        top = module.split(".")[0]
        assert top in STANDARD or top in allowed, f"{place} must not import {module}"


def test_studies_see_nothing_of_mmfa_but_config_and_errors():
    for path in (ROOT / "studies").glob("*.py"):
        seen = {module for module in imports(path) if module.startswith("mmfa")}
        assert all(any(module == ok or module.startswith(f"{ok}.") for ok in MMFA_FOR_STUDIES) for module in seen), path


def test_config_and_errors_are_standard_library_only():
    for name in ("config", "errors"):
        for module in imports(ROOT / "mmfa" / f"{name}.py"):
            assert module.split(".")[0] in STANDARD or module.startswith(("mmfa.errors",)), module


def test_no_circles():
    """At import time: imports inside functions and for type checkers do not count."""
    modules = {module_of(path): path for path in files()}
    edges = {
        name: {found for found in imports(path, inner=False) if found in modules and found != name}
        for name, path in modules.items()
    }
    done, way = set(), []

    def visit(name):
        assert name not in way, f"circle: {' → '.join([*way[way.index(name) :], name])}"
        if name not in done:
            way.append(name)
            for other in sorted(edges[name]):
                visit(other)
            way.pop()
            done.add(name)

    for name in sorted(modules):
        visit(name)


def test_no_module_of_tune_shadows_another():
    """``python tune/run_study.py`` puts tune/ first on sys.path, on workers too."""
    installed = set(importlib.metadata.packages_distributions())
    for path in (ROOT / "tune").iterdir():
        if path.suffix == ".py" or path.is_dir():
            name = path.stem
            assert name.startswith("__") or (name not in STANDARD and name not in installed), name


@pytest.mark.parametrize("package", ["mmfa", "studies", "studies.library", "studies.plan", "tune.cli"])
def test_light_imports_stay_light(package):
    heavy = "[m for m in ('torch', 'ray', 'mlflow', 'optuna', 'pandas') if m in sys.modules]"
    code = f"import sys, {package}; print({heavy})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_package_that_is_imported_is_declared():
    metadata = importlib.metadata.metadata("mmfa-study")
    declared = {
        requirement.split(";")[0].split("[")[0].split(">")[0].split("<")[0].split("=")[0].strip().lower()
        for requirement in metadata.get_all("Requires-Dist")
    }
    distributions = importlib.metadata.packages_distributions()
    for path in files():
        for module in imports(path):
            top = module.split(".")[0]
            if top not in STANDARD and top not in ALLOWED:
                names = {name.lower() for name in distributions[top]}
                assert names & declared, f"{path} imports {top}, which pyproject.toml does not declare"


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_house_sizes(path):
    text = path.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            docstring = ast.get_docstring(node, clean=False) or ""
            length = node.end_lineno - node.lineno + 1 - docstring.count("\n")
            assert length <= 60, f"{node.name} has {length} lines"
