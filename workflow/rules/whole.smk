# Where this workflow is fetched, by github() or by what `snakedeploy deploy-workflow` writes, Snakemake
# takes single files out of a clone, and the rules' library would stay behind. The whole commit is
# checked out instead, once, and the rules are read from there. In one's own clone nothing happens.

import subprocess
import sys
import tempfile
from pathlib import Path


def repository_of(source):
    """Give the git folder and the commit, tag or branch that a fetched file is taken from."""
    hosted = getattr(source, "hosted_repo", None)
    folder = source.repo_path if hosted is None else hosted.repo.git_dir
    return str(folder), source.ref


def checked_out(source):
    """Check out the commit that a file is fetched from, below the working directory."""
    folder, ref = repository_of(source)
    git = ["git", "-C", folder]
    try:
        name = [*git, "rev-parse", "--verify", f"{ref}^{{commit}}"]
        commit = subprocess.check_output(name, text=True).strip()
        place = Path(".snakemake", "iskd", commit)
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
                draft = Path(scratch, commit)
                # A clone and no plain copy: each artifact records the commit of its code.
                make = ["git", "clone", "--quiet", "--no-checkout", folder, str(draft)]
                subprocess.run(make, check=True)
                checkout = ["git", "-C", str(draft), "checkout", "--quiet", commit]
                subprocess.run(checkout, check=True)
                # Of two calls at once, the one that comes later finds what it wanted.
                if not place.exists():
                    draft.rename(place)
    except (OSError, subprocess.CalledProcessError) as error:
        print(
            f"module {workflow.modifier.namespace}: the commit {ref} of the workflow cannot be "
            f"checked out from {folder} ({error}); name a local clone in its place "
            "(docs/as-a-module.md)",
            file=sys.stderr,
        )
        sys.exit(1)
    return place.resolve()


# github() and gitfile() have a commit, tag or branch; a local file has none.
WHOLE = (
    checked_out(workflow.current_basedir)
    if hasattr(workflow.current_basedir, "ref")
    else None
)


def whole(file):
    """Name a file of this workflow's folder: as it is, or where the whole commit was checked out."""
    return file if WHOLE is None else str(WHOLE / "workflow" / file)
