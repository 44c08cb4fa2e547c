"""The feature panel against plain Polars and pandas scripts of the same channels, each in a process of its own.

    python benchmarks/features.py --rows 25.3e6 --folder /tmp/finjepa-features

Everything is written under --folder, which is deleted afterwards (--keep leaves it, to run the cases one by one).
`touch` is the floor: read the prices, write the panel.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import polars as pl

PRICES = ["open", "high", "low", "close", "volume", "dollar_volume"]
SESSIONS = 7500
DAYS_SINCE_1970 = 9000
DATA = "prices.duckdb"


def make_data(folder: Path, rows: int) -> None:
    """Ragged random walks in a DuckDB file: some assets end early, some rows have no trade."""
    folder.mkdir(parents=True, exist_ok=True)
    with duckdb.connect(str(folder / "making.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE adjusted_prices (entity VARCHAR, date DATE, open DOUBLE, high DOUBLE, low DOUBLE, close DOUBLE, "
            "volume DOUBLE, dollar_volume DOUBLE, tradable BOOLEAN)"
        )
        random, made, asset = np.random.default_rng(0), 0, 0
        while made < rows:
            parts = []
            for _ in range(100):
                parts.append(one_asset(random, f"S{asset:05d}"))
                made, asset = made + len(parts[-1]), asset + 1
            connection.register("part", pl.concat(parts).to_arrow())
            connection.execute("INSERT INTO adjusted_prices FROM part")
        connection.execute("""
            CREATE TABLE universe AS SELECT date, entity FROM adjusted_prices WHERE volume > 4e5 ORDER BY ALL;
            CREATE TABLE price_sessions AS SELECT DISTINCT date FROM adjusted_prices ORDER BY ALL;
            CREATE TABLE entities AS SELECT DISTINCT entity, entity AS symbol, 0.0 AS delisting_return FROM adjusted_prices;
            CREATE TABLE corporate_actions (symbol VARCHAR, date DATE, action VARCHAR)""")
    (folder / "making.duckdb").rename(folder / DATA)


def one_asset(random: np.random.Generator, name: str) -> pl.DataFrame:
    """The history of one asset."""
    length = int(random.integers(300, 2 * 3614 - 300))
    end = SESSIONS if random.random() < 0.8 else int(random.integers(length, SESSIONS + 1))
    close = 30 * np.exp(np.cumsum(random.normal(0, 0.02, length)))
    opened = close * np.exp(random.normal(0, 0.005, length))
    volume = random.lognormal(13, 0.5, length) * (random.random(length) > 0.01)
    session = np.arange(end - length, end, dtype=np.int32)
    columns = {
        "entity": pl.Series([name]).new_from_index(0, length),
        "date": pl.Series(session + DAYS_SINCE_1970).cast(pl.Date),
        "open": opened,
        "high": np.maximum(opened, close) * np.exp(np.abs(random.normal(0, 0.005, length))),
        "low": np.minimum(opened, close) * np.exp(-np.abs(random.normal(0, 0.005, length))),
        "close": close,
        "volume": volume,
        "dollar_volume": close * volume,
        "tradable": volume > 0,
    }
    return pl.DataFrame(columns)


def source(folder: Path) -> duckdb.DuckDBPyConnection:
    """The tables of the features stage."""
    memory = {"memory_limit": "512MB"}  # as build_panel sets it
    return duckdb.connect(str(folder / DATA), read_only=True, config=memory)


def ours(folder: Path) -> None:
    """The panel."""
    from finjepa_model.features import choose
    from finjepa_pipeline.features.panel import adjusted_prices, write_panel

    out = folder / "panel"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    with source(folder) as connection:
        prices = adjusted_prices(connection)
        write_panel(prices, choose(prices.columns), {"content_hash": "benchmark"}, out)


def warm_up(name: str, folder: Path) -> None:
    """What a process pays once, apart from the clock: imports, the prices in the page cache."""
    if name == "pandas":
        import pandas  # noqa: F401
    if name == "built":
        import finjepa_pipeline.features.panel  # noqa: F401
    with (folder / DATA).open("rb") as stream:
        while stream.read(1 << 24):
            pass


def touch(folder: Path) -> None:
    """Read six float32 columns, write a panel of as many bytes as ours."""
    with source(folder) as connection:
        rows = connection.sql("SELECT count(*) FROM adjusted_prices").fetchall()[0][0]
    columns = np.lib.format.open_memmap(folder / "touch-in.npy", "w+", np.float32, (6, rows))
    columns[:] = 1.0
    started = time.perf_counter()
    total = sum(float(column.sum()) for column in columns)
    panel = np.lib.format.open_memmap(folder / "touch-out.npy", "w+", np.float32, (rows, 23))
    panel[:] = total
    print(json.dumps({"seconds": time.perf_counter() - started}))


def polars_frame(folder: Path) -> pl.DataFrame:
    """All prices in memory, as a script would have them."""
    with source(folder) as connection:
        return connection.sql(
            f"SELECT entity, date, {', '.join(PRICES)} FROM adjusted_prices ORDER BY entity, date"
        ).pl()


def plain_polars(folder: Path) -> None:
    """The same channels by `over(symbol)` in float64; the market is the mean return."""
    frame = polars_frame(folder).with_columns(pl.col("entity").cast(pl.Categorical))
    c, h, lo, o = (pl.col(name) for name in ("close", "high", "low", "open"))
    dv = pl.when(pl.col("dollar_volume") > 0).then(pl.col("dollar_volume"))
    lag = lambda x, n=1: x.shift(n)  # noqa: E731

    def mean(x: pl.Expr, n: int) -> pl.Expr:
        return x.rolling_mean(n, min_samples=-(-2 * n // 3))

    by = lambda **columns: [value.over("entity").alias(name) for name, value in columns.items()]  # noqa: E731
    frame = frame.with_columns(by(r=(c.log() - lag(c.log())), ldv=dv.log()))
    frame = frame.with_columns(pl.col("r").mean().over("date").alias("m"))
    r, m = pl.col("r"), pl.col("m")
    frame = frame.with_columns(by(vol=lag((r**2).ewm_mean(span=63, min_samples=20).sqrt())))
    vol = pl.col("vol")
    k = 3 - 2 * 2**0.5
    rng = (h / lo).log() ** 2
    beta_ = rng + lag(rng)
    gamma = (pl.max_horizontal(h, lag(h)) / pl.min_horizontal(lo, lag(lo))).log() ** 2
    alpha = ((2 * beta_).sqrt() - beta_.sqrt()) / k - (gamma / k).sqrt()
    spread = (2 * (alpha.exp() - 1) / (1 + alpha.exp())).clip(0)
    covariance = mean(r * m, 63) - mean(r, 63) * mean(m, 63)
    slope = covariance / (mean(m * m, 63) - mean(m, 63) ** 2)
    frame = frame.with_columns(
        by(
            z_range=(h / lo).log(),
            z_level=pl.col("ldv") - pl.col("ldv").rolling_median(63, min_samples=42),
            z_shock=pl.col("ldv") - pl.col("ldv").rolling_median(21, min_samples=14),
            z_rv5=mean(r**2, 5).sqrt().log(),
            z_rv21=mean(r**2, 21).sqrt().log(),
            z_rv63=mean(r**2, 63).sqrt().log(),
            z_residual=(mean(r * r, 63) - mean(r, 63) ** 2 - slope * covariance).clip(0).sqrt().log(),
            z_amihud=mean(r.abs() / dv, 21).log(),
            z_spread=mean(spread, 21),
            beta=slope - 1,
            liquidity=dv.rolling_mean(63, min_samples=1),
        )
    )
    roll = mean(r * lag(r), 21) - mean(r, 21) * mean(lag(r), 21)
    scored = [name for name in frame.columns if name.startswith("z_")]
    frame = frame.select(
        *by(
            log_return=r / vol,
            overnight=(o.log() - lag(c.log())) / vol,
            intraday=(c / o).log() / vol,
            location=2 * (c - lo) / (h - lo) - 1,
            drawdown=(c / c.rolling_max(252, min_samples=1)).log() / vol,
            momentum_21=(c / lag(c, 21)).log() / vol,
            momentum_60=(c / lag(c, 60)).log() / vol,
            momentum_252=(lag(c, 21) / lag(c, 252)).log() / vol,
            roll=2 * (-roll).clip(0).sqrt() / vol,
            **{
                f"scored_{name}": (pl.col(name) - pl.col(name).rolling_mean(252, min_samples=60))
                / pl.col(name).rolling_std(252, min_samples=60)
                for name in scored
            },
        ),
        "beta",
        pl.col("liquidity").rank().over("date").alias("rank"),
    )
    write_plain(folder, frame.with_columns(pl.all().clip(-5, 5).fill_nan(0).fill_null(0).cast(pl.Float32)))


def write_plain(folder: Path, frame: pl.DataFrame) -> None:
    """As a row-major file, like ours."""
    panel = np.lib.format.open_memmap(folder / "plain.npy", "w+", np.float32, frame.shape)
    panel[:] = frame.to_numpy(order="c")
    panel.flush()


def plain_pandas(folder: Path) -> None:
    """The same channels by groupby and rolling."""
    import pandas as pd

    frame = polars_frame(folder).with_columns(pl.col("entity").rank("dense").cast(pl.Int32))
    entity, date = frame["entity"].to_numpy(), frame["date"].to_physical().to_numpy()
    o, h, lo, c, _, dv = (pd.Series(frame[name].to_numpy()) for name in PRICES)
    del frame
    dv = dv.where(dv > 0)
    out: dict[str, np.ndarray] = {}

    def rolled(x: pd.Series, n: int, what: str, least: int | None = None) -> pd.Series:
        rolling = x.groupby(entity, sort=False).rolling(n, min_periods=least or -(-2 * n // 3))
        return pd.Series(getattr(rolling, what)().to_numpy())

    def lag(x: pd.Series, n: int = 1) -> pd.Series:
        return x.groupby(entity, sort=False).shift(n)

    def keep(name: str, x: pd.Series) -> None:
        out[name] = x.clip(-5, 5).fillna(0).to_numpy(np.float32)

    def score(name: str, x: pd.Series) -> None:
        keep(name, (x - rolled(x, 252, "mean", 60)) / rolled(x, 252, "std", 60))

    log_c, ldv = np.log(c), np.log(dv)
    r = log_c - lag(log_c)
    m = r.groupby(date).transform("mean")
    weighted = (r**2).groupby(entity, sort=False).ewm(span=63, min_periods=20).mean()
    vol = lag(pd.Series(np.sqrt(weighted.to_numpy())))
    keep("log_return", r / vol)
    keep("overnight", (np.log(o) - lag(log_c)) / vol)
    keep("intraday", np.log(c / o) / vol)
    keep("location", 2 * (c - lo) / (h - lo) - 1)
    score("range", np.log(h / lo))
    score("level", ldv - rolled(ldv, 63, "median"))
    score("shock", ldv - rolled(ldv, 21, "median"))
    for n in (5, 21, 63):
        score(f"rv{n}", np.log(np.sqrt(rolled(r**2, n, "mean"))))
    keep("drawdown", np.log(c / rolled(c, 252, "max", 1)) / vol)
    for since, until in ((21, 0), (60, 0), (252, 21)):
        keep(f"momentum_{since}", (lag(log_c, until) - lag(log_c, since)) / vol)
    mean_r, mean_m = rolled(r, 63, "mean"), rolled(m, 63, "mean")
    covariance = rolled(r * m, 63, "mean") - mean_r * mean_m
    slope = covariance / (rolled(m * m, 63, "mean") - mean_m**2)
    keep("beta", slope - 1)
    score("residual", np.log(np.sqrt((rolled(r * r, 63, "mean") - mean_r**2 - slope * covariance).clip(0))))
    score("amihud", np.log(rolled(r.abs() / dv, 21, "mean")))
    k, rng = 3 - 2 * 2**0.5, np.log(h / lo) ** 2
    beta_ = rng + lag(rng)
    gamma = np.log(np.maximum(h, lag(h)) / np.minimum(lo, lag(lo))) ** 2
    alpha = (np.sqrt(2 * beta_) - np.sqrt(beta_)) / k - np.sqrt(gamma / k)
    score("spread", rolled((2 * np.expm1(alpha) / (1 + np.exp(alpha))).clip(0), 21, "mean"))
    before = lag(r)
    roll = rolled(r * before, 21, "mean") - rolled(r, 21, "mean") * rolled(before, 21, "mean")
    keep("roll", 2 * np.sqrt((-roll).clip(0)) / vol)
    keep("rank", rolled(dv, 63, "mean", 1).groupby(date).rank(pct=True))
    panel = np.lib.format.open_memmap(folder / "plain.npy", "w+", np.float32, (len(c), len(out)))
    panel[:] = np.stack(list(out.values()), axis=1)
    panel.flush()


CASES: dict[str, Callable[[Path], None]] = {
    "touch": touch,
    "built": ours,
    "polars": plain_polars,
    "pandas": plain_pandas,
}


def run_case(name: str, folder: Path) -> None:
    """Run one case and print its seconds, those of the processor on all cores, and its peak of private memory (GB).

    On a machine that does other work too, compare the processor's seconds.
    """
    warm_up(name, folder)
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            status = Path("/proc/self/status").read_text()
            peak[0] = max(peak[0], int(status.split("RssAnon:")[1].split()[0]))

    threading.Thread(target=watch, daemon=True).start()
    started, before = time.perf_counter(), sum(os.times()[:2])
    CASES[name](folder)
    done.set()
    seconds, cpu = time.perf_counter() - started, sum(os.times()[:2]) - before
    print(json.dumps({"case": name, "seconds": seconds, "cpu_seconds": cpu, "private_gb": peak[0] / 1e6}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=float, default=25.3e6)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/finjepa-features"))
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--keep", action="store_true", help="leave the folder, and use the prices that are in it")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        run_case(arguments.case, arguments.folder)
        return
    try:
        if not (arguments.folder / DATA).exists():
            make_data(arguments.folder, int(arguments.rows))
        for name in arguments.cases.split(","):
            command = [sys.executable, __file__, "--case", name, "--folder", str(arguments.folder)]
            done = subprocess.run(command, capture_output=True, text=True)
            print(done.stdout.strip().replace("\n", " ") or f"{name} failed: {done.stderr.strip()[-300:]}", flush=True)
    finally:
        if not arguments.keep:
            shutil.rmtree(arguments.folder, ignore_errors=True)


if __name__ == "__main__":
    main()
