"""toughen report, as a user types it."""

from pathlib import Path

from cli.test_app import done, failed
from report.page.page_run import make_run


def test_a_page_figures_and_tables_of_a_run(tmp_path: Path):
    run = make_run(tmp_path / "mine", analyses=False)
    out, figures = tmp_path / "new" / "page.html", tmp_path / "figures"
    text = done("report", run, "--out", out, "--figures", figures)
    assert f"page: {out} ({out.stat().st_size:,} bytes)" in text
    assert f"{len(list(figures.iterdir()))} files in {figures}" in text
    first = out.read_bytes()
    done("report", run, "--out", out)
    assert out.read_bytes() == first
    text = done("report", run, "--plain")
    assert "autoattack_n40" in text
    assert "toughen analyse mine --only pictures makes it." in text


def test_what_cannot_be_reported(tmp_path: Path):
    run = make_run(tmp_path / "mine", analyses=False)
    assert "give --out PAGE.html, --figures FOLDER or --plain" in failed("report", run)
    assert "there is no folder" in failed("report", tmp_path / "nowhere", "--plain")
    (tmp_path / "mine.html").write_text("my own")
    assert "is no page of toughen report" in failed("report", run, "--out", tmp_path / "mine.html")
    assert (tmp_path / "mine.html").read_text() == "my own"
