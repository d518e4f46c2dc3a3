"""The package as a whole: what is installed, who imports whom, and that both cores look the same from outside.

Not here: what the parts do. Sources are read from the repository; the rest looks at the package that is installed.
"""

from __future__ import annotations

import ast
import contextlib
import doctest
import enum
import importlib.machinery
import importlib.metadata
import inspect
import os
import pkgutil
import pydoc
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from conftest import REPOSITORY, submodule

SOURCES = REPOSITORY / "tcpreasm"
CORES = ("_compiled", "_pure")
SLOW = ("hashlib", "ipaddress", "logging", "pathlib", "socket")  # to load; for what few programs do
OPTIONAL = (
    "asyncio",
    "brotli",
    "compression",
    "cypcap",
    "dpkt",
    "httptools",
    "matplotlib",
    "nanoarrow",
    "pcap",
    "pyarrow",
    "rich",
    "scapy",
    "shtab",
    "zstandard",
)

ABOVE = {"aio", "conversations", "follow", "numbered", "pictures", "tables"}  # what is made of an Assembler and its streams
# Who must not know whom: data goes one way. A folder stands for everything in it.
FORBIDDEN = {
    "_compiled": {"_pure", "_select", "api", "capture", "cli", "streams", *ABOVE},
    "_pure": {"_compiled", "_select", "api", "capture", "cli", "streams", *ABOVE},
    "_select": {"api", "capture", "cli", "streams", *ABOVE},
    "api": {*CORES, "cli", *ABOVE},
    "capture": {*CORES, "api", "cli", "streams", *ABOVE},
    "cli": {*CORES},
    "streams": {*CORES, "api", "capture", "cli", *ABOVE},
    "conversations": {*CORES, "aio", "cli", "numbered", "pictures", "tables"},
    "numbered": {*CORES, "aio", "cli", "pictures", "tables"},
    "pictures": {*CORES, "aio", "cli"},
    "tables": {*CORES, "aio", "cli", "pictures"},
}
# Records and numbers that every layer may use: they know nothing but each other.
LEAVES = {
    "_log",
    "batch",
    "clock",
    "decoded",
    "errors",
    "flow",
    "frame",
    "hooks",
    "options",
    "packets",
    "provenance",
    "segment",
    "spans",
    "stats",
    "stop",
    "verdict",
}
# One object in both cores, a class a room: each is made of the one before it, and knows none behind it.
ROOMS = ("serving", "holding", "pairing", "stopping", "delivering", "evicting", "engine", "settling", "flushing", "assembler")


class Import(NamedTuple):
    """One import statement in the package: `target` is a dotted path below tcpreasm, or None for what lies outside."""

    file: Path
    line: int
    level: int
    module: str
    target: tuple[str, ...] | None
    when: str  # "load", "call" (inside a function) or "typing" (for type checkers only)


def _targets(file: Path, level: int, module: str, names: list[str]) -> Iterator[tuple[str, ...] | None]:
    """What `from <level dots><module> import <names>` reaches below tcpreasm."""
    if level == 0:
        yield tuple(module.split(".")[1:]) if module.split(".")[0] == "tcpreasm" else None
        return
    folder = file.relative_to(SOURCES).parent.parts
    base = folder[: len(folder) - (level - 1)] + (tuple(module.split(".")) if module else ())
    if SOURCES.joinpath(*base).is_dir():
        for name in names:
            is_module = any(SOURCES.joinpath(*base, name + end).exists() for end in ("", ".py", ".pyx"))
            yield (*base, name) if is_module else base
    else:
        yield base


