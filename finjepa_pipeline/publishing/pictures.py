"""What the UI shows of the gate and of a decision."""

from collections.abc import Mapping, Sequence

import dagster as dg

from finjepa_pipeline.backtest.charges import verdict_of
from finjepa_pipeline.publishing.checks import Finding


def findings_table(findings: Sequence[Finding]) -> dg.TableMetadataValue:
    """Every check of the gate with what it found."""
    return _table(
        ("check", "result", "blocking", "found"),
        [(one.name, one.verdict, "yes" if one.blocking else "no", one.detail) for one in findings],
    )


def audit_table(findings: Mapping[str, tuple[bool | None, str]]) -> dg.TableMetadataValue:
    """Every test that was held of a checkpoint, with what it found."""
    rows = [(test, verdict_of(passed, found), found) for test, (passed, found) in findings.items()]
    return _table(("test", "result", "found"), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> dg.TableMetadataValue:
    records = [dg.TableRecord(dict(zip(columns, row, strict=True))) for row in rows]
    return dg.TableMetadataValue(records, dg.TableSchema([dg.TableColumn(name) for name in columns]))
