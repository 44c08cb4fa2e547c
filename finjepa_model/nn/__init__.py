"""Networks of the world model: layers, encoder, predictor, losses, read-outs."""
