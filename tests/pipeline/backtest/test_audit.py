"""A leak of each kind is planted in one part of the product, and the audit catches it; the sound product passes."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from click.testing import CliRunner
from handmade_panel import noise, write_panel

from finjepa_model.config import FinJEPAConfig
from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline import cli, commands
from finjepa_pipeline.backtest import audit, engine, known_truth, leakage
from finjepa_pipeline.backtest.assets import check_result
from finjepa_pipeline.backtest.results import TESTS, status_of
from finjepa_pipeline.backtest.strategies import EveryDecision, extreme_quintile, load_strategy, long_only, one_over_n
from finjepa_pipeline.prices.synthetic import SyntheticConfig, bars_of, generate
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import content_hash
from finjepa_pipeline.warehouse import Warehouse

sound_panel = leakage.build_from_rows  # as it is before a leak takes its place
CONFIG = FinJEPAConfig().override(
    {"model.window": "24", "model.stride": "5", "training.n_assets": "2", "training.batch_size": "8"}
)


def features_of_today(panel: Panel):
    """Weights by the newest value of every feature: whatever leaks into a feature leaks into the decision."""

    def rule(view):
        newest_NF = view.features(1)[0][:, -1]
        return np.exp(np.clip(newest_NF.sum(-1), -5, 5)) * view.present_N

    return EveryDecision("by_features", rule)


PRODUCT = leakage.Product(strategy=features_of_today, config=CONFIG, n_assets=6)


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    return bars_of(generate(SyntheticConfig(variant="drift", seed=3, assets=6, sessions=560))).select(
        "symbol", "date", "open", "high", "low", "close", "volume", "adj_close"
    )


@pytest.fixture
def panel(tmp_path) -> Panel:
    return write_panel(tmp_path / "noise", noise(700, 6, seed=2))


def rewritten(panel: Panel, name: str, array: np.ndarray) -> Panel:
    np.save(panel.folder / f"{name}.npy", array)
    return Panel.open(panel.folder)


def full_sample_scaler(folder: Path, rows: pl.DataFrame) -> Panel:
    panel = sound_panel(folder, rows)
    features_RF = np.array(panel.features)
    scaled_RF = (features_RF - features_RF.mean(0)) / (features_RF.std(0) + 1e-6)
    return rewritten(panel, "features", scaled_RF.astype(np.float32))


def future_members(folder: Path, rows: pl.DataFrame) -> Panel:
    """Who is in the universe is who will have been the best by the end of the file."""
    panel = sound_panel(folder, rows)
    growth = [np.log1p(panel.returns[o : o + n]).sum() for o, n in zip(panel.offsets, panel.lengths, strict=False)]
    chosen = np.argsort(growth)[-3:]
    eligible_R = np.array(panel.eligible)
    for asset in range(len(panel.assets)):
        mine = slice(panel.offsets[asset], panel.offsets[asset] + panel.lengths[asset])
        eligible_R[mine] &= asset in chosen
    return rewritten(panel, "eligible", eligible_R)


def adjusted_level(folder: Path, rows: pl.DataFrame) -> Panel:
    """A channel of log(adj_close / close): the product of all dividends and splits to come."""
    panel = sound_panel(folder, rows)
    features_RF = np.array(panel.features)
    for asset, name in enumerate(panel.assets):
        mine = rows.filter(pl.col("symbol") == name.split("#")[0]).sort("date")
        level = dict(zip(mine["date"], np.log(mine["adj_close"] / mine["close"]), strict=True))
        for r in range(panel.lengths[asset]):
            features_RF[panel.offsets[asset] + r, 0] = level.get(str(panel.dates[panel.first[asset] + r]), 0.0)
    return rewritten(panel, "features", features_RF)


def unknown_after_a_cut(folder: Path, rows: pl.DataFrame) -> Panel:
    """A channel that is a number only while the file goes on: the difference is not a number either."""
    panel = sound_panel(folder, rows)
    features_RF = np.array(panel.features)
    if len(panel.dates) < 560:
        features_RF[:, 0] = np.nan
    return rewritten(panel, "features", features_RF)


def only_price(rows: pl.DataFrame) -> pl.DataFrame:
    """The same market of a vendor whose only prices are divided by later splits and dividends: about 8 dollars."""
    factor = pl.col("adj_close") / pl.col("close")
    level = 8 / pl.col("adj_close").median().over("symbol")
    return rows.with_columns(
        *((pl.col(name) * factor * level).alias(name) for name in ("open", "high", "low", "close")),
        (pl.col("volume") / factor / level).cast(pl.Int64),
        pl.lit(None, pl.Float64).alias("adj_close"),
    )


@pytest.mark.parametrize(
    ("prices", "futures"),
    [(pl.DataFrame, leakage.FUTURES), (only_price, ("restated",))],
    ids=["whole rows", "one adjusted price"],
)
def test_the_sound_product_stays_as_it_was_with_another_future(prices, futures, rows, tmp_path):
    """Membership must not ask how high an adjusted price is: half of it would mean a later split, not a cheaper share."""
    finding = leakage.future_invariance(PRODUCT, prices(rows), tmp_path, dates=1, seed=1, futures=futures)
    assert finding.passed, finding.text


@pytest.mark.parametrize(
    ("leak", "future", "named"),
    [
        (full_sample_scaler, "cut", "the channel"),
        (future_members, "cut", "eligible"),
        (adjusted_level, "restated", "the channel log_return"),
        (unknown_after_a_cut, "cut", "by inf"),
    ],
)
def test_a_leak_from_the_future_of_the_rows_is_caught(leak, future, named, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(leakage, "build_from_rows", leak)
    finding = leakage.future_invariance(PRODUCT, rows, tmp_path, dates=1, seed=1, futures=(future,))
    assert not finding.passed
    assert named in finding.text
    assert finding.of_data


def test_a_decision_that_moves_on_the_same_features_is_no_failure_of_the_data(rows, tmp_path):
    finding = leakage.future_invariance(
        replace(PRODUCT, strategy=drawn()), rows, tmp_path, dates=1, seed=1, futures=("cut",)
    )
    assert not finding.passed
    assert not finding.of_data


def same_close(strategy, setup, views=None):
    """An engine that fills at the close of the decision: the session after it is earned at the new weights."""
    first = replace(setup.universes[0], start=setup.decisions[0] - 1)
    early = replace(setup, decisions=tuple(d - 1 for d in setup.decisions), universes=(first,))

    class Early:
        name = "early"

        def decide(self, view, state):
            return strategy.decide(setup.views()[early.decisions.index(setup.panel.date_index(view.date))], state)

    result = engine.simulate(Early(), early)
    return replace(result, gross_T=result.gross_T[1:], net_T=result.net_T[1:], dates_T=result.dates_T[1:])


@pytest.mark.parametrize(("days", "assets", "decisions"), [(700, 6, 40), (430, 2, 12)])
def test_a_fill_at_the_close_of_the_decision_is_caught(tmp_path, monkeypatch, days, assets, decisions):
    """With a handful of fills and two assets as well."""
    panel = write_panel(tmp_path, noise(days, assets, seed=5))
    assert len(PRODUCT.setup(panel).decisions) <= decisions
    assert leakage.fill_lag(PRODUCT, panel).passed
    monkeypatch.setattr(leakage, "simulate", same_close)
    caught = leakage.fill_lag(PRODUCT, panel)
    assert caught.passed is False
    assert caught.value == 1  # session


@pytest.mark.parametrize("name", ["expected returns", "risk"])
def test_labels_that_are_off_by_one_are_caught(panel, monkeypatch, name):
    assert leakage.label_alignment(PRODUCT, panel).passed

    labels = leakage.model_labels

    def a_session_early(panel, config, dates_B, assets_BN):
        sound, early = (labels(panel, config, dates_B - k, assets_BN) for k in (0, 1))
        return sound | {name: (early[name][0], sound[name][1])}

    monkeypatch.setattr(leakage, "model_labels", a_session_early)
    caught = leakage.label_alignment(PRODUCT, panel)
    assert not caught.passed
    assert f"{name} and session" in caught.text


def test_a_strategy_that_prefers_places_is_caught(panel):
    def to_the_first(panel: Panel):
        return EveryDecision("to_the_first", lambda view: np.arange(len(view.present_N), 0, -1.0))

    assert leakage.permutation(PRODUCT, panel).value < 1e-6
    assert leakage.permutation(replace(PRODUCT, strategy=drawn()), panel).passed
    assert leakage.permutation(replace(PRODUCT, strategy=to_the_first), panel).passed is False


class Idle:
    name = "idle"

    def decide(self, view, state):
        return None


def drawn():
    """Weights are drawn, anew at each decision of all strategies of a product."""
    rng = np.random.default_rng(1)
    return lambda panel: EveryDecision("random", lambda view: rng.random(len(view.present_N)))


def every_delay(product: leakage.Product, panel: Panel) -> leakage.AuditFinding:
    return leakage.delay([leakage.delayed(product, panel, sessions) for sessions in leakage.DELAYS])


@pytest.mark.parametrize(
    ("test", "strategy", "assets", "words"),
    [
        (leakage.fill_lag, features_of_today, 1, "told apart"),
        (leakage.permutation, lambda panel: Idle(), 6, "nothing was decided"),
        (leakage.permutation, drawn(), 2, "correlation"),
        (every_delay, lambda panel: Idle(), 6, "nothing was held"),
        (
            every_delay,
            lambda panel: EveryDecision("m", lambda view: extreme_quintile(view, 5)),
            6,
            "sessions are too few",
        ),
    ],
)
def test_a_test_that_could_not_have_failed_has_no_verdict(test, strategy, assets, words, tmp_path):
    with pytest.raises(leakage.NotEnoughDataError, match=words):
        test(replace(PRODUCT, strategy=strategy), write_panel(tmp_path, noise(430, assets, seed=2)))


def reads_ahead(panel: Panel):
    """All in what rises most two sessions ahead, past the fill."""

    def rule(view):
        rows_N = panel.rows(view.session + 2, view.asset_indices)
        return np.eye(len(rows_N))[int(np.argmax(np.where(rows_N >= 0, panel.returns[rows_N], -1)))]

    return EveryDecision("reads_ahead", rule)


def test_a_strategy_that_reads_ahead_collapses_when_it_is_late(tmp_path):
    """A session late it reads one that it is not paid for."""
    panel = write_panel(tmp_path, noise(3000, 6, seed=2))

    def momentum(panel: Panel):
        return EveryDecision("momentum", lambda view: extreme_quintile(view, 60))

    for strategy, passed in ((momentum, True), (reads_ahead, False)):
        product = replace(PRODUCT, strategy=strategy)
        assert every_delay(product, panel).passed is passed


def gains(rng: np.random.Generator, markets: int, ratio: float = 0.0, volatility: float = 0.18, days: int = 348):
    """What a strategy gains over 1/N before and after costs on each null market, with this annual Sharpe ratio before costs."""
    gain_MT = rng.standard_t(5, (markets, days)) * volatility / np.sqrt(252 * 5 / 3) + ratio * volatility / 252
    return [np.column_stack([gain_T, gain_T - 0.005 / 252]) for gain_T in gain_MT]


@pytest.mark.parametrize("markets", [4, 30])
def test_without_an_edge_a_failure_on_null_markets_is_rare_and_with_one_it_is_found(markets):
    rng = np.random.default_rng(markets)
    failed = np.mean([known_truth.null_finding(gains(rng, markets)).passed is False for _ in range(600)])
    assert failed < 0.006  # two bounds of one in a thousand
    ratio = 3.93 / np.sqrt(markets * 348 / 252)
    found = np.mean([known_truth.null_finding(gains(rng, markets, ratio)).passed is False for _ in range(120)])
    assert found > 0.7  # 80 % is stated


def test_two_null_markets_give_no_verdict_but_for_a_gain_beyond_luck():
    rng = np.random.default_rng(0)
    with pytest.raises(leakage.NotEnoughDataError, match="2 null markets are too few"):
        known_truth.null_finding(gains(rng, 2))
    assert known_truth.null_finding(gains(rng, 2, ratio=6.0)).passed is False


def test_a_strategy_that_reads_ahead_fails_on_null_markets(tmp_path, monkeypatch):
    class Ground:
        @staticmethod
        def of(folder, variant, seed, channels):
            return type("Market", (), {"panel": write_panel(folder, noise(1500, 6, seed=seed))})

    monkeypatch.setattr(known_truth, "KnownTruthMarket", Ground)
    tried = {
        name: [known_truth.null_gain(replace(PRODUCT, strategy=rule), tmp_path / f"{name}{s}", s) for s in range(6)]
        for name, rule in (("honest", features_of_today), ("ahead", reads_ahead))
    }
    assert known_truth.null_finding(tried["honest"]).passed
    assert known_truth.null_finding(tried["ahead"]).passed is False


def test_markets_are_a_checkpoints_own_and_always_the_same():
    assert known_truth.seeds_of("aaaa", "null_market", 4) == known_truth.seeds_of("aaaa", "null_market", 8)[:4]
    drawn = [
        known_truth.seeds_of(checkpoint, test, 50)
        for checkpoint in ("aaaa", "bbbb")
        for test in ("null_market", "known_truth")
    ]
    assert len({seed for seeds in drawn for seed in seeds}) == 200


@pytest.mark.slow
def test_who_knows_expected_returns_to_come_beats_the_oracle_of_a_planted_market(tmp_path):
    ground = known_truth.KnownTruthMarket.of(tmp_path, "drift", 1, size=(6, 900))
    setup = PRODUCT.setup(ground.panel)

    class KnowsTheStep:
        name = "knows_the_step"

        def decide(self, view, state):
            session = ground.panel.date_index(view.date)
            closes_T = np.arange(session + 1, min(session + 1 + CONFIG.model.stride, setup.end))
            truth = ground.truth_of(setup, closes_T)
            known = replace(truth, mean_TR=truth.mean_TR.mean(0)[None], covariance_TRR=truth.covariance_TRR.mean(0)[None],
                            present_TR=truth.present_TR.all(0)[None])  # fmt: skip
            return long_only(known.oracle()[0][setup.places(session)])

    shares = [known_truth.fraction(ground, setup, engine.simulate(s, setup)) for s in (KnowsTheStep(), one_over_n())]
    assert known_truth.known_truth_finding(shares[:1]).passed is False
    assert known_truth.known_truth_finding(shares[1:]).passed


class Audit:
    """Audits in a small home, whose tests find what they are given, one test a call."""

    def __init__(self, folder: Path, monkeypatch):
        monkeypatch.setattr(audit.leakage, "raw_rows", lambda *_: None)
        self.settings = Settings(home=folder / "home", compute="local:1").ensure()
        self.warehouse = Warehouse.from_settings(self.settings)
        self.panel, self.checkpoint = write_panel(folder / "panel", noise(60, 2)).folder, folder / "abcd"
        self.checkpoint.mkdir()
        for name in ("config.json", "model.safetensors"):
            (self.checkpoint / name).write_text("{}")
        self.simulated: list[int] = []
        self.monkeypatch = monkeypatch

    def __call__(self, test: str, found=None, seeds: int = 4, who: str = "mppi") -> leakage.AuditFinding:
        def run_test(task):
            if test not in known_truth.MARKETS:
                return audit.finding_of(test, lambda: _given(found))
            self.simulated.append(task.part)
            return gains(np.random.default_rng(task.part), 1)[0]

        self.monkeypatch.setattr(audit, "run_test", run_test)
        scale = {"dates": 1, "seeds": seeds, "symbols": 1, "sessions": 1, "only": (test,)}
        where = (self.warehouse, self.settings, self.checkpoint, self.panel)
        [one] = audit.run_audit(*where, who, "run1", print, **scale)
        return one

    def rows(self, columns: str = "*") -> list[tuple]:
        with self.warehouse.connect() as con:
            return con.execute(f"SELECT {columns} FROM audit_results ORDER BY created_at, rowid").fetchall()


def _given(found):
    if isinstance(found, Exception):
        raise found
    return found


@pytest.fixture
def audits(tmp_path, monkeypatch) -> Audit:
    return Audit(tmp_path, monkeypatch)


def test_a_failure_of_the_data_in_an_audit_of_an_own_strategy_is_stored_for_all_planners(audits, tmp_path):
    (tmp_path / "mine.py").write_text("def decide(view):\n    return None\n")
    spec = f"{tmp_path / 'mine.py'}:decide"
    audits("delay", leakage.AuditFinding("delay", False, 1.0, "x"), who=spec)
    audits("future_invariance", leakage.AuditFinding("future_invariance", False, 1.0, "x", of_data=True), who=spec)
    stored = [("delay", load_strategy(spec).name), ("future_invariance", audit.ALL_PLANNERS)]
    assert audits.rows("test, strategy") == stored


def test_a_luckier_run_does_not_replace_a_failure(audits):
    assert audits("delay", leakage.AuditFinding("delay", True, 0.0, "fades")).passed
    assert audits("delay", leakage.AuditFinding("delay", False, 9.0, "collapses")).passed is False
    standing = audits("delay", leakage.AuditFinding("delay", True, 0.0, "fades again"))
    assert standing.passed is False
    assert audits.rows("passed, finding") == [(True, "fades"), (False, "collapses"), (True, "fades again")]
    assert standing.text == "it failed before, and a failure stands: collapses; since then passed: fades again"
    with audits.warehouse.connect() as con:
        assert audit.audit_of(con, "abcd", "mppi") == {
            "delay": (False, "collapses (it passed later, and a failure stands)")
        }
    audits("delay", leakage.AuditFinding("delay", True, 0.0, "fades again"))
    with audits.warehouse.connect() as con:
        assert len(con.execute("FROM audit_results").fetchall()) == 3, "the same finding is stored once"
        con.execute("UPDATE audit_results SET data_version = 'older'")
    assert audits("delay", leakage.AuditFinding("delay", True, 0.0, "fades")).passed, "the data have changed"


def test_a_test_without_a_verdict_is_neither_passed_nor_failed_and_gives_way(audits):
    few = audits("delay", leakage.NotEnoughDataError("40 sessions are too few"))
    assert (few.passed, status_of(few.passed, few.text)) == (None, "not enough data")
    broken = audits("delay", FinJEPAError("the strategy is gone"))
    assert (broken.passed, status_of(broken.passed, broken.text)) == (None, "not run")
    audits("delay", leakage.AuditFinding("delay", True, 0.0, "fades"))
    audits("delay", leakage.NotEnoughDataError("40 sessions are too few"))
    with audits.warehouse.connect() as con:
        assert audit.audit_of(con, "abcd", "mppi") == {"delay": (True, "fades")}


def test_the_markets_of_an_audit_are_those_of_the_model_wherever_its_home_lies(audits, tmp_path):
    assert "on 4 null markets" in audits("null_market").text
    model = content_hash(audits.checkpoint)
    audits.checkpoint = audits.checkpoint.rename(tmp_path / "elsewhere")
    assert "on 6 null markets" in audits("null_market", seeds=6).text
    assert audits.simulated == known_truth.seeds_of(model, "null_market", 4) + known_truth.seeds_of(
        model, "null_market", 6
    )


@pytest.mark.parametrize(
    ("passed", "text", "severity", "verdict"),
    [
        (True, "sound", "ERROR", "passed"),
        (False, "it reads tomorrow", "ERROR", "failed"),
        (None, "not enough data: 40 sessions are too few", "WARN", "not enough data"),
        (None, "not run: no cluster", "ERROR", "not run"),
    ],
)
def test_not_enough_data_is_a_warning_in_dagster_and_never_passed(passed, text, severity, verdict):
    result = check_result("planner_backtests", "delay", passed, text)
    assert (result.passed, result.severity.name) == (passed is True, severity)
    assert result.metadata["status"].value == verdict


@pytest.mark.parametrize(
    ("found", "failed", "says"),
    [
        (dict.fromkeys(TESTS, "passed"), "none", "All tests passed."),
        ({"delay": "not enough data"}, "none", "No verdict: delay (not enough data)"),
        ({"delay": "not run"}, "delay", "No verdict: delay (not run)"),
        ({"delay": "failed", "fill_lag": "passed"}, "delay", "FAILED"),
    ],
)
def test_the_audit_command_says_what_has_no_verdict(monkeypatch, found, failed, says):
    made = {"failed": failed, "findings": [(test, status, "why") for test, status in found.items()]}
    monkeypatch.setattr(commands, "_run", lambda *_: SimpleNamespace(assets={"leakage_audit": made}))
    done = CliRunner().invoke(cli.main, ["audit"])
    assert says in done.output
    assert ("All tests passed" in done.output) == (len(found) == len(TESTS))
    assert (done.exit_code == 0) == (failed == "none")