def _python_imports(file: Path) -> Iterator[Import]:
    tree = ast.parse(file.read_text(), str(file))
    when: dict[int, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            when.update((id(inner), "call") for inner in ast.walk(node))
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            when.update((id(inner), "typing") for inner in ast.walk(node))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                for target in _targets(file, 0, alias.name, []):
                    yield Import(file, node.lineno, 0, alias.name, target, when.get(id(node), "load"))
        elif isinstance(node, ast.ImportFrom):
            for target in _targets(file, node.level, node.module or "", [alias.name for alias in node.names]):
                yield Import(file, node.lineno, node.level, node.module or "", target, when.get(id(node), "load"))


def _cython_imports(file: Path) -> Iterator[Import]:
    pattern = re.compile(r"^[ \t]*(?:from[ \t]+(\.*)([\w.]*)[ \t]+c?import[ \t]+\(?([^#\n]*)|c?import[ \t]+([\w.]+))", re.MULTILINE)
    text = file.read_text()
    for found in pattern.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        dots, module, names, plain = found.groups()
        if plain:
            dots, module, names = "", plain, ""
        name_list = [name.split()[0] for name in names.rstrip("\\) ").split(",") if name.split()]
        for target in _targets(file, len(dots), module, name_list):
            yield Import(file, line, len(dots), module, target, "load")


def _imports() -> list[Import]:
    found: list[Import] = []
    for file in sorted(SOURCES.rglob("*")):
        if file.suffix == ".py":
            found += _python_imports(file)
        elif file.suffix in (".pyx", ".pxd"):
            found += _cython_imports(file)
    return found


def _told(statement: Import) -> str:
    return f"{statement.file.relative_to(REPOSITORY)}:{statement.line} imports {'.' * statement.level}{statement.module}"


def _owner(file: Path) -> str:
    """The first name below tcpreasm: a folder, or a module."""
    return file.relative_to(SOURCES).parts[0].removesuffix(".py")


# ---- imports


def test_imports_inside_the_package_are_relative() -> None:
    """Otherwise the second copy of the package, on the other core, would reach into the first."""
    assert [_told(found) for found in _imports() if found.level == 0 and found.target is not None] == []


def test_imports_go_one_way() -> None:
    """Types may be named across the layers; nothing may be called."""
    wrong = [
        _told(found)
        for found in _imports()
        if found.when != "typing" and found.target and found.target[0] in FORBIDDEN.get(_owner(found.file), ())
    ]
    assert wrong == []


def test_only_select_imports_a_core() -> None:
    wrong = [
        _told(found)
        for found in _imports()
        if found.target and found.target[0] in CORES and _owner(found.file) not in (found.target[0], "_select")
    ]
    assert wrong == []


def test_the_command_is_imported_by_main_alone() -> None:
    wrong = [
        _told(found) for found in _imports() if found.target and found.target[0] == "cli" and _owner(found.file) not in ("cli", "__main__")
    ]
    assert wrong == []


def test_leaves_know_leaves_only() -> None:
    missing = {name for name in LEAVES if not (SOURCES / f"{name}.py").exists()}
    assert missing == set()
    wrong = [_told(found) for found in _imports() if _owner(found.file) in LEAVES and found.target and found.target[0] not in LEAVES]
    assert wrong == []


@pytest.mark.parametrize("core", CORES)
def test_rooms_know_what_lies_below_only(core: str) -> None:
    known: dict[str, set[str]] = {room: set() for room in ROOMS}
    for found in _imports():
        if found.file.parent.name == core and found.file.stem in known and found.target and found.target[0] == core:
            known[found.file.stem] |= {*found.target[1:]}
    for at, room in enumerate(ROOMS):
        assert known[room] & {*ROOMS[at:]} == set(), room
        assert known[room] >= {*ROOMS[max(0, at - 1) : at]}, room


def test_no_module_needs_itself_to_load() -> None:
    """No cycle among the imports that run at load time."""
    graph: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for found in _imports():
        if found.when == "load" and found.target is not None and found.file.suffix == ".py":
            parts = found.file.relative_to(SOURCES).with_suffix("").parts
            graph.setdefault(parts[:-1] if parts[-1] == "__init__" else parts, set()).add(found.target)
    done: set[tuple[str, ...]] = set()

    def walk(module: tuple[str, ...], path: list[tuple[str, ...]]) -> None:
        assert module not in path, " -> ".join(".".join(step) or "tcpreasm" for step in [*path, module])
        if module not in done:
            for target in sorted(graph.get(module, ())):
                walk(target, [*path, module])
            done.add(module)

    for module in sorted(graph):
        walk(module, [])


def test_the_pure_core_needs_the_standard_library_only() -> None:
    wrong = [
        _told(found)
        for found in _imports()
        if _owner(found.file) == "_pure"
        and found.target is None
        and found.when != "typing"
        and found.module.split(".")[0] not in sys.stdlib_module_names
    ]
    assert wrong == []


@pytest.mark.parametrize("implementation", ["compiled", "pure"])
def test_importing_loads_nothing_optional(implementation: str) -> None:
    loaded = _python("import sys, tcpreasm; print(*sorted(name for name in sys.modules if '.' not in name))", implementation)
    assert set(loaded.split()) & set(OPTIONAL) == set()


@pytest.mark.parametrize("implementation", ["compiled", "pure"])
def test_importing_is_cheap(implementation: str) -> None:
    """The package is there in no time: it loads nothing slow beside numpy, and nothing of live captures."""
    code = "import sys, numpy; before = {*sys.modules}; import tcpreasm; print(*({*sys.modules} - before))"
    loaded = set(_python(code, implementation).split())
    assert loaded & {*SLOW, "tcpreasm.capture.live"} == set()
    assert "tcpreasm.api" in loaded


def test_what_is_imported_late_is_there(tcpreasm: ModuleType) -> None:
    assert {"flow_table", "open_live"} <= {*dir(tcpreasm)}
    assert {"Drops", "LiveCapture", "open_live"} <= {*dir(tcpreasm.capture)}
    assert tcpreasm.open_live is tcpreasm.capture.open_live is submodule(tcpreasm, "capture.live").open_live
    assert {*tcpreasm.__all__} <= {*dir(tcpreasm)}
    for module in (tcpreasm, tcpreasm.capture):
        with pytest.raises(AttributeError, match="no attribute 'nothing'"):
            _ = module.nothing


# ---- the two cores


def _core(package: ModuleType) -> ModuleType:
    return submodule(package, f"_{package.implementation}")


def test_file_names_match_in_both_cores() -> None:
    pure = {file.stem for file in (SOURCES / "_pure").glob("*.py")} - {"__init__"}
    compiled = {file.stem for file in (SOURCES / "_compiled").glob("*.pyx")}
    contracts = {file.stem for file in (SOURCES / "_compiled").glob("*.pxd")}
    assert compiled | contracts == pure | {"origin"}  # the pure core copies what waits, and needs to know of no origin
    assert contracts - compiled == {"clock"}  # all of it inline


def test_no_generated_file_lies_beside_the_sources() -> None:
    assert sorted(file.name for pattern in ("*.c", "*.cpp", "*.html") for file in SOURCES.rglob(pattern)) == []


def test_each_package_runs_on_its_own_core(both: tuple[ModuleType, ModuleType]) -> None:
    compiled, pure = both
    assert (compiled.implementation, pure.implementation) == ("compiled", "pure")
    suffixes = tuple(importlib.machinery.EXTENSION_SUFFIXES)
    for source in (SOURCES / "_compiled").glob("*.pyx"):
        assert str(submodule(compiled, f"_compiled.{source.stem}").__file__).endswith(suffixes)
    for package, core in zip(both, CORES, strict=True):
        for name in ("Reassembly", "PageCache", "byte_span"):
            assert getattr(package, name).__module__.startswith(f"{package.__name__}.{core}.")


def test_both_packages_have_the_same_public_names(both: tuple[ModuleType, ModuleType]) -> None:
    compiled, pure = both
    assert compiled.__all__ == pure.__all__
    for package in both:
        assert [name for name in package.__all__ if not hasattr(package, name)] == []


def test_both_cores_export_the_same_names(both: tuple[ModuleType, ModuleType]) -> None:
    compiled, pure = map(_core, both)
    assert sorted(compiled.__all__) == sorted(pure.__all__)
    for core in (compiled, pure):
        assert [name for name in core.__all__ if not hasattr(core, name)] == []


DUNDERS = ("__contains__", "__enter__", "__exit__", "__getitem__", "__iter__", "__len__", "__next__")

POOL = {"acquire", "acquire_open", "close", "evict", "may_be_full", "release", "remove", "reopen", "set_back", "walk"}
# What the pure core's modules say to each other by Python names, and the compiled core's by C functions and struct fields.
INTERNAL = {
    "Connection": {
        *("CLOSED", "FREE", "OPEN", "REMOVED", "cut_end", "early_end", "early_segments", "end_seen_ns", "far_next", "first_held"),
        *("first_seq", "gathered", "gatherer", "go_on_to", "is_ahead", "isn", "note_past_start", "past_start"),
        *(
            "lock",
            "owner",
            "pages",
            "reassembled",
            "reassembly_complete",
            "side",
            "state",
            "stopped",
            "stream",
            "successor",
            "syn_data",
            "tsval",
            "waits_until",
            "half_open",
        ),
    },
    "ConversationPoolBase": {*POOL, "end_side", "give_back_side", "join", "look_after", "next_pending", "side_beside", "tell_complete"},
    "Page": {"brought_by", "came", "left", "packet", "parent", "peer_ack", "priority", "right", "urgent"},
    "PageList": {"remove"},
    "StreamPoolBase": POOL,
    # The pure one is a bytes object underneath, which is how it offers a buffer; its documentation promises nothing of that.
    "Reassembly": {"__contains__", "__getitem__", "__iter__"},
}


def _members(cls: type, package: str) -> dict[str, object]:
    """Public names of a class, own and inherited from classes of the package; what it has from elsewhere is not its own doing.

    Attributes that a plain class sets in its constructor are among them, as None.
    """
    members: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        if base.__module__.split(".")[0] != package:
            continue
        with contextlib.suppress(OSError, TypeError):  # no Python source: a class of the compiled core, whose members are all in vars()
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(base)))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
                    members[node.attr] = None
        members |= vars(base)
    return {name: value for name, value in members.items() if not name.startswith("_")}


