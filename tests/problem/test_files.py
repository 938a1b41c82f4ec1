"""Files are written whole or not at all."""

from __future__ import annotations

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
