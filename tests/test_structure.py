"""What `make lint` cannot see: imports inside functions, private words, and paths that the docs name."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("finjepa_model", "finjepa_pipeline")
MODULES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MOST_IMPORTS = 25
_PRIVATE = re.compile(r"\b(court|docket|hearing|sitting|exhibits?|charge[ds]? with|stretches|deed|surer)\b", re.I)
_PATH = re.compile(r"(?<![\w/.<-])(?:finjepa_model|finjepa_pipeline|tests|benchmarks|sql|docs|deploy)/[\w./-]*\w/?")


def imports_inside_functions(path: Path) -> list[tuple[int, str]]:
    """Line and text of each import of an own module that is not at the top of its file."""
    tree, lines = ast.parse(path.read_text()), path.read_text().splitlines()
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    top = {id(node) for node in tree.body} | {id(node) for block in blocks for node in ast.walk(block)}
    found = []
    for node in ast.walk(tree):
        names = (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [getattr(node, "module", None) or ""]
        )
        if isinstance(node, ast.Import | ast.ImportFrom) and id(node) not in top and names[0].startswith(PACKAGES):
            first = node.lineno - 1
            while re.match(
                r"\s*(from |import |#|$)", lines[first - 1]
            ):  # one reason serves the imports that stand together
                first -= 1
            found.append((node.lineno, "\n".join(lines[first : node.end_lineno])))
    return found


def test_imports_inside_functions_are_few_and_each_says_why():
    found = {path: imports_inside_functions(path) for path in MODULES}
    silent = [
        f"{path.relative_to(ROOT)}:{line}" for path, lines in found.items() for line, text in lines if "#" not in text
    ]
    assert silent == [], "add a comment with the reason, or import it at the top of the module"
    assert sum(map(len, found.values())) <= MOST_IMPORTS


def test_private_words_are_not_used():
    texts = {path: path.read_text() for path in (*MODULES, *PAGES)}
    assert [
        f"{path.relative_to(ROOT)}: {word}" for path, text in texts.items() for word in _PRIVATE.findall(text)
    ] == []


def test_every_path_that_the_docs_name_exists():
    named = {(page, name) for page in PAGES for name in _PATH.findall(page.read_text())}
    assert len(named) > 50
    assert [f"{page.relative_to(ROOT)}: {name}" for page, name in sorted(named) if not (ROOT / name).exists()] == []
