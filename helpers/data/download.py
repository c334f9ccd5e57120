"""Official archives -> the published folder layout on disk.

Nothing half done ever carries its final name: a file is `<name>.part` until it is whole and checked, a folder
is a hidden sibling until every picture is in it. So whatever has its name can be trusted, and any killed run
is mended by running it again.
"""

import hashlib
import http.client
import json
import re
import shutil
import stat
import time
import zipfile
import zlib
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from helpers.data.files import DataError, atomic_folder, list_images

ISIC = "https://isic-challenge-data.s3.amazonaws.com"
DATAVERSE = "https://dataverse.harvard.edu/api"
# Dataverse's firewall answers 403 to the name urllib gives itself.
AGENT = {"User-Agent": "sketch2lesion (course project)"}
CHUNK = 1 << 18
_UNFINISHED = ".download-unfinished"
MAX_RATIO = 100  # JPEG and PNG hardly shrink in a zip; hundredfold is a zip bomb


@dataclass(frozen=True)
class Archive:
    """One published file: a zip of pictures, or a table (`folder` is None) that is kept as it comes."""

    url: str
    name: str  # of the file on disk
    md5: str | None = None
    images: int | None = None  # pictures expected, counted by `suffix`
    folder: str | None = None  # where the pictures land
    suffix: str = ".jpg"  # ISIC 2017 lays superpixel PNGs between its JPEGs: they do not count
    size: int = 0  # bytes, roughly; for the announcement and the disk check


def _isic(year: int, stem: str, images: int | None = None, gigabytes: float = 0.0) -> Archive:
    name = f"{stem}.csv" if images is None else f"{stem}.zip"
    folder = None if images is None else stem
    suffix = ".jpg" if stem.endswith("_Data") else ".png"
    return Archive(f"{ISIC}/{year}/{name}", name, None, images, folder, suffix, int(gigabytes * 1e9))


def _ham(file_id: int, stem: str, md5: str, images: int, size: int) -> Archive:
    suffix = ".png" if "segmentations" in stem else ".jpg"
    return Archive(f"{DATAVERSE}/access/datafile/{file_id}", f"{stem}.zip", md5, images, stem, suffix, size)


# ISIC publishes no checksums and has re-issued its masks, so its zips are checked by their CRCs and counts; the MD5s of
# HAM10000 are Dataverse's.
ARCHIVES: dict[str, list[Archive]] = {
    "isic2016": [
        _isic(2016, "ISBI2016_ISIC_Part1_Training_Data", 900, 0.6),
        _isic(2016, "ISBI2016_ISIC_Part1_Training_GroundTruth", 900, 0.01),
        _isic(2016, "ISBI2016_ISIC_Part1_Test_Data", 379, 0.2),
        _isic(2016, "ISBI2016_ISIC_Part1_Test_GroundTruth", 379, 0.01),
        _isic(2016, "ISBI2016_ISIC_Part3_Training_GroundTruth"),
        _isic(2016, "ISBI2016_ISIC_Part3_Test_GroundTruth"),
    ],
    "isic2017": [
        _isic(2017, "ISIC-2017_Training_Data", 2000, 5.8),
        _isic(2017, "ISIC-2017_Training_Part1_GroundTruth", 2000, 0.01),
        _isic(2017, "ISIC-2017_Training_Part3_GroundTruth"),
        _isic(2017, "ISIC-2017_Validation_Data", 150, 0.9),
        _isic(2017, "ISIC-2017_Validation_Part1_GroundTruth", 150, 0.01),
        _isic(2017, "ISIC-2017_Validation_Part3_GroundTruth"),
        _isic(2017, "ISIC-2017_Test_v2_Data", 600, 5.4),
        _isic(2017, "ISIC-2017_Test_v2_Part1_GroundTruth", 600, 0.01),
        _isic(2017, "ISIC-2017_Test_v2_Part3_GroundTruth"),
    ],
    "ham10000": [
        _ham(3172585, "HAM10000_images_part_1", "4639bfa73ab251610530a97c898e6e46", 5000, 1_366_522_108),
        _ham(3172584, "HAM10000_images_part_2", "da43d6cc50f6613013be07e8986b384b", 5015, 1_403_566_547),
        _ham(3838943, "HAM10000_segmentations_lesion_tschandl", "6e8d252e09cfdb0189199f15985a5b84", 10015, 10_808_743),
        Archive(f"{DATAVERSE}/access/datafile/4338392?format=original", "HAM10000_metadata.csv"),
    ],
}
LICENSES = {
    "isic2016": "CC-0, no restrictions",
    "isic2017": "CC-0, no restrictions",
    "ham10000": "CC BY-NC 4.0, name the authors, no commercial use",
}
LISTINGS = {"ham10000": f"{DATAVERSE}/datasets/:persistentId/?persistentId=doi:10.7910/DVN/DBW86T"}


