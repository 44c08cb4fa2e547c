"""What Tune is told of a trial."""

from finjepa_pipeline.scale.trials import evaluations

RECORDS = [
    {"kind": "train", "step": 10},
    {"kind": "validation", "step": 12},
    {"kind": "validation", "step": 24},
]


def _steps(told, over):
    return [record["step"] for record in evaluations(RECORDS, told, 24, over)]


def test_the_last_evaluation_is_told_when_the_checkpoint_is_written():
    assert _steps(0, over=False) == [12]
    assert _steps(12, over=False) == []
    assert _steps(12, over=True) == [24]


def test_what_was_told_is_not_told_again():
    assert _steps(24, over=True) == []
