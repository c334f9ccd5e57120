"""The downloader against a local server that cuts, stalls and sends wrong or changed files."""

import dataclasses
import errno
import hashlib
import io
import random
import re
import shutil
import stat
import struct
import threading
import zipfile
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers.data import download as dl
from helpers.data.files import DataError
from helpers.data.tables import LICENSES

BODY = random.Random(0).randbytes(300_000)
MD5 = hashlib.md5(BODY).hexdigest()
DATE = "Mon, 01 Jan 2024 00:00:00 GMT"
Usage = namedtuple("Usage", "total used free")


class Handler(BaseHTTPRequestHandler):
    """Serves `server.files`; the next entry of `server.plan` modifies the response.

    Keys of an entry: `status`, `cut` or `stall` (after this many bytes of the body), `body` (another one),
    `ranges=False` (ignore Range), `ignore_if_range`, `skip` (bytes left out of a Range), `chunked`, `headers` (added),
    `etag`.
    """

    def log_message(self, *args):
        pass

    def do_GET(self):
        server = self.server
        plan = server.plan.pop(0) if server.plan else {}
        body = plan.get("body", server.files.get(self.path))
        status, start = plan.get("status", 200 if body is not None else 404), 0
        body, etag = body or b"", plan.get("etag", server.etag)
        requested = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        unchanged = plan.get("ignore_if_range") or self.headers.get("If-Range") in (etag, DATE)
        if status == 200 and requested and unchanged and plan.get("ranges", True):
            status, start = 206, int(requested[1]) + plan.get("skip", 0)
        if status in (404, 403, 503, 416):
            body = b"sorry"
        content = body[start:][: plan.get("cut", plan.get("stall", len(body)))]
        server.log.append({"path": self.path, "status": status, "sent": len(content), **dict(self.headers)})
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
            for offset in range(0, len(content), 1000):
                block = content[offset : offset + 1000]
                self.wfile.write(b"%x\r\n%s\r\n" % (len(block), block))
            if "cut" not in plan:
                self.wfile.write(b"0\r\n\r\n")
        else:
            self.wfile.write(content)
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
    """Records the pauses between tries instead of waiting."""
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


# ------------------------------------------------------------------------------------------------------------ fetch


def test_fetch_complete_file_takes_one_request(server, path):
    assert dl.fetch(server.url, path, MD5.upper()) == path
    assert path.read_bytes() == BODY
    assert names(path.parent) == ["a.bin"] and sent(server) == [len(BODY)]
    assert "urllib" not in server.log[0]["User-Agent"].lower()  # Dataverse refuses urllib's default


def test_fetch_cuts_are_resumed_without_using_up_retries(server, path):
    server.plan = [{"cut": 100_000}, {"cut": 50_000}, {"cut": 50_000}]
    dl.fetch(server.url, path, MD5, retries=0)
    assert path.read_bytes() == BODY and names(path.parent) == ["a.bin"]
    assert ranges(server) == [None, "bytes=100000-", "bytes=150000-", "bytes=200000-"]
    assert sent(server) == [100_000, 50_000, 50_000, 100_000]
    assert {entry["If-Range"] for entry in server.log[1:]} == {'"one"'}


def test_fetch_later_call_resumes_file_and_progress_bar(server, path, monkeypatch):
    server.plan = [{"cut": 100_000}, {"status": 503}]
    with pytest.raises(DataError, match=r"503.*100,000 bytes.*again"):
        dl.fetch(server.url, path, retries=0)
    assert names(path.parent) == ["a.bin.part", "a.bin.part.json"]
    bars = []

    class Bar(dl.tqdm):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            bars.append((kwargs["desc"], self.n, self))

    monkeypatch.setattr(dl, "tqdm", Bar)
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY and sent(server)[2:] == [200_000]
    [(name, start, bar)] = bars
    assert (name, start) == ("a.bin", 100_000)
    assert (bar.initial, bar.n, bar.total) == (100_000, len(BODY), len(BODY))


def test_fetch_no_progress_pauses_longer_and_raises(server, path, pauses):
    server.plan = [{"status": 503}] * 4
    with pytest.raises(DataError, match=r"a.bin.*503.*4 tries"):
        dl.fetch(server.url, path, retries=3, pause=2.0)
    assert pauses == [2, 4, 8] and len(server.log) == 4 and names(path.parent) == []


