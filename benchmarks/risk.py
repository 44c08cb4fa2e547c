"""Forecasts of risk against the textbook, on symbols and later years that nothing was fitted to; prints the table of targets.

    python -m benchmarks.risk --fit HOME --until 2006-12-31 --test HOME --after 2007-01-01 [--seeds 3] [--record FILE]

HOME is a FINJEPA_HOME that holds a feature panel (`finjepa ingest`, then `finjepa train` or any command that builds one). Symbols
that occur in both homes are fitted to in none; of one and the same home, half of the symbols (by hash) are fitted to and the
others tested. `--validate` scores the fitted symbols in the last two years before `--until` instead, for choices. Every opening
of a test block appends a line to FILE. LightGBM joins where it is installed.
"""

import argparse
import copy
import datetime
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finjepa_model.config import FinJEPAConfig, ModelConfig
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import unseen
from finjepa_model.nn.encoder import ContextEncoder
from finjepa_model.nn.risk import HORIZONS, LOOKBACKS, RiskForecast, RiskHead, RiskInputs, RiskModel
from finjepa_model.training.risk_fit import (
    Chunk,
    Networks,
    RiskBlock,
    fit_risk,
    fit_scale,
    fit_share,
    ground,
    latents_of,
)
from finjepa_model.training.risk_scorecard import (
    Volatility,
    ewma_volatility,
    five_lines,
    fixed_har_volatility,
    history_volatility,
    one_factor_covariance,
    sample_shrinkage,
    score_portfolios,
    score_tails,
    score_volatility,
)
from finjepa_model.training.risk_scores import compare, compare_variance
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.settings import Settings

MONTH = HORIZONS.index(21)


def config_of(panel: Panel, window: int, patch: int, dim: int) -> FinJEPAConfig:
    model = ModelConfig(
        channels=panel.channels, market_channels=panel.market_channels, window=window, patch=patch, dim=dim, heads=4
    )
    return FinJEPAConfig(model=model)


def open_panel(home: str) -> Panel:
    return Panel.open(current_panel(Settings(home=Path(home).absolute())))


def train(
    blocks: Sequence[RiskBlock], config: FinJEPAConfig, seeds: int, steps: int, factors: int, frozen: bool = False
) -> tuple[Networks, list[list[RiskBlock]], list[torch.nn.Module]]:
    """An ensemble of encoders and heads, each without a third of the symbols (or fewer, in a larger one); those; the modules.

    Args:
        frozen: leave the encoders as they are born.
    """
    latents, heads, held_out, modules = [], [], [], []
    folds = max(seeds, 3)
    for seed in range(seeds):
        torch.manual_seed(seed)
        encoder, head = ContextEncoder(config.model), RiskHead(config.model.dim, factors)
        encoder.requires_grad_(not frozen)
        inside, outside = [], []
        for block in blocks:
            fold_A = np.array([zlib.crc32(symbol.encode()) % folds == seed for symbol in block.panel.assets])
            allowed_A = np.ones_like(fold_A) if block.allowed_A is None else block.allowed_A
            inside.append(replace(block, allowed_A=allowed_A & ~fold_A))
            outside.append(replace(block, allowed_A=allowed_A & fold_A))
        if steps:
            ground(encoder, head, inside, config, steps, seed=seed)
        latents.append(latents_of(encoder.eval()))
        heads.append(head.eval())
        modules += [encoder, head]
        held_out.append(outside)
    return Networks(latents, heads), held_out, modules


def har_with_market(blocks: Sequence[RiskBlock], config: FinJEPAConfig) -> Volatility:
    """Corsi (2009) with the market, by least squares on all rows, unbiased for the variance."""
    x_RJ, y_RV = rows_of(blocks, config, har_inputs)
    weights_JV = np.linalg.lstsq(x_RJ, y_RV, rcond=None)[0]
    weights_JV[-1] += 0.5 * np.log(np.exp(2 * (y_RV - x_RJ @ weights_JV)).mean(0))
    weights = torch.from_numpy(weights_JV).float()
    return lambda chunk: har_inputs(chunk) @ weights


def har_inputs(chunk: Chunk) -> Tensor:
    inputs = RiskInputs.of(chunk.observation)
    own_BNK = inputs.simple_BNZ[..., : len(LOOKBACKS)]
    market_BNK = inputs.market_BK.unsqueeze(1).expand_as(own_BNK)
    return torch.cat([own_BNK, market_BNK, torch.ones_like(own_BNK[..., :1])], dim=-1)


