"""What is wrong with an utterance, and how it is reported."""

import pytest

from sumix_stream.corpora.faults import (
    Fault,
    FaultyUtterance,
    check_duration,
    check_speaking_rate,
    check_text,
    log_faults,
    print_summary,
    read_report,
    write_report,
)


def fault_of(check, *arguments):
    with pytest.raises(FaultyUtterance) as caught:
        check(*arguments)
    return caught.value.fault, caught.value.detail


@pytest.mark.parametrize("text", ["IT'S", "straße", "łódź", "ça où 3ª", "2017", "O\u0308sterreich"])
def test_latin_texts_are_fine(text):
    check_text(text)


@pytest.mark.parametrize("text", ["", " ", "'", "..."])
def test_empty_texts(text):
    assert fault_of(check_text, text) == ("empty transcript", repr(text))


@pytest.mark.parametrize("text, letters", [("ευ THE", "ε υ"), ("да", "а д"), ("字", "字"), ("caf\ufffd", "not UTF-8")])
def test_other_scripts(text, letters):
    assert fault_of(check_text, text) == ("non-Latin transcript", letters)


def test_durations():
    check_duration(1.0, 1.0, 1.0)
    assert fault_of(check_duration, 0.99, 1.0, 2.0) == ("too short", "0.99 s is outside 1 to 2 s")
    assert fault_of(check_duration, 2.01, 1.0, 2.0)[0] == "too long"


def test_speaking_rate_counts_no_spaces():
    check_speaking_rate("a b c d", 1.0, 4.0, 4.0)
    assert fault_of(check_speaking_rate, "a b c d", 1.0, 4.5, 9.0)[0] == "misaligned"
    assert fault_of(check_speaking_rate, "a b c d", 1.0, 1.0, 3.5)[1].startswith("4.0 characters a second")


def test_report_is_sorted_and_read_back(tmp_path, capsys):
    faults = [
        Fault("train", "b", "too long", "tabs\tand\nlines\r survive"),
        Fault("train", "a", "too long", 'so do "quotes"'),
        Fault("dev", "c", "too short", "0.1 s", kept=True, file="list.tsv", line=3),
    ]
    write_report(tmp_path / "report.tsv", faults)
    assert read_report(tmp_path / "report.tsv") == sorted(faults)
    print_summary(faults, tmp_path / "report.tsv")
    assert capsys.readouterr().out == (
        f"dev: 1 kept although too short (by id in {tmp_path}/report.tsv)\n"
        f"train: 2 left out: too long (by id in {tmp_path}/report.tsv)\n"
    )


def test_the_log_names_the_first_and_counts_the_rest(caplog):
    log_faults([Fault("train", f"id-{i}", "too long", "9 s", kept=i == 3) for i in range(30)])
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "id-0 left out: too long (9 s)" and len(lines) == 21
    assert lines[-1] == "and 9 more: too long" and not any("id-3 " in line for line in lines)


def test_a_report_of_nothing_is_a_header(tmp_path):
    write_report(tmp_path / "report.tsv", [])
    assert (tmp_path / "report.tsv").read_text() == "file\tline\tfault\tdetail\taction\tid\tpart\n"
    assert read_report(tmp_path / "report.tsv") == []
    assert list(tmp_path.iterdir()) == [tmp_path / "report.tsv"]