def test_fetch_server_without_ranges_that_cuts_raises(server, path):
    server.plan = [{"ranges": False, "cut": 1000}] * 50
    with pytest.raises(DataError, match="1,000 of 300,000"):
        dl.fetch(server.url, path, retries=2)
    assert len(server.log) == 4


def test_fetch_no_server_or_invalid_address_raises(server, path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"a\.bin: no connection"):
        dl.fetch(server.url, path, retries=1)
    with pytest.raises(DataError, match="no-address is not a web address"):
        dl.fetch("no-address", path)


def test_fetch_redirect_is_followed_when_resuming_too(server, path):
    """Dataverse redirects every file to its storage."""
    redirect = {"status": 303, "headers": {"Location": "/a.bin"}}
    server.plan = [redirect, {"cut": 100_000}, redirect]
    dl.fetch(server.base + "/moved", path, MD5)
    assert path.read_bytes() == BODY and sent(server) == [0, 100_000, 0, 200_000]


@pytest.mark.parametrize("ignore_if_range", [False, True], ids=["If-Range respected", "If-Range ignored"])
def test_fetch_file_changed_on_the_server_is_not_mixed(server, path, ignore_if_range):
    server.plan = [{"cut": 100_000, "etag": '"old"', "body": bytes(len(BODY))}, {"ignore_if_range": ignore_if_range}]
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY
    assert sent(server) == ([100_000, 200_000, len(BODY)] if ignore_if_range else [100_000, len(BODY)])


def test_fetch_no_validator_restarts(server, path):
    server.etag = None
    server.plan = [{"cut": 100_000}]
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY and ranges(server) == [None, None]


def test_fetch_weak_etag_resumes_by_date(server, path):
    server.etag = 'W/"one"'
    server.plan = [{"cut": 100_000, "headers": {"Last-Modified": DATE}}, {"headers": {"Last-Modified": DATE}}]
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY and sent(server) == [100_000, 200_000]
    assert server.log[1]["If-Range"] == DATE


def test_fetch_other_address_restarts(server, path):
    server.files["/b.bin"] = BODY[::-1]
    server.plan = [{"cut": 100_000}, {"status": 503}]
    with pytest.raises(DataError):
        dl.fetch(server.url, path, retries=0)
    dl.fetch(server.base + "/b.bin", path)
    assert path.read_bytes() == BODY[::-1] and ranges(server)[-1] is None


@pytest.mark.parametrize(
    ("response", "expected_sent"),
    [({"skip": 1000}, [100_000, 199_000, len(BODY)]), ({"status": 416}, [100_000, 5, len(BODY)])],
    ids=["other range", "416"],
)
def test_fetch_wrong_or_refused_range_restarts(server, path, response, expected_sent):
    server.plan = [{"cut": 100_000}, response]
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY and sent(server) == expected_sent


def test_fetch_killed_before_the_rename_needs_no_request(server, path):
    server.plan = [{"cut": 100_000}, {"status": 503}]
    with pytest.raises(DataError):
        dl.fetch(server.url, path, retries=0)
    (path.parent / "a.bin.part").write_bytes(BODY)
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY and len(server.log) == 2 and names(path.parent) == ["a.bin"]


@pytest.mark.parametrize("note", ['{"url": "http', "[]"], ids=["truncated", "other type"])
def test_fetch_damaged_note_restarts(server, path, note):
    path.parent.mkdir()
    (path.parent / "a.bin.part").write_bytes(b"?" * 1000)
    (path.parent / "a.bin.part.json").write_text(note)
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY and ranges(server) == [None]


def test_fetch_stall_counts_as_interrupted(server, path):
    server.plan = [{"stall": 100_000}]
    dl.fetch(server.url, path, MD5, timeout=0.5)
    assert path.read_bytes() == BODY and sent(server)[-1] == 200_000


def test_fetch_chunked_response_is_resumed_and_completed(server, path):
    server.plan = [{"chunked": True, "cut": 100_000}, {"status": 503}, {"chunked": True}]
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY and sent(server) == [100_000, 5, 200_000]
    path.unlink()
    server.plan = [{"chunked": True}]
    dl.fetch(server.url, path)
    assert path.read_bytes() == BODY and sent(server)[3:] == [len(BODY)]


def test_fetch_wrong_checksum_is_downloaded_again(server, path):
    server.plan = [{"body": BODY[:-1] + b"?"}]
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY and len(server.log) == 2


