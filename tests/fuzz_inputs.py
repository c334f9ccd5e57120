"""Mutated files as users give them: images, drawings, tables, archives and weights. Every writer makes one input in an
empty folder and returns its path; the same state of `rng` gives the same input."""

import gzip
import io
import json
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from helpers.data import files
from helpers.data.labels import HAM_CLASSES
from helpers.models.checkpoint import pack_ids
from helpers.phantoms.render import ARTIFACTS

FORMATS = {
    "JPEG": ["RGB", "L", "CMYK"], "PNG": ["RGB", "RGBA", "P", "1", "LA", "I;16"], "BMP": ["RGB", "P"],
    "TIFF": ["RGB", "L", "1", "CMYK", "F", "I;16", "LAB"], "WEBP": ["RGB", "RGBA"], "GIF": ["P"],
    "MPO": ["RGB"], "PPM": ["RGB"], "ICO": ["RGBA"], "TGA": ["RGB"], "DDS": ["RGB"], "SGI": ["RGB"], "EPS": ["RGB"],
} | {name: ["RGB", "RGBA"] for name in ("HEIF", "AVIF") if name in files.FORMATS}  # fmt: skip
ENDINGS = ["jpg", "png", "tif", "bmp", "gif", "webp"]
IDS = [f"ISIC_{k:07d}" for k in range(6)]
NAMES = ["MEL", "nv", "Bowen's disease", "BKL", "vascular lesion", "NV"]  # of the diagnoses of `IDS`


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Change bytes, cut, repeat or insert a part."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        start, length = int(rng.integers(max(1, len(data)))), int(rng.integers(1, 12))
        kind = rng.integers(8)
        if kind < 4 and data:  # early bytes more often, because the headers are there
            data[int(start * rng.random())] = int(rng.choice([0, 1, 127, 255, rng.integers(256)]))
        elif kind == 4:
            data[start : start + length] = rng.bytes(length)
        elif kind == 5:
            data[start:start] = data[start : start + length]
        elif kind == 6:
            del data[start : start + length]
        elif start > 8:
            del data[start:]
    return bytes(data)


def choose(rng: np.random.Generator, options: list):
    """One of `options`, which need not be of one type."""
    return options[rng.integers(len(options))]


# ----------------------------------------------------------------------------------------------- images and drawings


@cache
def encoded(drawing: bool) -> list[bytes]:
    """A small image in every format and mode, with EXIF rotation where the format has it."""
    exif, contents = Image.Exif(), []
    exif[0x0112], exif[0x010F] = 6, "camera"
    if drawing:
        lines = np.full((36, 48, 3), 250, np.uint8)
        cv2.ellipse(lines, (24, 18), (14, 9), 0, 0, 360, (40, 30, 20), 2)
        source = Image.fromarray(lines)
    else:
        source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), np.uint8)).resize((48, 36))
    for name, modes in FORMATS.items():
        for mode in modes:
            stream = BytesIO()
            image = Image.fromarray(np.asarray(source.convert("L"), np.uint16) * 257) if mode == "I;16" else source
            image = image if image.mode == mode else image.convert(mode)
            options = {"exif": exif} if name in ("JPEG", "PNG", "TIFF", "WEBP", "MPO", "HEIF", "AVIF") else {}
            image.save(stream, name, **options)
            contents.append(stream.getvalue())
    return contents


def write_image(rng: np.random.Generator, folder: Path, drawing: bool = False) -> Path:
    """An image of any format under any ending; the checksums of half of the PNGs are correct."""
    content = choose(rng, encoded(drawing))
    if rng.random() < 0.95:
        content = mutate(content, rng)
    path = folder / f"image.{choose(rng, ENDINGS)}"
    path.write_bytes(with_checksums(content) if rng.random() < 0.5 else content)
    return path


def write_drawing(rng: np.random.Generator, folder: Path) -> Path:
    """The drawing of an ellipse, else as `write_image`."""
    return write_image(rng, folder, drawing=True)


