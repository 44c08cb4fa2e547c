"""What an audit tries, and what of it the champion gate asks for. No library is imported here: definitions read it."""

TESTS = {
    "fill_lag": "An order earns nothing before the session after its fill.",
    "label_alignment": "Models are trained on the returns that are paid, no session earlier or later.",
    "truncation": "Features, universe and decisions stay when everything is made again with another future.",
    "permutation": "The order of the assets does not matter.",
    "delay": "What is earned does not hang on a single session.",
    "null_market": "Where there is nothing to find, nothing is found.",
    "planted_market": "Nobody gains more than an oracle of the market's truth.",
}
# Held of every challenger, each night. A planted market says how much a model finds, and takes a market of its own a time.
BEFORE_THE_GATE = ("fill_lag", "label_alignment", "truncation", "permutation", "delay", "null_market")
# These find their fault, whatever its size, with one decision; a home that is too short for them has nothing to publish. The
# others compare returns with luck, and a short history may leave them without a verdict.
EXACT = ("fill_lag", "label_alignment", "truncation")

NOT_ENOUGH_DATA = "not enough data"
NOT_RUN = "not run"


def verdict_of(passed: bool | None, text: str) -> str:
    """In words; a test without a verdict is neither passed nor failed."""
    if passed is None:
        return NOT_ENOUGH_DATA if text.startswith(NOT_ENOUGH_DATA) else NOT_RUN
    return "passed" if passed else "failed"
