"""The model's covariance as an estimator of skfolio, so that each of its optimisers can use it."""

from functools import lru_cache
from typing import Any

import numpy as np
import polars as pl

from finjepa_model.errors import FinJEPAError
from finjepa_model.model import FinJEPA

try:
    import sklearn.utils.validation as validation
    from skfolio.moments import BaseCovariance
except ImportError as missing:
    raise FinJEPAError("FinJEPACovariance needs skfolio, which is not installed: pip install skfolio") from missing


class FinJEPACovariance(BaseCovariance):
    """Covariance of daily returns over the next 21 sessions, for `EmpiricalPrior(covariance_estimator=...)`.

    Args:
        checkpoint: a folder, a repository on the Hub, or a `FinJEPA`.
        nearest, higham, higham_max_iteration: of `skfolio.moments.BaseCovariance`.

    Attributes:
        covariance_: [assets, assets].
        location_: expected daily returns [assets]; the same for every asset where nothing is known of them.
        understood: what the model read, in words.
    """

    def __init__(
        self, checkpoint: Any = None, nearest: bool = True, higham: bool = False, higham_max_iteration: int = 100
    ) -> None:
        super().__init__(nearest=nearest, higham=higham, higham_max_iteration=higham_max_iteration)
        self.checkpoint = checkpoint

    def fit(self, X: Any, y: None = None, **fit_params: Any) -> "FinJEPACovariance":
        """Forecast at the last row.

        Args:
            X: daily simple returns, or prices (all of them positive); rows are sessions, columns assets, and the index of a frame
                of pandas has the dates. Without dates the rows are business days up to an arbitrary one.

        Raises:
            FinJEPAError: if there are fewer than 252 rows, or no checkpoint is given.
        """
        if self.checkpoint is None:
            raise FinJEPAError("FinJEPACovariance(checkpoint=...) needs a folder, a repository on the Hub or a model")
        index = getattr(X, "index", None)
        names = [str(name) for name in getattr(X, "columns", [])]
        values_TN: np.ndarray = validation.validate_data(self, X, ensure_all_finite="allow-nan")  # type: ignore[assignment]
        names = names or [f"x{number}" for number in range(values_TN.shape[1])]
        if not (values_TN[np.isfinite(values_TN)] > 0).all():  # returns: prices begin at 1, a session before the first
            before_1N = np.where(np.isfinite(values_TN[:1]), 1.0, np.nan)
            grown_TN = np.nancumprod(1 + values_TN, axis=0)
            values_TN = np.concatenate([before_1N, np.where(np.isfinite(values_TN), grown_TN, np.nan)])
        prices = pl.DataFrame(dict(zip(names, values_TN.T, strict=True)), nan_to_null=True)
        prices = prices.select(pl.Series("date", _dates(index, len(values_TN))), pl.all())
        model = self.checkpoint if isinstance(self.checkpoint, FinJEPA) else _loaded(str(self.checkpoint))
        forecast = model.forecast(prices)
        places = {name: place for place, name in enumerate(forecast.assets)}
        absent = [name for name in names if name not in places]
        if absent:
            raise FinJEPAError(f"{', '.join(absent[:5])} cannot be forecast: {forecast.understood}")
        order = [places[name] for name in names]
        covariance_NN = forecast.covariance.drop("symbol").to_numpy()[np.ix_(order, order)]
        self.location_ = forecast.expected_return["expected_return"].to_numpy()[order]
        self.understood = forecast.understood
        self._set_covariance(covariance_NN)
        return self


def _dates(index: Any, rows: int) -> np.ndarray:
    """The dates of an index, and a business day before them where there is a row more; business days where it has none."""
    days = None if index is None or not np.issubdtype(index.dtype, np.datetime64) else index.to_numpy()
    if days is None:
        return np.busday_offset("2020-01-01", np.arange(rows), roll="forward").astype("datetime64[D]")
    days = days.astype("datetime64[D]")
    return days if len(days) == rows else np.concatenate([[np.busday_offset(days[0], -1, roll="forward")], days])


@lru_cache(maxsize=2)
def _loaded(checkpoint: str) -> FinJEPA:
    return FinJEPA.from_pretrained(checkpoint)
