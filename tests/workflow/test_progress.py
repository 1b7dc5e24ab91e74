"""What somebody at a terminal sees while a study runs, and when a job fails."""

from pathlib import Path

from .conftest import TINY, make_clone


def test_a_failed_job_ends_in_what_matters(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    clone.edit("tests/config/tiny.yaml", "block_length: 64", "block_length: 250")
    clone.edit("tests/config/tiny.yaml", "stories: 60\n", "stories: 1\n")
    done = clone.snakemake("--until", "prepare_corpus", *TINY)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    log = "results/tiny/logs/prepare_corpus/toy.log"
    place = lines.index(f"prepare_corpus toy failed; the end of {log}:")
    assert "less than one sequence of 250; give more text" in lines[place + 1]
    # Behind it there is only that the study ends, which job failed, and where its log lies.
    assert len(lines) - place <= 10
    assert lines[lines.index("1 job of 3 failed:") + 2].strip() == log
    # One line for each of the two jobs before; inputs and reasons are for --verbose.
    assert len([line for line in lines if line[1:4] == "/3 "]) == 2
    assert not [line for line in lines if line.strip().startswith(("input:", "reason:", "rule "))]
    ours = [line for line in lines if line.startswith(("study ", "1/3", "2/3"))]
    assert max(len(line) for line in ours) <= 80
    assert "Traceback" not in done.stderr


def test_a_dry_run_is_a_line_per_job(tmp_path: Path) -> None:
    clone = make_clone(tmp_path / "clone")
    done = clone.snakemake("-n", *TINY)
    # Where Snakemake's own list of a dry run goes.
    lines = done.stdout.splitlines()
    planned = [line for line in lines if line.endswith(("  output missing", "  input made anew"))]
    assert len({line.split("  ")[0] for line in planned}) == len(planned)
    (total,) = [line.split()[1] for line in lines if line.startswith("total ")]
    assert int(total) == len(planned)
    assert max(map(len, planned)) <= 80
    assert len(lines) - len(planned) < 50
    whole = clone.snakemake("-n", "--verbose", *TINY)
    assert len(whole.stdout.splitlines()) > 8 * len(planned)
