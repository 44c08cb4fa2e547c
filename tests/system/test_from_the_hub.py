"""A released checkpoint is used with the model's own packages alone, and from a home that holds nothing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
import torch

from finjepa_model import FinJEPA, FinJEPAConfig
from finjepa_model.checkpoint import CHECKPOINT_FILES
from finjepa_model.features import MARKET_CHANNELS, read_prices
from finjepa_model.features.channels import available
from tests.hub_lookalike import HubLookalike
from tests.model.frames import download
from tests.system.product import COMMANDS, ROOT, quick_training, write_prices

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

REPO = "tester/finjepa"

# Hides what is not one of the model's six packages, or needed by one of them.
_ONLY_THE_MODELS_PACKAGES = """
import sys
from importlib.metadata import distribution, packages_distributions
from packaging.requirements import Requirement

known, wanted = set(), ["torch", "numpy", "polars", "safetensors", "huggingface_hub", "tqdm"]
while wanted:
    name = wanted.pop().lower().replace("_", "-")
    if name in known:
        continue
    try:
        needs = distribution(name).requires or ()
    except ImportError:  # of another platform
        continue
    known.add(name)
    wanted += [r.name for r in map(Requirement, needs) if r.marker is None or r.marker.evaluate({"extra": ""})]
makers = packages_distributions()

class Bare:
    def find_spec(self, module, path=None, target=None):
        top = module.partition(".")[0]
        made_by = {name.lower().replace("_", "-") for name in makers.get(top, ())}
        if made_by and not made_by & {*known, "finjepa"}:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)

sys.meta_path.insert(0, Bare())
"""
_LOAD = """
import importlib, pkgutil
import finjepa_model, polars
from finjepa_model import FinJEPA
for module in pkgutil.walk_packages(finjepa_model.__path__, "finjepa_model."):
    if module.name != "finjepa_model.sklearn":  # which is for users of skfolio
        importlib.import_module(module.name)
model = FinJEPA.from_pretrained("tester/finjepa")
prices = polars.read_parquet(sys.argv[1])
forecast = model.forecast(prices)
assert forecast.volatility.height == model.decide(prices).to_frame().height == 6
try:
    forecast.plot()
except finjepa_model.FinJEPAError as error:
    assert "pip install plotly" in str(error)
print(float(sum(p.double().abs().sum() for p in model.state_dict().values())))
try:
    import duckdb
except ModuleNotFoundError:
    print("hidden")  # or else nothing was shown
from finjepa_pipeline.__main__ import main
sys.argv = ["finjepa", "doctor"]
main()
"""


def environment(folder: Path, hub: HubLookalike) -> dict[str, str]:
    """Nothing of this machine's caches or homes."""
    made = {
        k: v for k, v in hub.client_env(folder / "hf", token=None).items() if not k.startswith(("FINJEPA_", "DAGSTER_"))
    }
    return made | {"FINJEPA_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def released(hub: HubLookalike, folder: Path, columns: frozenset[str]) -> FinJEPA:
    """A repository with a small checkpoint that reads what a source with these columns gives."""
    torch.manual_seed(0)
    config = FinJEPAConfig().override(
        {
            "model.channels": json.dumps([channel.name for channel in available(columns)][:6]),
            "model.market_channels": json.dumps([channel.name for channel in MARKET_CHANNELS]),
            "model.dim": "16", "model.heads": "2", "model.window": "32",
        }
    )  # fmt: skip
    model = FinJEPA(config)
    model.save_pretrained(folder)
    for name in CHECKPOINT_FILES:
        if not (folder / name).exists():
            (folder / name).write_text("{}")
    hub.add_repo(REPO, files={name: (folder / name).read_bytes() for name in CHECKPOINT_FILES})
    return model


def test_with_the_models_packages_alone_a_checkpoint_forecasts_and_decides_and_the_command_says_what_to_install(
    tmp_path,
):
    with HubLookalike() as hub:
        model = released(hub, tmp_path / "made", frozenset({"close"}))
        read_prices(download()).rows.write_parquet(tmp_path / "prices.parquet")
        done = subprocess.run(
            [sys.executable, "-c", _ONLY_THE_MODELS_PACKAGES + _LOAD, tmp_path / "prices.parquet"],
            env=environment(tmp_path, hub), cwd=tmp_path, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.stdout, done.stderr[-3000:]
    total, hidden = done.stdout.split()
    assert float(total) == pytest.approx(
        sum(float(x.double().abs().sum()) for x in model.state_dict().values()), rel=1e-12
    )
    assert hidden == "hidden"
    message = r"finjepa: the command line needs \w+, which is not installed: pip install 'finjepa\[pipeline\]'"
    assert (done.returncode, bool(re.fullmatch(message, done.stderr.strip()))) == (1, True), done.stderr[-3000:]


def test_an_empty_home_decides_with_a_checkpoint_of_the_hub_and_anew_with_its_next_release(tmp_path):
    with HubLookalike() as hub:
        model = released(hub, tmp_path / "made", frozenset({"close"}))

        def decide() -> dict:
            done = subprocess.run(
                [COMMANDS / "finjepa", "decide", "--checkpoint", REPO, "--json"],
                env=environment(tmp_path, hub), cwd=tmp_path, capture_output=True, text=True, timeout=240,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
            return json.loads(done.stdout)

        decision = decide()
        assert decision["checkpoint"] == f"{REPO}@{hub.repo(REPO).head.oid}"
        with torch.no_grad():
            for weights in model.parameters():
                weights += 0.1 * torch.randn_like(weights)
        model.save_pretrained(tmp_path / "made")
        hub.repo(REPO).commit("next", {"model.safetensors": (tmp_path / "made" / "model.safetensors").read_bytes()})
        assert decide()["checkpoint"] == f"{REPO}@{hub.repo(REPO).head.oid}" != decision["checkpoint"]
    assert len(decision["assets"]) == 20  # of the sample
    assert abs(sum(decision["weights"].values()) - 1) <= 1e-6
    assert os.listdir(tmp_path / "home" / "checkpoints") == []


@pytest.mark.slow
def test_the_example_trains_pushes_and_loads_what_it_pushed(tmp_path):
    prices = tmp_path / "prices.csv"
    pl.read_parquet(write_prices(tmp_path / "prices") / "*.parquet").write_csv(prices)
    with HubLookalike() as hub:
        env = environment(tmp_path, hub) | hub.client_env(tmp_path / "hf") | {"FINJEPA_HOME": str(tmp_path / "home")}
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / "train_push_load.py", prices, REPO, *quick_training()],
            env=env, cwd=tmp_path, capture_output=True, text=True, timeout=280,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        pushed = hub.repo(REPO).head.files
    current = json.loads((tmp_path / "home" / "checkpoints" / "current.json").read_text())["checkpoint"]
    trained = tmp_path / "home" / "checkpoints" / current
    assert {name: pushed[name] for name in CHECKPOINT_FILES} == {
        name: (trained / name).read_bytes() for name in CHECKPOINT_FILES
    }
    assert done.stdout.count("S05") >= 2  # volatilities and weights
