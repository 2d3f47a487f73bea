import pytest

from lbguard.telemetry.metrics.families import reason_label


@pytest.mark.parametrize("text", ["", "two words", "a" * 41, "1st", "ümlaut", 'quote"'])
def test_labels_are_words_of_code(text: str) -> None:
    assert reason_label(text) == "other"
    assert reason_label("no_link") == "no_link"