def test_fetch_wrong_checksum_twice_raises_and_leaves_nothing(server, path):
    wrong = BODY[:-1] + b"?"
    server.plan = [{"body": wrong}, {"body": wrong}]
    with pytest.raises(DataError, match=f"a.bin .*must have the MD5 {MD5}, got {hashlib.md5(wrong).hexdigest()}"):
        dl.fetch(server.url, path, MD5)
    assert names(path.parent) == [] and len(server.log) == 2


def test_fetch_existing_file_is_kept_unless_its_checksum_is_wrong(server, path):
    path.parent.mkdir()
    path.write_bytes(b"by hand")
    dl.fetch(server.url, path)
    dl.fetch(server.url, path, hashlib.md5(b"by hand").hexdigest())
    assert server.log == [] and path.read_bytes() == b"by hand"
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY


def test_fetch_refused_address_raises_with_address_and_path(server, path):
    server.plan = [{"status": 403}]
    with pytest.raises(DataError) as error:
        dl.fetch(server.url, path)
    assert all(word in str(error.value) for word in (server.url, "403", "moved", f"by hand to {path}"))
    assert len(server.log) == 1 and names(path.parent) == []


def test_fetch_empty_202_response_keeps_the_partial_file(server, path):
    server.plan = [{"cut": 100_000}, {"status": 202, "body": b""}]
    dl.fetch(server.url, path, MD5)
    assert path.read_bytes() == BODY and sent(server) == [100_000, 0, 200_000]


def test_fetch_too_little_disk_space_raises_before_writing(server, path, monkeypatch):
    monkeypatch.setattr(dl.shutil, "disk_usage", lambda _: Usage(1, 1, 1000))
    with pytest.raises(DataError, match=r"a\.bin needs 0\.3 MB.*0\.0 MB"):
        dl.fetch(server.url, path)
    assert names(path.parent) == []


def test_fetch_full_disk_raises_and_keeps_the_partial_file(server, path, monkeypatch):
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


# ----------------------------------------------------------------------------------------------------------- unpack