def with_checksums(content: bytes) -> bytes:
    """A PNG with correct checksums; other content is unchanged."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    data, start = bytearray(content), 8
    while start + 12 <= len(data):
        end = start + 8 + struct.unpack(">I", data[start : start + 4])[0]
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[start + 4 : end]))
        start = end + 4
    return bytes(data)


# ------------------------------------------------------------------------------------------------------------ tables


def one_hot_rows() -> list[list[str]]:
    """Lines of a one-hot label file."""
    return [["image", *HAM_CLASSES], *([i, *(str(float(j == k)) for j in range(7))] for k, i in enumerate(IDS))]


# Name of the image folder, name of the table, its lines: together a layout, or any table of ours.
TABLES: list[tuple[str, str, list[list[str]]]] = [
    ("ISBI2016_ISIC_Part1_Training_Data", "ISBI2016_ISIC_Part3_Training_GroundTruth",
     [[i, ("benign", "malignant")[k % 2]] for k, i in enumerate(IDS)]),
    ("ISIC-2017_Training_Data", "ISIC-2017_Training_Part3_GroundTruth",
     [["image_id", "melanoma", "seborrheic_keratosis"], *([i, f"{k % 2}.0", "0.0"] for k, i in enumerate(IDS))]),
    ("HAM10000_images_part_1", "HAM10000_metadata",
     [["lesion_id", "image_id", "dx", "age"], *([f"HAM_{k // 2}", i, NAMES[k], "50"] for k, i in enumerate(IDS))]),
    ("ISIC2018_Task3_Training_Input", "ISIC2018_Task3_Training_GroundTruth", one_hot_rows()),
    ("Train_data", "Train_labels", one_hot_rows()),
    ("images", "metadata",
     [["image_id", "diagnosis", "lesion_id", "split", "artifacts"],
      *([i, ("MEL", "NV")[k % 2], f"L{k}", ("train", "val", "test")[k % 3], "hair ruler"] for k, i in enumerate(IDS))]),
    ("sketches", "labels", [["image_id", "label"], *([i, name] for i, name in zip(IDS, NAMES, strict=True))]),
    ("sketches", "flags", [["image_id", *ARTIFACTS], *([i, *"0101100"] for i in IDS)]),
    ("sketches", "scores", [["image_id", "group", "jaccard"], *([i, i, "0.75"] for i in IDS)]),
]  # fmt: skip
CELLS = [
    "NaN",
    "inf",
    "-inf",
    "1e309",
    "1e-400",
    "",
    " ",
    "NA",
    "null",
    "x" * 200_000,
    '"',
    "\0",
    "\ud7ff",
    "é",
    "=1+1",
    "-1",
]
CELLS += [
    "0,5",
    "1e5",
    "9" * 400,
    "../../x",
    "C:\\x",
    "\u202ea",
    "2",
    "true",
    "ISIC_0000001",
    "MEL",
    "a\nb",
    "ﬁ",
    "e\u0301",
]


def change_rows(rows: list[list[str]], rng: np.random.Generator) -> list[list[str]]:
    """The lines with one change of a person or a program: cells, columns or lines that are odd, lost or doubled."""
    rows = [list(row) for row in rows]
    row, column = int(rng.integers(len(rows))), int(rng.integers(max(1, len(rows[0]))))
    kind = rng.integers(10)
    if kind < 4:
        rows[row][column : column + 1] = [choose(rng, CELLS)]
    elif kind == 4:
        rows = [line[:column] + line[column + 1 :] for line in rows]
    elif kind == 5:
        rows = [line[: column + 1] + line[column:] for line in rows]
    elif kind == 6:  # ragged
        rows[row] = rows[row] * 3 if rng.random() < 0.5 else rows[row][:1]
    elif kind == 7:
        rows.insert(row, list(choose(rng, rows)))
    elif kind == 8:
        rows = choose(rng, [[], rows[:1], rows[1:], [[]] * 3, rows * 200])
    elif rng.random() < 0.1:
        rows = [line * 20_000 for line in rows[:2]]
    return rows or [[]]


def change_text(text: str, rng: np.random.Generator) -> bytes:
    """The table's text in another spelling of separators, line ends, quotes or characters."""
    kind = rng.integers(8)
    if kind == 0:
        text = text.replace(",", choose(rng, [";", "\t", "|", " ", ", ", "  ", ":", "\0"]))
    elif kind == 1:
        text = text.replace("\n", choose(rng, ["\r", "\r\n", "\n\n", "\n\r", "\u2028", "\x1c"]))
    elif kind == 2:
        position = int(rng.integers(len(text) + 1))
        text = text[:position] + choose(rng, ['"', "'", '""', '","', "\\"]) + text[position:]
    elif kind == 3:
        text = re.sub(r"([^,\n]+)", r'"\1"', text)
    encodings = ["utf-8"] * 12 + ["utf-8-sig", "utf-16", "utf-16-le", "latin-1", "utf-32", "utf-7", "cp037"]
    return text.encode(choose(rng, encodings), errors="replace")


