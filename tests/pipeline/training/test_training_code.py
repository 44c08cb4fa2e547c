"""The id of a checkpoint knows the code that trained it: every module that a training imports, and nothing that only reads."""

import ast
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import finjepa_model
import finjepa_pipeline
from finjepa_model.config import TrainingConfig, preset
from finjepa_pipeline.training.checkpoints import for_panel
from finjepa_pipeline.training.code import training_code_version, training_modules
from finjepa_pipeline.training.process import CONFIG_FILE
from tests.pipeline.backtest.handmade_panel import noise, write_panel


@pytest.fixture(scope="module")
def packages(tmp_path_factory):
    root = tmp_path_factory.mktemp("packages")
    for package in (finjepa_model, finjepa_pipeline):
        source = Path(package.__file__).parent
        shutil.copytree(source, root / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    return root


def _version(root: Path, td: bool = True) -> str:
    from finjepa_pipeline.training.code import _parsed

    _parsed.cache_clear()
    return training_code_version.__wrapped__(td, root)


def _with(file: Path, text: str, root: Path, td: bool = True) -> str:
    """The version while a file reads otherwise."""
    before = file.read_text()
    file.write_text(text)
    try:
        return _version(root, td)
    finally:
        file.write_text(before)


@pytest.mark.parametrize("td", [False, True])
def test_a_change_in_any_module_that_training_imports_is_another_version(packages, td):
    sound = _version(packages, td)
    modules = training_modules(td, packages)
    assert ("finjepa_model.planning.imagination" in modules) == td
    for name in [*sorted(modules)[::6], *(["finjepa_model.planning.imagination"] if td else [])]:
        changed = _with(modules[name], modules[name].read_text() + "\n_CHANGED = 1\n", packages, td)
        assert changed != sound, name


def test_comments_docstrings_and_formatting_are_the_same_version(packages):
    sound = _version(packages)
    before = {file: file.read_text() for file in training_modules(True, packages).values()}
    try:
        for file, text in before.items():
            tree = ast.parse(text)
            for node in ast.walk(tree):
                if (
                    isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                    and ast.get_docstring(node) is not None
                ):
                    node.body[0] = ast.Expr(ast.Constant("Another text - with a hyphen."))
            file.write_text(f"# a comment\n{ast.unparse(tree)}\n\n\n")
        assert _version(packages) == sound
    finally:
        for file, text in before.items():
            file.write_text(text)
    bare = packages / "finjepa_model" / "errors.py"
    assert (
        _with(bare, f'{bare.read_text()}\n\ndef _more():\n    return "a text that is no docstring"\n', packages)
        != sound
    )


def test_a_change_in_a_module_that_training_does_not_import_is_the_same_version(packages):
    for td in (False, True):
        sound, reached = _version(packages, td), set(training_modules(td, packages).values())
        others = sorted(set(packages.rglob("*.py")) - reached)
        assert len(others) > 80
        for file in others[::25]:
            assert _with(file, file.read_text() + "\n_CHANGED = 1\n", packages, td) == sound, file


def test_a_module_that_a_function_imports_when_it_is_called_belongs_to_the_version(packages):
    entry = packages / "finjepa_model" / "training" / "trainer.py"
    late = packages / "finjepa_model" / "late.py"
    text = entry.read_text()
    late.write_text("SIZE = 1\n")
    try:
        entry.write_text(f"{text}\n\ndef _late():\n    from finjepa_model import late\n\n    return late.SIZE\n")
        one = _version(packages)
        late.write_text("SIZE = 2\n")
        assert _version(packages) != one
    finally:
        late.unlink()
        entry.write_text(text)


@pytest.mark.parametrize("td", [False, True])
def test_what_a_training_process_has_imported_belongs_to_the_version(tmp_path, td):
    panel = write_panel(tmp_path / "panel", noise(900, 4))
    training = TrainingConfig(batch_size=4, n_assets=2, steps_per_epoch=2, epochs=1, evaluate_batches=1, log_every=1)
    config = for_panel(
        replace(preset("tiny"), training=training).override({"td.enabled": str(td).lower(), "td.steps": "2"}), panel
    )
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / CONFIG_FILE).write_text(config.to_json())
    program = (
        "import sys; from finjepa_pipeline.training.process import main; main(); "
        "print(*(name for name in sys.modules if name.startswith('finjepa_')))"
    )
    command = [sys.executable, "-c", program, "--panel", str(panel.folder), "--run-folder", str(tmp_path / "run")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert (tmp_path / "run" / "result" / "metrics.json").is_file(), (tmp_path / "run" / "failure.txt").read_text()
    assert set(done.stdout.split()) <= set(training_modules(td))
