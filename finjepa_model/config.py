"""Typed, frozen configs with a strict JSON round trip: the one place for every default.

`FinJEPAConfig` is what a checkpoint's `config.json` holds. An unknown key, a wrong type or an impossible value raises
`FinJEPAError` that names the key.
"""

import dataclasses
import itertools
import json
import types
import typing
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar

from finjepa_model.errors import FinJEPAError

Recipe = Literal["ema", "sigreg", "both", "vicreg"]
ConfigT = TypeVar("ConfigT")


def _require(condition: bool, key: str, rule: str) -> None:
    if not condition:
        raise FinJEPAError(f"config key {key} {rule}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shapes of the world model.

    A decision step is `stride` sessions long; at each step an asset is seen through the `window` sessions that end there.
    """

    channels: tuple[str, ...] = ()  # names of the panel's channels, in order; filled in from the panel
    market_channels: tuple[str, ...] = ()  # the same of the market's context
    window: int = 64  # T, sessions in an observation
    patch: int = 8  # sessions in a patch; divides `window`
    stride: int = 5  # sessions from one decision to the next
    context_steps: int = 3  # W, decision steps that the predictor sees
    dim: int = 64  # D, width of every latent
    heads: int = 4
    time_layers: int = 2  # encoder: attention over the patches of an asset
    asset_layers: int = 1  # encoder: attention over assets
    predictor_layers: int = 3
    mlp_ratio: float = 4.0
    adaln_init: Literal["zero", "normal"] = "normal"
    adaln_std: float = 0.02  # standard deviation of the AdaLN weights when `adaln_init` is "normal"

    def __post_init__(self) -> None:
        _require(self.window % self.patch == 0, "model.patch", f"must divide model.window={self.window}")
        _require(self.dim % (2 * self.heads) == 0, "model.dim", "must be a multiple of 2 * model.heads (rotary pairs)")
        for name in ("window", "patch", "stride", "context_steps", "dim", "heads", "predictor_layers"):
            _require(getattr(self, name) >= 1, f"model.{name}", "must be at least 1")

    @property
    def patches(self) -> int:
        return self.window // self.patch


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the training objective (design: prediction + masked patches + collapse prevention + inverse dynamics)."""

    recipe: Recipe = (
        "sigreg"  # its roll-outs beat no change, those of a slow teacher do not (docs/results/world-model.md)
    )
    rollout_steps: int = 2  # K, autoregressive steps
    truncate_rollout: bool = True  # no gradient from one rollout step into the one before (TBPTT-1, JEPA-WMs)
    mask_ratio: float = 0.7  # TS-JEPA
    masked_patch: float = 1.0
    prediction: float = 1.0
    rollout: float = 1.0
    # SIGReg is divided by the number of samples, so this weight means the same at every batch size. Ten (EB-JEPA, LeWM at its
    # batch of 128) fills the width with noise, 0.3 loses factors (docs/results/world-model.md)
    sigreg: float = 1.0
    sigreg_slices: int = 256
    inverse_dynamics: float = 1.0
    variance: float = 1.0  # EB-JEPA, on portfolio latents
    covariance: float = 0.04
    latent_variance: float = 16.0  # EB-JEPA, on market latents, recipe `vicreg` only
    latent_covariance: float = 8.0
    temporal_similarity: float = 12.0
    heads: float = 0.1  # on detached latents: teaches the read-outs, never the encoder
    ema_start: float = 0.996  # momentum of the teacher at the first step ...
    ema_end: float = 1.0  # ... and at the last one; linear between them (I-JEPA; TS-JEPA ends near 0.9996)

    def __post_init__(self) -> None:
        _require(self.rollout_steps >= 1, "loss.rollout_steps", "must be at least 1")
        _require(0 < self.mask_ratio < 1, "loss.mask_ratio", "must lie between 0 and 1")
        _require(
            0 <= self.ema_start <= self.ema_end <= 1, "loss.ema_start", "must satisfy 0 <= ema_start <= ema_end <= 1"
        )


@dataclass(frozen=True, kw_only=True)
class PortfolioConfig:
    """Rules and prices of trading. Rates are per year, costs are one-way in basis points of the traded value.

    Tiers of liquidity and impact apply where the trailing dollar volume is known; without it an asset is in tier 0.
    """

    cost_bps: float = 10.0  # commission and half-spread of an asset of tier 0
    hedge_cost_bps: float = 2.0  # the same for the market proxy
    tier_dollar_volume: tuple[float, ...] = (5e7, 5e6)  # dollars a day, descending: below each begins a tier
    tier_spread_bps: tuple[float, ...] = (0.0, 5.0, 25.0)  # half-spread beyond cost_bps, by tier
    impact: float = 0.1  # of an order for a whole day's volume, in units of the day's volatility; goes with its root
    capital: float = 1e6  # dollars that wealth 1 stands for, for impact
    borrow_rate: float = 0.005  # paid on the value that is held short in tier 0 and in the market proxy
    tier_borrow_rate: tuple[float, ...] = (0.0, 0.025, 0.095)  # beyond borrow_rate, by tier
    cash_rate: float = 0.0
    short_rebate: float = 0.0  # earned on the proceeds of short sales, in place of cash_rate
    margin_spread: float = 0.015  # paid over cash_rate on borrowed cash
    sessions_per_year: int = 252
    allow_short: bool = False
    allow_hedge: bool = True
    max_weight: float = 1.0
    max_gross: float = 1.0  # gross exposure in assets of an action with no flat signal, share of wealth

    def __post_init__(self) -> None:
        for name in ("cost_bps", "hedge_cost_bps", "borrow_rate", "impact", "margin_spread"):
            _require(getattr(self, name) >= 0, f"portfolio.{name}", "must not be negative")
        _require(self.cost_bps < 5000, "portfolio.cost_bps", "must be below 5000")
        _require(self.capital > 0, "portfolio.capital", "must be positive")
        _require(0 < self.max_weight <= 1, "portfolio.max_weight", "must lie in (0, 1]")
        _require(0 < self.max_gross <= 10, "portfolio.max_gross", "must lie in (0, 10]")
        bounds = self.tier_dollar_volume
        _require(
            all(high > low for high, low in itertools.pairwise((*bounds, 0.0))),
            "portfolio.tier_dollar_volume",
            "must be positive and descend",
        )
        for name in ("tier_spread_bps", "tier_borrow_rate"):
            values = getattr(self, name)
            _require(
                len(values) == len(bounds) + 1 and min(values) >= 0,
                f"portfolio.{name}",
                f"must have {len(bounds) + 1} values that are not negative, one more than portfolio.tier_dollar_volume",
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The trainer. `epochs` passes over `steps_per_epoch` batches, each of `batch_size` decision dates and `n_assets` assets."""

    seed: int = 0
    batch_size: int = 64  # over all ranks
    n_assets: int = 8
    epochs: int = 10
    steps_per_epoch: int = 100
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 50
    gradient_clip: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluate_batches: int = 8
    # parts that a batch is divided into, one after the other, to save memory: the gradient is that of the whole batch but for
    # statistics over samples (SIGReg, variance, covariance), which see one part
    accumulate: int = 1
    compile: bool = False  # torch.compile of the transformer blocks
    deterministic: bool = False  # refuse operations that are not (on a GPU some are not; the CPU always repeats itself)
    patience: int = 0  # stop after this many evaluations without a better one; 0 for never
    checkpoint_every: int = 200  # steps between two saves of everything that resuming needs
    log_every: int = 20
    train_share: float = 0.7  # of the sessions, in time order; then validation, then test
    validation_share: float = 0.15
    train_from: float = 0.0  # share of the sessions before the training block begins, for rolling windows
    unseen_symbols: float = 0.0  # share of the symbols, by their hash, that training never sees

    def __post_init__(self) -> None:
        for name in (
            "batch_size", "n_assets", "epochs", "steps_per_epoch", "accumulate", "evaluate_batches", "checkpoint_every",
            "log_every",
        ):  # fmt: skip
            _require(getattr(self, name) >= 1, f"training.{name}", "must be at least 1")
        _require(self.batch_size >= 2, "training.batch_size", "must be at least 2 (statistics over the batch)")
        _require(self.patience >= 0, "training.patience", "must not be negative")
        _require(self.learning_rate > 0, "training.learning_rate", "must be positive")
        _require(
            self.train_share > 0 and self.validation_share > 0 and self.train_share + self.validation_share < 1,
            "training.train_share",
            "train_share and validation_share must be positive and leave room for a test block",
        )
        _require(0 <= self.train_from < self.train_share, "training.train_from", "must lie below training.train_share")
        _require(0 <= self.unseen_symbols < 1, "training.unseen_symbols", "must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class TDConfig:
    """The zero-shot branch (TD-JEPA, 2510.00739), trained after the world model and on its latents."""

    enabled: bool = False
    symmetric: bool = False  # one encoder for state and task, one predictor
    fine_tune: bool = False  # the branch has a copy of the encoders and trains it; the world model stays as it is
    task_dim: int = 24  # D, width of the task features
    state_dim: int = 32
    hidden: int = 128
    members: int = 2  # predictors in an ensemble
    discount: float = 0.97  # of a session
    goal_ratio: float = 0.2  # share of tasks that are features of reached states
    prior_ratio: float = (
        0.6  # share that are sums of a few outcomes, of random weights; the others come from the sphere
    )
    task_orthonormality: float = 1.0
    state_orthonormality: float = 0.1
    behaviour_cloning: float = 0.0
    target_rate: float = 0.01  # Polyak
    covariance_decay: float = 0.995
    temperature: float = 0.7  # of the relaxed hedge
    steps: int = 600  # 0 leaves the policy as it begins, which is hardly worse (docs/results/zero-shot.md)
    dates: int = 64  # in a batch
    portfolios: int = 4  # held on each of these dates: the market does not listen, so its latents serve all of them
    reuse: int = 8  # batches of portfolios on the same encoded market
    learning_rate: float = 1e-3
    task_learning_rate: float = 1e-4  # slower: predictors must keep up with what they predict
    actor_learning_rate: float = 2e-4  # slower: it follows what predictors have learned
    evaluate_every: int = 20  # steps between two scores of the policy on the validation block; the best one is kept
    patience: int = 5  # stop after this many scores without a better one; 0 for never
    relabelled: int = 2048  # next states that are kept with the checkpoint to infer rewards on

    def __post_init__(self) -> None:
        for name in (
            "task_dim", "state_dim", "hidden", "members", "portfolios", "reuse", "relabelled", "evaluate_every",
        ):  # fmt: skip
            _require(getattr(self, name) >= 1, f"td.{name}", "must be at least 1")
        for name in ("steps", "patience"):
            _require(getattr(self, name) >= 0, f"td.{name}", "must not be negative")
        _require(self.dates >= 2, "td.dates", "must be at least 2 (statistics over the batch)")
        _require(0 <= self.discount < 1, "td.discount", "must lie in [0, 1)")
        _require(
            self.goal_ratio + self.prior_ratio <= 1, "td.prior_ratio", "and td.goal_ratio must not exceed 1 together"
        )
        for name in ("goal_ratio", "prior_ratio", "target_rate", "covariance_decay"):
            _require(0 <= getattr(self, name) <= 1, f"td.{name}", "must lie in [0, 1]")
        for name in ("learning_rate", "task_learning_rate", "actor_learning_rate", "temperature"):
            _require(getattr(self, name) > 0, f"td.{name}", "must be positive")


@dataclass(frozen=True, kw_only=True)
class FinJEPAConfig:
    """Everything that is needed to build, train and trade a world model."""

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    portfolio: PortfolioConfig = field(default_factory=PortfolioConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    td: TDConfig = field(default_factory=TDConfig)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_dict(cls, data: Any) -> "FinJEPAConfig":
        return _build(cls, data, "")

    @classmethod
    def from_json(cls, text: str) -> "FinJEPAConfig":
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise FinJEPAError(f"the config is not JSON: {error}") from error
        return cls.from_dict(data)

    def override(self, assignments: dict[str, str]) -> "FinJEPAConfig":
        """Set dotted keys from text, as in `--set model.dim=256`; values are read as JSON, or else as text."""
        data = self.to_dict()
        for key, text in assignments.items():
            *parents, leaf = key.split(".")
            node: Any = data
            for parent in parents:
                node = node.get(parent) if isinstance(node, dict) else None
            if not isinstance(node, dict) or leaf not in node:
                known = sorted(f"{section}.{name}" for section, values in self.to_dict().items() for name in values)
                raise FinJEPAError(f"unknown config key {key!r}; known keys: {', '.join(known)}")
            try:
                node[leaf] = json.loads(text)
            except json.JSONDecodeError:
                node[leaf] = text
        return self.from_dict(data)


PRESETS: dict[str, FinJEPAConfig] = {
    "tiny": FinJEPAConfig(
        model=ModelConfig(dim=32, heads=2, predictor_layers=2, stride=10),
        # few steps: a teacher that is hardly older than its student, and a rate that sets off at once
        loss=LossConfig(sigreg_slices=64, ema_start=0.98),
        training=TrainingConfig(
            epochs=4,
            steps_per_epoch=30,
            n_assets=6,
            learning_rate=3e-3,
            warmup_steps=20,
            evaluate_batches=4,
            checkpoint_every=30,
        ),
        td=TDConfig(steps=100, hidden=64),
    ),
    "small": FinJEPAConfig(
        model=ModelConfig(dim=96),  # wide enough that matrix products are most of a step (docs/results/training.md)
        training=TrainingConfig(epochs=20, steps_per_epoch=100, n_assets=12),
    ),
    "base": FinJEPAConfig(
        model=ModelConfig(dim=128, heads=4, time_layers=4, asset_layers=2, predictor_layers=6),
        loss=LossConfig(sigreg_slices=1024),
        training=TrainingConfig(
            epochs=50, steps_per_epoch=1000, batch_size=256, n_assets=20, learning_rate=5e-4, precision="bfloat16"
        ),
    ),
    "large": FinJEPAConfig(
        model=ModelConfig(dim=384, heads=8, time_layers=6, asset_layers=3, predictor_layers=8),
        loss=LossConfig(sigreg_slices=1024),
        training=TrainingConfig(
            epochs=50, steps_per_epoch=4000, batch_size=1024, n_assets=32, learning_rate=3e-4, precision="bfloat16"
        ),
    ),
}


def preset(name: str) -> FinJEPAConfig:
    """A named config: `tiny` (tests, demo), `small` (a CPU), `base` (a GPU), `large` (several GPUs)."""
    if name not in PRESETS:
        raise FinJEPAError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _build(cls: type[ConfigT], data: Any, path: str) -> ConfigT:
    if not isinstance(data, dict):
        raise FinJEPAError(f"config section {path or 'at the top'} must be an object, not {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise FinJEPAError(f"unknown config key {_join(path, key)!r}; known keys: {', '.join(sorted(known))}")
    return cls(**{key: _read(hints[key], value, _join(path, key)) for key, value in data.items()})


def _read(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path)
    if origin is Literal:
        if value in args:
            return value
        raise FinJEPAError(f"config key {path} must be one of {', '.join(map(str, args))}, not {value!r}")
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_read(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    elif origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _read(next(arg for arg in args if arg is not type(None)), value, path)
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    expected = "list" if origin is tuple else getattr(hint, "__name__", str(hint))
    raise FinJEPAError(f"config key {path} must be a {expected}, not {value!r}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
