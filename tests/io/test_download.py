"""Downloads from a server on the loopback address that breaks off, changes its mind or lies."""

from __future__ import annotations

import hashlib
import multiprocessing
import socket
import threading
import urllib.request
from itertools import pairwise

import pytest

from pyposeext.errors import InputError
from pyposeext.io import download as module
from pyposeext.io.download import Received, download, exclusive, part_files
from tests.io.servers import Behaviour, serving

CONTENT = bytes(range(251)) * 40  # 10,040 bytes
DIGEST = hashlib.sha256(CONTENT).hexdigest()
OTHER = bytes(reversed(CONTENT))
FAST = {"pause": 0.001, "timeout": 5.0, "attempts": 3}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture
def place(tmp_path):
    return tmp_path / "folder" / "file.bin"


def interrupted(address, place, stop_after=3000, **options):
    """A download that its user interrupts."""

    def stop(received):
        if received.received >= stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(address, place, on_progress=stop, **FAST, **options)
    return part_files(place)[0].stat().st_size


def only(place):
    """There is the file and nothing beside it."""
    return [path.name for path in place.parent.iterdir()] == [place.name]


@pytest.mark.parametrize("sha256", ["", DIGEST, DIGEST[:8], DIGEST[:8].upper()])
def test_a_file(place, sha256):
    progress = []
    with serving(Behaviour(CONTENT)) as address:
        assert download(address, place, sha256, on_progress=progress.append, **FAST) == DIGEST
    assert place.read_bytes() == CONTENT
    assert only(place)
    assert progress[0] == Received(0, len(CONTENT))
    assert progress[-1] == Received(len(CONTENT), len(CONTENT))


@pytest.mark.parametrize("content", [b"", b"a"])
def test_small_files(place, content):
    with serving(Behaviour(content)) as address:
        assert download(address, place, **FAST) == hashlib.sha256(content).hexdigest()
    assert place.read_bytes() == content


def test_the_file_is_never_in_memory_as_a_whole(place, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 1000)
    progress = []
    with serving(Behaviour(CONTENT)) as address:
        download(address, place, DIGEST, on_progress=progress.append, **FAST)
    sizes = [received.received for received in progress]
    assert max(after - before for before, after in pairwise(sizes)) <= 1000


def test_no_length(place):
    with serving(Behaviour(CONTENT, length=False)) as address:
        assert download(address, place, DIGEST, **FAST) == DIGEST
    assert place.read_bytes() == CONTENT


@pytest.mark.parametrize("validator", [{"tag": '"one"'}, {"tag": 'W/"one"', "date": "Mon, 01 Jan 2024 00:00:00 GMT"}])
def test_dropped_connections_are_continued(place, validator):
    behaviour = Behaviour(CONTENT, drops=[4000, 0, 0, 100, 2000], **validator)
    with serving(behaviour) as address:
        assert download(address, place, DIGEST, **FAST) == DIGEST
    assert place.read_bytes() == CONTENT
    assert only(place)
    starts = [request.get("Range") for request in behaviour.requests]
    assert starts == [None, *(f"bytes={start}-" for start in (4000, 4000, 4000, 4100, 6100))]
    expected = validator.get("date") or validator["tag"]
    assert {request.get("If-Range") for request in behaviour.requests[1:]} == {expected}


def test_connections_that_bring_nothing_more_come_to_an_end(place):
    behaviour = Behaviour(CONTENT, drops=[5000] + 20 * [0])
    with serving(behaviour) as address:
        with pytest.raises(
            InputError,
            match=r"could not be fetched: the connection ended after 5000 of 10040 bytes, and 3 attempts brought "
            r"nothing more; 5000 bytes have arrived and are kept",
        ):
            download(address, place, **FAST)
        assert len(behaviour.requests) == 4
        assert not place.exists()
        behaviour.drops.clear()
        download(address, place, DIGEST, **FAST)
    assert behaviour.requests[-1]["Range"] == "bytes=5000-"
    assert place.read_bytes() == CONTENT


