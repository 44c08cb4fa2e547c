"""Forecasts of risk against the textbook, on symbols and later years that nothing was fitted to; prints the table of targets.

    python -m benchmarks.risk --fit HOME --until 2012-12-31 --test HOME --keep FOLDER [--after DATE] [--before DATE]
        [--exclude HOME ...] [--beside HOME ...] [--set key=value ...] [--variant NAME:key=value,... ...] [--seeds 3]
        [--record FILE]

HOME is a FINJEPA_HOME that holds a feature panel (any `finjepa train` builds one). The product's own trainer trains `--preset`
(default tiny) on the sessions of --fit up to --until, on half of the symbols by their hash, and never on one that occurs in the
home of --test, if that is another one, or in those of --exclude; of one and the same home the other half is tested. The last
fifth of these sessions is the validation block. `--variant` trains the same with other settings, for the worth of a part;
`--beside` adds a variant `pooled` that learns from those homes too, up to the last training day. Checkpoints are kept in --keep
and found there again. `--validate` scores the validation block instead, for choices. Every opening of a test block appends a
line to FILE. LightGBM joins where it is installed. In brackets: t of the model's advantage (Diebold and Mariano, Newey-West over
dates), positive where the model is better.
"""

import argparse
import datetime
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from finjepa_model import FinJEPA
from finjepa_model.config import FinJEPAConfig, preset
from finjepa_model.data.batches import Observation
from finjepa_model.data.panel import Panel
from finjepa_model.data.splits import split_dates, unseen
from finjepa_model.nn.risk import HORIZONS, RETURN_HORIZONS, RiskForecast, RiskInputs
from finjepa_model.training.risk_fit import Chunk, RiskBlock
from finjepa_model.training.risk_scorecard import (
    score_portfolios,
    score_steps,
    score_tails,
    score_volatility,
    volatility_of,
)
from finjepa_model.training.risk_scores import compare, compare_variance, r2_within_dates, within_dates
from finjepa_model.training.textbook import (
    Volatility,
    ewma_distribution,
    ewma_one_factor,
    ewma_volatility,
    fit_har,
    fixed_har_volatility,
    har_volatility,
    har_with_shrunk_correlations,
    history_distribution,
    history_volatility,
    rows_of,
    sample_shrinkage,
)
from finjepa_model.training.trainer import Trainer
from finjepa_pipeline.features import current_panel
from finjepa_pipeline.settings import Settings
from finjepa_pipeline.training.checkpoints import for_panel

MONTH = HORIZONS.index(21)


def open_panel(home: str) -> Panel:
    return Panel.open(current_panel(Settings(home=Path(home).absolute())))


def without(panel: Panel, symbols: set[str], folder: Path) -> Panel:
    """A copy of a panel in which these symbols are never in the universe."""
    shutil.copytree(panel.folder, folder)
    eligible = np.array(panel.eligible)
    for asset, symbol in enumerate(panel.assets):
        if symbol in symbols:
            eligible[panel.offsets[asset] : panel.offsets[asset] + panel.lengths[asset]] = False
    np.save(folder / "eligible.npy", eligible)
    return Panel.open(folder)


def config_for(panel: Panel, until: str, name: str, assignments: Sequence[str]) -> FinJEPAConfig:
    share = (panel.date_index(until) + 1) / len(panel.dates)
    half = {"training.unseen_symbols": "0.5", "training.train_share": f"{0.8 * share:.5f}"}
    half["training.validation_share"] = f"{0.2 * share - 1e-5:.5f}"
    return for_panel(preset(name).override(half | dict(part.split("=", 1) for part in assignments)), panel)


def trained(panel: Panel, config: FinJEPAConfig, folder: Path) -> FinJEPA:
    """The model of a config, from its folder or trained now."""
    if not (folder / "model.safetensors").exists():
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as run:
            trainer = Trainer(config, panel, Path(run))
            metrics = trainer.train()
            trainer.model.save_pretrained(folder)
        skills = {name: round(value, 3) for name, value in metrics["diagnostics"].items() if name.startswith("rollout")}
        shares = {name: round(value, 2) for name, value in metrics["risk"].items() if name.startswith("share")}
        print(
            f"{folder.name}: {time.perf_counter() - began:.0f} s, {metrics['risk']['rows']:.0f} rows, {shares}, {skills}"
        )
    return FinJEPA.from_pretrained(folder)


