"""Typed, frozen configs with a strict JSON round trip: the one place for every default.

`FinJEPAConfig` is what a checkpoint's `config.json` holds. An unknown key, a wrong type or a value outside its bounds raises
`FinJEPAError` that names the key. A config may come from the Hub, so every number has bounds, and a NaN is outside of any.
"""

import dataclasses
import itertools
import re
import reprlib
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from finjepa_model.errors import FinJEPAError, did_you_mean
from finjepa_model.files import from_json, to_json

Recipe = Literal["ema", "sigreg", "both", "vicreg"]
ConfigT = TypeVar("ConfigT")
DefaultT = TypeVar("DefaultT")
_RETIRED = {  # keys of checkpoints of earlier versions
    "model.adaln_init", "model.adaln_std", "loss.heads", "loss.truncate_rollout", "training.compile", "training.accumulate",
    "td.symmetric", "td.behaviour_cloning", "loss.variance", "loss.covariance",
}  # fmt: skip
_CHANNEL = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_CHECKPOINT = re.compile(r"([0-9a-f]{16}|champion)?")
_MOST_CHANNELS, _MOST_TIERS = 1024, 16
_MOST_PATCHES = 1024  # of one asset in an observation: attention over them takes the square of it


def _require(condition: bool, key: str, rule: str) -> None:
    if not condition:
        raise FinJEPAError(f"config key {key} {rule}")


def bounded(default: DefaultT, low: float, high: float) -> DefaultT:
    """A dataclass field whose number, or each of whose numbers, must lie in [low, high]."""
    return field(default=default, metadata={"bounds": (low, high)})  # type: ignore[return-value]


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """A section of a config; it refuses numbers outside the bounds of their fields."""

    def __post_init__(self) -> None:
        section = type(self).__name__.removesuffix("Config").lower()
        for item in fields(self):
            if "bounds" in item.metadata:
                low, high = item.metadata["bounds"]
                value = getattr(self, item.name)
                inside = all(low <= number <= high for number in (value if isinstance(value, tuple) else (value,)))
                _require(
                    inside, f"{section}.{item.name}", f"must lie in [{low:g}, {high:g}], not {reprlib.repr(value)}"
                )


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Bounded):
    """Shapes of the world model.

    A decision step is `stride` sessions long; at each step an asset is seen through the `window` sessions that end there.
    """

    channels: tuple[str, ...] = ()  # names of the panel's channels, in order; filled in from the panel
    market_channels: tuple[str, ...] = ()  # the same of the market's context
    window: int = bounded(64, 1, 2048)  # T, sessions in an observation
    patch: int = bounded(8, 1, 2048)  # sessions in a patch; divides `window`
    stride: int = bounded(5, 1, 2520)  # sessions from one decision to the next
    context_steps: int = bounded(3, 1, 64)  # W, decision steps that the predictor sees
    dim: int = bounded(64, 2, 8192)  # D, width of every latent
    heads: int = bounded(4, 1, 64)
    time_layers: int = bounded(2, 0, 128)  # encoder: attention over the patches of an asset
    asset_layers: int = bounded(1, 0, 128)  # encoder: attention over assets
    predictor_layers: int = bounded(3, 1, 128)
    mlp_ratio: float = bounded(4.0, 0.5, 64)
    factors: int = bounded(
        0, 0, 64
    )  # loadings that the head of risk learns; none earned its place (docs/results/risk.md)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.window % self.patch == 0, "model.patch", f"must divide model.window={self.window}")
        _require(self.dim % (2 * self.heads) == 0, "model.dim", "must be a multiple of 2 * model.heads (rotary pairs)")
        _require(
            self.patches * self.context_steps <= _MOST_PATCHES,
            "model.window",
            f"over model.patch, times model.context_steps, must not exceed {_MOST_PATCHES}",
        )
        for name in ("channels", "market_channels"):
            names = getattr(self, name)
            _require(len(names) <= _MOST_CHANNELS, f"model.{name}", f"must have at most {_MOST_CHANNELS} names")
            _require(
                len(set(names)) == len(names) and all(map(_CHANNEL.fullmatch, names)),
                f"model.{name}",
                "must be different names of letters, digits and . _ -, at most 64 of them",
            )

    @property
    def patches(self) -> int:
        return self.window // self.patch