def test_an_interrupted_download_is_continued(place, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 1000)
    behaviour = Behaviour(CONTENT)
    with serving(behaviour) as address:
        size = interrupted(address, place)
        assert 3000 <= size < len(CONTENT)
        assert not place.exists()
        assert download(address, place, DIGEST, **FAST) == DIGEST
        assert behaviour.requests[-1]["Range"] == f"bytes={size}-"
        assert place.read_bytes() == CONTENT
        assert only(place)
        # Without its record, or with that of another address, nobody knows what the part is of.
        interrupted(address, place, sha256=DIGEST)
        part_files(place)[1].write_text("{")
        download(address, place, DIGEST, **FAST)
        assert "Range" not in behaviour.requests[-1]
        interrupted(address, place)
        download(address + "?other", place, DIGEST, **FAST)
        assert "Range" not in behaviour.requests[-1]


def test_a_complete_part_needs_no_server(place):
    with serving(Behaviour(CONTENT)) as address:
        interrupted(address, place, len(CONTENT))
    assert download(address, place, DIGEST, **FAST) == DIGEST
    assert place.read_bytes() == CONTENT


@pytest.mark.parametrize("validator", [{"ranges": False}, {"tag": ""}])
def test_servers_that_cannot_continue(place, validator, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 1000)
    behaviour = Behaviour(CONTENT, drops=[4000], **validator)
    with serving(behaviour) as address:
        assert download(address, place, DIGEST, **FAST) == DIGEST
        interrupted(address, place)
        assert download(address, place, DIGEST, **FAST) == DIGEST
    assert place.read_bytes() == CONTENT


