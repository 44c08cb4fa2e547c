"""The version of the code that trains: a hash of the syntax of every module that the training process imports."""

import ast
import functools
import hashlib
import socket
from collections.abc import Iterator
from pathlib import Path

import finjepa_model
from finjepa_model.errors import FinJEPAError

_ROOT = Path(finjepa_model.__file__).parent.parent  # of both packages
_PACKAGES = ("finjepa_model", "finjepa_pipeline")
_TRAINING = "finjepa_pipeline.training.process"
_TD = "finjepa_model.td"  # imported where the config has the td branch only


@functools.cache
def training_code_version(td: bool = True, root: Path = _ROOT) -> str:
    """Hash of the code that training runs. Comments, docstrings and formatting do not count.

    Args:
        td: whether the td branch is trained too.
        root: folder of the two packages.
    """
    digest = hashlib.sha256()
    for name, file in sorted(training_modules(td, root).items()):
        digest.update(f"{name}\n{ast.dump(_without_docstrings(_parsed(file)))}\n".encode())
    return digest.hexdigest()[:12]


def refuse_other_code(version: str) -> None:
    """
    Raises:
        FinJEPAError: if this machine has other training code than the one that started the training.
    """
    if (here := training_code_version()) != version:
        raise FinJEPAError(
            f"the node {socket.gethostname()} has training code {here} and the driver {version}; install the same FinJEPA on both"
        )


def training_modules(td: bool = True, root: Path = _ROOT) -> dict[str, Path]:
    """Every module of this project that a training can import, by name: also those that a function imports when it is called."""
    reached: dict[str, Path] = {}
    waiting = [_TRAINING]
    while waiting:
        name = waiting.pop()
        file = _file(root, name)
        if file is None or name in reached or (name.startswith(_TD) and not td):
            continue
        reached[name] = file
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting += [*_with_packages(name), *_imports(_parsed(file), package)]
    return reached


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    """Names that a module imports; `from a import b` gives a and a.b, as b may be a module."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            for other in node.orelse:
                yield from _imports(ast.Module([other], []), package)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_packages(alias.name)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(part for part in (above, node.module) if part)
            yield from _with_packages(module)
            yield from (f"{module}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node, package)


def _with_packages(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]


def _file(root: Path, name: str) -> Path | None:
    """The source of a module of this project; None for any other name."""
    if name.partition(".")[0] not in _PACKAGES:
        return None
    place = root.joinpath(*name.split("."))
    return next((file for file in (place / "__init__.py", place.with_suffix(".py")) if file.is_file()), None)


@functools.cache
def _parsed(file: Path) -> ast.Module:
    return ast.parse(file.read_bytes(), str(file))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                del node.body[0]
    return tree