def representation(model: FinJEPA, fitted: RiskBlock, target: RiskBlock) -> float:
    """R2 within a date of a ridge regression of log volatility over 21 sessions on the latents alone."""
    encoder = model.encoder.eval()

    def encode(seen: Observation) -> Tensor:
        last = seen.features_BSNTF[:, -1], seen.observed_BSNT[:, -1], seen.market_BSTQ[:, -1]
        return encoder(*last, seen.present_BN)[0]

    def rows(block: RiskBlock) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        with torch.no_grad():
            for chunk in block.chunks(model.config, every=5):
                known_BN = chunk.target_BNV.isfinite().all(-1)
                date_R = np.repeat(chunk.dates_B, known_BN.sum(-1).numpy())
                latents_RD = encode(chunk.observation)[known_BN].double().numpy()
                found.append((latents_RD, chunk.target_BNV[known_BN][:, MONTH].double().numpy(), date_R))
        x_RD, y_R, date_R = (np.concatenate(part) for part in zip(*found, strict=True))
        return np.stack([within_dates(x_R, date_R) for x_R in x_RD.T], axis=1), y_R, date_R

    x_RD, y_R, date_R = rows(fitted)
    gram_DD = x_RD.T @ x_RD
    ridge_DD = gram_DD + 1e-3 * len(x_RD) * np.diag(x_RD.var(0) + 1e-9)
    weights_D = np.linalg.solve(ridge_DD, x_RD.T @ within_dates(y_R, date_R))
    x_RD, y_R, date_R = rows(target)
    return r2_within_dates(y_R, x_RD @ weights_D, date_R)


def closes_alone(chunk: Chunk, panel: Panel) -> Chunk:
    """Without the channels that need more than closes, as a frame of closes gives them; the panel's channels are the model's."""
    known_F = torch.tensor([set(channel["needs"]) <= {"close"} for channel in panel.manifest["channels"]])
    seen = replace(chunk.observation, features_BSNTF=chunk.observation.features_BSNTF * known_F)
    return replace(chunk, observation=seen)


def relative_inputs(chunk: Chunk) -> Tensor:
    return RiskInputs.of(chunk.observation).relative()


def all_rows(
    blocks: Sequence[RiskBlock], config: FinJEPAConfig, inputs: Callable[[Chunk], Tensor], every: int = 2
) -> tuple[np.ndarray, np.ndarray]:
    """`rows_of` several blocks."""
    parts = zip(*(rows_of(block, config, inputs, every) for block in blocks), strict=True)
    x_RJ, y_RV = (torch.cat(part).numpy() for part in parts)
    return x_RJ, y_RV