@pytest.mark.parametrize(
    "change",
    [
        {"tag": '"two"'},
        {"tag": '"two"', "if_range": False},
        {"tag": "", "if_range": False, "content": OTHER[:-1]},
        {"tag": "", "date": "Mon, 01 Jan 2024 00:00:00 GMT", "if_range": False},
        {"content": OTHER[:2000], "if_range": False},
    ],
    ids=["If-Range", "no If-Range", "size", "date", "shorter than the part"],
)
def test_a_file_that_changes_is_fetched_anew(place, change, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", 1000)
    behaviour = Behaviour(CONTENT)
    with serving(behaviour) as address:
        interrupted(address, place)
        for key, value in {"content": OTHER, **change}.items():
            setattr(behaviour, key, value)
        download(address, place, **FAST)
    assert place.read_bytes() == behaviour.content


@pytest.mark.parametrize(
    "content_range",
    ["bytes 0-10039/10040", "bytes 3999-10039/10040", "bytes 4000-10039/10041", "bytes 4000-3000/10040", "nonsense"],
)
def test_wrong_ranges_are_not_believed(place, content_range):
    behaviour = Behaviour(CONTENT, drops=[4000], content_range=content_range)
    with serving(behaviour) as address:
        assert download(address, place, DIGEST, **FAST) == DIGEST
    assert [request.get("Range") for request in behaviour.requests] == [None, "bytes=4000-", None]


def test_ranges_that_are_shorter_than_asked_for(place):
    behaviour = Behaviour(CONTENT, drops=[4000], most=2500)
    with serving(behaviour) as address:
        assert download(address, place, DIGEST, **FAST) == DIGEST
    assert [request.get("Range") for request in behaviour.requests[1:]] == [
        f"bytes={start}-" for start in (4000, 6500, 9000)
    ]


def test_a_wrong_hash_leaves_nothing(place):
    with serving(Behaviour(OTHER)) as address, pytest.raises(InputError) as error:
        download(address, place, DIGEST[:8], **FAST)
    wrong = hashlib.sha256(OTHER).hexdigest()
    assert f"has the SHA-256 {wrong}, but {DIGEST[:8]} is expected" in str(error.value)
    assert list(place.parent.iterdir()) == []


def test_errors_of_the_server(place):
    behaviour = Behaviour(CONTENT, statuses=[404])
    with serving(behaviour) as address:
        with pytest.raises(InputError, match=r"/file could not be fetched: the server answers 404 Not Found$"):
            download(address, place, **FAST)
        assert len(behaviour.requests) == 1
        behaviour.statuses = [503, 429]
        assert download(address, place, DIGEST, **FAST) == DIGEST
        behaviour.statuses = [503] * 9
        with pytest.raises(InputError, match=r"the server answers 503 Service Unavailable, and 3 attempts"):
            download(address, place, **FAST)
        behaviour.statuses = [204]
        with pytest.raises(InputError, match="the server answers 204"):
            download(address, place, **FAST)
    assert place.read_bytes() == CONTENT


def test_redirections(place):
    behaviour = Behaviour(CONTENT)
    with serving(behaviour) as address:
        behaviour.redirect = address + "/moved"
        assert download(address, place, DIGEST, **FAST) == DIGEST
        behaviour.redirect = address
        with pytest.raises(InputError, match="redirect"):
            download(address, place, **FAST)
        behaviour.redirect = "ftp://127.0.0.1/file"
        with pytest.raises(InputError, match=r"ftp://127\.0\.0\.1/file, which is not followed"):
            download(address, place, **FAST)
    secure = urllib.request.Request("https://example.org/file")
    with pytest.raises(InputError, match="it is not https"):
        module._Redirects().redirect_request(secure, None, 302, "", {}, "http://example.org/file")


def test_no_connection(place):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{unused.getsockname()[1]}/file"
        with pytest.raises(InputError, match=r"could not be reached: Connection refused; is this machine online\?"):
            download(address, place, **FAST)
    assert list(place.parent.iterdir()) == []
    for address in ("file:///etc/hostname", "a.pth", "ftp://a/b"):
        with pytest.raises(InputError, match="address must begin with http:// or https://"):
            download(address, place)


def test_a_name_that_is_not_known(place, monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror(-3, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(
        InputError,
        match=r"https://example\.org/a\.pth could not be reached: Temporary failure in name resolution; is this",
    ):
        download("https://example.org/a.pth", place, **FAST)


def test_a_silent_server(place):
    with (
        serving(Behaviour(CONTENT, silence=0.3)) as address,
        pytest.raises(InputError, match=r"not answer within 0.1 s"),
    ):
        download(address, place, timeout=0.1)
    # One that falls silent in the middle counts as a dropped connection.
    behaviour = Behaviour(CONTENT[:3000], delay=0.4)
    with serving(behaviour) as address:
        download(address, place, timeout=0.15, pause=0.001)
    assert [request.get("Range") for request in behaviour.requests] == [None, "bytes=1000-", "bytes=2000-"]
    assert place.read_bytes() == CONTENT[:3000]
    # A slow one does not.
    behaviour = Behaviour(CONTENT, delay=0.002)
    with serving(behaviour) as address:
        assert download(address, place, DIGEST, **FAST) == DIGEST
    assert len(behaviour.requests) == 1


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot make the folder"):
        download("http://127.0.0.1:9/file", tmp_path / "file" / "a")
    with pytest.raises(InputError, match="it is a folder"):
        download("http://127.0.0.1:9/file", tmp_path)


def _hold(path, held, release):
    with exclusive(path):
        held.set()
        release.wait(10)


def test_another_process(place):
    context = multiprocessing.get_context("fork")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(place, held, release))
    process.start()
    try:
        assert held.wait(10)
        with pytest.raises(InputError, match=r"another process is writing .*file\.bin at the moment"):
            download("http://127.0.0.1:9/file", place)
    finally:
        release.set()
        process.join()
    with serving(Behaviour(CONTENT)) as address:
        assert download(address, place, DIGEST, **FAST) == DIGEST


def test_many_at_once(place):
    """Each either has the file or is told that another one is at it, and the file is whole."""
    outcomes = []
    inside = threading.Lock()

    def work():
        try:
            outcomes.append(download(address, place, DIGEST, **FAST))
        except InputError as error:
            outcomes.append(str(error))

    with serving(Behaviour(CONTENT, delay=0.001)) as address:
        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert DIGEST in outcomes
    assert all(outcome == DIGEST or "another process is writing" in outcome for outcome in outcomes)
    assert place.read_bytes() == CONTENT
    assert only(place)
    # The lock itself: nobody is ever inside together with another one.
    together = []

    def enter():
        for _ in range(200):
            try:
                with exclusive(place):
                    together.append(not inside.acquire(blocking=False))
                    inside.release()
            except InputError:
                pass

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together
    assert not any(together)
