"""The model package needs nothing of the pipeline: it is imported where the pipeline's libraries cannot be."""

import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROGRAM = """
import importlib, pkgutil, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {refused!r}:
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
import finjepa_model
for module in pkgutil.walk_packages(finjepa_model.__path__, "finjepa_model."):
    importlib.import_module(module.name)
"""


def test_every_module_of_the_model_package_imports_without_the_pipelines_libraries():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    [contract] = [c for c in config["tool"]["importlinter"]["contracts"] if c["type"] == "forbidden"]
    refused = set(contract["forbidden_modules"]) - {"pandas", "scipy", "pyarrow"}  # torch or polars may look for these
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(refused=refused)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_command_says_what_to_install_where_only_the_model_package_is():
    program = PROGRAM.split("import finjepa_model")[0].format(refused={"click"})
    program += "\nfrom finjepa_pipeline.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "finjepa: the command line needs click, which is not installed: pip install 'finjepa[pipeline]'"
    ]
