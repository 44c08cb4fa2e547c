"""Every setting is a variable of the environment: documented, with a default, refused in one line where it makes no sense."""

import os
import subprocess
import sys

import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.settings import Settings

VARIABLES = {name: f"FINJEPA_{name.upper()}" for name in Settings.model_fields}


def test_an_empty_variable_means_the_default_and_every_variable_says_what_it_is(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for variable in VARIABLES.values():
        monkeypatch.setenv(variable, "")
    assert Settings.from_env() == Settings(home=tmp_path / ".finjepa")
    # the configuration reference is made of these
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_variables_are_read_and_paths_are_absolute(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = {
        "home": "here",
        "artifacts": "shared",
        "wait_minutes": "5",
        "ui_url": "https://x.org/",
        "compute": "a:6379",
    }
    for name, value in given.items():
        monkeypatch.setenv(VARIABLES[name], value)
    found = Settings.from_env()
    assert (found.home, found.artifacts) == (tmp_path / "here", str(tmp_path / "shared"))
    assert (found.wait_minutes, found.ui_url, found.ray_address) == (5, "https://x.org", "a:6379")
    monkeypatch.setenv(VARIABLES["compute"], "local:3")
    assert (Settings.from_env().ray_address, Settings.from_env().processes) == (None, 3)
    monkeypatch.setenv(VARIABLES["artifacts"], "s3://bucket/prefix")
    assert Settings.from_env().artifacts == "s3://bucket/prefix"


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("wait_minutes", "ten", r"integer.*default 30"),
        ("wait_minutes", "0", "greater than 0"),
        ("compute", "local:0", "neither `local`"),
        ("compute", "http://head:8265", "neither `local`"),
        ("compute", "ray://10.0.0.1:10001", "Ray's client"),
    ],
)
def test_a_value_that_makes_no_sense_is_one_line_with_the_variable(monkeypatch, name, value, named):
    monkeypatch.setenv(VARIABLES[name], value)
    with pytest.raises(FinJEPAError, match=f"^{VARIABLES[name]}={value!r}.*{named}") as refused:
        Settings.from_env()
    assert "\n" not in str(refused.value)


def test_a_command_runs_in_a_notebook_whose_kernel_is_of_another_environment():
    program = "from finjepa_pipeline import cli; cli.main = lambda: __import__('arch'); cli.run()"
    environment = os.environ | {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "PYTHONPATH": ""}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]
