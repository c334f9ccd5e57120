"""Official archives -> the published folder layout on disk.

Unfinished data never has its final name: a file is `<name>.part` until it is complete and checked, a folder is a hidden
sibling until all images are in it. A killed run is continued by running it again.
"""

import hashlib
import http.client
import json
import re
import shutil
import stat
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm.auto import tqdm

from helpers.data.files import DataError, atomic_folder, list_images
from helpers.data.tables import LICENSES

ISIC = "https://isic-challenge-data.s3.amazonaws.com"
DATAVERSE = "https://dataverse.harvard.edu/api"
# Dataverse's firewall answers 403 to urllib's default user agent.
AGENT = {"User-Agent": "sketch2lesion (course project)"}
CHUNK = 1 << 18
_UNFINISHED = ".download-unfinished"
MAX_RATIO = 100  # of unpacked to packed size; JPEG and PNG hardly shrink in a zip, so more is a zip bomb


@dataclass(frozen=True)
class Archive:
    """One published file: a zip of images, or a table (`folder` is None), which is kept unchanged."""

    url: str
    name: str  # of the file on disk
    md5: str | None = None
    images: int = 0  # expected images, counted by `suffix`
    folder: str | None = None  # folder of the images
    suffix: str = ".jpg"  # ISIC 2017 also has superpixel PNGs next to its JPEGs, which do not count
    size: int = 0  # approximate bytes, for the first message and the check of free disk space


def _isic(year: int, stem: str, images: int = 0, gigabytes: float = 0.0) -> Archive:
    name = f"{stem}.zip" if images else f"{stem}.csv"
    folder = stem if images else None
    suffix = ".jpg" if stem.endswith("_Data") else ".png"
    return Archive(f"{ISIC}/{year}/{name}", name, None, images, folder, suffix, int(gigabytes * 1e9))


def _ham(file_id: int, stem: str, md5: str, images: int, size: int) -> Archive:
    suffix = ".png" if "segmentations" in stem else ".jpg"
    return Archive(f"{DATAVERSE}/access/datafile/{file_id}", f"{stem}.zip", md5, images, stem, suffix, size)


# ISIC publishes no checksums and has republished its masks, so its zips are checked by CRC and number of images. The
# MD5s of HAM10000 are those that Dataverse lists; they are pinned here, so that a changed file is refused.
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


class _Interrupted(Exception):
    """A response ended early or did not come; a retry may succeed."""


def download(name: str, folder: str | Path, mirror: str | None = None) -> Path:
    """Download the data set `name` (a key of `ARCHIVES`) to `folder` in its published layout and return `folder`.

    Complete files are not requested again, interrupted ones are resumed, and zips are deleted after unpacking. `mirror`
    replaces `https://host` in every address. Raises `DataError` for an unknown name, a full disk, an address that has
    moved, and files that differ from the published ones.
    """
    if name not in ARCHIVES:
        raise DataError(f"data set must be one of {', '.join(ARCHIVES)} to be downloaded, got {name!r}")
    folder = Path(folder)
    missing = [archive for archive in ARCHIVES[name] if not _is_complete(archive, folder)]
    if not missing:
        print(f"{name}: all {len(ARCHIVES[name])} files are already in {folder}")
        return folder
    _announce(name, missing, folder, mirror)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _UNFINISHED).touch()
    for archive in missing:
        _fetch_archive(archive, folder, _address(archive.url, mirror))
    (folder / _UNFINISHED).unlink()
    return folder


def is_unfinished(folder: str | Path) -> bool:
    """Whether a download to `folder` was started and not finished."""
    return (Path(folder) / _UNFINISHED).exists()


def _announce(name: str, missing: list[Archive], folder: Path, mirror: str | None) -> None:
    sizes = [archive.size for archive in missing]
    files = [folder / archive.name for archive in missing]
    present = sum(p.stat().st_size for f in files for p in (f, _part(f)) if p.is_file())
    print(
        f"{name}: {len(missing)} of {len(ARCHIVES[name])} files, about {_bytes(sum(sizes))}, "
        f"from {urlsplit(_address(missing[0].url, mirror)).netloc} to {folder} (license: {LICENSES[name]})"
    )
    # Images are as large unpacked as zipped, and the largest zip stays until it is unpacked.
    _check_free_space(folder, sum(sizes) + max(sizes) - present, name)


def _fetch_archive(archive: Archive, folder: Path, url: str) -> None:
    """Download one archive and unpack it to its folder; a table is only downloaded."""
    path = folder / archive.name
    if archive.folder is None:
        path.unlink(missing_ok=True)  # an empty file or an error page, see `_is_complete`
        fetch(url, path, archive.md5)
        if not _is_complete(archive, folder):
            path.unlink()
            raise DataError(f"expected a table from {url}, got a web page or nothing; download it by hand to {path}")
        return
    fetch(url, path, archive.md5)
    target = folder / archive.folder
    if target.exists():
        # Folders of this program are complete or absent, so the user made this one: keep it.
        names = (target.with_name(f"{target.name}.incomplete{i}") for i in range(1, 1000))
        backup = next(name for name in names if not name.exists())
        print(f"{target} has {_count(target, archive.suffix)} of {archive.images} images; it is kept as {backup}")
        target.rename(backup)
    unpack(path, target, archive.images, archive.suffix)
    path.unlink()


