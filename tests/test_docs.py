"""The documentation: generated pages, results and notebooks agree with the product, and pages stay short enough to be read."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from docs.reference import generate
from docs.results import make
from finjepa_model.features import CHANNELS, MARKET_CHANNELS
from finjepa_pipeline.cli import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
LONGEST_WORDS = 1500


def text_of(page: Path) -> str:
    """The prose of a page, or of the cells of a notebook."""
    if page.suffix == ".md":
        return page.read_text()
    return "\n\n".join("".join(cell["source"]) for cell in json.loads(page.read_text())["cells"])


def test_results_page_plots_and_verdicts_are_those_of_the_result_files():
    for path, text in make.outputs().items():
        assert path.read_text() == text, f"{path.name}: run `python -m docs.results.make`"
    assert "evidence of skill" in (ROOT / "README.md").read_text()


def test_no_page_is_too_long_to_read():
    long = {
        page.name: len(re.findall(r"\S*\w\S*", text_of(page))) for page in (*PAGES, *NOTEBOOKS)
    }  # not bars of tables
    assert {name: words for name, words in long.items() if words > LONGEST_WORDS} == {}


def test_links_lead_somewhere():
    generated = {ROOT / "docs" / "reference" / f"{name}.md" for name in generate.PAGES}
    broken = []
    for page in (ROOT / "README.md", *PAGES, *NOTEBOOKS):
        for target in re.findall(r"\]\((?!https?://)([^)#\s]+)", text_of(page)):
            path = (page.parent / unquote(target)).resolve()
            broken += [] if path.exists() or path in generated else [f"{page.name}: {target}"]
    assert broken == []


def test_generated_pages_name_everything():
    pages = {name: write() for name, write in generate.PAGES.items()}
    for channel in (*CHANNELS, *MARKET_CHANNELS):
        assert f"| `{channel.name}` |" in pages["channels"]
    for command in COMMANDS:
        assert f"## finjepa {command}\n" in pages["cli"]
    for name in (
        "`FINJEPA_HOME`",
        "### ingest_prices",
        "`loss.recipe`",
        "| `portfolio.capital` |",
        "dollars that wealth 1 stands for",
    ):
        assert name in pages["config"]
    tables = re.findall(r"^### (\w+)\n\n.+\n\n\| column \| type \|\n\| --- \| --- \|\n\| `", pages["warehouse"], re.M)
    assert {"price_history", "prices", "leaderboard", "champions", "decisions"} <= set(tables)


def test_the_strategy_of_the_how_to_is_the_example_that_is_tested():
    example = (ROOT / "examples" / "low_volatility.py").read_text().split('"""', 2)[2].strip()
    assert example in (ROOT / "docs" / "how-to" / "strategy.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1800)  # they train and backtest
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run(notebook, tmp_path):
    from docs.tutorials.make import run  # here: the other tests need no Jupyter

    cells = run(notebook, tmp_path).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")


def test_notebooks_keep_results_and_no_paths_of_a_machine():
    for notebook in NOTEBOOKS:
        text = notebook.read_text()
        code = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        assert sum(bool(cell["outputs"]) for cell in code) > len(code) / 2, (
            f"{notebook.name}: run `python -m docs.tutorials.make`"
        )
        assert not re.search(r"/tmp/|(?<!~)/home/\w+/|/work/", text), notebook.name
