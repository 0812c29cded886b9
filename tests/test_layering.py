"""Who may import whom: read from the sources, nothing is imported."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = {"fxoffload": "fxoffload", "fxoffload.passes": "passes", "fxoffload.runtime": "runtime"}

# Modules that may see passes and runtime both.
JOINERS = {
    "fxoffload", "fxoffload.backend", "fxoffload.inspection", "fxoffload.planning",
    "fxoffload.roofline",
}  # fmt: skip
# What only torch_internals may touch.
PRIVATE = (
    "torch._inductor", "torch._dynamo", "torch._functorch", "torch._C", "torch._prims",
    "torch._subclasses", "torch._higher_order_ops", "torch.utils._sympy", "functorch",
    "torch.fx.experimental",
)  # fmt: skip
# Private by name, yet stable for years and without a public twin: tree_map, the type of an
# operator overload, and the question whether a tensor is a wrapper subclass.
TOLERATED = ("torch.utils._pytree", "torch._ops", "torch.utils._python_dispatch")
# The folders of the runtime, the lowest first, and which of the others each may see.
ROOMS: dict[str, set[str]] = {
    "engines": set(),
    "devices": {"engines"},
    "store": {"engines", "devices"},
    "measurement": {"engines", "store"},
}
# What one pass takes from another: the step model knows aliases.
BORROWED = {"fxoffload.passes.step_model": {"fxoffload.passes.lifetimes"}}
OPENERS = {"open", "mkdir", "makedirs", "mkstemp", "TemporaryFile", "NamedTemporaryFile"}


def find_modules() -> dict[str, Path]:
    modules: dict[str, Path] = {}
    for package, folder in FOLDERS.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            modules[".".join([package, *(part for part in parts if part != "__init__")])] = path
    return modules


MODULES = find_modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def find_imports(name: str) -> set[str]:
    """Every module that `name` imports, submodules taken by `from` included."""
    found: set[str] = set()
    for node in ast.walk(TREES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            assert node.module is not None
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return found


def find_attributes(name: str) -> set[str]:
    """Every dotted name that stands in the code of `name`, as "torch._C._autograd"."""
    found: set[str] = set()
    for node in ast.walk(TREES[name]):
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if isinstance(node, ast.Name) and parts:
            found.add(".".join([node.id, *reversed(parts)]))
    return found


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def has(imports: set[str], package: str) -> bool:
    return any(is_within(name, package) for name in imports)


PASSES = sorted(name for name in MODULES if is_within(name, "fxoffload.passes"))
RUNTIME = sorted(name for name in MODULES if is_within(name, "fxoffload.runtime"))
SHARED = sorted(set(MODULES) - set(PASSES) - set(RUNTIME))


def test_sources_are_found() -> None:
    assert "fxoffload.passes.lifetimes" in PASSES
    assert RUNTIME
    assert "fxoffload.graph" in SHARED


@pytest.mark.parametrize("name", PASSES)
def test_passes_do_not_see_the_runtime(name: str) -> None:
    assert not has(find_imports(name), "fxoffload.runtime")


@pytest.mark.parametrize("name", RUNTIME)
def test_runtime_sees_no_passes_and_no_graphs(name: str) -> None:
    imports = find_imports(name)
    for module in ("fxoffload.passes", "fxoffload.graph", "fxoffload.planner.plan", "torch.fx"):
        assert not has(imports, module)
    assert not {
        attribute for attribute in find_attributes(name) if is_within(attribute, "torch.fx")
    }
    assert not any(
        isinstance(node, ast.ImportFrom)
        and node.module == "torch"
        and "fx" in {alias.name for alias in node.names}
        for node in ast.walk(TREES[name])
    )


@pytest.mark.parametrize("name", RUNTIME)
def test_rooms_of_the_runtime(name: str) -> None:
    """Only the ops (runtime/kernels.py) and the folder's own list of names see all rooms."""
    parts = name.split(".")
    imports = {item for item in find_imports(name) if is_within(item, "fxoffload.runtime")}
    if len(parts) < 4:
        assert parts[2:] in ([], ["kernels"], *([room] for room in ROOMS))
        return
    room = parts[2]
    seen = {item.split(".")[2] for item in imports}
    assert seen <= {room, *ROOMS[room]}


