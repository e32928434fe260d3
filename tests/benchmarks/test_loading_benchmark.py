"""The benchmark of loading goes its whole way on a model of a few MB."""

from benchmarks import loading


def test_every_way_is_timed_and_the_page_keeps_what_is_around_the_table(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- measured -->\nstale\n<!-- end -->\nafter\n")
    loading.main(["--small", "--repeats", "1", "--work", str(tmp_path), "--write", str(page)])
    text = page.read_text()
    assert text.startswith("before\n<!-- measured -->\n") and text.endswith("<!-- end -->\nafter\n")
    assert "stale" not in text
    assert [text.count(f"| {way} |") for way in ("plain", "Studio", "Studio, compact")] == [4, 4, 2]
    assert capsys.readouterr().out.strip() in text
