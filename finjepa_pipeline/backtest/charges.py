"""What an audit tries, and what of it the champion gate asks for. No library is imported here: definitions read it."""

TESTS = {
    "fill_lag": "Whoever knows the session after a decision does not earn it.",
    "label_alignment": "Models are trained on the returns that are paid, no session earlier or later.",
    "truncation": "Features, universe and decisions stay when everything is made again with another future.",
    "permutation": "The order of the assets does not matter.",
    "delay": "What is earned does not hang on a single session.",
    "null_market": "Where there is nothing to find, nothing is found.",
    "planted_market": "Nobody gains more than an oracle of the market's truth.",
}
# Held of every challenger, each night. A planted market says how much a model finds, and takes a market of its own a time.
BEFORE_THE_GATE = ("fill_lag", "label_alignment", "truncation", "permutation", "delay", "null_market")