def _is_complete(archive: Archive, folder: Path) -> bool:
    if archive.folder is not None:
        return _count(folder / archive.folder, archive.suffix) >= archive.images
    path = folder / archive.name
    # Firewalls and login pages answer 200 with HTML.
    return path.is_file() and path.read_bytes()[:1] not in (b"", b"<")


def _count(folder: Path, suffix: str) -> int:
    return sum(path.suffix.lower() == suffix for path in list_images(folder))


def _address(url: str, mirror: str | None) -> str:
    parts = urlsplit(url)
    return url if mirror is None else mirror.rstrip("/") + parts._replace(scheme="", netloc="").geturl()


def fetch(
    url: str, path: str | Path, md5: str | None = None, timeout: float = 30.0, retries: int = 5, pause: float = 1.0
) -> Path:
    """Download `url` to `path` with a progress bar, resuming an earlier call, and return `path`.

    A connection without data for `timeout` seconds counts as interrupted. After `retries` retries in a row without new
    data, with pauses of `pause`, 2 `pause`, 4 `pause` ... seconds (60 at most), it gives up. An existing `path` is kept
    unless its MD5 differs from `md5`. Raises `DataError`; a partial file stays for the next call.
    """
    path = Path(path)
    if path.is_file() and (md5 is None or _md5(path) == md5.lower()):
        return path
    part, actual = _part(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for _ in range(2):  # a resumed file with a wrong checksum is downloaded once more from the start
            _receive_all(url, part, timeout, retries, pause)
            actual = md5 and _md5(part)
            if md5 is None or actual == md5.lower():
                part.replace(path)
                _note(part).unlink(missing_ok=True)
                return path
            _discard(part)
    except OSError as error:
        raise DataError(f"{path} could not be written ({error}); run the command again to resume") from error
    raise DataError(
        f"{path.name} from {url} must have the MD5 {md5}, got {actual}; it was deleted. Run the command again; if that "
        "fails too, the file on the server has changed"
    )


def _receive_all(url: str, part: Path, timeout: float, retries: int, pause: float) -> None:
    max_size, failures = _resume_state(part, url)[0], 0
    with tqdm(desc=part.stem, initial=max_size, unit="B", unit_scale=True, unit_divisor=1024) as bar:
        while True:
            try:
                return _receive(url, part, timeout, bar)
            except _Interrupted as interruption:
                size = part.stat().st_size if part.exists() else 0
                # Only a new maximum is progress: a server that cannot resume would otherwise cause an endless loop.
                failures = 0 if size > max_size else failures + 1
                max_size = max(size, max_size)
                if failures > retries:
                    raise DataError(
                        f"{url}: {interruption}; gave up after {failures} tries without getting further than "
                        f"{max_size:,} bytes; run the command again to resume"
                    ) from interruption
                time.sleep(min(60.0, pause * 2 ** max(failures - 1, 0)))


def _receive(url: str, part: Path, timeout: float, bar: tqdm) -> None:
    """Request the missing bytes once; return when `part` is complete, else raise `_Interrupted`."""
    size, validator, total = _resume_state(part, url)
    if size and size == total:
        return
    headers = {"Range": f"bytes={size}-", "If-Range": validator} if size else {}
    with _open(url, headers, timeout, part) as response:
        size, total = _response_start(response, part, size, validator)
        bar.reset(total)
        bar.n = bar.initial = size
        bar.refresh()
        _check_free_space(part, (total or size) - size, part.stem)
        with open(part, "ab" if size else "wb") as file:
            if not size:
                note = {"url": url, "validator": _validator(response.headers), "total": total}
                _note(part).write_text(json.dumps(note), encoding="utf-8")
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
            return error  # handled by `_response_start`
        error.close()
        if error.code in (408, 429) or error.code >= 500:
            raise _Interrupted(f"the server answered {error.code} {error.reason}") from error
        raise DataError(
            f"{url} answered {error.code} {error.reason}: the address may have moved or refuse programs; "
            f"download it by hand to {part.with_suffix('')} and run the command again"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"no connection ({error})") from error
    except ValueError as error:
        raise DataError(f"{url} is not a web address ({error})") from error


def _response_start(response, part: Path, size: int, validator: str | None) -> tuple[int, int | None]:
    """Offset of the response in the file (0 or `size`) and length of the file, None if the server does not state it.

    Raises `_Interrupted` if the response is not usable.
    """
    if response.status == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdigit() else None
    if response.status == 206:
        content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        validators = {response.headers.get("ETag"), response.headers.get("Last-Modified")} - {None}
        # Some servers ignore If-Range and send the end of a changed file.
        if content_range and int(content_range[1]) == size and (not validators or validator in validators):
            return size, int(content_range[2])
    if response.status in (206, 416):
        _discard(part)
    raise _Interrupted(f"expected the file or the requested range, got status {response.status}")


def _read(response, size: int) -> bytes:
    try:
        return response.read1(size)  # unlike read, returns the data received before a stall
    except (OSError, http.client.HTTPException) as error:
        raise _Interrupted(f"the connection was lost ({error!r})") from error


def _validator(headers) -> str | None:
    """ETag or Last-Modified, by which the server can tell whether the file has changed."""
    tag = headers.get("ETag", "")
    # A weak tag does not guarantee the same bytes and is not allowed in If-Range.
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _resume_state(part: Path, url: str) -> tuple[int, str | None, int | None]:
    """Size, validator and full length of a partial file; (0, None, None) if it cannot be resumed safely."""
    try:
        note, size = json.loads(_note(part).read_text(encoding="utf-8")), part.stat().st_size
        if note["url"] == url and (note["validator"] or size == note["total"]):
            return size, note["validator"], note["total"]
    except (OSError, ValueError, LookupError, TypeError):
        pass  # no partial file, or a note truncated by a kill: start from the beginning
    return 0, None, None


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _note(part: Path) -> Path:
    """JSON file with url, validator and full length of a partial file."""
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


def unpack(archive: str | Path, folder: str | Path, images: int, suffix: str = ".jpg") -> Path:
    """Unpack the files of a zip directly to `folder`, without the zip's own folders, and return `folder`.

    All members are checked for unsafe names before anything is written, all CRCs are checked, and exactly `images`
    files must end in `suffix`; only then `folder` appears or is replaced. Raises `DataError`: for unsafe names, links,
    other compression methods than deflate and zip bombs (refused), a damaged zip (deleted), a wrong number of images,
    and a full disk.
    """
    archive, folder = Path(archive), Path(folder)
    try:
        with zipfile.ZipFile(archive) as bundle:
            members = _checked_members(bundle.infolist(), archive, folder)
            with atomic_folder(folder) as temporary:
                for name, member in tqdm(members.items(), desc=f"unpacking {archive.name}", unit="file"):
                    with bundle.open(member) as source, open(temporary / name, "wb") as target:
                        shutil.copyfileobj(source, target, CHUNK)
                count = _count(temporary, suffix)
                if count != images:
                    raise DataError(
                        f"{archive} must contain {images} {suffix} images, got {count}; nothing was unpacked; delete "
                        "it and run the command again to download it"
                    )
    except DataError:
        raise
    except (OSError, MemoryError) as error:
        raise DataError(f"{archive} could not be unpacked to {folder} ({error}); run the command again") from error
    except Exception as error:  # zipfile has no list of what it raises for damaged archives
        archive.unlink()
        raise DataError(
            f"{archive} is damaged or not a zip file ({error}); it was deleted, run the command again to download it"
        ) from error
    return folder


def _checked_members(infos: list[zipfile.ZipInfo], archive: Path, folder: Path) -> dict[str, zipfile.ZipInfo]:
    """File name -> member to unpack. Raises `DataError` with the name of an unsafe or repeated member."""
    refused = f"{archive} was refused and nothing was unpacked"
    members: dict[str, zipfile.ZipInfo] = {}
    for info in infos:
        if reason := _unsafe_reason(info):
            raise DataError(f"{refused}: its member {info.orig_filename!r} {reason}")
        path = PurePosixPath(info.filename)
        if info.is_dir() or "__MACOSX" in path.parts or path.name.startswith("."):
            continue
        # The published folders are flat. Names are compared without case, as on the default file system of macOS.
        if path.name.lower() in members:
            raise DataError(f"{refused}: file names must be unique, got {info.orig_filename!r} twice")
        members[path.name.lower()] = info
    total, packed = sum(info.file_size for info in infos), archive.stat().st_size
    largest = max((info.file_size, info.orig_filename) for info in infos)[1] if infos else ""
    if total > MAX_RATIO * packed:
        raise DataError(
            f"{refused}: it may unpack to {MAX_RATIO} times its {_bytes(packed)}, got {_bytes(total)}, "
            f"largest member {largest!r}"
        )
    _check_free_space(folder, total, f"unpacking {archive} (largest member {largest!r})")
    return {PurePosixPath(info.filename).name: info for info in members.values()}


def _unsafe_reason(info: zipfile.ZipInfo) -> str | None:
    """Why a zip member must not be unpacked, None if it is safe."""
    name = info.orig_filename
    if not PurePosixPath(name).name and not name.endswith("/"):
        return "has no file name"
    if name.startswith("/") or re.match("[A-Za-z]:", name):
        return "has an absolute name"
    if "\\" in name or "\0" in name or ".." in name.split("/"):
        return "has a name that could leave the folder"
    # Zip writers without Unix modes store zero.
    if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    # The published zips use these. Python expands the others in memory, by up to a million times.
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"has the compression method {info.compress_type}, expected 0 or 8"
    return None


def _check_free_space(folder: Path, required: int, what: str) -> None:
    existing = next(p for p in (folder, *folder.parents) if p.is_dir())
    free = shutil.disk_usage(existing).free
    if required > free:
        raise DataError(
            f"{what} needs {_bytes(required)} but only {_bytes(free)} are free on the disk of {existing}; delete "
            "something or choose another disk"
        )


def _bytes(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"