@pytest.mark.parametrize("name", SHARED)
def test_only_joiners_see_both(name: str) -> None:
    imports = find_imports(name)
    if name not in JOINERS:
        assert not has(imports, "fxoffload.passes")
        assert not has(imports, "fxoffload.runtime")


@pytest.mark.parametrize("name", [name for name in MODULES if name not in JOINERS])
def test_nobody_imports_the_root_or_the_backend(name: str) -> None:
    imports = find_imports(name)
    assert not imports & JOINERS


@pytest.mark.parametrize("name", PASSES)
def test_passes_do_not_import_each_other(name: str) -> None:
    if name in ("fxoffload.passes", "fxoffload.passes.pipeline"):
        pytest.skip("puts the passes in order")
    imports = {item for item in find_imports(name) if is_within(item, "fxoffload.passes")}
    assert imports <= BORROWED.get(name, set())


@pytest.mark.parametrize("name", PASSES)
def test_passes_touch_no_file_and_no_stream(name: str) -> None:
    imports = find_imports(name)
    for module in ("os", "io", "pathlib", "tempfile", "mmap", "shutil", "threading", "torch.cuda"):
        assert not has(imports, module)
    calls = {
        getattr(node.func, "id", getattr(node.func, "attr", None))
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call)
    }
    assert not calls & OPENERS
    assert not {name for name in find_attributes(name) if is_within(name, "torch.cuda")}


@pytest.mark.parametrize(
    "name", [name for name in MODULES if not is_within(name, "fxoffload.torch_internals")]
)
def test_private_torch_is_in_one_folder(name: str) -> None:
    used = find_imports(name) | find_attributes(name)
    assert not {item for item in used if any(is_within(item, module) for module in PRIVATE)}
    hidden = {
        item
        for item in used
        if item.startswith("torch.")
        and any(part.startswith("_") and not part.startswith("__") for part in item.split("."))
        and not item.startswith("torch.ops.")
        and not any(is_within(item, module) for module in TOLERATED)
    }
    assert not hidden, "private by name, and not in the list of what is tolerated"


@pytest.mark.parametrize(
    "name",
    [
        "fxoffload.errors",
        "fxoffload.config",
        "fxoffload.sizes",
        "fxoffload.endurance",
    ],
)
def test_plain_data_needs_no_torch(name: str) -> None:
    assert not has(find_imports(name), "torch")


@pytest.mark.parametrize("name", [name for name in MODULES if is_within(name, "fxoffload.planner")])
def test_planner_sees_no_graph(name: str) -> None:
    """The planner is a function of plain data."""
    imports = find_imports(name)
    assert not has(imports, "torch")
    seen = {item for item in imports if is_within(item, "fxoffload")}
    assert all(is_within(item, "fxoffload.planner") or item == "fxoffload.errors" for item in seen)


def test_imports_have_no_cycle() -> None:
    graph = nx.DiGraph()
    for name in MODULES:
        # Written imports only: that a module's import runs its package's __init__ is no edge.
        graph.add_edges_from((name, other) for other in find_imports(name) if other in MODULES)
    assert list(nx.simple_cycles(graph)) == []


def test_declared_packages_are_the_folders() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    # What is not listed is missing in the wheel.
    packages = {name for name, path in MODULES.items() if path.stem == "__init__"}
    assert set(setuptools["packages"]) == packages
    mapping = {package: folder for package, folder in FOLDERS.items() if package != folder}
    assert setuptools["package-dir"] == mapping


def test_declared_dependencies_are_the_imports() -> None:
    """What the library imports, beside Python itself, is declared, or comes with torch."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {text.split(">")[0] for text in project["dependencies"]}
    used = {item.split(".")[0] for name in MODULES for item in find_imports(name)}
    foreign = used - set(sys.stdlib_module_names) - {"fxoffload", "functorch", "sympy"}
    optional = {"kvikio", "cufile", "xxhash"}
    assert foreign - optional <= declared
