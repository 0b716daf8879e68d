"""Files of pages: whatever happens to one, it is read as it was written or not at all."""

import os
import signal
import subprocess
import sys
import time
import tracemalloc

import pytest

from ramify.radix_cache.page_files import (
    FIXED,
    NAMED,
    FolderUnusable,
    PageFileError,
    PageFiles,
    file_bytes,
)
from ramify.radix_cache.page_keys import page_key, root_key
from ramify.radix_cache.plans import PageRecord

PAGE_BYTES, PAGE_SIZE = 48, 4
ROOT = root_key("")


def record(i, n_tokens=PAGE_SIZE, parent=ROOT):
    tokens = bytes([i, 0, 0, 0] * n_tokens)
    return PageRecord(page_key(parent, tokens), parent, tokens)


def page(i):
    return bytes((i * 7 + k) % 256 for k in range(PAGE_BYTES))


def read(files, record):
    into = bytearray(PAGE_BYTES)
    files.read(record, memoryview(into))
    return bytes(into)


@pytest.fixture
def opened(tmp_path):
    """A maker of PageFiles over one folder, which closes what it made."""
    made = []

    def open_(fingerprint="f", page_bytes=PAGE_BYTES, folder=tmp_path):
        made.append(PageFiles(folder, fingerprint, page_bytes, PAGE_SIZE))
        return made[-1]

    yield open_
    for files in made:
        files.close()


@pytest.fixture
def files(opened):
    return opened()


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "f"


def test_a_page_is_found_and_read_as_it_was_written(files):
    records = [record(1), record(2, n_tokens=1), record(3, parent=record(1).key)]
    for i, each in enumerate(records):
        files.write(each, memoryview(page(i)))
    assert sorted(files.scan(), key=lambda r: r.tokens) == records
    assert [read(files, each) for each in records] == [page(0), page(1), page(2)]


def test_only_the_owner_may_see_them(files, folder):
    files.write(record(1), memoryview(page(1)))
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}


def test_a_folder_open_to_others_is_closed_to_them(opened, folder):
    folder.mkdir(mode=0o755)
    opened()
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_file_takes_no_more_than_was_reckoned(files, folder):
    files.write(record(1), memoryview(page(1)))
    state = (folder / record(1).key.hex()).stat()
    assert max(state.st_size, state.st_blocks * 512) <= file_bytes(PAGE_BYTES, PAGE_SIZE)


def test_the_longest_unused_come_first(files, folder):
    for i in range(4):
        files.write(record(i), memoryview(page(i)))
        os.utime(folder / record(i).key.hex(), ns=(0, (10 - i) * 10**9))
    assert files.scan() == [record(i) for i in (3, 2, 1, 0)]
    read(files, record(2))
    assert files.scan() == [record(i) for i in (3, 1, 0, 2)]


def test_a_dropped_page_is_gone_and_may_be_dropped_again(files):
    files.write(record(1), memoryview(page(1)))
    files.drop(record(1).key)
    files.drop(record(1).key)
    assert files.scan() == []
    with pytest.raises(FileNotFoundError):
        read(files, record(1))


def outcome(files):
    """(what a scan finds, what a read of page 1 gives)."""
    try:
        content = read(files, record(1))
    except OSError:
        content = None
    return files.scan(), content


@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_no_changed_byte_is_ever_taken_for_content(files, folder, flip):
    files.write(record(1), memoryview(page(1)))
    path = folder / record(1).key.hex()
    whole = path.read_bytes()
    header = len(whole) - PAGE_BYTES - 4
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ flip]) + whole[at + 1 :])
        found, content = outcome(files)
        assert content is None
        assert found == ([] if at < header else [record(1)])  # a scan reads headers only
    path.write_bytes(whole)
    assert outcome(files) == ([record(1)], page(1))


def test_a_file_of_any_other_length_is_ignored(files, folder):
    files.write(record(1), memoryview(page(1)))
    path = folder / record(1).key.hex()
    whole = path.read_bytes()
    for text in (*(whole[:n] for n in range(len(whole))), whole + b"\0"):
        path.write_bytes(text)
        assert outcome(files) == ([], None)


