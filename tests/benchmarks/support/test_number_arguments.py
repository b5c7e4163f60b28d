"""Numbers of a command line are read as they stand there, or refused in one line."""

import argparse

import pytest

from benchmarks.support.number_arguments import real, refuse_beyond_memory, whole


@pytest.mark.parametrize(("text", "value"), [("2", 2), ("7", 7), ("5", 5)])
def test_a_whole_number_in_its_range_is_read(text: str, value: int) -> None:
    assert whole(2, 7)(text) == value


@pytest.mark.parametrize("text", ["1", "8", "-3", "2.5", "1e1", "many", ""])
def test_another_whole_number_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{text}; wanted a whole number from 2 to 7$"):
        whole(2, 7)(text)


@pytest.mark.parametrize(("text", "value"), [("0.5", 0.5), ("2", 2.0), ("1e0", 1.0)])
def test_a_number_in_its_range_is_read(text: str, value: float) -> None:
    assert real(0.5, 2)(text) == value


@pytest.mark.parametrize("text", ["0.49", "2.01", "-1", "nan", "inf", "much", ""])
def test_another_number_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{text}; wanted a number from 0.5 to 2$"):
        real(0.5, 2)(text)


def test_a_run_that_no_memory_holds_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    refuse_beyond_memory(parser, 1e6, "--rows")
    with pytest.raises(SystemExit) as end:
        refuse_beyond_memory(parser, 1e18, "--rows and --width")
    assert end.value.code == 2
    assert "error: --rows and --width: about 1,000,000,000 GB, and this machine has " in capsys.readouterr().err
