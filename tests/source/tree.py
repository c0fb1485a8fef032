"""What the tests in this folder look at: the files of the project and what each module imports."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"
PACKAGE = SOURCES / "fastplug"
CYTHON = (".pyx", ".pxd")


def tracked_files() -> list[Path]:
    """Files that belong to the project: git's list, with new files that are not ignored; in an archive without git, all files."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        return sorted(ROOT / name for name in set(listed.stdout.split("\0")) if name and (ROOT / name).is_file())
    hidden = re.compile(r"(^|/)(\.git|\.venv[^/]*|build|__pycache__|\.[a-z]+_cache)/")
    return sorted(path for path in ROOT.rglob("*") if path.is_file() and not hidden.search(f"{path.relative_to(ROOT)}"))


def compiled_modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.pyx"))


def module_name(path: Path) -> str:
    """``src/fastplug/net/dial.py`` -> ``fastplug.net.dial``; a package is named without ``__init__``."""
    parts = path.relative_to(SOURCES).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules() -> dict[str, list[Path]]:
    """Every module of the package with its files: one for Python, ``.pyx`` and ``.pxd`` for Cython."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*")):
        if path.suffix in (".py", *CYTHON):
            found.setdefault(module_name(path), []).append(path)
    return found


def imported(path: Path, *, for_types: bool = True) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of each import and cimport in the file, also inside functions; ``from a import b`` gives ``a.b``.

    With ``for_types=False`` without what stands below ``if TYPE_CHECKING``.
    """
    text = path.read_text()
    package = module_name(path) if path.stem == "__init__" else module_name(path).rpartition(".")[0]
    statements = _cython_imports(text) if path.suffix in CYTHON else _python_imports(text, for_types=for_types)
    for line, level, base, names in statements:
        parents = package.split(".")
        prefix = ".".join(parents[: len(parents) - level + 1]) if level else ""
        absolute = ".".join(part for part in (prefix, base) if part)
        for name in names or [""]:
            yield line, f"{absolute}.{name}" if name else absolute


def _python_imports(text: str, *, for_types: bool) -> Iterator[tuple[int, int, str, list[str]]]:
    parsed = ast.parse(text)
    guards = [node for node in ast.walk(parsed) if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")]
    skipped = set() if for_types else {inner for guard in guards for statement in guard.body for inner in ast.walk(statement)}
    for node in ast.walk(parsed):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, 0, alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.lineno, node.level, node.module or "", [alias.name for alias in node.names]


def _cython_imports(text: str) -> Iterator[tuple[int, int, str, list[str]]]:
    """By pattern, since Cython has no parser for others: strings and comments are blanked first, line numbers stay."""
    text = re.sub(r'("""|\'\'\').*?\1', lambda match: "\n" * match[0].count("\n"), text, flags=re.DOTALL)
    text = re.sub(r"#.*", "", text)
    for match in re.finditer(r"^[ \t]*c?import[ \t]+([\w., \t]+)$", text, re.MULTILINE):
        line = text.count("\n", 0, match.start()) + 1
        yield from ((line, 0, name.split()[0], []) for name in match[1].split(",") if name.strip())
    for match in re.finditer(r"^[ \t]*from[ \t]+(\.*)([\w.]*)[ \t]+c?import[ \t]+(\([^)]*\)|[^\n]*)", text, re.MULTILINE):
        line = text.count("\n", 0, match.start()) + 1
        names = [name.split()[0] for name in match[3].strip("()").split(",") if name.strip()]
        yield line, len(match[1]), match[2], names


def internal_imports(path: Path, known: dict[str, list[Path]], *, for_types: bool = True) -> Iterator[tuple[int, str]]:
    """(line, module of the package) for each import of the package's own modules: the longest prefix that is a module."""
    for line, name in imported(path, for_types=for_types):
        if name != "fastplug" and not name.startswith("fastplug."):
            continue
        target = name
        while target not in known:
            target = target.rpartition(".")[0]
        if target != module_name(path):
            yield line, target