class _Interrupted(Exception):
    """The answer ended early or never came; another try may get further."""


def download(name: str, folder: str | Path, mirror: str | None = None) -> Path:
    """Bring the data set `name` (a key of `ARCHIVES`) into `folder` in its published layout; returns `folder`.

    What is already there whole is not asked for again, what was cut is resumed, and zips go once unpacked.
    `mirror` takes the place of `https://host` in every address. Raises `DataError` for an unknown name, too
    little disk, an address that has moved, and files that are not what was published.
    """
    if name not in ARCHIVES:
        raise DataError(f"there is no download called {name!r}; known are {', '.join(ARCHIVES)}")
    folder = Path(folder)
    missing = [archive for archive in ARCHIVES[name] if not _is_whole(archive, folder)]
    if not missing:
        print(f"{name}: all {len(ARCHIVES[name])} parts are already in {folder}")
        return folder
    _announce(name, missing, folder, mirror)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _UNFINISHED).touch()
    published = _published_md5(name, mirror)
    for archive in missing:
        file_id = urlsplit(archive.url).path.rpartition("/")[2]
        # The checksum listed for a table may be that of Dataverse's own conversion, not of the original.
        md5 = archive.md5 if archive.folder is None else published.get(file_id, archive.md5)
        _fetch_archive(archive, folder, _address(archive.url, mirror), md5)
    (folder / _UNFINISHED).unlink()
    return folder


def is_unfinished(folder: str | Path) -> bool:
    """Whether a download into `folder` was begun and not brought to its end."""
    return (Path(folder) / _UNFINISHED).exists()


def _announce(name: str, missing: list[Archive], folder: Path, mirror: str | None) -> None:
    sizes = [archive.size for archive in missing]
    files = [folder / archive.name for archive in missing]
    begun = sum(p.stat().st_size for f in files for p in (f, _part(f)) if p.is_file())
    print(
        f"{name}: {len(missing)} of {len(ARCHIVES[name])} files, about {_bytes(sum(sizes))}, "
        f"from {urlsplit(_address(missing[0].url, mirror)).netloc} to {folder} (licence: {LICENSES[name]})"
    )
    # Pictures take as much room unpacked as zipped, and the largest zip stays until it is unpacked.
    _check_room(folder, sum(sizes) + max(sizes) - begun, name)


def _fetch_archive(archive: Archive, folder: Path, url: str, md5: str | None) -> None:
    path = folder / archive.name
    if archive.folder is None:
        path.unlink(missing_ok=True)  # only ever an empty file or an error page, see _is_whole
        fetch(url, path, md5)
        if not _is_whole(archive, folder):
            path.unlink()
            raise DataError(f"{url} gave a web page or nothing instead of {path}; open the address in a browser")
        return
    fetch(url, path, md5)
    target = folder / archive.folder
    if target.exists():
        # Ours are whole or absent, so this one was made by hand and may hold more than we can fetch again.
        aside = next(a for i in range(1, 1000) if not (a := target.with_name(f"{target.name}.incomplete{i}")).exists())
        print(f"{target} holds {_count(target, archive.suffix)} of {archive.images} pictures; it is kept as {aside}")
        target.rename(aside)
    unpack(path, target, archive.images, archive.suffix)
    path.unlink()


def _is_whole(archive: Archive, folder: Path) -> bool:
    if archive.folder is not None:
        return _count(folder / archive.folder, archive.suffix) >= (archive.images or 1)
    path = folder / archive.name
    # Firewalls and login pages answer 200 with HTML.
    return path.is_file() and path.read_bytes()[:1] not in (b"", b"<")


def _count(folder: Path, suffix: str) -> int:
    return sum(path.suffix.lower() == suffix for path in list_images(folder))


def _address(url: str, mirror: str | None) -> str:
    parts = urlsplit(url)
    return url if mirror is None else mirror.rstrip("/") + parts._replace(scheme="", netloc="").geturl()


