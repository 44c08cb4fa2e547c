"""What `make lint` cannot see: paths that the docs name exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_PATH = re.compile(r"(?<![\w/.<-])(?:finjepa_model|finjepa_pipeline|tests|benchmarks|sql|docs|deploy)/[\w./-]*\w/?")


def test_every_path_that_the_docs_name_exists():
    named = {(page, name) for page in PAGES for name in _PATH.findall(page.read_text())}
    assert len(named) > 50
    assert [f"{page.relative_to(ROOT)}: {name}" for page, name in sorted(named) if not (ROOT / name).exists()] == []