def test_a_page_behind_the_header_of_another_is_found_out(files, folder):
    """Two files of equal layout: only the page and its checksum are exchanged."""
    for i in (1, 2):
        files.write(record(i), memoryview(page(i)))
    one, two = ((folder / record(i).key.hex()).read_bytes() for i in (1, 2))
    tail = PAGE_BYTES + 4
    (folder / record(1).key.hex()).write_bytes(one[:-tail] + two[-tail:])
    with pytest.raises(PageFileError, match="content is damaged"):
        read(files, record(1))


def warned(caplog, name):
    return [message for message in caplog.messages if name in message]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda path: path.mkdir(), "no regular file"),
        (lambda path: path.symlink_to("/etc/hostname"), "symbolic link"),
        (lambda path: path.symlink_to("nowhere"), "symbolic link"),
        (lambda path: os.mkfifo(path), "no regular file"),
        (lambda path: path.write_bytes(b""), "no page file"),
        (lambda path: path.write_bytes(os.urandom(10 << 20)), "no page file"),
        (lambda path: path.write_bytes(b"rmfypage" + b"\xff" * (10 << 20)), "format"),
        (lambda path: path.write_bytes(b"rmfypage\1\0\0\0" + b"\xff" * (10 << 20)), "damaged"),
    ],
)
@pytest.mark.parametrize("name", ["stranger", record(1).key.hex()])
def test_whatever_is_no_page_is_ignored_named_and_left_alone(
    files, folder, caplog, make, why, name
):
    files.write(record(2), memoryview(page(2)))
    make(folder / name)
    tracemalloc.start()
    found = files.scan()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == [record(2)]
    assert most < 1 << 17  # bytes, whatever a header promises
    assert [why in message for message in warned(caplog, name)] == [True]
    assert os.path.lexists(folder / name)
    assert outcome(files) == ([record(2)], None)


def test_a_symbolic_link_to_a_good_page_is_not_followed(files, folder):
    files.write(record(1), memoryview(page(1)))
    path = folder / record(1).key.hex()
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")
    assert outcome(files) == ([], None)


def test_many_strangers_are_counted(files, folder, caplog):
    for i in range(NAMED + 5):
        (folder / f"stranger{i}").touch()
    assert files.scan() == []
    assert len(warned(caplog, "'stranger")) == NAMED
    assert "5 more" in caplog.messages[-1]


@pytest.mark.parametrize(
    ("fingerprint", "page_bytes", "why"),
    [("g", PAGE_BYTES, "another model"), ("f", PAGE_BYTES + 4, "another model")],
)
def test_a_page_of_another_model_is_ignored(
    opened, files, folder, caplog, fingerprint, page_bytes, why
):
    """Somebody copied it here: its own folder is another."""
    other = opened(fingerprint, page_bytes, folder.parent / "other")
    other.write(record(1), memoryview(bytes(page_bytes)))
    name = record(1).key.hex()
    os.rename(folder.parent / "other" / fingerprint / name, folder / name)
    assert outcome(files) == ([], None)
    assert why in warned(caplog, name)[0]


def test_a_page_of_another_format_is_ignored(files, folder, caplog):
    files.write(record(1), memoryview(page(1)))
    path = folder / record(1).key.hex()
    text = bytearray(path.read_bytes())
    text[8] += 1
    path.write_bytes(text)
    assert outcome(files) == ([], None)
    assert "format 2, not 1" in caplog.text


def test_a_renamed_file_is_ignored(files, folder):
    files.write(record(2), memoryview(page(2)))
    (folder / record(2).key.hex()).rename(folder / record(1).key.hex())
    assert outcome(files) == ([], None)


@pytest.mark.parametrize(
    "wrong",
    [
        PageRecord(record(1).key, ROOT, record(2).tokens),
        PageRecord(record(1).key, record(2).key, record(1).tokens),
        PageRecord(page_key(ROOT, b""), ROOT, b""),
        PageRecord(page_key(ROOT, b"abc"), ROOT, b"abc"),
    ],
)
def test_a_key_must_be_that_of_its_tokens(files, caplog, wrong):
    files.write(wrong, memoryview(page(1)))
    assert files.scan() == []
    assert "not that of its tokens" in caplog.text


