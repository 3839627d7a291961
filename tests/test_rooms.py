"""ARCHITECTURE.md is so: the order of its rooms, no circle, one door to ComfyUI, and no model in shared code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path, PurePosixPath

import pytest
from comfyui_aitk.pipelines.models import catalogue

ROOT = Path(__file__).resolve().parents[1]
CODE = ("__init__.py", "tasks.py", "nodes", "pipelines", "headless")
DOOR = "nodes/host/comfyui.py"
RAY = "headless/cluster/connection.py"
# what lies at the top of ComfyUI's source, in its releases from 0.3 on
COMFYUI = {
    "alembic_db", "api_server", "app", "comfy", "comfy_api", "comfy_api_nodes", "comfy_config", "comfy_execution",
    "comfy_extras", "comfyui_version", "cuda_malloc", "execution", "folder_paths", "latent_preview", "main",
    "middleware", "node_helpers", "nodes", "protocol", "server", "utils",
}  # fmt: skip
MODELS = "pipelines/models/"
TINY = "headless/tiny/"  # tiny checkpoints are made of a model's own classes
NAMELESS = ("nodes/", "pipelines/")
# where models may be named beside their own packages
NAMING = ("pipelines/parts/", "pipelines/lora/families.py")


@dataclass(frozen=True)
class Import:
    """What a line imports: a module of the pack as a path, or a module from elsewhere by its dotted name."""

    importer: str
    line: int
    path: str = ""
    elsewhere: str = ""

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.path or self.elsewhere}"


class Pack:
    """The parsed code of a checkout: path from its root -> syntax tree."""

    def __init__(self, root: Path) -> None:
        found = [root / part for part in CODE if part.endswith(".py")]
        found += [path for part in CODE for path in (root / part).rglob("*.py")]
        self.trees = {
            path.relative_to(root).as_posix(): ast.parse(path.read_text("utf-8")) for path in found if path.is_file()
        }
        self.imports = [one for path, tree in self.trees.items() for one in self._imports(path, tree)]

    def _imports(self, path: str, tree: ast.Module) -> Iterator[Import]:
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (Import(path, node.lineno, elsewhere=alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                yield Import(path, node.lineno, elsewhere=node.module or "")
            elif isinstance(node, ast.ImportFrom):
                base = PurePosixPath(path).parents[node.level - 1]
                base = base.joinpath(*(node.module or "").split("."))
                for alias in node.names:
                    # `from . import loop` means a module, `from .facts import Words` what is in one
                    target = self._module(base / alias.name) or self._module(base)
                    assert target, f"{path}:{node.lineno}: {base} is not there"
                    yield Import(path, node.lineno, path=target)

    def _module(self, place: PurePosixPath) -> str:
        names = (f"{place}.py", f"{place}/__init__.py" if str(place) != "." else "__init__.py")
        return next((name for name in names if name in self.trees), "")


def room_order(page: str) -> dict[str, int]:
    """Room -> its row in the page's table, counted from the top."""
    lines = page.split("## The rooms\n", 1)[1].split("\n## ", 1)[0].splitlines()
    rows = [line.split("|")[1] for line in lines if line.startswith("| `")]
    return {room: row for row, cell in enumerate(rows) for room in re.findall("`([^`]+)`", cell)}


def room_of(path: str, order: Mapping[str, int]) -> str:
    """The room that a module is in; empty where the page has none for it."""
    fitting = [room for room in order if path == room or (room.endswith("/") and path.startswith(room))]
    return max(fitting, key=len, default="")


def homeless(pack: Pack, order: Mapping[str, int]) -> set[str]:
    """Modules that import or are imported and are in no room."""
    return {path for one in pack.imports for path in (one.importer, one.path) if path and not room_of(path, order)}


def climbing(pack: Pack, order: Mapping[str, int]) -> list[str]:
    """Imports of a room that the page lists below the importer's, or in the same row."""
    found = []
    for one in pack.imports:
        low, high = (room_of(path, order) for path in (one.path, one.importer))
        if one.path and low != high and order.get(low, -1) >= order.get(high, -1):
            found.append(str(one))
    return found


def circle(pack: Pack) -> list[str]:
    """Modules that import each other, the first one again at the end; empty where there are none."""
    graph: dict[str, set[str]] = {}
    for one in pack.imports:
        if one.path:
            graph.setdefault(one.importer, set()).add(one.path)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def ways_around_the_door(pack: Pack) -> list[str]:
    """Imports of ComfyUI's modules anywhere but in the one that may."""
    return [str(one) for one in pack.imports if one.elsewhere.split(".")[0] in COMFYUI and one.importer != DOOR]


def ways_around_ray(pack: Pack) -> list[str]:
    """Imports of Ray, which few have, anywhere but in the one module that says so."""
    return [str(one) for one in pack.imports if one.elsewhere.split(".")[0] == "ray" and one.importer != RAY]


def family_of(path: str) -> str:
    """The family's package that a module is in; empty for what all share."""
    place = path.removeprefix(MODELS) if path.startswith(MODELS) else ""
    return place.split("/")[0] if "/" in place else ""


def visits_to_families(pack: Pack) -> list[str]:
    """Imports of a family's package from outside of it."""
    return [
        str(one)
        for one in pack.imports
        if family_of(one.path) and family_of(one.importer) != family_of(one.path) and not one.importer.startswith(TINY)
    ]


def named_models(pack: Pack, names: Iterable[str]) -> list[str]:
    """Where shared code has a model's name in a text that is no docstring."""
    names, found = [name.lower() for name in names], []
    for path, tree in pack.trees.items():
        if not path.startswith(NAMELESS) or path.startswith(NAMING) or family_of(path):
            continue
        free = _docstrings(tree) | (_default_model(tree) if path == f"{MODELS}__init__.py" else set())
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in free:
                found += [f"{path}:{node.lineno}: {name}" for name in names if name in node.value.lower()]
    return found


