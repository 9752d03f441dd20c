"""Progress as plain lines and as a live line."""

import re
from io import StringIO

import pytest
from rich.console import Console

from toughen import progress
from toughen.progress import (
    Display,
    LiveDisplay,
    PlainDisplay,
    batch_text,
    counting,
    forecast,
    open_display,
    validation_text,
    watching,
)

FOUND = {
    "weights": {"clean_accuracy": 0.9, "robust_accuracy": 0.456},
    "average-0.9": {"clean_accuracy": 1.0, "robust_accuracy": 0.0},
}
RECORD = {"step": 50, "loss": 2.10049, "lr": 0.1, "robust_batch_accuracy": 0.125, "clean_batch_accuracy": 1.0}


def console(live: bool = False) -> tuple[Console, StringIO]:
    file = StringIO()
    return Console(file=file, force_terminal=live, width=120, _environ={"TERM": "xterm-256color"}), file


def test_figures_as_text():
    assert batch_text(RECORD) == "loss 2.100, robust 12.5% (batch), clean 100.0% (batch)"
    assert batch_text({"loss": 1}) == "loss 1.000"
    assert validation_text(FOUND) == "weights: clean 90.0%, robust 45.6%; average-0.9: clean 100.0%, robust 0.0%"


def test_the_display_fits_where_the_output_goes():
    assert isinstance(open_display(console()[0]), PlainDisplay)
    assert isinstance(open_display(console(live=True)[0]), LiveDisplay)


def test_the_silent_display_is_silent(capsys: pytest.CaptureFixture[str]):
    with Display() as silent:
        silent.start("run", 0, 100)
        silent.note("note")
        silent.progress(RECORD, 5.0)
        silent.validated(50, FOUND)
    assert capsys.readouterr() == ("", "")


def test_plain_lines(monkeypatch: pytest.MonkeyPatch):
    now = iter([0.0, 100.0, 105.0, 120.0, 121.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    to, file = console()
    with PlainDisplay(to) as lines:
        lines.start("mine: free", 40, 100)
        lines.progress({**RECORD, "step": 50}, 1.0)  # 5 s after the last line: too soon
        lines.progress({**RECORD, "step": 60}, 1234.4)
        lines.validated(60, FOUND)
        lines.progress({**RECORD, "step": 100}, 1.0)  # too soon, but the last
    shown = file.getvalue().splitlines()
    assert shown[0] == "mine: free; going on at step 40"
    # 20 steps in 20 s, so 40 s for the 40 that are left.
    assert shown[1] == f"step 60/100: {batch_text(RECORD)}, 1234 images/s; about 40 s left"
    assert shown[2] == f"step 60/100: validation {validation_text(FOUND)}"
    assert shown[3].startswith("step 100/100: ")
    assert shown[3].endswith(" images/s")  # nothing is left
    assert len(shown) == 4
    assert "\x1b" not in file.getvalue()


@pytest.mark.parametrize("live", [False, True])
def test_a_run_named_in_markup_is_shown_as_it_is(live: bool):
    to, file = console(live)
    with open_display(to) as shown:
        shown.start("[red]name[/red] [/b] :smile:", 0, 10)
        shown.note("[bold]note")
        shown.progress({"step": 3, "loss": 1.0, "[/b]_batch_accuracy": 0.5}, 1.0)
        shown.validated(3, {"[/b]": FOUND["weights"]})
    text = file.getvalue()
    assert "[red]name[/red] [/b] :smile:" in text
    assert "[bold]note" in text
    assert "[/b]: clean 90.0%" in text


def after_escapes(text: str) -> list[str]:
    """The lines that a terminal shows once it has obeyed cursor movements and erasures."""
    rows, row = [""], 0
    for code, plain in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z]|\r|\n)|([^\x1b\r\n]+)", text):
        if plain:
            rows[row] = rows[row] + plain
        elif code == "\n":
            row += 1
            rows += [""] * (row + 1 - len(rows))
        elif code.endswith("A"):
            row = max(0, row - int(code[2:-1] or 1))
        elif code.endswith("K"):
            rows[row] = ""
    return [line for line in rows if line.strip()]


def test_the_live_line_is_gone_at_the_end_and_validations_stay():
    to, file = console(live=True)
    with LiveDisplay(to) as live:
        live.start("mine: free", 0, 100)
        live.progress(RECORD, 10.0)
        live.validated(50, FOUND)
        live.progress({**RECORD, "step": 100}, 10.0)
    text = file.getvalue()
    assert "50/100" in text
    assert after_escapes(text) == ["mine: free", f"step 50/100: validation {validation_text(FOUND)}"]
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l") >= 0  # the cursor is shown again


def test_the_live_line_is_gone_after_a_failure_too():
    to, file = console(live=True)

    def run():
        with LiveDisplay(to) as live:
            live.start("mine: free", 0, 100)
            live.progress(RECORD, 10.0)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run()
    assert after_escapes(file.getvalue()) == ["mine: free"]


def test_a_count_is_lines_in_a_log_and_a_bar_in_a_terminal():
    to, file = console()
    with counting(to) as watch:
        watch("scored", 5, 10)
        watch("scored", 10, 10)
        watch("written", 4, 4)
    assert file.getvalue() == "scored 10 of 10 images\nwritten 4 of 4 images\n"
    to, file = console(live=True)
    with counting(to) as watch:
        watch("scored", 5, 10)
    assert "5/10" in file.getvalue()


def test_an_evaluation_says_which_of_its_attacks_runs():
    status = ("fog-3", 1000, 4000, 0.625, None, 53, 96)
    to, file = console(live=True)
    with watching(to) as show:
        show(status)
    assert "fog-3 (53 of 96): 1000 of 4000 examples done, accuracy 62.5% so far" in file.getvalue()
    to, file = console(live=True)
    with watching(to) as show:
        show(("apgd-ce", 0, 40, 0.5, 90.0, 2, 5))
    assert "apgd-ce (2 of 5): 0 of 40 examples done, accuracy 50.0% so far; about 2 min left" in file.getvalue()
    to, file = console(live=True)
    with watching(to) as show:
        show(("apgd-ce", 40, 40, 0.5, 0.0, 5, 5))
    assert "left" not in file.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "about 1 s left"),
        (89, "about 89 s left"),
        (756, "about 13 min left"),
        (5399, "about 90 min left"),
        (5400, "about 1.5 h left"),
    ],
)
def test_a_forecast_is_as_exact_as_it_can_be(seconds: float, text: str):
    assert forecast(seconds) == text
