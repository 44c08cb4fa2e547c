UPDATE raw_price_versions SET broken = broken | tick.bit
FROM tick_rows AS tick
WHERE raw_price_versions.first_revision = {revision} AND raw_price_versions.symbol = tick.symbol
    AND raw_price_versions.date = tick.date AND raw_price_versions.broken & {other_hard} = 0
