"""Files are written whole or not at all."""

from __future__ import annotations

import os

import pytest

from optimizer.errors import InputError
from optimizer.problem.files import written_whole


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("mode", "content"), [("w", "ä\n\r\nb"), ("wb", b"\x00\xff\r\n")])
def test_what_is_written_is_there_byte_for_byte(tmp_path, mode, content):
    """Text is UTF-8, line ends stay as they are, and nothing else is left in the folder."""
    path = tmp_path / "out"
    with written_whole(path, mode) as out:
        out.write(content)
    assert path.read_bytes() == (content if mode == "wb" else content.encode())
    assert names(tmp_path) == ["out"]


def test_a_path_may_be_text(tmp_path):
    """As well as a `Path`."""
    with written_whole(str(tmp_path / "out")) as out:
        out.write("x")
    assert (tmp_path / "out").read_text() == "x"


@pytest.mark.parametrize("interruption", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_no_draft(tmp_path, interruption):
    """Half of a result is worse than none: what was there before stays, also after Ctrl-C."""
    path = tmp_path / "out"
    path.write_text("old")

    def write_half():
        with written_whole(path) as out:
            out.write("new")
            raise interruption

    with pytest.raises(interruption):
        write_half()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_an_exception_leaves_nothing_where_nothing_was(tmp_path):
    """No empty file either."""
    with pytest.raises(RuntimeError), written_whole(tmp_path / "out"):
        raise RuntimeError
    assert names(tmp_path) == []


def test_the_old_file_is_there_until_the_new_one_is_whole(tmp_path):
    """Whoever reads meanwhile reads the old one; the draft lies beside it."""
    path = tmp_path / "out"
    path.write_text("old")
    with written_whole(path) as out:
        out.write("new")
        out.flush()
        assert path.read_text() == "old"
        assert len(names(tmp_path)) == 2
    assert path.read_text() == "new"
    assert names(tmp_path) == ["out"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    """The reason is the operating system's, the file is the one that was asked for."""
    path = tmp_path / "nowhere" / "out"
    with pytest.raises(InputError, match="cannot be written: No such file") as caught, written_whole(path):
        pass
    assert caught.value.file == str(path)


def test_a_folder_that_is_a_file_is_named(tmp_path):
    """As nobody, not even root, can write into it."""
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "out"
    with pytest.raises(InputError, match="cannot be written: Not a directory"), written_whole(path):
        pass


def test_a_folder_without_the_right_to_write_is_named(tmp_path, monkeypatch):
    """Whatever `open` says against it."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.open", refuse)
    with (
        pytest.raises(InputError, match="cannot be written: Permission denied"),
        written_whole(tmp_path / "o"),
    ):
        pass


@pytest.mark.parametrize("name", ["", "folder", "link to the folder"])
def test_a_folder_or_no_name_is_refused(tmp_path, monkeypatch, name):
    """Before anything is written: nothing is left behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link to the folder").symlink_to("folder")
    with (
        pytest.raises(InputError, match="is a folder; expected the name" if name else "is empty"),
        written_whole(name),
    ):
        pass
    assert names(tmp_path) == ["folder", "link to the folder"]


@pytest.mark.parametrize("there", [True, False], ids=["old file", "dangling"])
def test_a_link_stays_and_its_target_is_written(tmp_path, there):
    """In the target's folder, where the draft can take its place."""
    (tmp_path / "far").mkdir()
    target, link = tmp_path / "far" / "target", tmp_path / "link"
    if there:
        target.write_text("old")
    link.symlink_to("far/target")
    with written_whole(link) as out:
        out.write("new")
        assert target.exists() is there
    assert link.is_symlink()
    assert target.read_text() == "new"
    assert (names(tmp_path), names(target.parent)) == (["far", "link"], ["target"])


def test_a_failure_leaves_the_target_of_a_link_as_it_was(tmp_path):
    """As with a plain file."""
    (tmp_path / "target").write_text("old")
    (tmp_path / "link").symlink_to("target")

    def write_half():
        with written_whole(tmp_path / "link") as out:
            out.write("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert (tmp_path / "link").read_text() == "old"
    assert names(tmp_path) == ["link", "target"]


def test_a_link_into_nowhere_is_named_as_it_was_given(tmp_path):
    """Not by the place that it leads to."""
    (tmp_path / "link").symlink_to("nowhere/target")
    with (
        pytest.raises(InputError, match="cannot be written: No such file") as caught,
        written_whole(tmp_path / "link"),
    ):
        pass
    assert caught.value.file == str(tmp_path / "link")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_or_a_device_stays_what_it_is(tmp_path):
    """It is written to; a file of its name would be something else."""
    pipe, to_nothing = tmp_path / "pipe", tmp_path / "to nothing"
    os.mkfifo(pipe)
    to_nothing.symlink_to(os.devnull)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with written_whole(pipe) as out:
            out.write("x")
        assert os.read(reader, 9) == b"x"
    finally:
        os.close(reader)
    with written_whole(to_nothing, "wb") as out:
        out.write(b"x")
    assert pipe.is_fifo()
    assert to_nothing.is_char_device()
    assert names(tmp_path) == ["pipe", "to nothing"]