def _docstrings(tree: ast.Module) -> set[ast.AST]:
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    firsts = [node.body[0] for node in ast.walk(tree) if isinstance(node, owners) and node.body]
    return {first.value for first in firsts if isinstance(first, ast.Expr)}


def _default_model(tree: ast.Module) -> set[ast.AST]:
    return {
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == ["DEFAULT_MODEL"]
    }


@pytest.fixture(scope="module")
def pack() -> Pack:
    found = Pack(ROOT)
    assert len(found.trees) > 100
    assert len(found.imports) > 500
    return found


@pytest.fixture(scope="module")
def order() -> dict[str, int]:
    return room_order((ROOT / "ARCHITECTURE.md").read_text("utf-8"))


def names() -> list[str]:
    return [name for facts in catalogue().values() for name in (facts.id, facts.title)]


def test_every_module_is_in_a_room_and_every_room_is_there(pack, order):
    assert homeless(pack, order) == set()
    assert [room for room in order if not (ROOT / room).exists()] == []


def test_no_import_runs_back_up(pack, order):
    assert climbing(pack, order) == []


def test_no_modules_import_each_other(pack):
    assert circle(pack) == []


def test_one_module_imports_comfyui(pack):
    assert ways_around_the_door(pack) == []
    assert [one for one in pack.imports if one.importer == DOOR and one.elsewhere.split(".")[0] in COMFYUI]


def test_one_module_imports_ray(pack):
    assert ways_around_ray(pack) == []
    assert [one for one in pack.imports if one.importer == RAY and one.elsewhere == "ray"]


def test_families_are_imported_by_themselves_alone(pack):
    families = {family_of(path) for path in pack.trees} - {""}
    assert len(families) > 3
    assert visits_to_families(pack) == []


def test_shared_code_names_no_model(pack):
    assert named_models(pack, names()) == []


# each of these rules is broken once, in a pack of a few lines
PAGE = """## The rooms

| room |
| --- |
| `pipelines/a.py`, `pipelines/b.py` |
| `pipelines/models/` |
| `nodes/` |
"""
FAULTS = {
    "a room below": ({"pipelines/a.py": "from .models import facts", "pipelines/models/facts.py": ""}, climbing),
    "a room below, for the type checker": (
        {"pipelines/a.py": "if TYPE_CHECKING:\n    from .models.facts import X", "pipelines/models/facts.py": ""},
        climbing,
    ),
    "a room below, in a function": (
        {"pipelines/b.py": "def f():\n    from ..nodes.x import y", "nodes/x.py": ""},
        climbing,
    ),
    "a room in the same row": ({"pipelines/a.py": "from .b import x", "pipelines/b.py": ""}, climbing),
    "no room": ({"pipelines/c.py": "from .a import x", "pipelines/a.py": ""}, homeless),
    "a circle": (
        {"nodes/x.py": "from .y import a", "nodes/y.py": "from . import z", "nodes/z.py": "from .x import b"},
        lambda pack, _: circle(pack),
    ),
    "a circle through a package": (
        {"nodes/__init__.py": "from .x import a", "nodes/x.py": "def f():\n    from . import NODES"},
        lambda pack, _: circle(pack),
    ),
    "ComfyUI": ({"nodes/host/plain.py": "import comfy.utils"}, lambda pack, _: ways_around_the_door(pack)),
    "ComfyUI, in a function": (
        {"pipelines/a.py": "def f():\n    from folder_paths import get_folder_paths"},
        lambda pack, _: ways_around_the_door(pack),
    ),
    "Ray": ({"pipelines/a.py": "def f():\n    import ray"}, lambda pack, _: ways_around_ray(pack)),
    "another family": (
        {f"{MODELS}one/loop.py": "from ..two import loop", f"{MODELS}two/loop.py": ""},
        lambda pack, _: visits_to_families(pack),
    ),
    "a family from outside": (
        {"nodes/x.py": "from ..pipelines.models.two.facts import X", f"{MODELS}two/facts.py": ""},
        lambda pack, _: visits_to_families(pack),
    ),
    "an id": ({"nodes/x.py": "MODELS = ['zimage:turbo']"}, lambda pack, _: named_models(pack, ["zimage:turbo"])),
    "a title in a tooltip": (
        {"nodes/x.py": "def f(x):\n    return f'{x}: Z-Image takes none.'"},
        lambda pack, _: named_models(pack, ["Z-Image"]),
    ),
    "an id in the catalogue": (
        {f"{MODELS}__init__.py": "DEFAULT_MODEL = 'zimage'\nOTHER = 'zimage'"},
        lambda pack, _: [found for found in named_models(pack, ["zimage"]) if ":2:" in found],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_rule_can_be_broken(fault, tmp_path):
    files, rule = FAULTS[fault]
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert rule(Pack(tmp_path), room_order(PAGE))


def test_what_is_allowed_is_not_found(tmp_path):
    files = {
        "pipelines/a.py": '"""Z-Image."""\nimport torch\nfrom pathlib import Path',
        f"{MODELS}__init__.py": "from ..a import x\nDEFAULT_MODEL = 'Z-Image'",
        f"{MODELS}z/facts.py": "from ...a import x\nTITLE = 'Z-Image'",
        "nodes/x.py": "from ..pipelines.models import catalogue\nfrom ..pipelines.a import x",
        DOOR: "import comfy.utils",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found, order = Pack(tmp_path), room_order(PAGE)
    assert homeless(found, order) == set()
    assert climbing(found, order) == circle(found) == ways_around_the_door(found) == visits_to_families(found) == []
    assert named_models(found, ["Z-Image"]) == []