def _shape(function: Any) -> list[tuple[str, str, str]] | str:
    """Names, kinds and defaults of the parameters. Annotations are left out: Cython's are C types."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return "none"
    empty = inspect.Parameter.empty
    return [(p.name, p.kind.name, "" if p.default is empty else repr(p.default)) for p in signature.parameters.values()]


def _differences(name: str, one: object, other: object, packages: tuple[str, str]) -> list[str]:
    """What sets the two things of that name, of the compiled and of the pure core, apart for a caller."""
    pairs = [(name, one, other)]
    found = []
    if isinstance(one, type) and isinstance(other, type):
        ones, others = _members(one, packages[0]), _members(other, packages[1])
        internal = INTERNAL.get(name, set())
        found += [f"{name}.{member} is in the compiled core only" for member in sorted(ones.keys() - others.keys())]
        found += [f"{name}.{member} is in the pure core only" for member in sorted(others.keys() - ones.keys() - internal)]
        found += [f"{name}.{member} is in both cores, not internal" for member in sorted(ones.keys() & internal)]
        found += [
            f"{name}: {dunder} is in one core only"
            for dunder in DUNDERS
            if hasattr(one, dunder) != hasattr(other, dunder) and dunder not in internal
        ]
        pairs = [(f"{name}.{member}", ones[member], others[member]) for member in sorted(ones.keys() & others.keys())]
    for what, a, b in pairs:
        if callable(a) != callable(b):
            found.append(f"{what} can be called in one core only")
        elif callable(a) and _shape(a) != _shape(b):
            found.append(f"{what}: compiled {_shape(a)}, pure {_shape(b)}")
        elif isinstance(a, (int, str)) and a != b:
            found.append(f"{what}: compiled {a!r}, pure {b!r}")
    return found


def test_both_cores_have_the_same_classes_and_signatures(both: tuple[ModuleType, ModuleType]) -> None:
    cores = _core(both[0]), _core(both[1])
    packages = both[0].__name__, both[1].__name__
    found = []
    for name in sorted(cores[1].__all__):
        found += _differences(name, getattr(cores[0], name, None), getattr(cores[1], name), packages)
    assert found == []


def test_the_public_classes_have_the_same_members_on_both_cores(both: tuple[ModuleType, ModuleType]) -> None:
    packages = both[0].__name__, both[1].__name__
    found = []
    for name in sorted(set(both[1].__all__) - {"implementation"}):
        base = f"{name}Base"  # what a core class beneath has of its own is looked at above
        internal = INTERNAL.get(base, set())
        found += [
            text
            for text in _differences(name, getattr(both[0], name), getattr(both[1], name), packages)
            if not any(text.startswith(f"{name}.{member} ") for member in internal)
        ]
    assert found == []


def test_things_without_bytes_are_as_true_in_both_cores(both: tuple[ModuleType, ModuleType]) -> None:
    truths = [[bool(package.PageCache().take(0)), bool(package.PageList()), bool(package.Reassembly())] for package in both]
    assert truths[0] == truths[1]


def test_public_names_have_docstrings(tcpreasm: ModuleType) -> None:
    bare = [
        name
        for name in tcpreasm.__all__
        if (inspect.isclass(getattr(tcpreasm, name)) or inspect.isroutine(getattr(tcpreasm, name)))
        and not (getattr(tcpreasm, name).__doc__ or "").strip()
    ]
    assert bare == []
    for name in tcpreasm.__all__:
        value = getattr(tcpreasm, name)
        if inspect.isclass(value):
            for member, function in _members(value, tcpreasm.__name__).items():
                if inspect.isroutine(function) and not inspect.getdoc(getattr(value, member)):
                    bare.append(f"{name}.{member}")
    assert bare == []


def _named(doc: str, *headings: str) -> list[str] | None:
    """What a section of a docstring names, in its order; None where it has none of them."""
    found = re.search(rf"^(?:{'|'.join(headings)}):\n((?:[ ]+.*(?:\n|$)|\n)+)", doc, re.MULTILINE)
    if found is None:
        return None
    lines = textwrap.dedent(found[1]).splitlines()
    entries = [re.match(r"(\w+(?:, \w+)*): ", line) for line in lines]
    return [name for entry in entries if entry is not None for name in entry[1].split(", ")]


def _public(package: ModuleType) -> Iterator[tuple[str, Any, bool]]:
    """What can be called of all that is public, members too: its name, itself, and whether others give it its arguments."""
    for name in package.__all__:
        value = getattr(package, name)
        if not callable(value):
            continue
        is_protocol = getattr(value, "_is_protocol", False)
        yield name, value, is_protocol or (inspect.isclass(value) and issubclass(value, enum.Enum))
        if inspect.isclass(value):
            internal = INTERNAL.get(name, set()) | INTERNAL.get(f"{name}Base", set())
            for member in sorted(_members(value, package.__name__).keys() - internal):
                if callable(getattr(value, member, None)):
                    yield f"{name}.{member}", getattr(value, member), False


def test_public_names_tell_their_signature(tcpreasm: ModuleType) -> None:
    """`help` shows it, on both cores: the one that is not compiled has it anyway."""
    assert [name for name, function, _ in _public(tcpreasm) if _shape(function) == "none"] == []


def test_what_docstrings_say_of_parameters_is_so(tcpreasm: ModuleType) -> None:
    """They name all of them, in order, where they name any, and where there are more than three."""
    wrong = []
    for name, function, is_called_by_others in _public(tcpreasm):
        doc = inspect.getdoc(function) or ""
        parameters = [parameter for parameter in inspect.signature(function).parameters if parameter not in ("self", "cls")]
        told = _named(doc, "Args")
        if is_called_by_others or (told is None and (len(parameters) < 4 or _named(doc, "Attributes") is not None)):
            continue
        if told != parameters:
            wrong.append(f"{name}{tuple(parameters)} tells of {told}")
    assert wrong == []


def test_public_attributes_are_told_of(tcpreasm: ModuleType) -> None:
    """By themselves, or in the docstring of a class that has them."""
    bare = []
    for name in tcpreasm.__all__:
        value = getattr(tcpreasm, name)
        if not inspect.isclass(value):
            continue
        told = "\n".join(inspect.getdoc(base) or "" for base in value.__mro__ if base.__module__.startswith(tcpreasm.__name__))
        for member, found in _members(value, tcpreasm.__name__).items():
            if member in INTERNAL.get(name, set()) | INTERNAL.get(f"{name}Base", set()):
                continue
            if inspect.isdatadescriptor(found) and not inspect.getdoc(found) and not re.search(rf"\b{member}\b", told):
                bare.append(f"{name}.{member}")
    assert bare == []


def test_no_docstring_repeats_a_signature(tcpreasm: ModuleType) -> None:
    """The compiled core's methods tell theirs as Python's do."""
    signature = re.compile(r"[\w.]+\(.*\)( ->.*)?$")
    again = [name for name, function, _ in _public(tcpreasm) if signature.match((inspect.getdoc(function) or "-").splitlines()[0])]
    assert again == []


def test_help_begins_with_the_tour(tcpreasm: ModuleType) -> None:
    """It names everything public, and no name that is none; what a class has for the package's own use is not shown."""
    shown = pydoc.plain(pydoc.render_doc(tcpreasm))
    tour = shown.partition("\nPACKAGE CONTENTS\n")[0]
    assert {name for name in tcpreasm.__all__ if not re.search(rf"\b{name}\b", tour)} == set()
    for internal in ("_setup", "_stand_in", "_absorb", "_occupy"):
        assert f"{internal}(" not in shown


