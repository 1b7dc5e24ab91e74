"""What `iskd verify` says of a study that another commit has made."""

from types import SimpleNamespace
from typing import Any

import pytest

from iskd.audit import verify
from iskd.audit.folder import Found

HERE, OTHER = "a" * 40, "b" * 40


@pytest.mark.parametrize(
    ("commits", "told"),
    [([HERE, HERE], []), ([None, HERE], []), ([HERE, OTHER, OTHER], [OTHER])],
    ids=["this one", "none", "another one"],
)
def test_a_commit_that_is_not_this_checkouts_is_named_once(
    commits: list[str | None], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "git", lambda *_: HERE)
    artifacts = {
        str(number): Found(str(number), run={"git": {"commit": commit}})
        for number, commit in enumerate(commits)
    }
    folder: Any = SimpleNamespace(artifacts=artifacts | {"bare": Found("bare")})
    notes = list(verify._other_commits(folder))
    assert len(notes) == len(told)
    for note, commit in zip(notes, told, strict=True):
        assert f"git worktree add ../at-{commit[:12]} {commit[:12]}" in note
