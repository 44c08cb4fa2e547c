"""Damaged inputs: each is one clear line, and the tables stay as they were."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.sources import PriceSourceConfig, make_feed
from tests.pipeline.prices.conftest import Home
from tests.pipeline.prices.frames import prices


def damaged(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and places of files that cannot be used."""
    sound = prices()
    folder.mkdir()
    (folder / "sound.parquet").touch()
    sound.write_parquet(folder / "sound.parquet")
    parquet = (folder / "sound.parquet").read_bytes()
    csv = sound.write_csv().encode()

    def put(name: str, content: bytes) -> tuple[str, Path]:
        (folder / name).write_bytes(content)
        return name, folder / name

    for share in range(0, 100, 25):
        yield put(f"cut-{share}.parquet", parquet[: len(parquet) * share // 100])
    for place in range(5, 12):  # the footer's length and the bytes that follow the magic are what a reader trusts
        wrong = bytes([255 - parquet[-place]]) * 4
        yield put(f"footer-{place}.parquet", parquet[:-place] + wrong + parquet[-place + 4 :])
    for column in ("symbol", "date", "close"):  # a file may lack the others
        yield put(f"without-{column}.csv", sound.drop(column).write_csv().encode())
        yield put(f"renamed-{column}.csv", csv.replace(column.encode(), b"x" + column.encode(), 1))
    half = pl.int_range(pl.len()) % 5 > 0
    texts = pl.col("close").cast(str)
    for kind, value in {"text": "n/a", "comma": "12,5", "units": "$12.5"}.items():
        broken = sound.with_columns(pl.when(half).then(pl.lit(value)).otherwise(texts).alias("close"))
        yield put(f"{kind}.csv", broken.write_csv().encode())
    columns = {
        f"close-{value}": ("close", value) for value in (float("nan"), float("inf"), 1e300, None, -1.0, True, [1.0])
    }
    columns |= {"symbol-number": ("symbol", 1), "date-number": ("date", 1.5), "volume-struct": ("volume", {"a": 1})}
    for name, (column, value) in columns.items():
        values = pl.Series(column, [value] * sound.height, pl.Float64 if value is None else None)
        sound.with_columns(values).write_parquet(folder / f"{name}.parquet")
        yield name, folder / f"{name}.parquet"
    for name, style in {"us": "%m/%d/%Y", "eu": "%d.%m.%Y", "compact": "%Y%m%d", "long": "%d %B %Y"}.items():
        day = pl.when(half).then(pl.col("date").str.to_date().dt.strftime(style)).otherwise("date")
        yield put(f"dates-{name}.csv", sound.with_columns(day.alias("date")).write_csv().encode())
    header, *lines = csv.split(b"\n")
    bad = {
        "utf16.csv": csv.decode().encode("utf-16"),
        "latin.csv": csv.replace(b"AAA", "ÄÖÜ".encode("latin-1")),
        "nul.csv": b"\0" * 4096,
        "binary.csv": parquet,
        "text.parquet": csv,
        "header.csv": header + b"\n",
        "headless.csv": b"\n".join(lines),
        "semicolons.csv": csv.replace(b",", b";"),
        "tabs.csv": csv.replace(b",", b"\t"),
        "twice.csv": header + b",close\n" + b"\n".join(line + b",1" for line in lines if line),
        "ragged.csv": csv + b"AAA,2021-05-05\n",
        "too-wide.csv": csv + b"AAA,2021-05-05,1,1,1,1,1,1,1,1\n",
        "open-quote.csv": csv.replace(b"AAA", b'"AAA', 1),
        "one-line.csv": header + b"\n" + b"A" * 40_000_000,
        "empty.csv": b"",
        "zipped.csv": b"\x1f\x8b\x08\x00" + os.urandom(2_000),
        "bomb.csv": gzip.compress(csv + b"0" * 50_000_000),  # 50 kB that would unfold to a thousand times as much
        "fields.csv": header + b"," * 200_000 + b"\n" + b"," * 200_007 + b"\n",
        "words.txt": b"hello",
    }
    yield from (put(name, content) for name, content in bad.items())
    bomb = sound[:1].select(pl.all().repeat_by(300_000).explode())
    bomb.write_parquet(folder / "bomb.parquet")  # one row three hundred thousand times, in a few kB
    twice = pa.table([*sound.to_arrow().columns, sound["close"].to_arrow()], [*sound.columns, "close"])
    pq.write_table(twice, folder / "twice.parquet")
    (folder / "dir.parquet").mkdir()
    (folder / "nothing").mkdir()
    (folder / "loop.csv").symlink_to(folder / "loop.csv")
    (folder / "dangling.csv").symlink_to(folder / "gone.csv")
    for name in (
        "bomb.parquet",
        "twice.parquet",
        "dir.parquet",
        "nothing",
        "loop.csv",
        "dangling.csv",
        "missing.csv",
        "*.x",
    ):
        yield name, folder / name
    yield "a device", Path("/dev/null")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_damaged_inputs_are_one_line_each_and_change_nothing(home: Home) -> None:
    home.write("part.parquet", prices())
    revision = home.ingest().revision
    tables = [home.query(f"FROM {table} ORDER BY ALL") for table in ("raw_prices", "quarantined_prices", "revisions")]
    tried = 0
    for name, place in damaged(home.files.parent / "damaged"):
        with pytest.raises(FinJEPAError) as error:
            pytest.fail(f"{name} was ingested: {home.ingest(place)}")
        assert "\n" not in str(error.value), name
        assert len(str(error.value)) < 600, name
        tried += 1
    assert tried >= 60
    assert tables == [
        home.query(f"FROM {table} ORDER BY ALL") for table in ("raw_prices", "quarantined_prices", "revisions")
    ]
    assert home.ingest().revision == revision


def test_a_file_that_may_not_be_read_is_one_line(home: Home) -> None:
    home.write("part.parquet", prices())
    revision = home.ingest().revision
    secret = home.write("secret.parquet", prices(("DDD",)))
    secret.chmod(0)
    root = os.geteuid() == 0
    if root:  # whom no mode stops
        for folder in (home.files, *list(home.files.parents)[:-1]):
            folder.chmod(0o755)
        os.seteuid(65534)
    try:
        with pytest.raises(FinJEPAError, match=r"cannot read .*secret.parquet: Permission denied"):
            home.ingest()
    finally:
        if root:
            os.seteuid(0)
    secret.unlink()
    assert home.ingest().revision == revision


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"data_source": "yahoo"}, "unknown data source 'yahoo'"),
        ({"path": "x"}, "add --data-source files"),
        ({"data_source": "files"}, "needs a path"),
        ({"data_source": "sample", "dataset_name": "a/b"}, "add --data-source hf"),
        ({"data_source": "sample", "start": "01/02/2020"}, "is not a day"),
        ({"symbols": ["AAPL"]}, "need a data source"),
        ({"data_source": "sample", "symbols": [" "]}, "is no symbol"),
        ({"data_source": "sample", "calendar": "XNYC"}, "no exchange calendar 'XNYC'"),
        ({"calendar": "XNYS"}, "need a data source"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_it(home: Home, config: dict[str, object], says: str) -> None:
    with pytest.raises(FinJEPAError, match=says):
        make_feed(PriceSourceConfig(**config), home.settings)