@dataclass(frozen=True, kw_only=True)
class LossConfig(Bounded):
    """Weights of the training objective (design: prediction + masked patches + collapse prevention + inverse dynamics)."""

    recipe: Recipe = "ema"  # SIGReg costs forecasts of risk (docs/results/risk.md)
    rollout_steps: int = bounded(2, 1, 64)  # K, autoregressive steps
    mask_ratio: float = bounded(0.7, 0.001, 0.999)  # TS-JEPA
    masked_patch: float = bounded(1.0, 0, 1e6)
    prediction: float = bounded(1.0, 0, 1e6)
    rollout: float = bounded(1.0, 0, 1e6)
    # of SIGReg without its factor of the number of samples: beside a teacher a guard against collapse, more of it costs forecasts
    # of risk (docs/results/risk.md); recipe `sigreg` needs about 1
    sigreg: float = bounded(0.01, 0, 1e6)
    sigreg_slices: int = bounded(256, 1, 65536)
    inverse_dynamics: float = bounded(1.0, 0, 1e6)
    latent_variance: float = bounded(16.0, 0, 1e6)  # EB-JEPA, on market latents, recipe `vicreg` only
    latent_covariance: float = bounded(8.0, 0, 1e6)
    temporal_similarity: float = bounded(12.0, 0, 1e6)
    risk: float = bounded(5.0, 0, 1e6)  # cross-section of volatility after the context; teaches the encoder too
    # momentum of the teacher at the first and the last step, linear between them (I-JEPA; TS-JEPA ends near 0.9996)
    ema_start: float = bounded(0.996, 0, 1)
    ema_end: float = bounded(1.0, 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(self.ema_start <= self.ema_end, "loss.ema_start", "must not exceed loss.ema_end")


@dataclass(frozen=True, kw_only=True)
class PortfolioConfig(Bounded):
    """Rules and prices of trading. Rates are per year, costs are one-way in basis points of the traded value.

    Tiers of liquidity and impact apply where the trailing dollar volume is known; without it an asset is in tier 0.
    """

    cost_bps: float = bounded(10.0, 0, 4999)  # commission and half-spread of an asset of tier 0
    hedge_cost_bps: float = bounded(2.0, 0, 4999)  # the same for the market proxy
    # dollars a day, descending: below each begins a tier
    tier_dollar_volume: tuple[float, ...] = bounded((5e7, 5e6), 0, 1e18)
    tier_spread_bps: tuple[float, ...] = bounded((0.0, 5.0, 25.0), 0, 4999)  # half-spread beyond cost_bps, by tier
    # of an order for a whole day's volume, in units of the day's volatility; grows with the root of the order
    impact: float = bounded(0.1, 0, 100)
    capital: float = bounded(1e6, 1e-6, 1e18)  # dollars that wealth 1 stands for, for impact
    borrow_rate: float = bounded(0.005, 0, 10)  # paid on the value that is held short in tier 0 and in the market proxy
    tier_borrow_rate: tuple[float, ...] = bounded((0.0, 0.025, 0.095), 0, 10)  # beyond borrow_rate, by tier
    cash_rate: float = bounded(0.0, -1, 10)
    short_rebate: float = bounded(0.0, -1, 10)  # earned on the proceeds of short sales, in place of cash_rate
    margin_spread: float = bounded(0.015, 0, 10)  # paid over cash_rate on borrowed cash
    sessions_per_year: int = bounded(252, 1, 366)
    allow_short: bool = False
    allow_hedge: bool = True
    max_weight: float = bounded(1.0, 1e-6, 1)
    max_gross: float = bounded(1.0, 1e-3, 10)  # gross exposure of an action with no flat signal, share of wealth

    def __post_init__(self) -> None:
        super().__post_init__()
        bounds = self.tier_dollar_volume
        _require(
            len(bounds) <= _MOST_TIERS and all(high > low for high, low in itertools.pairwise((*bounds, 0.0))),
            "portfolio.tier_dollar_volume",
            f"must be at most {_MOST_TIERS} positive values that descend",
        )
        for name in ("tier_spread_bps", "tier_borrow_rate"):
            values = getattr(self, name)
            _require(
                len(values) == len(bounds) + 1,
                f"portfolio.{name}",
                f"must have {len(bounds) + 1} values, one more than portfolio.tier_dollar_volume",
            )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(Bounded):
    """The trainer. `epochs` passes over `steps_per_epoch` batches, each of `batch_size` decision dates and at most `n_assets`
    assets of each."""

    seed: int = bounded(0, 0, 2**32 - 1)
    batch_size: int = bounded(64, 2, 1e6)  # over all ranks
    n_assets: int = bounded(8, 1, 10000)
    epochs: int = bounded(10, 1, 1e6)
    steps_per_epoch: int = bounded(100, 1, 1e7)
    learning_rate: float = bounded(1e-3, 1e-12, 10)
    weight_decay: float = bounded(1e-2, 0, 10)
    warmup_steps: int = bounded(50, 0, 1e7)
    gradient_clip: float = bounded(1.0, 1e-6, 1e9)
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluate_batches: int = bounded(8, 1, 1e5)
    deterministic: bool = False  # refuse operations that are not (on a GPU some are not; the CPU always repeats itself)
    patience: int = bounded(0, 0, 1e6)  # stop after this many evaluations without a better one; 0 for never
    checkpoint_every: int = bounded(200, 1, 1e9)  # steps between two saves of everything that resuming needs
    log_every: int = bounded(20, 1, 1e9)
    train_share: float = bounded(0.7, 0.001, 0.999)  # of the sessions, in time order; then validation, then test
    validation_share: float = bounded(0.15, 0.001, 0.999)
    train_from: float = bounded(0.0, 0, 0.999)  # share of the sessions before the training block, for rolling windows
    unseen_symbols: float = bounded(0.0, 0, 0.999)  # share of the symbols, by their hash, that training never sees
    # checkpoint of the same home whose weights training begins with, by its id, or `champion`; empty for random weights
    initial: str = ""
    # further panels of the same home to learn from, by the names of their folders: of other markets, up to the last training day
    panels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        _require(
            self.train_share + self.validation_share < 1,
            "training.train_share",
            "and training.validation_share must leave room for a test block",
        )
        _require(
            _CHECKPOINT.fullmatch(self.initial) is not None,
            "training.initial",
            "must be the id of a checkpoint or champion",
        )
        _require(self.train_from < self.train_share, "training.train_from", "must lie below training.train_share")


@dataclass(frozen=True, kw_only=True)
class TDConfig(Bounded):
    """The td branch (TD-JEPA, 2510.00739), trained after the world model and on its latents."""

    enabled: bool = False
    task_dim: int = bounded(24, 1, 4096)  # D, width of the task features
    state_dim: int = bounded(32, 1, 4096)
    hidden: int = bounded(128, 1, 8192)
    members: int = bounded(2, 1, 64)  # predictors in an ensemble
    discount: float = bounded(0.98, 0, 0.9999)  # of a session
    goal_ratio: float = bounded(0.2, 0, 1)  # share of tasks that are features of reached states; the others are random
    task_orthonormality: float = bounded(1.0, 0, 1e6)
    state_orthonormality: float = bounded(0.1, 0, 1e6)
    # weights of the policy's value under its own successor features, and along drawn paths
    actor: float = bounded(0.0, 0, 1e6)  # which made it worse (docs/results/td.md)
    rollout: float = bounded(1.0, 0, 1e6)
    target_rate: float = bounded(0.01, 0, 1)  # Polyak
    steps: int = bounded(600, 0, 1e9)
    dates: int = bounded(64, 2, 1e5)  # in a batch
    portfolios: int = bounded(16, 1, 10000)  # on each of these dates, whose latents serve all of them
    reuse: int = bounded(8, 1, 10000)  # batches of portfolios on the same encoded market
    learning_rate: float = bounded(1e-2, 1e-12, 10)  # of the policy; predictions learn at a tenth of it
    evaluate_every: int = bounded(20, 1, 1e9)  # steps between two scores on the validation block; the best is kept
    patience: int = bounded(5, 0, 1e6)  # stop after this many scores without a better one; 0 for never
    kept_states: int = bounded(2048, 1, 1e6)  # next states that the checkpoint keeps to infer rewards on


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

    def by_key(self) -> dict[str, Any]:
        """Every value by its dotted key."""
        return {f"{section}.{name}": x for section, values in self.to_dict().items() for name, x in values.items()}

    def to_json(self) -> str:
        return to_json(self.to_dict(), indent=2, sort_keys=True)

    @classmethod
    def from_dict(cls, data: Any) -> "FinJEPAConfig":
        """Read a config, also one of an earlier version; one that is older than the present td branch without its branch."""
        td = (data.get("td") or {}) if isinstance(data, dict) else {}
        if "covariance_decay" in td or ({"enabled", "task_dim", "steps"} <= td.keys() and "rollout" not in td):
            data = {section: values for section, values in data.items() if section != "td"}
        return _build(cls, data, "")

    @classmethod
    def from_json(cls, text: str) -> "FinJEPAConfig":
        try:
            data = from_json(text)
        except ValueError as error:
            raise FinJEPAError(f"the config is not JSON: {error}") from error
        return cls.from_dict(data)

    def override(self, assignments: Mapping[str, Any]) -> "FinJEPAConfig":
        """Set dotted keys, as in `--set model.dim=256`; text is read as JSON where it is JSON."""
        data, known = self.to_dict(), self.by_key()
        for key, value in assignments.items():
            if key not in known:
                raise FinJEPAError(f"unknown config key {key!r}; {did_you_mean(key, known)}")
            section, name = key.split(".")
            try:
                data[section][name] = from_json(value) if isinstance(value, str) else value
            except ValueError:
                data[section][name] = value
        return self.from_dict(data)


# Many assets of few dates: what is learned is how they differ within a date; a rate that sets off at once; and few steps of a
# narrow network: more of either learns the training dates by heart (docs/results/width.md).
_SHORT = TrainingConfig(
    epochs=4,
    steps_per_epoch=30,
    batch_size=16,
    n_assets=24,
    learning_rate=3e-3,
    warmup_steps=20,
    evaluate_batches=4,
    checkpoint_every=30,
)
_NARROW = ModelConfig(dim=32, heads=2, predictor_layers=2)

PRESETS: dict[str, FinJEPAConfig] = {
    "tiny": FinJEPAConfig(
        model=replace(_NARROW, stride=10),
        loss=LossConfig(sigreg_slices=64),
        training=_SHORT,
        td=TDConfig(steps=100, hidden=64),
    ),
    "small": FinJEPAConfig(model=_NARROW, training=_SHORT),
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
    """A named config: `tiny` (tests, demo; decides every second week), `small` (every week), `base` (a GPU), `large` (several
    GPUs)."""
    if name not in PRESETS:
        raise FinJEPAError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _build(cls: type[ConfigT], data: Any, path: str) -> ConfigT:
    if not isinstance(data, dict):
        raise FinJEPAError(f"config section {path or 'at the top'} must be an object, not {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    data = {key: value for key, value in data.items() if _join(path, key) not in _RETIRED}
    for key in data:
        if key not in known:
            raise FinJEPAError(
                f"unknown config key {reprlib.repr(_join(path, key))}; known keys: {', '.join(sorted(known))}"
            )
    return cls(**{key: _read(hints[key], value, _join(path, key)) for key, value in data.items()})


def _read(hint: Any, value: Any, path: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if is_dataclass(hint):
        return _build(typing.cast(type, hint), value, path)
    if origin is Literal:
        if value in args:
            return value
        raise FinJEPAError(f"config key {path} must be one of {', '.join(map(str, args))}, not {reprlib.repr(value)}")
    if origin is tuple:
        if isinstance(value, str) and value:
            value = value.split(",")
        if isinstance(value, list | tuple):
            return tuple(_read(args[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    elif hint is float and isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:
        return float(value)
    elif isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
        return value
    expected = "list" if origin is tuple else getattr(hint, "__name__", str(hint))
    raise FinJEPAError(f"config key {path} must be a {expected}, not {reprlib.repr(value)}")


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