@cache
def large_tables() -> list[bytes]:
    """Packed tables of 30 MB, and of as much as is read."""
    line = b"ISIC_0000001,NV,0\n"
    return [gzip.compress(bytes(30_000_000)), gzip.compress(line * (9_900_000 // len(line)), 1)]


def write_table(rng: np.random.Generator, folder: Path) -> Path:
    """A table in the folder of its layout, whose images are empty files, packed or not."""
    images, stem, rows = choose(rng, TABLES)
    (folder / images).mkdir()
    for image_id in IDS:
        (folder / images / f"{image_id}.jpg").touch()
    if stem == "metadata":
        (folder / "phantoms.json").write_bytes(
            choose(rng, [b'{"classes": ["MEL", "NV"]}'] * 9 + [b"{", b"[]", b"\xff"])
        )
    for _ in range(rng.integers(3)):
        rows = change_rows(rows, rng)
    content = change_text("\n".join(map(",".join, rows)) + "\n", rng)
    content = mutate(content, rng) if rng.random() < 0.3 else content
    packed = stem != "metadata" and rng.random() < 0.2
    if packed:
        content = gzip.compress(content) if rng.random() < 0.99 else choose(rng, large_tables())
        content = mutate(content, rng) if rng.random() < 0.3 else content
    path = folder / f"{stem}.csv{'.gz' if packed else ''}"
    path.write_bytes(content)
    return path


# ---------------------------------------------------------------------------------------------------------- archives

METHODS = [zipfile.ZIP_STORED, *[zipfile.ZIP_DEFLATED] * 5, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
# Offsets and sizes of flags, method, CRC, packed and unpacked size, and more: in the directory, before the member.
HEADER_FIELDS = {
    b"PK\x01\x02": [(8, 2), (10, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (34, 2), (38, 4), (42, 4)],
    b"PK\x03\x04": [(6, 2), (8, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)],
    b"PK\x05\x06": [(4, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
}


def member_names(folder: Path) -> list[str]:
    """Names of members that must not leave the target folder, or are otherwise odd."""
    return [
        "", ".", "./", "/", "..", "../x.jpg", "a/../../x.jpg", "../" * 9 + "x.jpg", f"{folder.parent}/x.jpg", "//x.jpg",
        "C:/x.jpg", "..\\x.jpg", "a\\b.jpg", "a\0b.jpg", "\0", "x\0/../../y", "d/" * 1000 + "x.jpg", "n" * 300 + ".jpg",
        "ISIC_0.jpg", "isic_0.JPG", "ISIC_0.jpg/x.jpg", "ISIC_1.jpg/", "a/.", "a//b.jpg", " ", "x\n.jpg", "\u202ex.jpg",
        "é.jpg", "e\u0301.jpg", ".hidden.jpg", "__MACOSX/x.jpg", "~/x.jpg", "$HOME/x.jpg", "CON", "x.jpg.", "-rf.jpg",
    ]  # fmt: skip


def make_zip(rng: np.random.Generator, folder: Path) -> bytes:
    """A zip of three images, in a folder or not, and perhaps an odd member."""
    members = [(f"{choose(rng, ['', 'X/'])}ISIC_{k}.jpg", rng.bytes(300), 0) for k in range(3)]
    if rng.random() < 0.6:
        mode = choose(
            rng, [0] * 12 + [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFBLK, stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFDIR]
        )
        content = b"/etc/passwd" if rng.random() < 0.9 else bytes(3_000_000)
        members.insert(int(rng.integers(4)), (choose(rng, member_names(folder)), content, mode))
    stream, method = BytesIO(), choose(rng, METHODS)
    with zipfile.ZipFile(stream, "w", method) as bundle:
        for name, content, mode in members:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, method  # the constructor would cut the name at NUL
            info.create_system, info.external_attr = 3, (mode | 0o644) << 16
            if name:
                bundle.writestr(info, content)
            else:  # `writestr` needs a name
                info.filename = "\x01"
                bundle.writestr(info, content)
                info.filename = ""
    return stream.getvalue()


def make_tar(rng: np.random.Generator, folder: Path) -> bytes:
    """A tar, packed or not, with an image and a link."""
    stream = BytesIO()
    with tarfile.open(fileobj=stream, mode=choose(rng, ["w", "w:gz", "w:xz", "w:bz2"])) as bundle:
        member = tarfile.TarInfo("ISIC_0.jpg")
        member.size = 100
        bundle.addfile(member, io.BytesIO(rng.bytes(100)))
        link = tarfile.TarInfo("x.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, f"{folder.parent}/x"
        bundle.addfile(link)
    return stream.getvalue()


def change_header(content: bytes, rng: np.random.Generator) -> bytes:
    """One field of one header of a zip with another value: encryption, method, CRC, sizes, lengths, offsets."""
    data, signature = bytearray(content), choose(rng, list(HEADER_FIELDS))
    starts = [match.start() for match in re.finditer(re.escape(signature), content)]
    if not starts:
        return content
    offset, size = choose(rng, HEADER_FIELDS[signature])
    values = [0, 1, 9, 99, 0x41, 2 ** (8 * size) - 1, 2 ** (8 * size - 1), int(rng.integers(2 ** (8 * size)))]
    start = choose(rng, starts) + offset
    data[start : start + size] = choose(rng, values).to_bytes(size, "little")
    return bytes(data)


def write_archive(rng: np.random.Generator, folder: Path) -> Path:
    """A zip, or another archive under its ending."""
    content = make_zip(rng, folder) if rng.random() < 0.95 else make_tar(rng, folder)
    for _ in range(rng.integers(3)):
        content = change_header(content, rng)
    if rng.random() < 0.3:
        content = mutate(content, rng)
    path = folder / "in.zip"
    path.write_bytes(content)
    return path


# ----------------------------------------------------------------------------------------------------------- weights


@cache
def weights() -> dict[str, bytes]:
    """A checkpoint and a released file of one linear layer."""
    layer = {"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}
    config, extra_state = {"size": 3, "classes": ["MEL", "NV"]}, {"init_from": "random init"}
    trained_on = [f"ISIC_{k}" for k in range(9)]
    state = {
        "config": config,
        "train_config": {"batch_size": 4, "seed": 0, "ema_nimg": 10},
        "ema_models": {},
        "step": 1,
    }
    state |= {"seconds": 1.0, "extra_state": extra_state | {"best_state_dict": layer, "trained_on": trained_on}}
    stream = BytesIO()
    torch.save(state, stream)
    header = {"config": config, "extra_state": extra_state | {"trained_on": pack_ids(trained_on)}}
    return {"a.pt": stream.getvalue(), "a.safetensors": save(layer, {"checkpoint": json.dumps(header)})}


def change_values(value: object, rng: np.random.Generator) -> object:
    """A JSON value with one value in it replaced."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = choose(rng, list(value))
        return value | {key: change_values(value[key], rng)}
    return choose(rng, [None, -1, 10**30, 1e308, "x", "", [], {}, True, [1], {"size": 3}, "\ud7ff"])


def write_weights(rng: np.random.Generator, folder: Path) -> Path:
    """A checkpoint or a released file; of the latter's header also one value is changed."""
    name = choose(rng, list(weights()))
    content = weights()[name]
    if name.endswith("safetensors") and rng.random() < 0.6:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size])
        if rng.random() < 0.5:
            header = change_values(header, rng)
        else:
            inner = change_values(json.loads(header["__metadata__"]["checkpoint"]), rng)
            header["__metadata__"]["checkpoint"] = json.dumps(inner)
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + size :]
    path = folder / name
    path.write_bytes(mutate(content, rng) if rng.random() < 0.7 else content)
    return path


WRITERS: dict[str, Callable[[np.random.Generator, Path], Path]] = {
    "images": write_image, "drawings": write_drawing, "tables": write_table, "archives": write_archive,
    "weights": write_weights,
}  # fmt: skip
