"""Which module may import which; the tests read the sources and import nothing."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
import pytest
from drawings import check_drawing, draw_layers

ROOT = Path(__file__).parent.parent
FOLDERS = {"fxoffload": "fxoffload", "fxoffload.passes": "passes", "fxoffload.runtime": "runtime"}

# What only torch_internals may touch.
PRIVATE = (
    "torch._inductor", "torch._dynamo", "torch._functorch", "torch._C", "torch._prims",
    "torch._subclasses", "torch._higher_order_ops", "torch.utils._sympy", "functorch",
    "torch.fx.experimental",
)  # fmt: skip
# Private by name, yet stable for years and without a public twin: tree_map, the type of an
# operator overload, and the question whether a tensor is a wrapper subclass.
TOLERATED = ("torch.utils._pytree", "torch._ops", "torch.utils._python_dispatch")
# What one pass takes from another: the step model knows aliases and what lies in memory.
BORROWED = {
    "fxoffload.passes.lifetimes": {"fxoffload.passes.refusals"},
    "fxoffload.passes.insertion": {"fxoffload.passes.saved_views"},
    "fxoffload.passes.footprint": {"fxoffload.passes.lifetimes"},
    "fxoffload.passes.step_model": {"fxoffload.passes.footprint"},
}
OPENERS = {"open", "mkdir", "makedirs", "mkstemp", "TemporaryFile", "NamedTemporaryFile"}


@dataclass(frozen=True)
class Room:
    """Modules that belong together, below fxoffload, and the rooms that they may import from."""

    modules: tuple[str, ...]
    may_import: tuple[str, ...] = ()


# A name stands for a module, or for a folder and all that is in it.
ROOMS = {
    "words": Room(
        (
            "errors", "hints", "sizes", "endurance", "directories", "environment", "ops",
            "schedule", "marks", "hardware", "holders", "tables", "inflight",
        )
    ),
    "graph": Room(("graph",)),
    "planner": Room(("planner",), ("words",)),
    "torch_internals": Room(("torch_internals",), ("words", "graph", "planner")),
    "config": Room(("config",), ("words", "torch_internals")),
    "facts": Room(
        ("cost", "scratch", "planned_sizes", "origins"),
        ("words", "graph", "planner", "torch_internals"),
    ),
    "passes": Room(("passes",), ("words", "graph", "planner", "torch_internals", "facts")),
    "engines": Room(("runtime.engines",), ("words",)),
    "devices": Room(("runtime.devices",), ("words", "engines")),
    "store": Room(("runtime.store",), ("words", "engines", "devices")),
    "measurement": Room(("runtime.measurement",), ("words", "config", "engines", "store")),
    "program": Room(("runtime.program",), ("words", "engines", "store", "measurement")),
    "kernels": Room(
        ("runtime",),
        (
            "words", "torch_internals", "config", "engines", "devices", "store", "measurement",
            "program",
        ),
    ),
    "backend": Room(
        (
            "backend", "in_place", "step_begin", "planning", "machine", "plan_cache",
            "step_schedules", "cuts", "cut_review", "artifacts", "memory_dump",
        ),
        ("words", "graph", "planner", "torch_internals", "config", "facts", "passes", "kernels"),
    ),
    "inspection": Room(
        ("inspection",),
        (
            "words", "graph", "planner", "torch_internals", "config", "facts", "passes", "kernels",
            "backend",
        ),
    ),
    "integrations": Room(("integrations",), ("words", "config", "kernels", "backend")),
    "command line": Room(
        ("cli", "__main__"),
        (
            "words", "planner", "config", "engines", "measurement", "program", "kernels",
            "backend", "inspection",
        ),
    ),
    "public names": Room(
        ("",), ("words", "planner", "config", "kernels", "backend", "inspection")
    ),
}  # fmt: skip


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


def find_room(name: str) -> str:
    """The room of the module: the one that names most of its path."""
    inner = name.removeprefix("fxoffload").removeprefix(".")
    found = {
        named: room
        for room, each in ROOMS.items()
        for named in each.modules
        if is_within(inner, named) or inner == named
    }
    return found[max(found, key=len)]


def find_test_file(name: str) -> Path:
    """The one file that has the tests of the module."""
    *_, stem = name.split(".")
    # These have folders, as there is a scheduling or a plan in them and another one elsewhere.
    folders = ("torch_internals", "cli")
    folder = next((each for each in folders if is_within(name, f"fxoffload.{each}")), ".")
    return ROOT / "tests" / folder / f"test_{stem}.py"


def find_arrows() -> nx.DiGraph[str]:
    """The table of rooms as a graph, without arrows that others imply."""
    graph: nx.DiGraph[str] = nx.DiGraph()
    for name, room in ROOMS.items():
        graph.add_edges_from((name, other) for other in room.may_import)
    return nx.transitive_reduction(graph)


PASSES = sorted(name for name in MODULES if is_within(name, "fxoffload.passes"))
RUNTIME = sorted(name for name in MODULES if is_within(name, "fxoffload.runtime"))


def test_sources_are_found() -> None:
    assert "fxoffload.passes.lifetimes" in PASSES
    assert RUNTIME
    assert find_room("fxoffload.graph") == "graph"
    assert find_room("fxoffload") == "public names"
    assert find_room("fxoffload.runtime.kernels") == "kernels"


@pytest.mark.parametrize("name", sorted(MODULES))
def test_modules_import_what_their_room_may(name: str) -> None:
    room = find_room(name)
    seen = {find_room(item) for item in find_imports(name) if item in MODULES}
    assert seen <= {room, *ROOMS[room].may_import}


def test_table_of_rooms_is_no_wider_than_the_code() -> None:
    used: dict[str, set[str]] = {room: set() for room in ROOMS}
    for name in MODULES:
        used[find_room(name)] |= {find_room(item) for item in find_imports(name) if item in MODULES}
    assert {name: set(room.may_import) for name, room in ROOMS.items()} == {
        name: rooms - {name} for name, rooms in used.items()
    }


def test_rooms_are_drawn_in_the_docs() -> None:
    check_drawing(ROOT / "docs" / "rooms.svg", draw_layers(find_arrows()))


def test_rooms_are_described_in_the_docs() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = dict(re.findall(r"^\| ([\w ]+) \| (.*) \|$", text, re.MULTILINE))
    assert table.pop("room")
    assert table.keys() == ROOMS.keys()
    modules = {name.removesuffix(".py") for name in re.findall(r"`(\w+\.py)`", table["backend"])}
    assert modules == set(ROOMS["backend"].modules)


@pytest.mark.parametrize("name", RUNTIME)
def test_runtime_sees_no_graphs(name: str) -> None:
    assert not has(find_imports(name), "torch.fx")
    assert not {
        attribute for attribute in find_attributes(name) if is_within(attribute, "torch.fx")
    }
    assert not any(
        isinstance(node, ast.ImportFrom)
        and node.module == "torch"
        and "fx" in {alias.name for alias in node.names}
        for node in ast.walk(TREES[name])
    )


@pytest.mark.parametrize("name", PASSES)
def test_passes_do_not_import_each_other(name: str) -> None:
    if name in (
        "fxoffload.passes",
        "fxoffload.passes.pipeline",
        "fxoffload.passes.partition_choice",
    ):
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
def test_planner_sees_no_tensor(name: str) -> None:
    assert not has(find_imports(name), "torch")


def test_each_module_has_its_test_file() -> None:
    """A module with a function or a class, that is."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    files = {
        name: find_test_file(name)
        for name, tree in TREES.items()
        if any(isinstance(node, kinds) for node in tree.body)
    }
    assert len(set(files.values())) == len(files), "two modules have one file"
    without = {
        name
        for name, file in files.items()
        if not file.exists() or not re.search(r"^\s*def test_", file.read_text(), re.MULTILINE)
    }
    assert without == set(), "write tests of these, in files of their names"


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
    optional = {
        "kvikio",
        "cufile",
        "xxhash",
        "transformers",
        "lightning",
        "typer",
        "rich",
        "matplotlib",
    }
    assert foreign - optional <= declared
