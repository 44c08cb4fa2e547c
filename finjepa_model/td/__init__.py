"""TD-JEPA for portfolios (2510.00739): a utility is named after training, and a decision follows at once."""
