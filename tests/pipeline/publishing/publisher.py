"""Releases the champion of a home in a process of its own, since the Hub client reads its environment once.

Usage: python -m tests.pipeline.publishing.publisher HOME [REPO_ID]; one JSON object, or one line on standard error.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.publishing.gate import current_champion
from finjepa_pipeline.publishing.release import release
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.warehouse import Warehouse


def main() -> None:
    settings = Settings(home=Path(sys.argv[1]))
    warehouse = Warehouse.from_settings(settings)
    with warehouse.connect() as con:
        champion = current_champion(con)
    assert champion is not None
    try:
        done = release(settings, warehouse, champion, sys.argv[2] if len(sys.argv) > 2 else None)
    except FinJEPAError as error:
        sys.exit(str(error))
    print(json.dumps(asdict(done), default=str))  # noqa: T201


if __name__ == "__main__":
    main()