def make_zip(entries, path=None, compression=zipfile.ZIP_DEFLATED):
    """A zip of (name or ZipInfo, bytes) pairs: its bytes, also written to `path`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as bundle:
        for name, data in entries:
            bundle.writestr(name, data)
    if path:
        path.write_bytes(buffer.getvalue())
    return buffer.getvalue()


def image_bytes(seed):
    return random.Random(seed).randbytes(500)


def image_entries(count, top="", suffix=".jpg"):
    return [(f"{top}ISIC_{i:07d}{suffix}", image_bytes(i)) for i in range(count)]


MAC = [("__MACOSX/X/._ISIC_0000000.jpg", b"fork"), ("X/.DS_Store", b"finder"), ("__MACOSX/X/ISIC_0000000.jpg", b"fork")]


@pytest.mark.parametrize(
    "entries",
    [image_entries(3), image_entries(3, "./deep/other/"), [("X/", b""), *image_entries(3, "X/"), *MAC]],
    ids=["flat", "other folders", "own folder and macOS"],
)
def test_unpack_any_folders_in_the_zip_give_one_flat_folder(tmp_path, entries):
    make_zip(entries, tmp_path / "X.zip")
    assert dl.unpack(tmp_path / "X.zip", tmp_path / "X", 3) == tmp_path / "X"
    assert names(tmp_path) == ["X.zip", *(f"X/ISIC_{i:07d}.jpg" for i in range(3))]
    assert [(tmp_path / name).read_bytes() for name in names(tmp_path)[1:]] == [image_bytes(i) for i in range(3)]


def test_unpack_counts_only_files_with_the_suffix(tmp_path):
    superpixels = image_entries(2, "X/", "_superpixels.png")
    make_zip([*image_entries(2, "X/"), *superpixels, ("X/X_metadata.csv", b"image,age\n")], tmp_path / "X.zip")
    dl.unpack(tmp_path / "X.zip", tmp_path / "X", 2)
    assert len(names(tmp_path / "X")) == 5


def special(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (mode | 0o644) << 16
    return info


def packed(name, method):
    info = zipfile.ZipInfo(name)
    info.compress_type = method
    return info


@pytest.mark.parametrize(
    "member",
    [
        "../evil.txt",
        "X/../../evil.txt",
        "/tmp/evil.txt",
        "C:/evil.txt",
        "..\\evil.txt",
        special("evil.txt", stat.S_IFLNK),
        special("evil.txt", stat.S_IFIFO),
        packed("evil.txt", zipfile.ZIP_LZMA),
        packed("evil.txt", zipfile.ZIP_BZIP2),
        ".",
    ],
    ids=["parent", "inner parent", "absolute", "drive", "backslash", "symlink", "pipe", "LZMA", "bzip2", "no name"],
)
def test_unpack_unsafe_member_is_refused_and_nothing_written(tmp_path, member):
    folder = tmp_path / "home"
    folder.mkdir()
    make_zip([*image_entries(3), (member, b"../../secret")], folder / "X.zip")
    with pytest.raises(DataError, match="refused") as error:
        dl.unpack(folder / "X.zip", folder / "X", 3)
    assert repr(member if isinstance(member, str) else member.filename) in str(error.value)
    assert names(tmp_path) == ["home/X.zip"] and list(folder.iterdir()) == [folder / "X.zip"]


def test_unpack_member_with_an_empty_name_is_refused(tmp_path):
    content = make_zip([("a", b"1")])
    start = content.index(b"PK\x01\x02")  # of the directory: the length of the name becomes 0, that of extra data 1
    content = content[: start + 28] + b"\0\0\0\0\1\0" + content[start + 34 :]
    (tmp_path / "X.zip").write_bytes(content)
    with pytest.raises(DataError, match=r"refused.* its member '' has no file name"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X", 1)
    assert names(tmp_path) == ["X.zip"]


@pytest.mark.parametrize("error", [IndexError("odd"), struct.error("odd"), OverflowError("odd")])
def test_unpack_whatever_zipfile_raises_is_a_data_error(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    make_zip(image_entries(3), tmp_path / "X.zip")
    monkeypatch.setattr(dl.zipfile.ZipFile, "open", fail)
    with pytest.raises(DataError, match=r"X\.zip is damaged .* \(odd\)"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X", 3)
    assert names(tmp_path) == []


def test_unpack_repeated_name_is_refused(tmp_path):
    make_zip([("a/ISIC_1.jpg", b"1"), ("b/isic_1.JPG", b"2")], tmp_path / "X.zip")
    with pytest.raises(DataError, match=r"refused.*unique, got 'b/isic_1\.JPG' twice"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X", 2)
    assert names(tmp_path) == ["X.zip"]


def test_unpack_zip_bomb_is_refused(tmp_path):
    make_zip([*image_entries(2), ("bomb.jpg", bytes(5_000_000))], tmp_path / "X.zip")
    with pytest.raises(DataError, match=r"refused.* got 5\.0 MB, largest member 'bomb\.jpg'"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X", 3)
    assert names(tmp_path) == ["X.zip"]


def test_unpack_too_little_disk_space_raises_before_writing(tmp_path, monkeypatch):
    make_zip([*image_entries(2), ("big.jpg", BODY)], tmp_path / "X.zip")
    monkeypatch.setattr(dl.shutil, "disk_usage", lambda _: Usage(1, 1, 1000))
    with pytest.raises(DataError, match=r"X\.zip .*'big\.jpg'.* needs 0\.3 MB"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X", 3)
    assert names(tmp_path) == ["X.zip"]


def flip_bit(data):
    """The same zip with one bit of its first image changed."""
    offset = data.index(image_bytes(0))
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flip_bit, lambda data: data[: len(data) // 2], lambda data: b"<html>Please log in</html>"],
    ids=["one bit", "truncated", "web page"],
)
def test_unpack_damaged_zip_is_deleted_and_the_old_folder_kept(tmp_path, damage):
    (tmp_path / "X.zip").write_bytes(damage(make_zip(image_entries(3), compression=zipfile.ZIP_STORED)))
    (tmp_path / "X").mkdir()
    (tmp_path / "X" / "mine.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"X\.zip is damaged or not a zip file.*run the command again"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X", 3)
    assert names(tmp_path) == ["X/mine.jpg"] and len(list(tmp_path.iterdir())) == 1


def test_unpack_wrong_count_raises_and_leaves_no_folder(tmp_path):
    make_zip(image_entries(3), tmp_path / "X.zip")
    with pytest.raises(DataError, match=r"must contain 4 \.jpg images, got 3"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X", 4)
    assert list(tmp_path.iterdir()) == [tmp_path / "X.zip"]


def test_unpack_full_disk_leaves_no_folder_and_keeps_the_zip(tmp_path, monkeypatch):
    make_zip(image_entries(3), tmp_path / "X.zip")
    copy, copied = shutil.copyfileobj, []

    def full(source, target, size):
        if copied:
            raise OSError(errno.ENOSPC, "No space left on device")
        copied.append(copy(source, target, size))

    monkeypatch.setattr(dl.shutil, "copyfileobj", full)
    with pytest.raises(DataError, match=r"X\.zip could not be unpacked.*the disk is full"):
        dl.unpack(tmp_path / "X.zip", tmp_path / "X", 3)
    assert copied and list(tmp_path.iterdir()) == [tmp_path / "X.zip"]


# --------------------------------------------------------------------------------------------------------- download


def route(archive):
    return "/" + archive.url.split("/", 3)[3]


@pytest.fixture(params=["isic2016", "isic2017", "ham10000"])
def dataset(request):
    return request.param


@pytest.fixture
def published(server, monkeypatch):
    """Small sets at the real addresses: 3 images per zip, tables of one line; their MD5s where one is pinned."""
    for name, archives in dl.ARCHIVES.items():
        small = []
        for i, archive in enumerate(archives):
            # Some zips have a folder of their own, some contain the files directly, some come from a Mac.
            top = ("", f"{archive.folder}/")[i % 2]
            entries = [*image_entries(3, top, archive.suffix), *MAC[: i % 4]]
            content = make_zip(entries) if archive.folder else b"image,label\n"
            server.files[route(archive)] = content
            md5 = archive.md5 and hashlib.md5(content).hexdigest()
            small.append(dataclasses.replace(archive, md5=md5, images=archive.images and 3))
        monkeypatch.setitem(dl.ARCHIVES, name, small)
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


def test_archives_have_the_published_names_and_counts(dataset):
    archives = dl.ARCHIVES[dataset]
    num_images = {"isic2016": 900 + 379, "isic2017": 2000 + 150 + 600, "ham10000": 10_015}[dataset]
    assert sum(a.images for a in archives if a.suffix == ".jpg") == num_images
    assert sum(a.images for a in archives if a.suffix == ".png") == num_images, "a mask per image"
    assert {a.folder or a.name for a in archives} == set(LAYOUT[dataset])
    assert dataset == "ham10000" or all(a.url.endswith(f"/{a.name}") for a in archives)
    assert LICENSES[dataset].startswith("CC")


def test_archives_of_ham10000_have_pinned_checksums():
    md5s = [a.md5 for a in dl.ARCHIVES["ham10000"] if a.folder]
    assert len(md5s) == 3 and all(re.fullmatch("[0-9a-f]{32}", md5) for md5 in md5s)


def test_download_gives_the_published_layout_with_one_request_per_file(published, dataset, tmp_path, capsys):
    folder = tmp_path / "data" / dataset
    assert dl.download(dataset, folder, published.base) == folder
    assert names(folder) == layout(dataset)
    output = capsys.readouterr().out
    assert all(word in output for word in (dataset, "127.0.0.1", str(folder), "license: CC", " GB"))
    paths = [entry["path"] for entry in published.log]
    assert paths == [route(archive) for archive in dl.ARCHIVES[dataset]]
    dl.download(dataset, folder, published.base)
    assert len(published.log) == len(paths) and "already" in capsys.readouterr().out


def test_download_partly_complete_set_requests_only_the_rest(published, tmp_path):
    dl.download("ham10000", tmp_path, published.base)
    missing = dl.ARCHIVES["ham10000"][0]
    shutil.rmtree(tmp_path / missing.folder)
    published.log.clear()
    dl.download("ham10000", tmp_path, published.base + "/")
    assert [entry["path"] for entry in published.log] == [route(missing)]
    assert names(tmp_path) == layout("ham10000")


def test_download_interrupted_set_is_resumed_by_the_next_call(published, tmp_path):
    size = len(published.files[route(dl.ARCHIVES["isic2016"][1])])
    published.plan = [{}, {"cut": 700}, *[{"status": 503}] * 6]
    with pytest.raises(DataError, match=r"Part1_Training_GroundTruth.*503"):
        dl.download("isic2016", tmp_path, published.base)
    assert names(tmp_path)[3:] == [f"ISBI2016_ISIC_Part1_Training_GroundTruth.zip.part{end}" for end in ("", ".json")]
    assert dl.is_unfinished(tmp_path), "so that `prepare` resumes instead of using half a set"
    published.log.clear()
    dl.download("isic2016", tmp_path, published.base)
    assert sent(published)[0] == size - 700 and len(published.log) == 5
    assert names(tmp_path) == layout("isic2016") and not dl.is_unfinished(tmp_path)


def test_download_zip_placed_by_hand_is_unpacked_without_a_request(published, dataset, tmp_path):
    for archive in dl.ARCHIVES[dataset]:
        (tmp_path / archive.name).write_bytes(published.files[route(archive)])
    dl.download(dataset, tmp_path, published.base)
    assert published.log == [] and names(tmp_path) == layout(dataset)


def test_download_incomplete_folder_is_replaced_and_kept_aside(published, tmp_path, capsys):
    mine = tmp_path / "ISBI2016_ISIC_Part1_Test_Data"
    mine.mkdir()
    (mine / "my_own.jpg").write_bytes(b"mine")
    dl.download("isic2016", tmp_path, published.base)
    assert set(layout("isic2016")) < set(names(tmp_path))
    assert (tmp_path / f"{mine.name}.incomplete1" / "my_own.jpg").read_bytes() == b"mine"
    assert "1 of 3 images" in capsys.readouterr().out


def test_download_web_page_instead_of_a_table_raises_and_is_deleted(published, tmp_path):
    archive = dl.ARCHIVES["isic2016"][-1]
    table, published.files[route(archive)] = published.files[route(archive)], b"<html>Log in</html>"
    with pytest.raises(DataError, match=r"expected a table .*got a web page.*Part3_Test_GroundTruth\.csv"):
        dl.download("isic2016", tmp_path, published.base)
    assert not (tmp_path / archive.name).exists()
    published.files[route(archive)] = table
    dl.download("isic2016", tmp_path, published.base)
    assert names(tmp_path) == layout("isic2016")


def test_download_other_file_than_pinned_raises(published, tmp_path):
    """A valid zip with safe names and the right number of images, but not the published file."""
    archive = dl.ARCHIVES["ham10000"][1]
    other = make_zip(image_entries(3, "other/", archive.suffix))
    published.files[route(archive)] = other
    with pytest.raises(DataError) as error:
        dl.download("ham10000", tmp_path, published.base)
    assert f"must have the MD5 {archive.md5}, got {hashlib.md5(other).hexdigest()}" in str(error.value)
    assert archive.name in str(error.value) and dl.is_unfinished(tmp_path)
    assert {name.split("/")[0] for name in names(tmp_path)} == {"HAM10000_images_part_1"}


def test_download_set_larger_than_the_disk_raises_before_any_request(published, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(dl.shutil, "disk_usage", lambda _: Usage(1, 1, 10**9))
    with pytest.raises(DataError, match=r"isic2017 needs 1\d\.\d GB but only 1\.0 GB"):
        dl.download("isic2017", tmp_path, published.base)
    assert published.log == [] and "12.1 GB" in capsys.readouterr().out


def test_download_partial_files_reduce_the_required_disk_space(published, tmp_path, monkeypatch):
    gigabyte = dataclasses.replace(dl.ARCHIVES["isic2016"][0], size=10**9)
    monkeypatch.setitem(dl.ARCHIVES, "isic2016", [gigabyte])
    monkeypatch.setattr(dl.shutil, "disk_usage", lambda _: Usage(1, 1, 1_800_000_000))
    with pytest.raises(DataError, match=r"needs 2\.0 GB but only 1\.8 GB"):  # zip and images
        dl.download("isic2016", tmp_path, published.base)
    with open(tmp_path / f"{gigabyte.name}.part", "wb") as part:
        part.truncate(300_000_000)  # a sparse file
    dl.download("isic2016", tmp_path, published.base)
    assert len(names(tmp_path)) == 3


def test_download_unknown_name_raises_with_the_known_ones(tmp_path):
    with pytest.raises(DataError, match=r"one of isic2016, isic2017, ham10000 .*got 'isic2015'"):
        dl.download("isic2015", tmp_path)


def test_download_without_mirror_uses_the_official_addresses(dataset, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(dl, "_check_free_space", lambda *_: None)
    monkeypatch.setattr(dl, "_fetch_archive", lambda archive, folder, url: calls.append((archive, url)))
    dl.download(dataset, tmp_path)
    assert calls == [(archive, archive.url) for archive in dl.ARCHIVES[dataset]]
