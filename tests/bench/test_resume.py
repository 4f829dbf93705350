"""The benchmark of going on in the middle of an epoch runs, on a small corpus."""

from sumix_stream.bench import resume


def test_it_reaches_every_point(tmp_path, capsys):
    resume.measure(tmp_path, 400, lhotse=True)
    lines = capsys.readouterr().out.splitlines()
    assert sum(" of epoch " in line for line in lines) == 4
    assert any(line.startswith("index: cuts.npz") for line in lines) and "Lhotse" in lines[-2]
