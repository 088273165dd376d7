"""The floors of the package, drawn from its imports: no circle, no arrow upwards, nothing too large, all documented.

Every import counts, also one inside a function or for a type checker.
"""

import ast
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From the top down; a line's modules may import those of the lines below, and of their own folder.
FLOORS = [
    ["scripts"],
    ["ldm.studio", "ldm.evaluation", "ldm.benchmark"],
    ["ldm.runs"],
    ["ldm.editing"],
    ["ldm.training"],
    ["ldm.imaging"],
    ["ldm.backbones"],
    ["ldm.checkpoint"],
    ["ldm.models"],
    ["ldm.data"],
    ["ldm.modules"],
    ["ldm.cli", "ldm.download", "ldm.util"],
    ["ldm.files", "ldm.imports", "ldm.options"],
    ["ldm.errors"],
]
LARGEST = 0.25  # of the lines of ldm/


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): ast.parse(path.read_text(encoding="utf-8"))
    for path in chain((ROOT / "ldm").rglob("*.py"), (ROOT / "scripts").glob("*.py"))
}


def imported(name: str) -> set[str]:
    """The modules of ours that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports by a relative path"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= below & MODULES.keys() or {str(node.module)}
    return (found & MODULES.keys()) - {name}


GRAPH = {name: imported(name) for name in MODULES}


def height(name: str) -> int:
    """The number of a module's floor; 0 is the top."""
    (found,) = [i for i, floor in enumerate(FLOORS) if any(f"{name}.".startswith(f"{part}.") for part in floor)]
    return found


def folder(name: str) -> str:
    return ".".join(name.split(".")[:2])


def upwards() -> set[str]:
    """Imports of a higher floor, or of another folder on the same one, as "importer -> imported"."""
    arrows = ((name, other) for name, others in GRAPH.items() for other in others)
    return {
        f"{name} -> {other}"
        for name, other in arrows
        if height(other) < height(name) or (height(other) == height(name) and folder(name) != folder(other))
    }


def circles() -> set[str]:
    """The modules that import themselves through others."""
    found = set()
    for name in GRAPH:
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            new = GRAPH[waiting.pop()] - seen
            seen |= new
            waiting += new
        if name in seen:
            found.add(name)
    return found


def public_names(tree: ast.AST, prefix: str) -> Iterator[tuple[str, ast.AST]]:
    """The classes and functions that others may use: of a module, and of its classes."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_"):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public_names(node, f"{prefix}.{node.name}")


def undocumented() -> set[str]:
    """Public names without a docstring; what `forward` and `main` do is said by their class and their module."""
    return {
        name
        for module, tree in MODULES.items()
        for name, node in public_names(tree, module)
        if name.rpartition(".")[2] not in ("forward", "main") and not ast.get_docstring(node)
    }


def printing() -> set[str]:
    return {
        name
        for name, tree in MODULES.items()
        if name.startswith("ldm")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }


def test_the_graph_has_the_arrows_that_are_known():
    assert {"ldm.checkpoint", "ldm.download", "ldm.errors"} <= GRAPH["ldm.backbones.zoo"]
    assert "ldm.backbones.zoo" in GRAPH["ldm.training.begin"] and len(GRAPH) > 100


def test_every_module_has_a_floor():
    parts = list(chain(*FLOORS))
    homeless = [name for name in MODULES if not any(f"{name}.".startswith(f"{part}.") for part in parts)]
    assert homeless == ["ldm"]


def test_no_module_imports_from_a_higher_floor():
    assert upwards() == set()


def test_no_circle_of_imports():
    assert circles() == set()


def test_no_folder_holds_more_than_a_quarter_of_the_lines():
    lines: dict[str, int] = {}
    for path in (ROOT / "ldm").rglob("*.py"):
        part = path.relative_to(ROOT / "ldm").parts[0]
        lines[part] = lines.get(part, 0) + len(path.read_text(encoding="utf-8").splitlines())
    total = sum(lines.values())
    assert {part: count / total for part, count in lines.items() if count > LARGEST * total} == {}


def test_every_public_name_is_documented():
    assert undocumented() == set()


def test_the_package_logs_and_does_not_print():
    assert printing() == set()