def test_one_engine_at_a_time(opened):
    first = opened()
    with pytest.raises(FolderUnusable, match="another engine uses it"):
        opened()
    opened("g").write(record(1), memoryview(page(1)))  # of another model: no quarrel
    first.write(record(1), memoryview(page(1)))


def test_a_closed_folder_can_be_used_again(tmp_path, opened):
    first = PageFiles(tmp_path, "f", PAGE_BYTES, PAGE_SIZE)
    first.write(record(1), memoryview(page(1)))
    first.close()
    assert opened().scan() == [record(1)]


@pytest.mark.parametrize("place", ["file", "link", "below a file"])
def test_a_place_that_is_no_folder_of_ours_is_refused(tmp_path, opened, folder, place):
    if place == "file":
        folder.touch()
    elif place == "link":
        (tmp_path / "real").mkdir()
        folder.symlink_to(tmp_path / "real")
    else:
        (tmp_path / "x").touch()
    with pytest.raises(FolderUnusable, match="cannot be used"):
        opened(folder=tmp_path / "x" if place == "below a file" else tmp_path)


def test_the_leftover_of_a_crash_is_removed(opened, folder):
    folder.mkdir()
    (folder / ".part").write_bytes(FIXED.pack(b"rmfypage", 1, 1, 1, 1, 1, 1))
    files = opened()
    assert os.listdir(folder) == [".lock"]
    assert files.scan() == []


def test_what_lies_in_the_place_of_the_file_being_written_does_no_harm(files, folder, caplog):
    part = folder / ".part"
    part.write_bytes(bytes(1000))  # longer than a page file
    assert files.scan() == []
    assert caplog.messages == []
    files.write(record(1), memoryview(page(1)))
    assert read(files, record(1)) == page(1)
    (folder.parent / "precious").write_text("of somebody else")
    part.symlink_to(folder.parent / "precious")
    with pytest.raises(OSError, match="symbolic links"):
        files.write(record(2), memoryview(page(2)))
    assert (folder.parent / "precious").read_text() == "of somebody else"
    files.write(record(2), memoryview(page(2)))  # the link was removed
    assert read(files, record(2)) == page(2)


WRITE_PAGES = """
import sys
from pathlib import Path
from ramify.radix_cache.page_files import PageFiles
from ramify.radix_cache.page_keys import page_key
from ramify.radix_cache.plans import PageRecord
files = PageFiles(Path(sys.argv[1]), "f", {size}, 4)
for i in range({n}):
    tokens = bytes([i, 0, 0, 0])
    record = PageRecord(page_key(b"", tokens), b"", tokens)
    try:
        files.write(record, memoryview(tokens * ({size} // 4)))
    except OSError as error:
        print(error.strerror, flush=True)
    else:
        print("written", flush=True)
"""


def writer(folder, size, n, **options):
    code = WRITE_PAGES.format(size=size, n=n)
    command = [sys.executable, "-c", code, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize("delay_s", [0.0, 0.0002, 0.0005])
def test_a_killed_writer_leaves_only_whole_pages(tmp_path, opened, delay_s):
    size, n = 1 << 20, 200
    with writer(tmp_path, size, n) as process:
        for _ in range(20):
            assert process.stdout.readline() == "written\n"
        time.sleep(delay_s)  # another moment inside a write
        process.send_signal(signal.SIGKILL)
    files = opened(page_bytes=size)
    assert not (tmp_path / "f" / ".part").exists()
    found = files.scan()
    assert 20 <= len(found) < n
    into = bytearray(size)
    for each in found:
        files.read(each, memoryview(into))
        assert into == each.tokens * (size // 4)


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path):
    """A limit on the size of files stands in for the disk: writing ends in the middle of a page."""
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    with writer(tmp_path, 1 << 20, 3, preexec_fn=limit) as process:
        assert process.stdout.read() == "File too large\n" * 3
    assert os.listdir(tmp_path / "f") == [".lock"]
