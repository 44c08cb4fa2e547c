"""A release names no path, user or host of this machine, and nothing in it is taken for markup or for a shell's syntax."""

import json
import re
import shlex
import socket
import subprocess
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from finjepa_model.planner_strategies import strategy_name
from finjepa_pipeline.publishing.gate import current_champion
from finjepa_pipeline.publishing.package import public
from finjepa_pipeline.publishing.release import release

MARKUP = "<img src=x onerror=alert(1)>"
UTILITIES = [
    "log_growth - 5*variance, gross <= 0.8",
    "log_growth - disagreement('a`id`b')",
    "log_growth - disagreement('$(touch x)')",
    'log_growth - disagreement("it\'s; rm x")',
    "log_growth - disagreement('x | tee y')",
    "log_growth - disagreement('<img src=x onerror=alert(1)>')",
    "log_growth - disagreement('/srv/secret_user/models/beside')",
]


def released(home, planner: str, prices: str) -> Path:
    folder = home.add_checkpoint("aaaa")
    lineage = json.loads((folder / "lineage.json").read_text())
    lineage["data"] |= {"feed": f"files:{prices} (AAPL, {MARKUP})", "place": {"deep": [f"read {prices}/a.csv"]}}
    lineage["build"] = {"source": {"data_source": "files", "path": prices}}
    (folder / "lineage.json").write_text(json.dumps(lineage))
    home.add_backtest("aaaa", 0.0005, strategy=planner)
    assert home.judge("aaaa").verdict == "promoted"
    with home.warehouse.connect() as con:
        champion = current_champion(con)
    assert champion is not None
    return release(home.settings, home.warehouse, champion, None).package.folder


@pytest.mark.parametrize(
    ("planner", "folder"),
    [("mppi", folder) for folder in ("prices", "a|b `c` [x](javascript:1)")]
    + [(strategy_name("mppi", utility), MARKUP) for utility in UTILITIES],
)
def test_a_release_holds_no_path_and_no_markup(home, monkeypatch, planner, folder):
    monkeypatch.setenv("HOME", "/srv/secret_user")
    monkeypatch.setenv("USER", "secret_user")
    made = released(home, planner, f"/srv/secret_user/my data/{folder}")
    private = [b"/srv", b"secret_user", b"my data", str(home.settings.home).encode(), socket.gethostname().encode()]
    for file in made.iterdir():
        content = file.read_bytes()
        assert not [word for word in private if len(word) > 3 and word in content], file
    card = (made / "README.md").read_text()
    assert b"<img" not in (made / "lineage.json").read_bytes()

    page = MarkdownIt("commonmark").enable("table").render(card.split("\n---\n", 1)[1])
    assert "<img" not in page
    assert "javascript:" not in re.findall(r'href="[^"]*"', page)
    for table in re.findall(r"<table>.*?</table>", page, re.S):
        widths = {len(re.findall(r"<t[dh]\b", row)) for row in re.findall(r"<tr>.*?</tr>", table, re.S)}
        assert len(widths) == 1
    shown = re.findall(r"<td>(mppi.*?)</td>", page)
    assert shown
    assert all("<" not in cell for cell in shown)

    [line] = re.findall(r"^finjepa decide .*$", card, re.M)
    words = shlex.split(line)
    searcher, _, utility = planner.partition(" | ")
    assert words[words.index("--planner") + 1] == searcher
    if utility and "/srv" not in utility:
        assert words[words.index("--utility") + 1] == utility
    said = subprocess.run(
        ["bash", "-c", f"finjepa() {{ printf '%s\\n' \"$@\"; }}; {line}"], capture_output=True, text=True
    )
    assert said.stdout.splitlines() == words[1:]
    code = re.search(r"```python\n(.*?)```", card, re.S)
    assert code is not None
    compile(code[1], "card", "exec")


@pytest.mark.parametrize(
    ("text", "made"),
    [
        ("files:/data/prices", "files:prices"),
        ("~/prices/a.csv", "a.csv"),
        ("C:\\Users\\me\\prices", "prices"),
        ("hf:owner/name", "hf:owner/name"),
        ("https://hub.example/owner/name", "https://hub.example/owner/name"),
        ("1/N and owner/name, 1 / 2", "1/N and owner/name, 1 / 2"),
        ("/data/*/*.csv", "data"),
    ],
)
def test_paths_give_way_to_their_last_folder(text, made):
    assert public({"a": [text]}, {}) == {"a": [made]}
