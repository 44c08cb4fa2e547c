"""The return of the night before each session, for orders that are filled at the open."""

import duckdb
import numpy as np

from finjepa_model.data.panel import Panel
from finjepa_model.errors import FinJEPAError
from finjepa_pipeline.prices.history import require_shown
from finjepa_pipeline.warehouse import sql


def overnight_returns(con: duckdb.DuckDBPyConnection, panel: Panel) -> np.ndarray:
    """Simple returns from the close before to the open, float64 by row of the panel.

    Where a session has no open its whole return counts as the night's, so that an order is filled at the close.

    Raises:
        FinJEPAError: if the source has no opens at all, or the tables show other prices than those of the panel.
    """
    require_shown(con, panel.manifest["feed"], panel.manifest["data_version"])
    overnight_R = np.asarray(panel.returns, np.float64).copy()
    found = con.sql(sql("overnight_returns")).pl().drop_nulls()
    if found.is_empty():
        raise FinJEPAError("these prices have no opens; fill at the close instead (--fill close)")
    asset_of = {name: place for place, name in enumerate(panel.assets)}
    asset_X = np.array([asset_of.get(name, -1) for name in found["entity"]])
    session_X = np.searchsorted(panel.dates, found["date"].to_numpy().astype("datetime64[D]"))
    rows_X = panel.rows(session_X, asset_X)
    overnight_R[rows_X[rows_X >= 0]] = found["overnight"].to_numpy()[rows_X >= 0]
    return overnight_R