def relative_inputs(chunk: Chunk) -> Tensor:
    return RiskInputs.of(chunk.observation).relative()


def rows_of(
    blocks: Sequence[RiskBlock], config: FinJEPAConfig, inputs: Callable[[Chunk], Tensor], every: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """float64 inputs_RJ and target_RV of all pairs of every second session."""
    found: list[list[Tensor]] = [[], []]
    for block in blocks:
        for chunk in block.chunks(config, every):
            known_BN = chunk.target_BNV.isfinite().all(-1)
            found[0].append(inputs(chunk)[known_BN])
            found[1].append(chunk.target_BNV[known_BN])
    return torch.cat(found[0]).double().numpy(), torch.cat(found[1]).double().numpy()


def boosted(blocks: Sequence[RiskBlock], config: FinJEPAConfig, linear: RiskModel) -> Volatility | None:
    """LightGBM on the same inputs, of what the linear branch leaves of the distance; the level is the linear model's."""
    try:
        import lightgbm
    except ImportError:
        return None

    def inputs(chunk: Chunk) -> Tensor:
        return torch.cat([relative_inputs(chunk), linear.log_volatility(RiskInputs.of(chunk.observation))], dim=-1)

    x_RJ, y_RV = rows_of(blocks, config, inputs)
    settings = {"num_leaves": 15, "learning_rate": 0.05, "min_child_samples": 500, "n_jobs": 1, "verbose": -1}
    trees = [
        lightgbm.LGBMRegressor(n_estimators=150, **settings).fit(x_RJ, y_RV[:, v] - x_RJ[:, v - len(HORIZONS)])
        for v in range(len(HORIZONS))
    ]

    def forecast(chunk: Chunk) -> Tensor:
        x_BNJ = inputs(chunk)
        flat = x_BNJ.flatten(0, 1).double().numpy()
        added = np.stack([tree.predict(flat) for tree in trees], -1).reshape(*x_BNJ.shape[:2], -1)
        return x_BNJ[..., -len(HORIZONS) :] + torch.from_numpy(added).float()

    return forecast


def garch(block: RiskBlock) -> Volatility:
    """GARCH(1,1) of each asset (arch), fitted to its sessions before the block, or to its first 252; then filtered."""
    from arch import arch_model

    panel, found = block.panel, {}

    def of(asset: int) -> tuple[np.ndarray, np.ndarray]:
        first, rows = int(panel.first[asset]), slice(panel.offsets[asset], panel.offsets[asset] + panel.lengths[asset])
        returns_D = 100 * panel.returns[rows].astype(np.float64)
        learned = returns_D[: max(block.first - first, 252)]
        try:
            fitted = (
                arch_model(learned, mean="Zero", rescale=False).fit(disp="off", show_warning=False).params.to_numpy()
            )
        except (ValueError, np.linalg.LinAlgError):
            fitted = np.array([0.06 * learned.var(), 0.06, 0.88])
        omega, alpha, beta = fitted
        if alpha + beta >= 0.999:
            omega, alpha, beta = 0.01 * learned.var(), 0.06, 0.93
        variance_D, now = np.empty(len(returns_D)), learned.var()
        for d, value in enumerate(returns_D):
            now = omega + alpha * value**2 + beta * now  # of the session that follows
            variance_D[d] = now
        mean, pace = omega / (1 - alpha - beta), alpha + beta
        over = [mean + (variance_D - mean) * (1 - pace**h) / (1 - pace) / h for h in HORIZONS]
        return np.stack(over, -1), np.array(first)

    def forecast(chunk: Chunk) -> Tensor:
        out = np.zeros((*chunk.assets_BN.shape, len(HORIZONS)))
        for b, date in enumerate(chunk.dates_B):
            for n, asset in enumerate(chunk.assets_BN[b]):
                if asset >= 0:
                    if asset not in found:
                        found[asset] = of(int(asset))
                    out[b, n] = found[asset][0][date - int(found[asset][1])]
        return torch.from_numpy(0.5 * np.log(np.maximum(out * 1e-4, 1e-8))).float()

    return forecast


def unbiased(forecast: Volatility, blocks: Sequence[RiskBlock], config: FinJEPAConfig) -> Volatility:
    """A forecast moved so that its variance is unbiased on the rows that others are fitted to."""
    f_RV, y_RV = rows_of(blocks, config, forecast, every=10)
    shift_V = torch.from_numpy(0.5 * np.log(np.exp(2 * (y_RV - f_RV)).mean(0))).float()
    return lambda chunk: forecast(chunk) + shift_V


def scaled(correlation: Callable[[Chunk], Tensor], volatility: Volatility) -> Callable[[Chunk], Tensor]:
    """D C D over 21 sessions."""

    def forecast(chunk: Chunk) -> Tensor:
        volatility_BN = volatility(chunk)[..., MONTH].double().exp()
        return volatility_BN.unsqueeze(-1) * correlation(chunk).double() * volatility_BN.unsqueeze(-2)

    return forecast


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", nargs="+", required=True, help="homes")
    parser.add_argument("--test", required=True, help="home")
    parser.add_argument("--until", required=True, help="last session that is fitted to")
    parser.add_argument("--after", help="first session of the test block")
    parser.add_argument("--before", help="session at which the test block ends")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--exclude", nargs="*", default=[], help="homes whose symbols are fitted to in none")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--factors", type=int, default=0)
    parser.add_argument("--window", type=int, default=64)
    parser.add_argument("--patch", type=int, default=8)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--assets", type=int, default=50)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="no GARCH, LightGBM, untrained encoder or tails")
    parser.add_argument("--keep", help="file of what was fitted: read where it exists, else written")
    parser.add_argument("--fit-only", action="store_true", help="stop before anything is scored")
    parser.add_argument("--record", help="file that counts openings of test blocks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()

    tested = open_panel(options.test)
    kept_out = {symbol for home in [options.test, *options.exclude] for symbol in open_panel(home).assets}
    blocks = []
    for home in options.fit:
        panel = open_panel(home)
        own = Path(home).absolute() == Path(options.test).absolute()
        others = {symbol for name in options.exclude for symbol in open_panel(name).assets} if own else kept_out
        fitted_A = np.array([symbol not in others and not unseen(symbol, 0.5) for symbol in panel.assets])
        stop = panel.date_index(options.until) + 1
        middle = stop - 504
        blocks.append(RiskBlock(panel, 0, stop if not options.validate else middle, fitted_A))
        if own and options.validate:
            target = RiskBlock(panel, middle, stop, fitted_A)
    if not options.validate:
        symbols_A = None
        if any(Path(home).absolute() == Path(options.test).absolute() for home in options.fit):
            symbols_A = np.array([unseen(symbol, 0.5) for symbol in tested.assets])
        last = tested.date_index(options.before) if options.before else len(tested.dates)
        target = RiskBlock(tested, tested.date_index(options.after) + 1, last, symbols_A)
    config = config_of(blocks[0].panel, options.window, options.patch, options.dim)

    kept = Path(options.keep) if options.keep else None
    steps = 0 if kept is not None and kept.exists() else options.steps
    networks, held_out, modules = train(blocks, config, options.seeds, steps, options.factors)
    print(f"{options.seeds} networks trained: {time.perf_counter() - began:.0f} s", flush=True)
    channels = len(config.model.channels)
    risk = RiskModel(channels, factors=options.factors * options.seeds)
    linear = copy.deepcopy(risk)
    modules = torch.nn.ModuleList([*modules, risk, linear])
    if kept is not None and kept.exists():
        modules.load_state_dict(torch.load(kept))
    else:
        report = fit_risk(risk, blocks, config, networks, held_out)
        linear.load_state_dict(risk.state_dict())
        linear.share_V.zero_()
        fit_scale(linear, Networks(), blocks, config)
        print({name: round(value, 3) for name, value in report.items()})
        if kept is not None:
            torch.save(modules.state_dict(), kept)
    if options.fit_only:
        return
    if options.record and not options.validate:
        with Path(options.record).open("a") as record:
            record.write(f"{datetime.datetime.now():%F %T} {vars(options)}\n")
    print(f"fitted: {time.perf_counter() - began:.0f} s", flush=True)

    last: list[tuple[Chunk, RiskForecast]] = []

    def forecast(chunk: Chunk) -> RiskForecast:
        """Several rows of the tables ask for the same one."""
        if not last or last[0][0] is not chunk:
            last[:] = [(chunk, risk.forecast(chunk.observation, *networks.read(chunk.observation)))]
        return last[0][1]

    def model(chunk: Chunk) -> Tensor:
        return risk.log_volatility(RiskInputs.of(chunk.observation), networks.read(chunk.observation)[0])

    har = har_with_market(blocks, config)
    volatilities: dict[str, Volatility] = {
        "model": model,
        "linear branch": lambda chunk: linear.log_volatility(RiskInputs.of(chunk.observation)),
        "HAR with market": har,
        "fixed HAR": unbiased(fixed_har_volatility, blocks, config),
        "EWMA .94": unbiased(ewma_volatility, blocks, config),
        "20-day history": unbiased(history_volatility, blocks, config),
    }
    if not options.quick:
        volatilities["GARCH(1,1)"] = garch(target)
        if (trees := boosted(blocks, config, linear)) is not None:
            volatilities["LightGBM"] = trees
        born, born_out, _ = train(blocks, config, 1, options.steps, 0, frozen=True)
        random = copy.deepcopy(linear)
        fit_share(random, born, born_out, config)
        volatilities["untrained encoder"] = lambda chunk: random.log_volatility(
            RiskInputs.of(chunk.observation), born.read(chunk.observation)[0]
        )
    print_volatility(score_volatility(target, config, volatilities))
    print(f"{time.perf_counter() - began:.0f} s", flush=True)

    def correlation(chunk: Chunk) -> Tensor:
        return forecast(chunk).correlation_BNN

    covariances = {
        "model": lambda chunk: forecast(chunk).covariance(),
        "C with linear branch": scaled(correlation, volatilities["linear branch"]),
        "C with HAR": scaled(correlation, har),
        "five lines": five_lines,
        "Ledoit-Wolf": sample_shrinkage,
        "non-linear shrinkage": lambda chunk: sample_shrinkage(chunk, nonlinear=True),
        "one factor, EWMA (eb751c4)": one_factor_covariance,
    }
    scores = score_portfolios(target, config, covariances, options.assets, options.draws)
    print_portfolios(scores)
    print(f"{time.perf_counter() - began:.0f} s", flush=True)
    tails = {} if options.quick else score_tails(target, config, forecast)
    for (kind, horizon), row in sorted(tails.items()):
        print(f"{kind}, {horizon} sessions: CRPS {100 * row.crps:.3f} %,", end=" ")
        print(f"VaR 5 %: Kupiec p {row.kupiec:.2f}, Christoffersen p {row.christoffersen:.2f}", end=" ")
        print(f"PIT {np.round(row.pit, 3).tolist()}")
        for share, value in row.coverage.items():
            years, halves = (100 * np.array(x[share]) for x in (row.by_year, row.calm_stormy))
            print(
                f"  {share:.0%} covers {100 * value:.1f}; years {years.round(1)}; calm, stormy {halves.round(1)}",
                flush=True,
            )
    print(f"{time.perf_counter() - began:.0f} s")


def print_volatility(scores: dict) -> None:
    print("\nR2 within a date over 5, 21, 63 sessions; over 21: QLIKE and utility of volatility targeting, % a year")
    print("(model less the row: t by Diebold-Mariano, Newey-West over dates)")
    ours = scores["model"][MONTH]
    for name, rows in scores.items():
        row = rows[MONTH]
        parts = [compare(getattr(ours, key), getattr(row, key), lag=5) for key in ("squared_D", "qlike_D", "utility_D")]
        print(
            f"  {name:20s} R2 {rows[0].r2:.3f} {row.r2:.3f} {rows[2].r2:.3f} (t {-parts[0].t_value:5.1f})"
            f"  QLIKE {row.qlike_D.mean():.4f} (t {-parts[1].t_value:5.1f})"
            f"  utility {row.utility_D.mean():.3f} ({parts[2].difference:+.3f}, t {parts[2].t_value:5.1f})"
        )


def print_portfolios(scores: dict) -> None:
    print("\nRealised volatility of portfolios of least variance, % a year; QLIKE of the variance of random portfolios")
    ours = scores["model"]
    for name, row in scores.items():
        free = compare_variance(ours.unconstrained_D, row.unconstrained_D, lag=1)
        long_ = compare_variance(ours.long_only_D, row.long_only_D, lag=1)
        loss = compare(ours.qlike_D, row.qlike_D, lag=1)
        print(
            f"  {name:28s} unconstrained {row.volatility(False):6.2f} ({100 * free.difference:+5.1f} %, t {free.t_value:5.1f})"
            f"  long-only {row.volatility(True):6.2f} ({100 * long_.difference:+5.1f} %, t {long_.t_value:5.1f})"
            f"  QLIKE {row.qlike_D.mean():.3f} (t {-loss.t_value:5.1f})"
        )
    print(f"  {len(ours.qlike_D)} dates")


if __name__ == "__main__":
    main()
