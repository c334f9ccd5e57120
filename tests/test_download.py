"""The downloader against a server on this machine that cuts, stalls, lies and changes its mind."""

import dataclasses
import errno
import hashlib
import io
import json
import random
import re
import shutil
import stat
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers.data import download as dl
from helpers.data.files import DataError

BODY = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()
DATE = "Mon, 01 Jan 2024 00:00:00 GMT"
Usage = namedtuple("Usage", "total used free")


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; the next entry of `server.plan` says how it misbehaves on this request.

    Keys of an entry: `status`, `cut` or `stall` (after so many bytes of the body), `body` (another one),
    `ranges=False` (Range ignored), `careless` (If-Range ignored), `skip` (bytes left out of a Range), `chunked`,
    `headers` (added), `etag`.
    """

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        plan = server.plan.pop(0) if server.plan else {}
        body = plan.get("body", server.files.get(self.path))
        status, start = plan.get("status", 200 if body is not None else 404), 0
        body, etag = body or b"", plan.get("etag", server.etag)
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = plan.get("careless") or self.headers.get("If-Range") in (etag, DATE)
        if status == 200 and asked and same and plan.get("ranges", True):
            status, start = 206, int(asked[1]) + plan.get("skip", 0)
        if status in (404, 403, 503, 416):
            body = b"sorry"
        send = body[start:][: plan.get("cut", plan.get("stall", len(body)))]
        server.log.append({"path": self.path, "status": status, "sent": len(send), **dict(self.headers)})
        self.protocol_version = "HTTP/1.1" if plan.get("chunked") else "HTTP/1.0"
        self.send_response(status)
        self.send_header("Connection", "close")
        if etag:
            self.send_header("ETag", etag)
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        for name, value in plan.get("headers", {}).items():
            self.send_header(name, value)
        if plan.get("chunked"):
            self.send_header("Transfer-Encoding", "chunked")
        else:
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if plan.get("chunked"):
            for at in range(0, len(send), 1000):
                block = send[at : at + 1000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
            if "cut" not in plan:
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(send)
        self.wfile.flush()
        self.close_connection = True
        if "stall" in plan:
            server.release.wait(20)


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.files, server.plan, server.log, server.etag = {"/a.bin": BODY}, [], [], '"one"'
    server.release = threading.Event()
    server.base = f"http://127.0.0.1:{server.server_address[1]}"
    server.url = server.base + "/a.bin"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
    """No test waits: the pauses between tries are noted instead."""
    pauses = []
    monkeypatch.setattr(dl.time, "sleep", pauses.append)
    return pauses


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "a.bin"


def sent(server):
    return [entry["sent"] for entry in server.log]


def ranges(server):
    return [entry.get("Range") for entry in server.log]


def names(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and p.name != dl._UNFINISHED)


# One file


def test_a_whole_file_in_one_request(server, path):
    assert dl.fetch(server.url, path, MD5.upper()) == path
    assert path.read_bytes() == BODY
    assert names(path.parent) == ["a.bin"] and sent(server) == [len(BODY)]
    assert "urllib" not in server.log[0]["User-Agent"].lower()  # Dataverse refuses that one


def test_cuts_are_resumed_and_progress_does_not_use_up_the_tries(server, path, pauses):
    server.plan = [{"cut": 100_000}, {"cut": 50_000}, {"cut": 50_000}]
    dl.fetch(server.url, path, MD5, retries=0)
    assert path.read_bytes() == BODY and names(path.parent) == ["a.bin"]
    assert ranges(server) == [None, "bytes=100000-", "bytes=150000-", "bytes=200000-"]
    assert sent(server) == [100_000, 50_000, 50_000, 100_000]
    assert {entry["If-Range"] for entry in server.log[1:]} == {'"one"'}


def test_a_later_call_goes_on_and_the_bar_starts_there(server, path, monkeypatch):
    server.plan = [{"cut": 100_000}, {"status": 503}]
    with pytest.raises(DataError, match=r"503.*100,000 bytes.*again"):
        dl.fetch(server.url, path, retries=0)
    assert names(path.parent) == ["a.bin.part", "a.bin.part.json"]
    bars = []

    class Bar(dl.tqdm):
        def __init__(self, *args, **settings):
            super().__init__(*args, **settings)
            bars.append((settings["desc"], self.n, self))

    monkeypatch.setattr(dl, "tqdm", Bar)
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY and sent(server)[2:] == [200_000]
    [(name, started, bar)] = bars
    assert (name, started) == ("a.bin", 100_000)
    assert (bar.initial, bar.n, bar.total) == (100_000, len(BODY), len(BODY))


def test_without_progress_it_pauses_longer_and_gives_up(server, path, pauses):
    server.plan = [{"status": 503}] * 4
    with pytest.raises(DataError, match=r"a.bin.*503.*4 tries"):
        dl.fetch(server.url, path, retries=3, pause=2.0)
    assert pauses == [2, 4, 8] and len(server.log) == 4 and names(path.parent) == []


def test_a_server_that_cannot_resume_is_not_asked_for_ever(server, path):
    server.plan = [{"ranges": False, "cut": 1000}] * 50
    with pytest.raises(DataError, match="1,000 of 300,000"):
        dl.fetch(server.url, path, retries=2)
    assert len(server.log) == 4


def test_no_server_at_all(server, path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"a\.bin: no connection"):
        dl.fetch(server.url, path, retries=1)
    with pytest.raises(DataError, match="no-address is no web address"):
        dl.fetch("no-address", path)


def test_a_redirect_is_followed_on_resuming_too(server, path):
    """Dataverse sends every file on to its storage."""
    onward = {"status": 303, "headers": {"Location": "/a.bin"}}
    server.plan = [onward, {"cut": 100_000}, onward]
    dl.fetch(server.base + "/moved", path, MD5)
    assert path.read_bytes() == BODY and sent(server) == [0, 100_000, 0, 200_000]


def test_an_ignored_range_starts_afresh(server, path):
    server.plan = [{"cut": 100_000}, {"ranges": False}]
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY and sent(server) == [100_000, len(BODY)]


@pytest.mark.parametrize("careless", [False, True], ids=["If-Range honoured", "If-Range ignored"])
def test_a_file_that_changed_on_the_server_is_never_mixed(server, path, careless):
    server.plan = [{"cut": 100_000, "etag": '"old"', "body": bytes(len(BODY))}, {"careless": careless}]
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY
    assert sent(server) == ([100_000, 200_000, len(BODY)] if careless else [100_000, len(BODY)])


def test_what_cannot_be_recognised_again_is_not_continued(server, path):
    server.etag = None
    server.plan = [{"cut": 100_000}]
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY and ranges(server) == [None, None]


def test_a_weak_tag_is_no_promise_of_the_same_bytes(server, path):
    server.etag = 'W/"one"'
    server.plan = [{"cut": 100_000, "headers": {"Last-Modified": DATE}}, {"headers": {"Last-Modified": DATE}}]
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY and sent(server) == [100_000, 200_000]
    assert server.log[1]["If-Range"] == DATE


def test_another_address_does_not_continue_the_part_of_the_first(server, path):
    server.files["/b.bin"] = BODY[::-1]
    server.plan = [{"cut": 100_000}, {"status": 503}]
    with pytest.raises(DataError):
        dl.fetch(server.url, path, retries=0)
    dl.fetch(server.base + "/b.bin", path)
    assert path.read_bytes() == BODY[::-1] and ranges(server)[-1] is None


def test_another_range_than_the_one_asked_for_is_not_used(server, path):
    server.plan = [{"cut": 100_000}, {"skip": 1000}]
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY and sent(server) == [100_000, 199_000, len(BODY)]


def test_a_range_refused_with_416_starts_afresh(server, path):
    server.plan = [{"cut": 100_000}, {"status": 416}]
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY and ranges(server) == [None, "bytes=100000-", None]


def test_killed_between_the_last_byte_and_the_rename(server, path):
    server.plan = [{"cut": 100_000}, {"status": 503}]
    with pytest.raises(DataError):
        dl.fetch(server.url, path, retries=0)
    (path.parent / "a.bin.part").write_bytes(BODY)
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY and len(server.log) == 2 and names(path.parent) == ["a.bin"]


@pytest.mark.parametrize("note", ["", '{"url": "http', "[]"], ids=["empty", "half", "strange"])
def test_a_damaged_note_starts_afresh(server, path, note):
    path.parent.mkdir()
    (path.parent / "a.bin.part").write_bytes(b"?" * 1000)
    (path.parent / "a.bin.part.json").write_text(note)
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY and ranges(server) == [None]


def test_a_stall_counts_as_a_cut(server, path):
    server.plan = [{"stall": 100_000}]
    dl.fetch(server.url, path, MD5, timeout=0.7)
    assert path.read_bytes() == BODY and sent(server)[-1] == 200_000


def test_chunked_answers_without_a_length(server, path):
    server.plan = [{"chunked": True, "cut": 100_000}, {"status": 503}, {"chunked": True}]
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY and sent(server) == [100_000, 5, 200_000]
    path.unlink()
    server.plan = [{"chunked": True}]
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY and sent(server)[3:] == [len(BODY)]


def test_a_wrong_checksum_gets_one_fresh_try(server, path):
    server.plan = [{"body": BODY[:-1] + b"?"}]
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY and len(server.log) == 2


def test_a_checksum_wrong_twice_leaves_nothing(server, path):
    wrong = BODY[:-1] + b"?"
    server.plan = [{"body": wrong}, {"body": wrong}]
    with pytest.raises(DataError) as error:
        dl.fetch(server.url, path, MD5)
    assert all(word in str(error.value) for word in ("a.bin", MD5, hashlib.md5(wrong).hexdigest()))
    assert names(path.parent) == [] and len(server.log) == 2


def test_a_file_already_there_is_asked_for_only_when_it_is_wrong(server, path):
    path.parent.mkdir()
    path.write_bytes(b"by hand")
    dl.fetch(server.url, path)
    dl.fetch(server.url, path, hashlib.md5(b"by hand").hexdigest())
    assert server.log == [] and path.read_bytes() == b"by hand"
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY


@pytest.mark.parametrize("status", [403, 404])
def test_a_closed_address_names_itself_and_the_way_by_hand(server, path, status):
    server.plan = [{"status": status}]
    with pytest.raises(DataError) as error:
        dl.fetch(server.url, path)
    assert all(word in str(error.value) for word in (server.url, str(status), "moved", f"by hand to {path}"))
    assert len(server.log) == 1 and names(path.parent) == []


def test_an_empty_answer_of_a_firewall_is_no_file_and_costs_no_part(server, path):
    server.plan = [{"cut": 100_000}, {"status": 202, "body": b""}]
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY and sent(server) == [100_000, 0, 200_000]


def test_too_little_disk_is_said_before_a_byte_is_written(server, path, monkeypatch):
    monkeypatch.setattr(dl.shutil, "disk_usage", lambda _: Usage(1, 1, 1000))
    with pytest.raises(DataError, match=r"a\.bin needs 0\.3 MB.*0\.0 MB"):
        dl.fetch(server.url, path)
    assert names(path.parent) == []


def test_a_disk_that_fills_up_is_not_retried_and_keeps_the_part(server, path, monkeypatch):
    class Full(io.FileIO):
        def write(self, data):
            if self.tell() >= 100_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(data[:100_000])

    server.plan = [{"cut": 100_000}]
    with monkeypatch.context() as patch:
        patch.setattr(dl, "open", lambda name, mode: Full(name, mode), raising=False)
        with pytest.raises(DataError, match=r"a\.bin could not be written.*No space left"):
            dl.fetch(server.url, path)
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY and sent(server)[-1] == 200_000


# One zip


def make_zip(entries, path=None):
    """A zip of (name or ZipInfo, bytes) pairs: its bytes, also written to `path`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, data in entries:
            bundle.writestr(name, data)
    if path:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def picture(seed):
    return random.Random(seed).randbytes(500)


