"""Exit codes and messages that all scripts share."""

import logging
import signal
import subprocess
import sys

import pytest

from ldm.cli import Parser, bounded, run
from ldm.errors import MissingExtra, UserError


def failing(error):
    def main(argv):
        raise error

    return main


def test_a_mistake_of_the_users_is_one_line_and_exit_code_2(capsys):
    assert run(failing(UserError('the mask "m.png" is black')), []) == 2
    assert capsys.readouterr().err == 'error: the mask "m.png" is black\n'


def test_a_missing_extra_names_how_to_get_it(capsys):
    assert run(failing(MissingExtra("imageio", "video", "--save_video")), []) == 2
    assert 'the extra "video"' in capsys.readouterr().err


def test_a_bug_of_ours_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(failing(ZeroDivisionError()), [])


def test_ctrl_c():
    assert run(failing(KeyboardInterrupt()), []) == 130


def test_ctrl_c_that_a_library_turns_into_another_error():
    def main(argv):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("cannot load module more than once per process") from None

    before = signal.getsignal(signal.SIGINT)
    assert run(main, []) == 130
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("late", [False, True], ids=["while it works", "when it ends"])
def test_a_reader_who_goes_away_is_no_bug(late):
    """As `| head -1` does."""
    words = 1 if late else 99999
    program = f"from ldm.cli import run; raise SystemExit(run(lambda argv: print('much ' * {words}), []))"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


def test_notices_go_to_stderr_and_leave_no_handler_behind(capsys):
    logger = logging.getLogger("ldm.somewhere")
    before = list(logging.getLogger("ldm").handlers)
    assert run(lambda argv: (logger.warning("the mask is resized"), logger.info("model: scenes")), []) == 0
    assert capsys.readouterr().err == "note: the mask is resized\nmodel: scenes\n"
    assert logging.getLogger("ldm").handlers == before


@pytest.mark.parametrize(
    ("kind", "low", "high", "text", "said"),
    [
        (int, 1, 1000, "0", "an integer from 1 to 1000"),
        (int, 1, None, "0", "an integer of at least 1"),
        (int, 1, None, "1.5", '"1.5" is not an integer'),
        (float, 0, None, "nan", "a number of at least 0"),
        (float, 0, None, "inf", "out of range"),
        (float, 0, 1, "x", '"x" is not a number from 0 to 1'),
    ],
)
def test_numbers_out_of_bounds_end_with_one_line(kind, low, high, text, said, capsys):
    parser = Parser(prog="script.py")
    parser.add_argument("--n", type=bounded(kind, low, high))
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["--n", text])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert parser.parse_args(["--n", "1"]).n == 1
