"""Two processes have the losses and gradients of one on the same global batch, whatever the recipe."""

import os
import socket
import subprocess
import sys

import pytest

from finjepa_model.training.trainer import Trainer
from tests.model.training_runs import records, run_config, run_panel

_RANK = """
import sys, torch.distributed as dist
from pathlib import Path
from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.training.trainer import Trainer
dist.init_process_group("gloo")
for file in sorted(Path(sys.argv[1]).glob("*.json")):
    config = FinJEPAConfig.from_json(file.read_text())
    Trainer(config, Panel.open(sys.argv[2]), file.with_suffix(".two")).train()
dist.destroy_process_group()
"""
RUNS = {
    "sigreg": run_config({"recipe": "sigreg"}, epochs=1, steps_per_epoch=3),
    "both-in-parts": run_config({"recipe": "both", "ema_start": 0.5}, epochs=1, steps_per_epoch=2, accumulate=2),
    "vicreg": run_config({"recipe": "vicreg", "rollout_steps": 3}, epochs=1, steps_per_epoch=2),
}
OBJECTIVE = {
    "loss",
    "prediction",
    "rollout",
    "masked_patch",
    "inverse_dynamics",
    "variance",
    "covariance",
    "risk",
}
OF_RECIPE = {
    "sigreg": {"sigreg"},
    "both-in-parts": {"sigreg"},
    "vicreg": {"latent_variance", "latent_covariance", "temporal_similarity"},
}


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The folder with every run by two gloo ranks, in `NAME.two`, and the panel."""
    folder = tmp_path_factory.mktemp("ranks")
    panel = run_panel(folder / "panel")
    for name, config in RUNS.items():
        (folder / f"{name}.json").write_text(config.to_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _RANK, str(folder), str(panel.folder)]
    ranks = [subprocess.Popen(command, env=os.environ | shared | {"RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait(timeout=180) for rank in ranks] == [0, 0]
    return folder, panel


@pytest.mark.parametrize("name", RUNS)
def test_two_ranks_have_every_term_of_one_process_on_the_same_batch(together, name):
    folder, panel = together
    Trainer(RUNS[name], panel, folder / f"{name}.one").train()
    one, two = (records(folder / f"{name}.{ranks}") for ranks in ("one", "two"))
    steps = RUNS[name].training.steps_per_epoch
    assert [(r["kind"], r["step"]) for r in two] == [*(("train", k + 1) for k in range(steps)), ("validation", steps)]
    for alone, shared in zip(one, two, strict=True):
        terms = OBJECTIVE | OF_RECIPE[name]
        if alone["kind"] == "train":
            terms |= {"gradient_norm"}
            assert set(alone) == terms | {"kind", "step"}
        for term in terms:
            assert shared[term] == pytest.approx(alone[term], rel=1e-4), (term, alone["step"])