def pictures(count, top="", suffix=".jpg"):
    return [(f"{top}ISIC_{i:07d}{suffix}", picture(i)) for i in range(count)]


MAC = [("__MACOSX/X/._ISIC_0000000.jpg", b"fork"), ("X/.DS_Store", b"finder"), ("__MACOSX/X/ISIC_0000000.jpg", b"fork")]


@pytest.mark.parametrize(
    "entries",
    [
        pictures(3),
        [("X/", b""), *pictures(3, "X/")],
        pictures(3, "./deep/other/"),
        [("X/", b""), *pictures(3, "X/"), *MAC],
        [*pictures(3), *MAC],
    ],
    ids=["flat", "own folder", "other folders", "own folder and macOS", "flat and macOS"],
)
def test_every_shape_of_zip_ends_in_one_flat_folder(tmp_path, entries):
    make_zip(entries, tmp_path / "X.zip")
    assert dl.unpack(tmp_path / "X.zip", tmp_path / "X", images=3) == tmp_path / "X"
    assert names(tmp_path) == ["X.zip", *(f"X/ISIC_{i:07d}.jpg" for i in range(3))]
    assert [(tmp_path / name).read_bytes() for name in names(tmp_path)[1:]] == [picture(i) for i in range(3)]


def test_only_pictures_of_the_suffix_count(tmp_path):
    entries = [*pictures(2, "X/"), *pictures(2, "X/", "_superpixels.png"), ("X/X_metadata.csv", b"image,age\n")]
    make_zip(entries, tmp_path / "X.zip")
    dl.unpack(tmp_path / "X.zip", tmp_path / "X", images=2)
    assert len(names(tmp_path / "X")) == 5


