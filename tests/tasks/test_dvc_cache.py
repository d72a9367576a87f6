"""DVC's cache read and written without DVC: the same hashes as DVC's own, copies and never links."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from perfusion.errors import DataError
from tasks.dvc_cache import Cache, cache_of, differences, folder_files, folder_md5, keep_data
from tasks.workspace import open_workspace

FILES = {"b.txt": b"second", "a.txt": b"first", "part/deep.bin": b"\x00\r\n\xff" * 99, "part/empty": b"", "é.txt": b"x"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    return tmp_path / "data"


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def test_a_folder_has_the_hash_and_the_objects_that_dvc_gives_it(folder: Path, cache: Cache) -> None:
    """DVC itself puts the folder into its cache; ours must hold the same objects under the same names."""
    root = folder.parent
    for command in (["init", "--no-scm", "--quiet"], ["add", "--quiet", "data"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd=root, check=True)
    theirs = cache_of(root)
    assert theirs is not None
    md5 = yaml.safe_load((root / "data.dvc").read_text())["outs"][0]["md5"]
    assert cache.keep(folder) == md5
    assert theirs.missing(md5) == cache.missing(md5) == []
    assert theirs.listing(md5) == cache.listing(md5) == folder_files(folder)
    assert theirs.place(md5).read_bytes() == cache.place(md5).read_bytes()
    ours, dvcs = ({p.name for p in (c.folder / "files").rglob("*") if p.is_file()} for c in (cache, theirs))
    assert ours == dvcs


def test_what_is_checked_out_is_equal_and_writing_to_it_never_reaches_the_cache(folder: Path, cache: Cache) -> None:
    md5 = cache.keep(folder)
    out = folder.with_name("out")
    cache.check_out(md5, out)
    assert {name: (out / name).read_bytes() for name in FILES} == FILES
    assert differences(out, md5) == []
    (out / "a.txt").write_bytes(b"changed")
    (folder / "b.txt").write_bytes(b"changed")
    assert differences(out, md5, cache.listing(md5)) == [f"different: {out / 'a.txt'}"]
    again = folder.with_name("again")
    cache.check_out(md5, again)
    assert differences(again, md5) == []


@pytest.mark.parametrize("harm", ["changed", "missing", "extra"])
def test_every_harm_to_a_folder_is_a_difference(folder: Path, harm: str) -> None:
    listing = folder_files(folder)
    md5 = folder_md5(listing)
    assert differences(folder, md5) == []
    file = folder / "part" / "deep.bin"
    if harm == "changed":
        file.write_bytes(FILES["part/deep.bin"][:-1] + b"\xfe")
    elif harm == "missing":
        file.unlink()
    else:
        file = folder / "part" / "more"
        file.write_bytes(b"")
    assert differences(folder, md5) == [f"different: {folder}"]
    assert differences(folder, md5, listing) == [f"different: {file}"]


def test_a_lost_object_is_named(folder: Path, cache: Cache) -> None:
    md5 = cache.keep(folder)
    lost = folder_files(folder)["b.txt"]
    cache.place(lost).unlink()
    assert cache.missing(md5) == [lost]
    cache.place(md5).unlink()
    assert cache.missing(md5) == [md5]
    assert cache.keep(folder) == md5  # what is lost comes back, the rest is left alone
    assert cache.missing(md5) == []


def test_a_damaged_list_is_not_believed(folder: Path, cache: Cache) -> None:
    md5 = cache.keep(folder)
    cache.place(md5).chmod(0o644)
    cache.place(md5).write_bytes(b"[]")
    with pytest.raises(DataError, match="the cache is damaged"):
        cache.listing(md5)


def test_data_that_changed_since_they_were_trained_on_are_not_kept_as_those(folder: Path) -> None:
    (folder.parent / ".dvc").mkdir()
    workspace = open_workspace(folder.parent)
    trained_on = folder_md5(folder_files(folder))
    (folder / "a.txt").write_bytes(b"appended meanwhile")
    with pytest.raises(DataError, match="changed meanwhile"):
        keep_data(workspace, trained_on)
    (folder / "a.txt").write_bytes(FILES["a.txt"])
    keep_data(workspace, trained_on)
    cache = cache_of(folder.parent)
    assert cache is not None
    assert cache.folder == folder.parent / ".dvc" / "cache"
    assert cache.missing(trained_on) == []
