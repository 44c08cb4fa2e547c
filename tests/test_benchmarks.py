"""Benchmarks for machines that this project does not have run here at a toy size, so that they run there."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_ALONE = """
import runpy, sys
sys.path.insert(0, "benchmarks")
sys.argv[1:] = ["--toy"]
runpy.run_path("benchmarks/gpu.py", run_name="__main__")
print(*sorted({"dagster", "duckdb", "finjepa_pipeline"} & sys.modules.keys()), "imported")
"""


@pytest.mark.slow
def test_the_benchmark_for_a_gpu_runs_every_part_on_a_cpu_with_the_model_package_alone():
    done = subprocess.run([sys.executable, "-c", _ALONE], cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    *_, imported = done.stdout.splitlines()
    assert imported.strip() == "imported"
    for row in (
        "| `tiny` | 16 x 24 | bfloat16 |",
        "float8, `tiny`",
        "| mppi, `tiny`",
        "QLIKE of volatility | fixed HAR |",
    ):
        assert row in done.stdout