def special(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (mode | 0o644) << 16
    return info


@pytest.mark.parametrize(
    "evil",
    [
        "../evil.txt",
        "X/../../evil.txt",
        "/tmp/evil.txt",
        "C:/evil.txt",
        "..\\evil.txt",
        special("evil.txt", stat.S_IFLNK),
        special("evil.txt", stat.S_IFIFO),
    ],
    ids=["parent", "inner parent", "absolute", "drive", "backslash", "symlink", "pipe"],
)
def test_an_unsafe_member_is_named_and_nothing_is_written(tmp_path, evil):
    home = tmp_path / "home"
    home.mkdir()
    make_zip([*pictures(3), (evil, b"../../secret")], home / "X.zip")
    with pytest.raises(DataError, match="refused") as error:
        dl.unpack(home / "X.zip", home / "X")
    assert repr(evil if isinstance(evil, str) else evil.filename) in str(error.value)
    assert names(tmp_path) == ["home/X.zip"] and list(home.iterdir()) == [home / "X.zip"]


def test_the_same_name_twice_is_refused(tmp_path):
    make_zip([("a/ISIC_1.jpg", b"1"), ("b/isic_1.JPG", b"2")], tmp_path / "X.zip")
    with pytest.raises(DataError, match=r"b/isic_1\.JPG' is there twice"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X")
    assert names(tmp_path) == ["X.zip"]


def test_a_bomb_is_refused(tmp_path):
    make_zip([*pictures(2), ("bomb.jpg", bytes(5_000_000))], tmp_path / "X.zip")
    with pytest.raises(DataError, match=r"5\.0 MB, most of it 'bomb\.jpg'"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X")
    assert names(tmp_path) == ["X.zip"]


def test_a_zip_larger_than_the_disk_is_refused(tmp_path, monkeypatch):
    make_zip([*pictures(2), ("big.jpg", BODY)], tmp_path / "X.zip")
    monkeypatch.setattr(dl.shutil, "disk_usage", lambda _: Usage(1, 1, 1000))
    with pytest.raises(DataError, match=r"X\.zip .*'big\.jpg'.* needs 0\.3 MB"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X")
    assert names(tmp_path) == ["X.zip"]


def bad_crc(data):
    """The same zip with one byte of its first picture changed."""
    at = data.index(picture(0))
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [bad_crc, lambda data: data[: len(data) // 2], lambda data: b"<html>Please log in</html>"],
    ids=["one byte", "cut", "web page"],
)
def test_a_damaged_zip_goes_and_an_earlier_folder_stays(tmp_path, damage):
    stored = io.BytesIO()
    with zipfile.ZipFile(stored, "w") as bundle:  # stored, so that the byte of the picture can be found
        for name, data in pictures(3):
            bundle.writestr(name, data)
    (tmp_path / "X.zip").write_bytes(damage(stored.getvalue()))
    (tmp_path / "X").mkdir()
    (tmp_path / "X" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"X\.zip was damaged.*run the command again"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X", images=3)
    assert names(tmp_path) == ["X/mine.jpg"] and len(list(tmp_path.iterdir())) == 1


def test_a_wrong_count_leaves_no_folder(tmp_path):
    make_zip(pictures(3), tmp_path / "X.zip")
    with pytest.raises(DataError, match=r"holds 3 \.jpg pictures where 4"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X", images=4)
    assert list(tmp_path.iterdir()) == [tmp_path / "X.zip"]


def test_a_full_disk_leaves_no_half_folder_and_keeps_the_zip(tmp_path, monkeypatch):
    make_zip(pictures(3), tmp_path / "X.zip")
    copy, done = shutil.copyfileobj, []

    def full(source, target, size):
        if done:
            raise OSError(errno.ENOSPC, "No space left on device")
        done.append(copy(source, target, size))

    monkeypatch.setattr(dl.shutil, "copyfileobj", full)
    with pytest.raises(DataError, match=r"X\.zip could not be unpacked.*No space left"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X", images=3)
    assert done and list(tmp_path.iterdir()) == [tmp_path / "X.zip"]


def test_what_a_killed_run_left_is_swept_up(tmp_path):
    make_zip(pictures(3), tmp_path / "X.zip")
    for left in (".X-abcd_123", ".X-old-abcd_123"):  # the second would hold an earlier folder: not ours to remove
        (tmp_path / left).mkdir()
    dl.unpack(tmp_path / "X.zip", tmp_path / "X", images=3)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".X-old-abcd_123", "X", "X.zip"]


# Whole data sets


def route(archive):
    return archive.url.split("/", 3)[3].join(("/", ""))


@pytest.fixture(params=["isic2016", "isic2017", "ham10000"])
def dataset(request):
    return request.param


@pytest.fixture
def published(server, monkeypatch):
    """Small sets behind the real addresses: 3 pictures where there are hundreds, tables of one line."""
    for name, archives in dl.ARCHIVES.items():
        small = [dataclasses.replace(a, md5=None, images=a.images and 3) for a in archives]
        monkeypatch.setitem(dl.ARCHIVES, name, small)
        for i, archive in enumerate(small):
            # Some zips have a folder of their own, some hold the files directly, some come from a Mac.
            top = ("", f"{archive.folder}/")[i % 2]
            entries = [*pictures(3, top, archive.suffix), *MAC[: i % 4]]
            server.files[route(archive)] = make_zip(entries) if archive.folder else b"image,label\n"
    listing = []
    for archive in dl.ARCHIVES["ham10000"]:
        content = server.files[route(archive)]
        # For the table Dataverse may list the checksum of its own conversion.
        digest = hashlib.md5(content).hexdigest() if archive.folder else "0" * 32
        file_id = int(archive.url.split("/")[-1].split("?")[0])
        listing.append({"dataFile": {"id": file_id, "filename": archive.name, "md5": digest}})
    server.listing = "/" + dl.LISTINGS["ham10000"].split("/", 3)[3]
    server.files[server.listing] = json.dumps({"data": {"latestVersion": {"files": listing}}}).encode()
    return server


LAYOUT = {
    "isic2016": {
        "ISBI2016_ISIC_Part1_Training_Data": ".jpg",
        "ISBI2016_ISIC_Part1_Training_GroundTruth": ".png",
        "ISBI2016_ISIC_Part1_Test_Data": ".jpg",
        "ISBI2016_ISIC_Part1_Test_GroundTruth": ".png",
        "ISBI2016_ISIC_Part3_Training_GroundTruth.csv": "",
        "ISBI2016_ISIC_Part3_Test_GroundTruth.csv": "",
    },
    "isic2017": {
        f"ISIC-2017_{split}_{part}": suffix
        for split in ("Training", "Validation", "Test_v2")
        for part, suffix in (("Data", ".jpg"), ("Part1_GroundTruth", ".png"), ("Part3_GroundTruth.csv", ""))
    },
    "ham10000": {
        "HAM10000_images_part_1": ".jpg",
        "HAM10000_images_part_2": ".jpg",
        "HAM10000_segmentations_lesion_tschandl": ".png",
        "HAM10000_metadata.csv": "",
    },
}


def layout(name):
    return sorted(
        file
        for entry, suffix in LAYOUT[name].items()
        for file in ([f"{entry}/ISIC_{i:07d}{suffix}" for i in range(3)] if suffix else [entry])
    )


def test_the_addresses_and_counts_are_the_published_ones():
    images = {name: [a.images for a in archives if a.suffix == ".jpg"] for name, archives in dl.ARCHIVES.items()}
    assert sum(filter(None, images["isic2016"])) == 900 + 379
    assert sum(filter(None, images["isic2017"])) == 2000 + 150 + 600
    assert sum(filter(None, images["ham10000"])) == 10_015
    for name, archives in dl.ARCHIVES.items():
        assert {a.folder or a.name for a in archives} == set(LAYOUT[name])
        assert all(a.md5 is None or re.fullmatch("[0-9a-f]{32}", a.md5) for a in archives)
        assert all(a.url.endswith(f"/{a.name}") for a in archives) or name == "ham10000"
        assert name in dl.LICENSES


def test_every_set_ends_in_its_published_layout_and_is_fetched_once(published, dataset, tmp_path, capsys):
    folder = tmp_path / "data" / dataset
    assert dl.download(dataset, folder, published.base) == folder
    assert names(folder) == layout(dataset)
    said = capsys.readouterr().out
    assert all(word in said for word in (dataset, "127.0.0.1", str(folder), "licence: CC", " GB"))
    assert "no list of checksums" not in said
    requests = len(published.log)
    assert requests == len(dl.ARCHIVES[dataset]) + (dataset == "ham10000")
    dl.download(dataset, folder, published.base)
    assert len(published.log) == requests and "already" in capsys.readouterr().out


def test_a_partly_complete_set_fetches_only_the_rest(published, dataset, tmp_path):
    dl.download(dataset, tmp_path, published.base)
    lost = dl.ARCHIVES[dataset][0]
    shutil.rmtree(tmp_path / lost.folder)
    published.log.clear()
    dl.download(dataset, tmp_path, published.base + "/")
    assert {entry["path"] for entry in published.log} - {published.listing} == {route(lost)}
    assert names(tmp_path) == layout(dataset)


def test_a_cut_in_the_middle_of_a_set_is_mended_by_the_next_call(published, tmp_path):
    size = len(published.files[route(dl.ARCHIVES["isic2016"][1])])
    published.plan = [{}, {"cut": 700}, *[{"status": 503}] * 6]
    with pytest.raises(DataError, match=r"Part1_Training_GroundTruth.*503"):
        dl.download("isic2016", tmp_path, published.base)
    assert names(tmp_path)[3:] == [f"ISBI2016_ISIC_Part1_Training_GroundTruth.zip.part{end}" for end in ("", ".json")]
    assert dl.is_unfinished(tmp_path), "so that `prepare` goes on instead of using half a set"
    published.log.clear()
    dl.download("isic2016", tmp_path, published.base)
    assert sent(published)[0] == size - 700 and len(published.log) == 5
    assert names(tmp_path) == layout("isic2016") and not dl.is_unfinished(tmp_path)


def test_a_zip_laid_there_by_hand_is_unpacked_without_a_request(published, tmp_path):
    for archive in dl.ARCHIVES["isic2016"]:
        (tmp_path / archive.name).write_bytes(published.files[route(archive)])
    dl.download("isic2016", tmp_path, published.base)
    assert published.log == [] and names(tmp_path) == layout("isic2016")


def test_a_folder_with_pictures_missing_is_replaced_but_not_lost(published, tmp_path, capsys):
    mine = tmp_path / "ISBI2016_ISIC_Part1_Test_Data"
    mine.mkdir()
    (mine / "my_own.jpg").write_bytes(b"mine")
    dl.download("isic2016", tmp_path, published.base)
    assert set(layout("isic2016")) < set(names(tmp_path))
    assert (tmp_path / f"{mine.name}.incomplete1" / "my_own.jpg").read_bytes() == b"mine"
    assert "1 of 3 pictures" in capsys.readouterr().out


def test_a_table_that_is_a_web_page_is_not_kept(published, tmp_path):
    route_of_table = route(dl.ARCHIVES["isic2016"][-1])
    good, published.files[route_of_table] = published.files[route_of_table], b"<html>Log in</html>"
    with pytest.raises(DataError, match=r"Part3_Test_GroundTruth\.csv"):
        dl.download("isic2016", tmp_path, published.base)
    assert not (tmp_path / dl.ARCHIVES["isic2016"][-1].name).exists()
    published.files[route_of_table] = good
    dl.download("isic2016", tmp_path, published.base)
    assert names(tmp_path) == layout("isic2016")


def test_a_checksum_listed_by_dataverse_is_believed(published, tmp_path):
    archive = dl.ARCHIVES["ham10000"][1]
    right = hashlib.md5(published.files[route(archive)]).hexdigest()
    published.files[published.listing] = published.files[published.listing].replace(right.encode(), b"f" * 32)
    with pytest.raises(DataError) as error:
        dl.download("ham10000", tmp_path, published.base)
    assert all(word in str(error.value) for word in (archive.name, "f" * 32, right))
    assert {name.split("/")[0] for name in names(tmp_path)} == {"HAM10000_images_part_1"}


@pytest.mark.parametrize("answer", [None, b"<html>", b"{}", b"[1]"], ids=["404", "web page", "empty", "strange"])
def test_without_the_listing_it_goes_on_and_says_so(published, tmp_path, capsys, answer):
    published.files[published.listing] = answer
    dl.download("ham10000", tmp_path, published.base)
    assert names(tmp_path) == layout("ham10000")
    said = [line for line in capsys.readouterr().out.splitlines() if "no list of checksums" in line]
    assert len(said) == 1 and published.listing in said[0]


def test_without_the_listing_the_known_checksum_counts(published, tmp_path, monkeypatch):
    known = [dataclasses.replace(a, md5=a.folder and "f" * 32) for a in dl.ARCHIVES["ham10000"]]
    monkeypatch.setitem(dl.ARCHIVES, "ham10000", known)
    del published.files[published.listing]
    with pytest.raises(DataError, match="f" * 32):
        dl.download("ham10000", tmp_path, published.base)
    assert names(tmp_path) == []


def test_a_set_larger_than_the_disk_is_said_before_anything_is_asked(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dl.shutil, "disk_usage", lambda _: Usage(1, 1, 10**9))
    with pytest.raises(DataError, match=r"isic2017 needs 1\d\.\d GB but only 1\.0 GB"):
        dl.download("isic2017", tmp_path, published.base)
    assert published.log == [] and "12.1 GB" in capsys.readouterr().out


def test_what_has_come_already_counts_against_the_disk_it_needs(published, tmp_path, monkeypatch):
    gigabyte = dataclasses.replace(dl.ARCHIVES["isic2016"][0], size=10**9)
    monkeypatch.setitem(dl.ARCHIVES, "isic2016", [gigabyte])
    monkeypatch.setattr(dl.shutil, "disk_usage", lambda _: Usage(1, 1, 1_800_000_000))
    with pytest.raises(DataError, match=r"needs 2\.0 GB but only 1\.8 GB"):  # zip and pictures
        dl.download("isic2016", tmp_path, published.base)
    with open(tmp_path / f"{gigabyte.name}.part", "wb") as part:
        part.truncate(300_000_000)  # sparse: takes no room here
    dl.download("isic2016", tmp_path, published.base)
    assert len(names(tmp_path)) == 3


def test_an_unknown_name_lists_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"'isic2015'.*isic2016, isic2017, ham10000"):
        dl.download("isic2015", tmp_path)


def test_without_a_mirror_the_official_addresses_are_used(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(dl, "_published_md5", lambda name, mirror: {})
    monkeypatch.setattr(dl, "_bring", lambda archive, folder, url, md5: asked.append((url, md5)))
    dl.download("ham10000", tmp_path)
    assert asked == [(a.url, a.md5) for a in dl.ARCHIVES["ham10000"]]
