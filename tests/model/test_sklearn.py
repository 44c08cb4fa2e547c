"""`FinJEPACovariance` in the optimisers of skfolio."""

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone

from finjepa_model.errors import FinJEPAError
from tests.model.frames import download, reader

skfolio = pytest.importorskip("skfolio")

from skfolio.optimization import HierarchicalRiskParity, MeanRisk  # noqa: E402
from skfolio.prior import EmpiricalPrior  # noqa: E402

from finjepa_model.sklearn import FinJEPACovariance  # noqa: E402


@pytest.fixture(scope="module")
def closes() -> pd.DataFrame:
    return download()["Adj Close"][["S03", "S00", "S05", "S01", "S04", "S02"]]  # in an order of their own


@pytest.fixture(scope="module")
def model():
    return reader(frozenset({"close"}))


def test_it_is_the_forecast_in_the_order_of_the_columns(model, closes) -> None:
    returns = closes.pct_change().iloc[1:]
    expected = model.forecast(closes).covariance.loc[closes.columns, closes.columns].to_numpy()
    for given in (closes, returns):
        found = FinJEPACovariance(model).fit(given)
        np.testing.assert_allclose(found.covariance_, expected, rtol=1e-4)
        assert list(found.feature_names_in_) == list(closes.columns)
    assert FinJEPACovariance(model).fit(returns.to_numpy()).covariance_.shape == (6, 6)


def test_an_optimiser_uses_it(model, closes, tmp_path) -> None:
    model.save_pretrained(tmp_path)
    returns = closes.pct_change().iloc[1:]
    covariance = clone(FinJEPACovariance(str(tmp_path)))
    least = MeanRisk(prior_estimator=EmpiricalPrior(covariance_estimator=covariance)).fit(returns)
    held, expected = least.weights_, FinJEPACovariance(model).fit(returns).covariance_
    assert held.sum() == pytest.approx(1)
    for other in (np.full(6, 1 / 6), *np.eye(6)):
        assert held @ expected @ held <= other @ expected @ other + 1e-9
    prior = EmpiricalPrior(covariance_estimator=FinJEPACovariance(model))
    assert HierarchicalRiskParity(prior_estimator=prior).fit(returns).weights_.sum() == pytest.approx(1)


def test_what_it_needs_is_said(model, closes) -> None:
    with pytest.raises(FinJEPAError, match="needs a folder"):
        FinJEPACovariance().fit(closes)
    with pytest.raises(FinJEPAError, match="252 sessions"):
        FinJEPACovariance(model).fit(closes.iloc[-100:])