def test_the_examples_in_docstrings_are_right(tcpreasm: ModuleType) -> None:
    other = "_compiled" if tcpreasm.implementation == "pure" else "_pure"
    for found in pkgutil.walk_packages(tcpreasm.__path__, f"{tcpreasm.__name__}."):
        if f".{other}" in found.name or found.name.endswith(".__main__"):
            continue
        results = doctest.testmod(sys.modules.get(found.name) or importlib.import_module(found.name))
        assert results.failed == 0, found.name


# ---- what is installed


def test_the_version_is_one(both: tuple[ModuleType, ModuleType]) -> None:
    declared = re.search(r'^version = "(.+)"$', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert declared is not None
    assert importlib.metadata.version("tcpreasm") == declared[1]
    for package in both:
        assert package.__version__ == declared[1]


def test_numpy_is_the_only_required_dependency() -> None:
    requires = importlib.metadata.requires("tcpreasm") or []
    assert [line for line in requires if "extra ==" not in line] == ["numpy>=2"]


def test_the_command_is_installed() -> None:
    (script,) = [script for script in importlib.metadata.entry_points(group="console_scripts") if script.name == "tcpreasm"]
    assert script.value == "tcpreasm.cli:main"
    assert callable(script.load())


def test_the_installed_package_is_whole(both: tuple[ModuleType, ModuleType]) -> None:
    folder = Path(str(both[0].__file__)).parent
    assert (folder / "py.typed").exists()
    built = {file.name.split(".")[0] for file in (folder / "_compiled").iterdir() if file.name.endswith((".so", ".pyd"))}
    assert {file.stem for file in (SOURCES / "_compiled").glob("*.pyx")} - built == set()
    for pattern in ("*.py", "*.css", "*.js"):
        installed = {file.relative_to(folder).as_posix() for file in folder.rglob(pattern)}
        assert {file.relative_to(SOURCES).as_posix() for file in SOURCES.rglob(pattern)} - installed == set()


# ---- TCPREASM_IMPLEMENTATION


def _python(code: str, implementation: str | None, *, path: Path | None = None) -> str:
    """What `code` prints in an interpreter of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in ("TCPREASM_IMPLEMENTATION", "PYTHONPATH")}
    if implementation is not None:
        environment["TCPREASM_IMPLEMENTATION"] = implementation
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=Path(sys.prefix), capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


SHOW = "import tcpreasm; print(tcpreasm.implementation, tcpreasm.__file__)"


@pytest.fixture(scope="module")
def copied(both: tuple[ModuleType, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has no extension modules, as TCPREASM_PURE=1 builds it."""
    folder = tmp_path_factory.mktemp("copied")
    leave_out = shutil.ignore_patterns("*.so", "*.pyd", "*.pyx", "*.pxd", "__pycache__")
    shutil.copytree(Path(str(both[0].__file__)).parent, folder / "tcpreasm", ignore=leave_out)
    return folder


@pytest.mark.parametrize(
    ("asked", "given"), [(None, "compiled"), ("", "compiled"), ("auto", "compiled"), ("compiled", "compiled"), ("pure", "pure")]
)
def test_the_environment_picks_the_core(asked: str | None, given: str) -> None:
    assert _python(SHOW, asked).split()[0] == given


def test_an_unknown_core_is_an_error() -> None:
    assert _python(SHOW, "fast").startswith("ImportError: TCPREASM_IMPLEMENTATION is auto, compiled or pure, not 'fast'")


@pytest.mark.parametrize("started", [("-m", "tcpreasm"), ("{folder}/tcpreasm",)])
def test_the_command_tells_that_in_a_line(tmp_path: Path, started: tuple[str, ...]) -> None:
    """It does not get as far as its own errors."""
    (tmp_path / "tcpreasm").write_text("from tcpreasm.cli import main\nraise SystemExit(main())\n")
    command = [sys.executable, *(word.format(folder=tmp_path) for word in started), "flows", "x.pcap"]
    environment = os.environ | {"TCPREASM_IMPLEMENTATION": "fast", "PYTHONPATH": str(SOURCES.parent)}
    done = subprocess.run(command, env=environment, cwd=sys.prefix, capture_output=True, text=True, timeout=60, check=False)
    told = "tcpreasm: TCPREASM_IMPLEMENTATION is auto, compiled or pure, not 'fast'\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


def test_without_an_extension_auto_takes_the_pure_core(copied: Path) -> None:
    implementation, file = _python(SHOW, "auto", path=copied).split()
    assert implementation == "pure"
    assert file.startswith(str(copied))


def test_without_an_extension_compiled_is_an_error(copied: Path) -> None:
    assert re.match(r"(ImportError|ModuleNotFoundError): .*_compiled", _python(SHOW, "compiled", path=copied))


@pytest.fixture
def source_tree(copied: Path, tmp_path: Path) -> Path:
    """The same with the Cython sources: a clone of the repository, where nothing is built."""
    shutil.copytree(copied, tmp_path, dirs_exist_ok=True)
    for source in (SOURCES / "_compiled").glob("*.p[xy][xd]"):
        shutil.copy(source, tmp_path / "tcpreasm" / "_compiled")
    return tmp_path


WARNED = f"""
import warnings
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    {SHOW}
print(*(f"{{each.category.__name__}} {{each.filename}} {{each.message}}" for each in warned), sep="\\n")
"""


@pytest.mark.parametrize("asked", [None, "auto"])
def test_in_the_source_tree_the_pure_core_runs_with_a_warning(source_tree: Path, asked: str | None) -> None:
    runs, warned, *more = _python(WARNED, asked, path=source_tree).splitlines()
    assert runs.split()[0] == "pure"
    assert warned.startswith(f"RuntimeWarning <string> {source_tree / 'tcpreasm'} is the source tree of tcpreasm, where nothing is")
    assert "the slow pure core runs" in warned
    assert "pip install -e ." in warned
    assert not more


def test_in_the_source_tree_the_pure_core_is_silent_where_it_is_asked_for(source_tree: Path) -> None:
    runs, warned = _python(WARNED, "pure", path=source_tree).splitlines()
    assert (runs.split()[0], warned) == ("pure", "")


def test_in_the_source_tree_compiled_is_an_error_that_tells_what_to_do(source_tree: Path) -> None:
    told = _python(SHOW, "compiled", path=source_tree)
    assert told.startswith(f"ImportError: {source_tree / 'tcpreasm'} is the source tree of tcpreasm, where nothing is compiled")
    assert "pip install -e ." in told


def test_without_sources_there_is_no_warning(copied: Path) -> None:
    assert len(_python(WARNED, "auto", path=copied).splitlines()) == 2  # the core, and an empty line


def test_a_broken_extension_is_an_error(copied: Path, tmp_path: Path) -> None:
    """`auto` falls back where nothing was built, not where what was built does not load."""
    shutil.copytree(copied, tmp_path, dirs_exist_ok=True)
    for source in (SOURCES / "_compiled").glob("*.pyx"):
        (tmp_path / "tcpreasm" / "_compiled" / (source.stem + importlib.machinery.EXTENSION_SUFFIXES[0])).write_bytes(b"not a library")
    assert _python(SHOW, "auto", path=tmp_path).startswith("ImportError: ")
    assert _python(SHOW, "pure", path=tmp_path).split()[0] == "pure"