def boosted(blocks: Sequence[RiskBlock], config: FinJEPAConfig, model: FinJEPA) -> Volatility | None:
    """LightGBM on the same inputs, of what the linear branch leaves of the distance; the level is the linear model's."""
    try:
        import lightgbm
    except ImportError:
        return None

    def inputs(chunk: Chunk) -> Tensor:
        return torch.cat([relative_inputs(chunk), model.risk.log_volatility(RiskInputs.of(chunk.observation))], dim=-1)

    x_RJ, y_RV = all_rows(blocks, config, inputs)
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
        if alpha + beta >= 0.995 or alpha > 0.3:  # no fit of a volatility that comes back to a mean
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
    f_RV, y_RV = all_rows(blocks, config, forecast, every=10)
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
    parser.add_argument("--fit", required=True, help="home")
    parser.add_argument("--test", required=True, help="home")
    parser.add_argument("--until", required=True, help="last session that is fitted to")
    parser.add_argument(
        "--after", help="the test block begins after this session; the first one with history by default"
    )
    parser.add_argument("--before", help="session at which the test block ends")
    parser.add_argument("--validate", action="store_true")
    parser.add_argument("--exclude", nargs="*", default=[], help="homes whose symbols are fitted to in none")
    parser.add_argument("--beside", nargs="*", default=[], help="homes that a further variant learns from too")
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--variant", nargs="*", default=[], metavar="NAME:KEY=VALUE,...")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--assets", type=int, default=50)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--keep", required=True, help="folder of checkpoints")
    parser.add_argument("--train-only", action="store_true", help="stop before anything is scored")
    parser.add_argument("--record", help="file that counts openings of test blocks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, keep = time.perf_counter(), Path(options.keep)

    same = Path(options.fit).absolute() == Path(options.test).absolute()
    apart = [*options.exclude] if same else [options.test, *options.exclude]
    banned = {symbol for home in apart for symbol in open_panel(home).assets}
    with tempfile.TemporaryDirectory() as scratch:
        panel = without(open_panel(options.fit), banned, Path(scratch) / "panel")
        beside = [without(one, banned, Path(scratch) / one.content_hash) for one in map(open_panel, options.beside)]
        plain = config_for(panel, options.until, options.preset, options.set)
        models, variants = {}, {}
        for seed in range(options.seeds):
            config = replace(plain, training=replace(plain.training, seed=seed))
            models[f"seed {seed}"] = trained(panel, config, keep / f"seed-{seed}")
        changed = {name: settings.split(",") for name, _, settings in (one.partition(":") for one in options.variant)}
        if beside:
            changed["pooled"] = [f"training.panels={','.join(one.folder.name for one in beside)}"]
        for name, settings in changed.items():
            config = config_for(panel, options.until, options.preset, [*options.set, *settings])
            variants[name] = trained(panel, config, keep / name.replace(" ", "-"))
        if options.train_only:
            return
        seen_A = np.array([not unseen(symbol, 0.5) for symbol in panel.assets])
        splits = split_dates(len(panel.dates), plain)
        fitted = RiskBlock(panel, *splits.train, seen_A)
        if options.validate:
            target = RiskBlock(panel, *splits.validation, seen_A)
        else:
            tested = panel if same else open_panel(options.test)
            first = tested.date_index(options.after) + 1 if options.after else 0
            last = tested.date_index(options.before) if options.before else len(tested.dates)
            target = RiskBlock(tested, first, last, ~seen_A if same else None)
            if options.record:
                with Path(options.record).open("a") as record:
                    record.write(f"{datetime.datetime.now():%F %T} {vars(options)}\n")
        report(models, variants, fitted, target, options)
    print(f"{time.perf_counter() - began:.0f} s")


def report(
    models: dict[str, FinJEPA], variants: dict[str, FinJEPA], fitted: RiskBlock, target: RiskBlock, options
) -> None:
    [(_, model), *others] = models.items()
    config = model.config
    index = target.index()
    print(f"\n{len(index)} sessions, {np.diff(index.starts).mean():.0f} assets a session; the model is seed 0")
    har = har_volatility(fit_har(fitted, config))
    linear: Volatility = lambda chunk: model.risk.log_volatility(RiskInputs.of(chunk.observation))  # noqa: E731
    volatilities: dict[str, Volatility] = {"model": volatility_of(model)}
    volatilities |= {name: volatility_of(other) for name, other in others}
    volatilities |= {
        "mean of the seeds": lambda chunk: torch.stack([volatility_of(one)(chunk) for one in models.values()]).mean(0)
    }
    volatilities |= {name: volatility_of(other) for name, other in variants.items()}
    volatilities |= {
        "on closes alone": lambda chunk: volatility_of(model)(closes_alone(chunk, fitted.panel)),
        "without network": linear,
        "HAR with market": har,
        "fixed HAR": unbiased(fixed_har_volatility, [fitted], config),
        "EWMA .94": unbiased(ewma_volatility, [fitted], config),
        "20-day history": unbiased(history_volatility, [fitted], config),
        "GARCH(1,1)": garch(target),
    }
    if (trees := boosted([fitted], config, model)) is not None:
        volatilities["LightGBM"] = trees
    print_volatility(score_volatility(target, config, volatilities))

    torch.manual_seed(0)
    named = {"untrained": FinJEPA(config), **models, **variants}
    latents = {name: representation(one, fitted, target) for name, one in named.items()}
    print("\nLatents alone, ridge, R2 within a date over 21 sessions: ", end="")
    print(", ".join(f"{name} {value:.3f}" for name, value in latents.items()), flush=True)

    last: list[tuple[Chunk, RiskForecast]] = []

    def forecast(chunk: Chunk) -> RiskForecast:
        """Several rows of the tables ask for the same one."""
        if not last or last[0][0] is not chunk:
            last[:] = [(chunk, model.forecast_risk(chunk.observation))]
        return last[0][1]

    def correlation(chunk: Chunk) -> Tensor:
        return forecast(chunk).correlation_BNN

    covariances = {
        "model": lambda chunk: forecast(chunk).covariance(),
        "C without network": scaled(correlation, linear),
        "C with HAR": scaled(correlation, har),
        "fixed HAR, one-factor shrinkage": har_with_shrunk_correlations,
        "Ledoit-Wolf": sample_shrinkage,
        "non-linear shrinkage": lambda chunk: sample_shrinkage(chunk, nonlinear=True),
        "one factor, EWMA (eb751c4)": ewma_one_factor,
    }
    print_portfolios(score_portfolios(target, config, covariances, options.assets, options.draws))
    print("\nTerm structure of random portfolios, by decision step: realised over forecast variance; QLIKE")
    for score, sessions, name, value, t_value in score_steps(model, target):
        print(f"  {sessions:3d} sessions, {score}, {name}: {value:.4f} (t {t_value:.1f})")
    distributions = {"model": forecast, "EWMA .94": ewma_distribution, "20-day history": history_distribution}
    tails = score_tails(target, config, distributions)
    print("\nIntervals: % covered (lowest and highest year; calm and stormy half); CRPS, %")
    for key in [(kind, horizon) for kind in ("assets", "portfolios") for horizon in RETURN_HORIZONS]:
        ours = tails["model"][key]
        for name, of_name in tails.items():
            row = of_name[key]
            parts = []
            for share, value in row.coverage.items():
                years, halves = (100 * np.array(x[share]) for x in (row.by_year, row.calm_stormy))
                parts.append(
                    f"{100 * share:.0f}: {100 * value:.1f} ({years[0]:.1f}-{years[1]:.1f}; {halves[0]:.1f}, {halves[1]:.1f})"
                )
            better = -compare(ours.crps_D, row.crps_D, lag=-(-key[1] // 5)).t_value
            print(f"  {key[0]}, {key[1]:2d} sessions, {name:15s} {', '.join(parts)}; ", end="")
            print(f"CRPS {100 * row.crps_D.mean():.4f} (t {better:.1f}); Kupiec p {row.kupiec:.2f}, ", end="")
            print(f"Christoffersen p {row.christoffersen:.2f}", flush=True)


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
