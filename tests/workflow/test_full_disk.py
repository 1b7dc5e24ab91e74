"""Snakemake on a disk that fills up: the user reads why, and the next call goes on."""

import os
import subprocess
import sys

import pytest

from tests.unit.test_storage import namespace

from .conftest import Clone

pytestmark = pytest.mark.slow

MANIFEST = "results/tiny/make_toyworld/manifest.json"
SCRIPT = """
mkdir results && mount -t tmpfs -o size=32k tmpfs results || exit 9
"$@"
echo "first: $?"
find results -name '*manifest.json' -o -name '*.partial*' -o -name '.*.work' | sed 's/^/left: /'
mount -o remount,size=8m results
"$@" && echo again: $(ls MANIFEST)
""".replace("MANIFEST", MANIFEST)


def test_a_full_disk_is_reported_and_the_next_call_goes_on(clone: Clone) -> None:
    prefix = namespace()
    if prefix is None:
        pytest.skip("no file system can be mounted here, not even in a namespace")
    snakemake = [sys.executable, "-m", "snakemake", "-c", "1", MANIFEST]
    done = subprocess.run(
        [*prefix, "sh", "-c", SCRIPT, "sh", *snakemake, "--configfile", "tests/config/tiny.yaml"],
        cwd=clone.folder,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    printed = done.stdout + done.stderr
    assert "first: 1\n" in printed
    assert "make_toyworld: the disk is full: results/tiny/.make_toyworld.partial-" in printed
    assert "Traceback" not in printed
    assert "left: " not in printed
    assert f"again: {MANIFEST}" in printed
