"""Any folder name that the system allows works as FINJEPA_HOME."""

from pathlib import Path

import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.console import err, out
from finjepa_pipeline.prices.contract import Outcome, docs_page, write_docs
from finjepa_pipeline.prices.derive import UniverseConfig, derive
from finjepa_pipeline.runner import open_instance
from finjepa_pipeline.settings import Settings
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import prices

NAMES = ("O'Brien a [b] {c,d} 100% #1 & co; $HOME", 'spät 市场 a*b say "so"', "year=1999", "symbol=ZZZ")


@pytest.mark.usefixtures("no_contract")
@pytest.mark.parametrize("name", NAMES)
def test_a_home_works_whatever_its_name(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / name
    folder.mkdir()
    home = Home(folder)
    rows = prices(days=10)
    home.write("part.csv", rows)
    home.ingest()
    derive(home.warehouse, UniverseConfig(min_history=1, window=1))
    assert home.query("SELECT count(*) FROM adjusted_prices") == [(rows.height,)]
    assert home.query("SELECT count(*) FROM entities") == [(3,)]
    monkeypatch.delenv("DAGSTER_HOME", raising=False)
    with open_instance(home.settings) as instance:  # its dagster.yaml was read
        assert not instance.telemetry_enabled
        assert instance.run_retries_enabled
        assert instance.get_runs() == []


@pytest.mark.parametrize("name", ["$HOME x", "${HOME}", "a$b$"])
def test_data_docs_stay_in_the_home_whatever_its_name(tmp_path: Path, name: str) -> None:
    """Great Expectations replaces `$NAME` in its configuration by variables of the environment."""
    outcomes = (Outcome("rows", 1.0, None, "critical", "there are prices", observed=3.0),)
    write_docs(outcomes, tmp_path / name)
    assert docs_page(tmp_path / name).is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["what?", "back\\slash"])
def test_a_home_that_cannot_work_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(FinJEPAError, match="in its path; set FINJEPA_HOME to a folder without one"):
        Settings(home=tmp_path / name).ensure()
    assert not (tmp_path / name).exists()


def test_what_is_printed_is_text_and_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    for console in (out, err):
        with console.capture() as printed:
            console.print("files:/a [b]/set[1] :smile: [/]")
        assert printed.get().strip() == "files:/a [b]/set[1] :smile: [/]"
