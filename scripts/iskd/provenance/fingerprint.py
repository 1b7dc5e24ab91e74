"""A digest of the code that a job runs, blind to comments, docstrings and layout.

Snakemake sees neither an edit in an imported module nor the difference between a comment and a
changed formula. So every rule has the digest of its script and of all library modules that the
script can reach as a parameter, and Snakemake's own ``code`` trigger is switched off.

A module is reached by an import, or by its full name as a text, as ``python -m`` takes it.
"""

import ast
import hashlib
from functools import cache
from pathlib import Path
from typing import TypeGuard

PACKAGE = "iskd"
LIBRARY = Path(__file__).resolve().parents[1]
SCRIPTS = LIBRARY.parent

_HAS_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )


def _without_docstrings(tree: ast.Module) -> ast.Module:
    """Drop every bare text: docstrings, and those that stand below a constant or a field."""
    for node in ast.walk(tree):
        if isinstance(node, _HAS_DOCSTRINGS):
            node.body = [s for s in node.body if not _is_text(s)] or [ast.Pass()]
    return tree


@cache
def _parsed(path: Path) -> ast.Module:
    return _without_docstrings(ast.parse(path.read_bytes(), filename=path.name))


def _written(part: object) -> str:
    """Write a tree as text, alike in all versions of Python.

    The library's ``ast.dump`` writes empty fields in some versions, and new versions have new ones.
    """
    if isinstance(part, ast.AST):
        fields = ((name, value) for name, value in ast.iter_fields(part) if value not in (None, []))
        inner = ",".join(f"{name}={_written(value)}" for name, value in fields)
        return f"{type(part).__name__}({inner})"
    if isinstance(part, list):
        return f"[{','.join(map(_written, part))}]"
    return repr(part)


@cache
def _file_digest(path: Path) -> str:
    content = _written(_parsed(path)).encode() if path.suffix == ".py" else path.read_bytes()
    return hashlib.sha256(content).hexdigest()


def _module_file(module: str) -> Path | None:
    base = SCRIPTS.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _is_module_name(value: object) -> TypeGuard[str]:
    """Tell whether a constant is the name of a module that can be started, so of no package.

    Loggers bear the names of packages, and whoever logs does not depend on what is in these.
    """
    if not (isinstance(value, str) and value.startswith(f"{PACKAGE}.")):
        return False
    return (SCRIPTS / f"{value.replace('.', '/')}.py").is_file()


@cache
def _imported(path: Path) -> frozenset[str]:
    """Name the library modules that a file imports or starts, with the packages around them."""
    named: set[str] = set()
    for node in ast.walk(_parsed(path)):
        if isinstance(node, ast.Import):
            named.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            named.add(node.module)
            named.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 1:
            # Files that are copied into saved models import each other relatively.
            here = ".".join(path.parent.relative_to(SCRIPTS).parts)
            base = f"{here}.{node.module}" if node.module else here
            named.add(base)
            named.update(f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and _is_module_name(node.value):
            named.add(node.value)
    inside: set[str] = set()
    for name in named:
        parts = name.split(".")
        # The top package only registers model types and holds the version; following it would
        # make every job depend on every module.
        if parts[0] == PACKAGE:
            inside.update(".".join(parts[:n]) for n in range(2, len(parts) + 1))
    return frozenset(inside)


def _data_files(package: Path) -> set[Path]:
    """List what lies in a package's folder besides its modules (task files, style files)."""
    found: set[Path] = set()
    for entry in package.iterdir():
        if entry.name == "__pycache__":
            continue
        if entry.is_file() and entry.suffix != ".py":
            found.add(entry)
        elif entry.is_dir() and not (entry / "__init__.py").exists():
            found.update(
                f for f in entry.rglob("*") if f.is_file() and "__pycache__" not in f.parts
            )
    return found


@cache
def _next_files(path: Path) -> tuple[Path, ...]:
    """List the files that one of the library, or a script, reaches directly."""
    if path.suffix != ".py":
        return ()
    found = {f for name in _imported(path) if (f := _module_file(name)) is not None}
    if path.name == "__init__.py" and path.parent != LIBRARY:
        found |= _data_files(path.parent)
    return tuple(found)


def code_files(script: Path) -> list[Path]:
    """List the script and every file of the library that it can reach by imports, sorted."""
    seen: set[Path] = set()
    waiting = [script]
    while waiting:
        path = waiting.pop()
        if path not in seen:
            seen.add(path)
            waiting += _next_files(path)
    return sorted(seen)


def code_fingerprint(rule: str) -> str:
    """Give the digest of the code of a rule's script (``scripts/<rule>.py``), as 16 hex digits."""
    files = code_files(SCRIPTS / f"{rule}.py")
    lines = [f"{file.relative_to(SCRIPTS).as_posix()} {_file_digest(file)}\n" for file in files]
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:16]
