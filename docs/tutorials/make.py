"""Runs the notebooks of this folder and keeps their results in them, with pictures of figures of Plotly.

    python -m docs.tutorials.make [NAME ...]

Needs Debian's chromium (or google-chrome) on the PATH.
"""

import base64
import os
import re
import sys
import tempfile
from pathlib import Path

import nbclient
import nbformat
import plotly.graph_objects

from docs.pictures.make import picture

HERE = Path(__file__).parent
_PLOTLY = "application/vnd.plotly.v1+json"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")  # colours of a terminal


def run(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook after it has run in a folder.

    Raises:
        nbclient.exceptions.CellExecutionError: if a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    # the commands of this environment, and figures as data and not as JavaScript
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ |= {"PLOTLY_RENDERER": "plotly_mimetype", "COLUMNS": "110"}
    nbclient.NotebookClient(
        notebook, timeout=900, coalesce_streams=True, resources={"metadata": {"path": str(folder)}}
    ).execute()
    return notebook


def _still(output: nbformat.NotebookNode, folder: Path) -> None:
    """A picture in place of a figure."""
    page = folder / "figure.html"
    figure = plotly.graph_objects.Figure(output.data.pop(_PLOTLY))
    page.write_text(figure.to_html(config={"staticPlot": True}), encoding="utf-8")
    output.data = {"image/png": base64.b64encode(picture(page.as_uri(), (960, 520), wait_ms=5000)).decode()}


def main() -> None:
    for path in sorted(HERE.glob("*.ipynb")):
        if sys.argv[1:] and path.stem not in sys.argv[1:]:
            continue
        with tempfile.TemporaryDirectory() as folder:
            notebook = run(path, Path(folder))
            for cell in notebook.cells:
                cell.metadata = {}
                outputs = [one for one in cell.get("outputs", []) if one.get("name") != "stderr"]
                for output in outputs:
                    if _PLOTLY in output.get("data", {}):
                        _still(output, Path(folder))
                    if "text" in output:
                        output.text = _ANSI.sub("", output.text).replace(folder, "~")
                if cell.cell_type == "code":
                    cell.outputs = outputs
        notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"]}
        nbformat.write(notebook, path)
        print(path.name)


if __name__ == "__main__":
    main()
