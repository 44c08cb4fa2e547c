"""A hundred damaged inputs: each is one clear line, and the tables stay as they were."""

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

    for share in range(0, 100, 5):
        yield put(f"cut-{share}.parquet", parquet[: len(parquet) * share // 100])
    for place in range(5, 12):  # the footer's length and the bytes that follow the magic are what a reader trusts
        yield put(
            f"footer-{place}.parquet", parquet[:-place] + bytes([255 - parquet[-place]]) * 4 + parquet[-place + 4 :]
        )
    for column in ("symbol", "date", "open", "high", "low", "close", "volume"):
        yield put(f"without-{column}.csv", sound.drop(column).write_csv().encode())
        path = folder / f"without-{column}.parquet"
        sound.drop(column).write_parquet(path)
        yield path.name, path
        yield put(f"renamed-{column}.csv", csv.replace(column.encode(), b"x" + column.encode(), 1))
    for column in ("open", "high", "low", "close", "volume", "adj_close"):
        half = pl.int_range(pl.len()) % 5 > 0
        for kind, value in {"text": "n/a", "comma": "12,5", "units": "$12.5"}.items():
            broken = sound.with_columns(
                pl.when(half).then(pl.lit(value)).otherwise(pl.col(column).cast(str)).alias(column)
            )
            yield put(f"{kind}-{column}.csv", broken.write_csv().encode())
    for name, value in {
        "nan": float("nan"),
        "inf": float("inf"),
        "huge": 1e300,
        "null": None,
        "negative": -1.0,
    }.items():
        path = folder / f"close-{name}.parquet"
        sound.with_columns(pl.lit(value, dtype=pl.Float64).alias("close")).write_parquet(path)
        yield path.name, path
    for column, values in {
        "symbol": pl.Series([1] * sound.height),
        "date": pl.Series([1.5] * sound.height),
        "close": pl.Series([True] * sound.height),
        "open": pl.Series([[1.0]] * sound.height),
        "volume": pl.Series([{"a": 1}] * sound.height),
    }.items():
        path = folder / f"type-{column}.parquet"
        sound.with_columns(values.alias(column)).write_parquet(path)
        yield path.name, path
    for name, style in {"us": "%m/%d/%Y", "eu": "%d.%m.%Y", "compact": "%Y%m%d", "long": "%d %B %Y"}.items():
        mixed = pl.col("date").str.to_date()
        broken = sound.with_columns(
            pl.when(pl.int_range(pl.len()) % 5 > 0)
            .then(mixed.dt.strftime(style))
            .otherwise(pl.col("date"))
            .alias("date")
        )
        yield put(f"dates-{name}.csv", broken.write_csv().encode())
    header, *lines = csv.split(b"\n")
    yield put("utf16.csv", csv.decode().encode("utf-16"))
    yield put("utf32.csv", csv.decode().encode("utf-32"))
    yield put("latin.csv", csv.replace(b"AAA", "ÄÖÜ".encode("latin-1")))
    yield put("nul.csv", b"\0" * 4096)
    yield put("binary.csv", parquet)
    yield put("text.parquet", csv)
    yield put("header.csv", header + b"\n")
    yield put("headless.csv", b"\n".join(lines))
    yield put("semicolons.csv", csv.replace(b",", b";"))
    yield put("tabs.csv", csv.replace(b",", b"\t"))
    yield put("twice.csv", header + b",close\n" + b"\n".join(line + b",1" for line in lines if line))
    yield put("ragged.csv", csv + b"AAA,2021-05-05\n")
    yield put("too-wide.csv", csv + b"AAA,2021-05-05,1,1,1,1,1,1,1,1\n")
    yield put("open-quote.csv", csv.replace(b"AAA", b'"AAA', 1))
    yield put("one-line.csv", header + b"\n" + b"A" * 40_000_000)
    yield put("empty.csv", b"")
    yield put("zipped.csv", b"\x1f\x8b\x08\x00" + os.urandom(2_000))
    yield put("bomb.csv", gzip.compress(csv + b"0" * 50_000_000))  # 50 kB that would unfold to a thousand times as much
    yield put("fields.csv", header + b"," * 200_000 + b"\n" + b"," * 200_007 + b"\n")
    bomb = sound[:1].select(pl.all().repeat_by(300_000).explode())
    bomb.write_parquet(folder / "bomb.parquet")  # one row three hundred thousand times, in a few kB
    yield "bomb.parquet", folder / "bomb.parquet"
    pq.write_table(
        pa.table([*sound.to_arrow().columns, sound["close"].to_arrow()], [*sound.columns, "close"]),
        folder / "twice.parquet",
    )
    yield "twice.parquet", folder / "twice.parquet"
    styles = ("%Y-%m-%d", "%m/%d/%Y", "%d.%m.%Y")
    days = [day.strftime(styles[place % 3]) for place, day in enumerate(sound["date"].str.to_date())]
    yield put("dates-mixed.csv", sound.with_columns(pl.Series("date", days)).write_csv().encode())
    yield put("words.txt", b"hello")
    (folder / "dir.parquet").mkdir()
    yield "dir.parquet", folder / "dir.parquet"
    (folder / "nothing").mkdir()
    yield "nothing", folder / "nothing"
    loop = folder / "loop.csv"
    loop.symlink_to(loop)
    yield "loop.csv", loop
    (folder / "round").mkdir()
    (folder / "round" / "a.csv").symlink_to(folder / "round" / "b.csv")
    (folder / "round" / "b.csv").symlink_to(folder / "round" / "a.csv")
    yield "round", folder / "round"
    (folder / "dangling.csv").symlink_to(folder / "gone.csv")
    yield "dangling.csv", folder / "dangling.csv"
    yield "missing", folder / "missing.parquet"
    yield "no glob", folder / "*.feather"
    yield "a device", Path("/dev/null")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_hundred_damaged_inputs(home: Home) -> None:
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
    assert tried >= 100
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