def _published_md5(name: str, mirror: str | None) -> dict[str, str]:
    """File id -> MD5 as Dataverse lists it; empty, with a line that says so, when the list cannot be had."""
    if name not in LISTINGS:
        return {}
    url = _address(LISTINGS[name], mirror)
    try:
        with urlopen(Request(url, headers=AGENT), timeout=30) as response:
            files = [entry["dataFile"] for entry in json.load(response)["data"]["latestVersion"]["files"]]
        return {str(file["id"]): file["md5"] for file in files if "md5" in file}
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError) as error:
        print(f"{name}: no list of checksums from {url} ({error!r}); checking by known MD5, CRC and picture counts")
        return {}


def fetch(
    url: str, path: str | Path, md5: str | None = None, timeout: float = 30.0, retries: int = 5, pause: float = 1.0
) -> Path:
    """Download `url` to `path` with a progress bar, going on where an earlier call was cut; returns `path`.

    No bytes for `timeout` seconds counts as a cut. After `retries` tries in a row that got no further, with pauses
    of `pause`, 2 `pause`, 4 `pause` ... seconds (a minute at most), it gives up. A `path` that exists is taken as
    it is unless it contradicts `md5`. Raises `DataError`; the part that came stays for the next call.
    """
    path = Path(path)
    if path.is_file() and (md5 is None or _md5(path) == md5.lower()):
        return path
    part, found = _part(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # a resumed file with a wrong checksum deserves one fresh try
            _receive_all(url, part, timeout, retries, pause)
            found = md5 and _md5(part)
            if md5 is None or found == md5.lower():
                part.replace(path)
                _note(part).unlink(missing_ok=True)
                return path
            _discard(part)
    except OSError as error:
        raise DataError(f"{path} could not be written ({error}); run the command again to go on") from error
    raise DataError(f"{path.name} from {url} is damaged: its MD5 should be {md5} but is {found}; it was deleted")


def _receive_all(url: str, part: Path, timeout: float, retries: int, pause: float) -> None:
    furthest, failures = _resume_state(part, url)[0], 0
    with tqdm(desc=part.stem, initial=furthest, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        while True:
            try:
                return _receive(url, part, timeout, bar)
            except _Interrupted as cut:
                size = part.stat().st_size if part.exists() else 0
                # Only new ground is progress: a server that cannot resume would otherwise keep us here for ever.
                failures = 0 if size > furthest else failures + 1
                furthest = max(size, furthest)
                if failures > retries:
                    raise DataError(
                        f"{url}: {cut}; gave up after {failures} tries that got no further than "
                        f"{furthest:,} bytes; run the command again to go on"
                    ) from cut
                time.sleep(min(60.0, pause * 2 ** max(failures - 1, 0)))


def _receive(url: str, part: Path, timeout: float, bar: tqdm) -> None:
    """One request for what is still missing; returns when `part` is whole, else raises `_Cut`."""
    size, validator, total = _resume_state(part, url)
    if size and size == total:
        return
    ask = {"Range": f"bytes={size}-", "If-Range": validator} if size else {}
    with _open(url, ask, timeout, part) as response:
        size, total = _response_start(response, part, size, validator)
        bar.reset(total)
        bar.n = bar.initial = size
        bar.refresh()
        _check_room(part, (total or size) - size, part.stem)
        with open(part, "ab" if size else "wb") as file:
            if not size:
                note = {"url": url, "validator": _validator(response.headers), "total": total}
                _note(part).write_text(json.dumps(note))
            while total is None or size < total:
                block = _read(response, CHUNK if total is None else min(CHUNK, total - size))
                if not block:
                    break
                file.write(block)
                size += len(block)
                bar.update(len(block))
    if total is not None and size < total:
        raise _Interrupted(f"the connection ended after {size:,} of {total:,} bytes")


def _open(url: str, headers: dict[str, str], timeout: float, part: Path):
    try:
        return urlopen(Request(url, headers=AGENT | headers), timeout=timeout)
    except HTTPError as error:
        if error.code == 416:
            return error  # an answer like any other: `_start` judges it
        error.close()
        if error.code in (408, 429) or error.code >= 500:
            raise _Interrupted(f"the server answered {error.code} {error.reason}") from error
        raise DataError(
            f"{url} answered {error.code} {error.reason}: the address may have moved or be closed to programs; "
            f"download it by hand to {part.with_suffix('')} and run the command again"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"no connection ({error})") from error
    except ValueError as error:
        raise DataError(f"{url} is no web address ({error})") from error


def _response_start(response, part: Path, size: int, validator: str | None) -> tuple[int, int | None]:
    """Where in the file the answer starts (0 or `size`), and how long the file is, None if the server is silent."""
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        tags = {response.headers.get("ETag"), response.headers.get("Last-Modified")} - {None}
        # Some servers ignore If-Range and send the tail of a changed file.
        if span and int(span[1]) == size and (not tags or validator in tags):
            return size, int(span[2])
    if response.status in (206, 416):
        _discard(part)
    raise _Interrupted(f"the server answered {response.status} with nothing that could be used")


def _read(response, size: int) -> bytes:
    try:
        return response.read1(size)  # unlike read, gives what has come before a stall
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection was lost ({error!r})") from error


def _validator(headers) -> str | None:
    tag = headers.get("ETag", "")
    # A weak tag promises the same meaning, not the same bytes, and is not allowed in If-Range.
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _resume_state(part: Path, url: str) -> tuple[int, str | None, int | None]:
    """Bytes, validator and full length of an earlier part; (0, None, None) if it cannot be continued safely."""
    try:
        note, size = json.loads(_note(part).read_text()), part.stat().st_size
        if note["url"] == url and (note["validator"] or size == note["total"]):
            return size, note["validator"], note["total"]
    except (OSError, ValueError, LookupError, TypeError):
        pass  # no part, or a note cut short by a kill: start afresh
    return 0, None, None


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _note(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _note(part).unlink(missing_ok=True)


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def unpack(archive: str | Path, folder: str | Path, images: int | None = None, suffix: str = ".jpg") -> Path:
    """Unpack the files of a zip directly into `folder`, whatever folders the zip wraps them in; returns `folder`.

    Every member is judged before anything is written, every checksum is checked, and `images` files must end in
    `suffix`; `folder` appears (or is replaced) only after that. Raises `DataError`: for unsafe names, links and
    zip bombs, which are refused; for a damaged zip, which is deleted; for a wrong count and a full disk.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = _checked_members(bundle.infolist(), archive, folder)
            _remove_leftovers(folder)
            with atomic_folder(folder) as fresh:
                for name, member in tqdm(members.items(), desc=f"unpacking {archive.name}", unit="file"):
                    with bundle.open(member) as source, open(fresh / name, "wb") as target:
                        shutil.copyfileobj(source, target, CHUNK)
                found = _count(fresh, suffix)
                if images is not None and found != images:
                    raise DataError(
                        f"{archive} holds {found} {suffix} pictures where {images} were published; nothing was "
                        "unpacked; delete it to fetch it again"
                    )
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{archive} could not be unpacked to {folder} ({error}); run the command again") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        archive.unlink()
        raise DataError(
            f"{archive} was damaged or no zip at all ({error}); it was deleted, run the command again to fetch it"
        ) from error
    return folder


def _checked_members(infos: list[zipfile.ZipInfo], archive: Path, folder: Path) -> dict[str, zipfile.ZipInfo]:
    """File name -> member for all that is to be written; raises `DataError` naming the member that forbids it."""
    refused = f"{archive} was refused and nothing was unpacked"
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if reason := _unsafe_reason(info):
            raise DataError(f"{refused}: its member {info.orig_filename!r} {reason}")
        path = PurePosixPath(info.filename)
        if info.is_dir() or "__MACOSX" in path.parts or path.name.startswith("."):
            continue
        # The published folders are flat. Compared without case, as on the usual disks of macOS.
        if path.name.lower() in members:
            raise DataError(f"{refused}: its member {info.orig_filename!r} is there twice")
        members[path.name.lower()] = info
    total, packed = sum(info.file_size for info in infos), archive.stat().st_size
    largest = max((info.file_size, info.orig_filename) for info in infos)[1] if infos else ""
    if total > MAX_RATIO * packed:
        raise DataError(f"{refused}: {_bytes(packed)} would become {_bytes(total)}, most of it {largest!r}")
    _check_room(folder, total, f"unpacking {archive} (largest member {largest!r})")
    return {PurePosixPath(info.filename).name: info for info in members.values()}


def _unsafe_reason(info: zipfile.ZipInfo) -> str | None:
    name = info.orig_filename
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "has an absolute name"
    if "\\" in name or "\0" in name or ".." in name.split("/"):
        return "has a name that could leave the folder"
    # Zero is what writers that know no Unix modes put there.
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    return None


def _remove_leftovers(folder: Path) -> None:
    """Remove the hidden siblings that `whole_folder` left when its process was killed."""
    for left in folder.parent.glob(f".{escape(folder.name)}-" + "?" * 8):
        shutil.rmtree(left, ignore_errors=True)


def _check_room(folder: Path, need: int, what: str) -> None:
    place = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(place).free
    if need > free:
        raise DataError(f"{what} needs {_bytes(need)} but only {_bytes(free)} are free on the disk of {place}")


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
