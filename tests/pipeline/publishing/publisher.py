"""Releases the champion of a home in a process of its own: python -m tests.pipeline.publishing.publisher HOME REPO_ID."""

import sys
from pathlib import Path

from finjepa_pipeline.publishing.gate import current_champion
from finjepa_pipeline.publishing.release import release
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse

if __name__ == "__main__":
    settings = Settings(home=Path(sys.argv[1]))
    warehouse = Warehouse.from_settings(settings)
    with warehouse.connect() as con:
        champion = current_champion(con)
    assert champion is not None
    release(settings, warehouse, champion, sys.argv[2])
