"""Small git checkouts for tests."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path


def make_checkout(root: Path, files: Mapping[str, str]) -> Path:
    """A checkout with these files (path -> text) in its first commit, on main."""
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    git(root, "init", "--quiet", "--initial-branch", "main")
    commit(root)
    return root


def git(root: Path, *arguments: str) -> str:
    """What a git command prints, run as somebody and without anyone's hooks."""
    own = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "core.hooksPath=/dev/null")
    return subprocess.run(["git", *own, *arguments], cwd=root, check=True, capture_output=True, text=True).stdout


def commit(root: Path) -> str:
    """Commit whatever changed; returns the commit."""
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "a change")
    return git(root, "rev-parse", "HEAD").strip()
