"""What MkDocs calls when it builds the site (`hooks` in `mkdocs.yml`)."""

import json
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are generated from the code, by a process of its own: its libraries talk and leave traces."""
    command = [sys.executable, "-W", "ignore", "-m", "docs.reference.generate"]
    made = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, check=True)
    for name, text in json.loads(made.stdout).items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files
