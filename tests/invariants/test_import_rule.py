"""Imports inside fusionroute run one way, down the list of levels below, and the core imports nothing optional.

The rules are read off the source with `ast`, so imports inside functions count too. Each rule is a function from a
package to its violations; the last tests plant a violation in a small made-up package and see it reported.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "fusionroute"

# What a person calls, and models with what they do together: parts of each may import each other (nobody __init__).
ENTRANCES = {"__init__", "__main__", "calibration", "cli"}
ENSEMBLES = {"answering", "ensemble", "team"}

# The parts of the house (docs/architecture.md), the highest first: a part imports from lower levels and from itself.
LEVELS = [
    ENTRANCES,
    {"server", "vllm_plugin", "zoo"},
    ENSEMBLES,
    {"training", "evaluation"},
    {"methods", "moe"},
    {"terminal"},
    {"engine"},
    {"models"},
    {"ops", "theory"},
    {"config", "environment", "interrupt", "output", "progress", "rows"},
    {"errors"},
]
LEVEL_OF = {part: level for level, parts in enumerate(LEVELS) for part in parts}

# What answers requests neither trains nor measures: (importer, imported), though it is further down.
NEVER = {("server", "training"), ("server", "evaluation")}

# A method imports no other method, except one that is defined on another: (importer, imported).
ALLOWED_METHOD_IMPORTS = {("safe", "averaging")}

# Optional libraries, and the parts that may import them at module level. Others do so inside a function, if at all.
OPTIONAL_ROOMS = {
    "fastapi": {"server"},
    "lm_eval": {"evaluation"},
    "matplotlib": set(),
    "peft": {"training"},
    "prometheus_client": {"server"},
    "sentence_transformers": {"moe"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "vllm": {"vllm_plugin"},
}


@dataclass(frozen=True)
class Import:
    importer: str  # module path inside the package, "engine.cache"; a package is "engine.__init__"
    target: str  # the same for a module of the package, the plain name for any other library
    internal: bool
    line: int
    when: str  # "import": as the module loads, "call": inside a function, "typing": for the type checker alone

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


@dataclass
class Package:
    root: Path
    trees: dict[str, ast.Module]
    imports: list[Import] = field(default_factory=list)

    def between_modules(self) -> Iterator[Import]:
        return (found for found in self.imports if found.internal)


def part_of(module: str) -> str:
    return module.split(".")[0]


def read_package(root: Path) -> Package:
    trees = {}
    for path in sorted(root.rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        trees[module] = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    package = Package(root, trees)
    for module in trees:
        collector = ImportCollector(package, module)
        collector.visit(trees[module])
        package.imports += dict.fromkeys(collector.found)
    return package


class ImportCollector(ast.NodeVisitor):
    """Finds the imports of one module, as statements and as `import_module("…")`, and when each of them runs."""

    def __init__(self, package: Package, module: str) -> None:
        self.package = package
        self.module = module
        self.when = "import"
        self.found: list[Import] = []

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self.add(alias.name, node.lineno)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = self.absolute(node.module or "", node.level)
        for alias in node.names:
            self.add(base, node.lineno, name=alias.name)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if function in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
            written = str(node.args[0].value)
            name = written.lstrip(".")
            self.add(self.absolute(name, level=len(written) - len(name)), node.lineno)
        self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.visit_later("call", node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING":
            self.visit_later("typing", node.body)
        else:
            self.visit_later(self.when, node.body)
        self.visit_later(self.when, node.orelse)

    def visit_later(self, when: str, statements: list[ast.stmt]) -> None:
        before, self.when = self.when, when
        for statement in statements:
            self.visit(statement)
        self.when = before

    def absolute(self, name: str, level: int) -> str:
        """The dotted name behind `from ..name import`; `from .` and `from ..` climb from this module."""
        if level == 0:
            return name
        climbed = ["fusionroute", *self.module.split(".")][:-level]
        return ".".join([*climbed, name] if name else climbed)

    def add(self, dotted: str, line: int, name: str | None = None) -> None:
        top, *rest = dotted.split(".")
        internal = top == "fusionroute"
        target = self.resolve(rest, name) if internal else top
        self.found.append(Import(self.module, target, internal, line, self.when))

    def resolve(self, parts: list[str], name: str | None) -> str:
        """The module that `from parts import name` reaches: the submodule of that name, else the module `parts`."""
        candidates = [[*parts, name]] if name else []
        for candidate in [*candidates, parts]:
            for module in (".".join(candidate), ".".join([*candidate, "__init__"])):
                if module in self.package.trees:
                    return module
        return ".".join(parts) or "__init__"


def unknown_parts(package: Package) -> list[str]:
    return [
        f"fusionroute/{part} has no place in the house: add it to LEVELS in tests/invariants/test_import_rule.py"
        for part in sorted({part_of(module) for module in package.trees} - LEVEL_OF.keys())
    ]


def upward_imports(package: Package) -> list[str]:
    return [str(found) for found in package.between_modules() if not may_import(found)]


def may_import(found: Import) -> bool:
    importer, target = part_of(found.importer), part_of(found.target)
    if target == "__init__":
        return False
    if importer == target or not {importer, target} <= LEVEL_OF.keys():
        return True  # what has no place is reported by unknown_parts
    if (importer, target) in NEVER:
        return False
    return LEVEL_OF[target] > LEVEL_OF[importer] or any({importer, target} <= parts for parts in (ENTRANCES, ENSEMBLES))


def method_siblings(package: Package) -> list[str]:
    return [
        str(found)
        for found in package.between_modules()
        if part_of(found.importer) == part_of(found.target) == "methods"
        and found.importer != "methods.__init__"
        and method_of(found.importer) != method_of(found.target)
        and (method_of(found.importer), method_of(found.target)) not in ALLOWED_METHOD_IMPORTS
    ]


def method_of(module: str) -> str:
    """A file of methods/ or a package there, whose modules together are one method."""
    return module.split(".")[1]


def methods_named_in_engine(package: Package) -> list[str]:
    """The engine knows no method: neither the module's name as a string nor a class that the module defines."""
    names = set()
    for module, tree in package.trees.items():
        if part_of(module) == "methods" and module != "methods.__init__":
            names |= {method_of(module)} | {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    return [
        f"{module}:{node.lineno} names the method {name}"
        for module, tree in package.trees.items()
        if part_of(module) == "engine"
        for node in ast.walk(tree)
        if (name := string_or_class_name(node)) in names
    ]


def string_or_class_name(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.Name) and node.id[:1].isupper():
        return node.id
    return None


def import_cycles(package: Package) -> list[str]:
    """Modules that wait for each other while loading. (A package's own __init__ may import its modules.)"""
    edges: dict[str, set[str]] = {module: set() for module in package.trees}
    for found in package.between_modules():
        if found.when == "import":
            edges[found.importer].add(found.target)

    cycles: list[str] = []
    done: set[str] = set()

    def follow(module: str, trail: list[str]) -> None:
        if module in trail:
            cycles.append(" -> ".join([*trail[trail.index(module) :], module]))
        elif module not in done:
            for target in sorted(edges.get(module, ())):
                follow(target, [*trail, module])
            done.add(module)

    for module in sorted(edges):
        follow(module, [])
    return cycles


def optional_at_module_level(package: Package) -> list[str]:
    return [
        f"{found} at module level: do it inside the function that needs it"
        for found in package.imports
        if found.when == "import"
        and found.target in OPTIONAL_ROOMS
        and part_of(found.importer) not in OPTIONAL_ROOMS[found.target]
    ]


RULES = [
    unknown_parts,
    upward_imports,
    method_siblings,
    methods_named_in_engine,
    import_cycles,
    optional_at_module_level,
]


@pytest.fixture(scope="module")
def fusionroute_package() -> Package:
    return read_package(PACKAGE)


def test_the_package_was_read(fusionroute_package: Package) -> None:
    assert "__init__" in fusionroute_package.trees
    assert any(True for _ in fusionroute_package.between_modules())


@pytest.mark.parametrize("rule", RULES)
def test_fusionroute_keeps_the_rule(rule: Callable[[Package], list[str]], fusionroute_package: Package) -> None:
    violations = rule(fusionroute_package)
    assert not violations, "\n" + "\n".join(violations)


def test_all_but_the_optional_rooms_loads_without_optional_libraries(fusionroute_package: Package) -> None:
    rooms = set().union(*OPTIONAL_ROOMS.values())
    modules = [
        f"fusionroute.{module}".removesuffix(".__init__")
        for module in fusionroute_package.trees
        if part_of(module) not in rooms and module != "__main__"
    ]
    program = (
        "import importlib, sys\n"
        f"sys.modules.update(dict.fromkeys({sorted(OPTIONAL_ROOMS)}))\n"  # None there makes an import fail
        f"for module in {modules}: importlib.import_module(module)"
    )
    run = subprocess.run([sys.executable, "-c", program], cwd=PACKAGE.parent, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


SOUND = {
    "__init__.py": "from fusionroute.team import Team",
    "team.py": "from fusionroute.engine import Engine\nfrom fusionroute import answering, methods",
    "answering.py": "from fusionroute.engine import Engine",
    "cli.py": "from .team import Team\nfrom fusionroute.errors import Refused",
    "output.py": "from fusionroute.errors import Refused",
    "config.py": "from fusionroute.errors import Refused",
    "errors.py": "import fractions",
    "ops/__init__.py": "",
    "ops/fusion.py": "def merge():\n    import peft",
    "models/__init__.py": "from .router import Router",
    "models/router.py": "from fusionroute.ops import fusion\nfrom fusionroute.ops.fusion import merge",
    "engine/__init__.py": "class Engine:\n    '''Knows nothing of safe.'''",
    "methods/__init__.py": "from fusionroute.methods import averaging, safe",
    "methods/averaging/__init__.py": "from fusionroute.methods.averaging.plain import Averaging",
    "methods/averaging/plain.py": "from fusionroute.engine import Engine\nclass Averaging: ...",
    "methods/averaging/union.py": "from fusionroute.methods.averaging.plain import Averaging\nclass Union: ...",
    "methods/safe.py": "from fusionroute.methods.averaging import Averaging\nclass Safe: ...",
    "training/__init__.py": "import peft\nfrom fusionroute.models import Router",
    "server/__init__.py": "import fastapi\nfrom fusionroute import methods, team",
}

PLANTED = [
    (unknown_parts, "helpers.py", "", "fusionroute/helpers has no place"),
    (unknown_parts, "misc/deep/thing.py", "", "fusionroute/misc has no place"),
    (upward_imports, "ops/fusion.py", "import fusionroute.models.router", "ops.fusion:1 imports models.router"),
    (upward_imports, "ops/fusion.py", "from ..models import router", "ops.fusion:1 imports models.router"),
    (upward_imports, "ops/__init__.py", "from ..engine import Engine", "ops.__init__:1 imports engine.__init__"),
    (upward_imports, "engine/loop.py", "def f():\n    from .. import methods", "engine.loop:2 imports methods"),
    (upward_imports, "engine/loop.py", "import_module('fusionroute.methods')", "engine.loop:1 imports methods"),
    (upward_imports, "engine/loop.py", "import_module('..methods', __package__)", "engine.loop:1 imports methods"),
    (
        upward_imports,
        "engine/loop.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from fusionroute.methods.safe import Safe",
        "engine.loop:3 imports methods.safe",
    ),
    (upward_imports, "moe/__init__.py", "from fusionroute.methods import safe", "moe.__init__:1 imports methods.safe"),
    (upward_imports, "training/run.py", "from fusionroute.team import Team", "training.run:1 imports team"),
    (upward_imports, "team.py", "from fusionroute import server", "team:1 imports server"),
    (upward_imports, "team.py", "from fusionroute import cli", "team:1 imports cli"),
    (upward_imports, "server/app.py", "from fusionroute import training", "server.app:1 imports training"),
    (upward_imports, "cli.py", "from fusionroute import Team", "cli:1 imports __init__"),
    (upward_imports, "cli/run.py", "import fusionroute", "cli.run:1 imports __init__"),
    (upward_imports, "config.py", "from .ops import fusion", "config:1 imports ops.fusion"),
    (upward_imports, "output.py", "from . import config", "output:1 imports config"),
    (upward_imports, "errors.py", "from .config import Settings", "errors:1 imports config"),
    (
        method_siblings,
        "methods/averaging/union.py",
        "from .. import safe",
        "methods.averaging.union:1 imports methods.safe",
    ),
    (
        method_siblings,
        "methods/collab.py",
        "from .averaging import Union",
        "methods.collab:1 imports methods.averaging",
    ),
    (method_siblings, "methods/safe.py", "from . import METHODS", "methods.safe:1 imports methods.__init__"),
    (methods_named_in_engine, "engine/loop.py", "if method == 'safe': ...", "engine.loop:1 names the method safe"),
    (methods_named_in_engine, "engine/loop.py", "isinstance(x, Safe)", "engine.loop:1 names the method Safe"),
    (methods_named_in_engine, "engine/loop.py", "isinstance(x, Union)", "engine.loop:1 names the method Union"),
    (import_cycles, "ops/fusion.py", "from fusionroute.ops import fusion", "ops.fusion -> ops.fusion"),
    (
        import_cycles,
        "ops/fusion.py",
        "try:\n    import fusionroute.models.router\nexcept ImportError: ...",
        "models.router -> ops.fusion -> models.router",
    ),
    (import_cycles, "models/router.py", "from . import Router", "models.__init__ -> models.router -> models.__init__"),
    (optional_at_module_level, "ops/fusion.py", "import peft.utils", "ops.fusion:1 imports peft at module level"),
    (
        optional_at_module_level,
        "cli.py",
        "try:\n    from fastapi import FastAPI\nexcept ImportError:\n    pass",
        "cli:2 imports fastapi at module level",
    ),
]


def write_package(root: Path, files: dict[str, str]) -> Package:
    for name, source in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source, encoding="utf-8")
    return read_package(root)


@pytest.mark.parametrize("rule", RULES)
def test_a_sound_package_passes(rule: Callable[[Package], list[str]], tmp_path: Path) -> None:
    assert rule(write_package(tmp_path, SOUND)) == []


@pytest.mark.parametrize(("rule", "path", "source", "message"), PLANTED)
def test_a_planted_violation_is_found(
    rule: Callable[[Package], list[str]], path: str, source: str, message: str, tmp_path: Path
) -> None:
    violations = rule(write_package(tmp_path, SOUND | {path: source}))
    assert any(message in violation for violation in violations), violations
