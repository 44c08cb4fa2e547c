-- Who leads by dollar volume at each date among the symbols that were looked at so far.
CREATE OR REPLACE TEMPORARY TABLE best_contenders (date DATE, entity VARCHAR, traded HUGEINT, age BIGINT)
