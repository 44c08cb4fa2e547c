"""The live record: forecasts that were kept before their outcomes, what came of them, and the proof that nothing was changed."""
