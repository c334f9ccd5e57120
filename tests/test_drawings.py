"""What users draw, and what they upload instead of a drawing, as a sketch: lines, masks, scans, photographs."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageDraw

from helpers.data.files import DataError
from helpers.data.sketches import contour, extract_lines, mask_from_sketch, parse_drawing, read_drawings
from helpers.phantoms.render import render
from helpers.views.handlers import canvas_with, sketch_from_canvas
from helpers.views.predictor import read_drawing

RING = (20, 24, 100, 96)  # bounding box in an image of 128 pixels


def ring(mode: str = "RGB", background="white", ink="black", side: int = 128, width: float = 2) -> Image.Image:
    image, scale = Image.new(mode, (side, side), background), side / 128
    ImageDraw.Draw(image).ellipse([scale * x for x in RING], outline=ink, width=max(1, round(scale * width)))
    return image


def disc(size: int = 128, center: tuple[int, int] = (60, 66), radius: int = 30) -> np.ndarray:
    return cv2.circle(np.zeros((size, size), np.uint8), center, radius, 1, -1)


def scan(seed: int, side: int = 600, contrast: float = 0.4) -> Image.Image:
    """A pencil ring on gray, unevenly lit paper with noise."""
    rng = np.random.default_rng(seed)
    ink = 1 - np.asarray(ring("L", 255, 0, side, width=1).resize((side, side)), np.float32) / 255
    ink = cv2.GaussianBlur(ink, (0, 0), 0.8) * (0.75 + 0.25 * rng.random(ink.shape))
    light = np.linspace(0.75, 1, side) * np.linspace(1, 0.9, side)[:, None]
    gray = 220 * light * (1 - contrast * ink) + rng.normal(0, 4, ink.shape)
    return Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8))


def is_ring(sketch: np.ndarray) -> bool:
    """Whether `sketch (128, 128)` shows the ring within two pixels, nearly closed, and nothing else."""
    expected = (np.array(ring())[..., 0] < 128).astype(np.uint8)
    near = cv2.dilate(expected, np.ones((5, 5), np.uint8)) > 0
    covered = cv2.dilate(sketch, np.ones((3, 3), np.uint8))[expected > 0] > 0
    return not sketch[~near].any() and covered.mean() > 0.95


@pytest.mark.parametrize(
    "drawing",
    [
        ring(),
        ring(background="black", ink="white"),
        ring("RGBA", background=(0, 0, 0, 0), ink=(0, 0, 0, 255)),
        ring(ink="yellow"),
        ring(ink="red", background=(240, 235, 220)),
        ring("L", background=255, ink=0),
        ring("P", background=0, ink=1),
        ring(side=2048),
    ],
    ids=["black", "board", "transparent", "yellow", "tinted", "gray", "palette", "large"],
)
def test_parse_drawing_in_any_colors_gives_the_same_ring(drawing):
    if drawing.mode == "P":
        drawing.putpalette([255, 255, 255, 0, 0, 128] + [0] * 762)
    sketch, expected = parse_drawing(drawing, 128), np.array(ring())[..., 0] < 128
    assert sketch.shape == (128, 128) and set(np.unique(sketch)) == {0, 255}
    near = cv2.dilate(expected.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert not sketch[~near].any() and (sketch[expected] > 0).mean() > 0.8


@pytest.mark.parametrize("color", ["white", "black", (0, 0, 0, 0), "beige"])
def test_parse_drawing_of_an_empty_image_raises(color):
    mode = "RGBA" if isinstance(color, tuple) else "RGB"
    with pytest.raises(DataError, match="drawing is empty"):
        parse_drawing(Image.new(mode, (300, 300), color), 128)


def test_parse_drawing_of_a_mask_gives_its_outline():
    for radius in (20, 50, 60):  # the last covers most of the image
        mask = cv2.circle(np.zeros((128, 128), np.uint8), (64, 64), radius, 1, -1)
        for image in (255 * mask, 255 * (1 - mask)):
            assert np.array_equal(parse_drawing(Image.fromarray(image), 128), contour(mask)), radius
    mask = cv2.circle(np.zeros((128, 128), np.uint8), (40, 64), 80, 1, -1)  # 76 % of the image, and beyond its frame
    assert np.array_equal(parse_drawing(Image.fromarray(255 * mask), 128), contour(mask))


def test_parse_drawing_smaller_than_the_sketch_keeps_the_lines():
    sketch = parse_drawing(ring(side=32), 64)
    assert sketch.shape == (64, 64) and 0.02 < (sketch > 0).mean() < 0.3


@pytest.mark.parametrize("shape", [(256, 128), (128, 300)], ids=["landscape", "portrait"])
def test_parse_drawing_not_square_is_padded_and_not_cut(shape):
    sheet = Image.new("RGB", shape, "white")
    sheet.paste(ring(), (0, 0))  # in the corner of the sheet
    sketch = parse_drawing(sheet, 128) > 0
    scale = 128 / max(shape)
    rows, columns = np.nonzero(sketch)
    extent = np.array([np.ptp(columns), np.ptp(rows)]) / scale
    assert np.abs(extent - [80, 72]).max() < 6 and not sketch[[0, -1]].any() and not sketch[:, [0, -1]].any()


def test_parse_drawing_of_large_images_keeps_fine_lines():
    assert parse_drawing(ring(side=3000, width=0.09), 128).mean() > 2
    net = Image.new("L", (1500, 1500), 255)
    for k in range(300, 1200, 60):
        ImageDraw.Draw(net).line((300, k, 1200, k), width=5)
        ImageDraw.Draw(net).line((k, 300, k, 1200), width=5)
    assert 0.05 < (parse_drawing(net, 128) > 0).mean() < 0.35


def test_parse_drawing_of_an_image_with_shades_raises():
    for label in range(7):
        with pytest.raises(DataError, match="Expected a line drawing or a mask"):
            parse_drawing(Image.fromarray(render(label, 0, size=128)[0]), 64)


def test_parse_drawing_mostly_ink_raises():
    hatching = Image.new("L", (128, 128), 255)
    for k in range(0, 128, 5):
        ImageDraw.Draw(hatching).line((k, 0, k, 127), width=2)
    with pytest.raises(DataError, match="mostly ink"):
        parse_drawing(hatching, 128)


@pytest.mark.parametrize("seed", range(4))
def test_parse_drawing_of_a_pencil_scan_gives_the_line_without_noise(seed, tmp_path):
    image = scan(seed, side=(300, 400, 700, 1000)[seed])
    assert is_ring(parse_drawing(image, 128))
    image.save(tmp_path / "scan.jpg", quality=75)
    assert is_ring(parse_drawing(tmp_path / "scan.jpg", 128))


@pytest.mark.parametrize("width", [0.5, 1, 2, 4, 6])
@pytest.mark.parametrize("color", ["black", "red", "orange", "gray"])
def test_parse_drawing_of_thin_and_thick_jpeg_strokes_gives_lines(width, color, tmp_path):
    ring(ink=color, side=512, width=width).save(tmp_path / "a.jpg", quality=75)
    problems = []
    sketch = parse_drawing(tmp_path / "a.jpg", 128, problems)
    assert not problems and mask_from_sketch(sketch).sum() == pytest.approx(np.pi * 40 * 36, rel=0.15)


def test_parse_drawing_of_a_strip_raises():
    strip = np.full((1, 4000, 3), 255, np.uint8)
    strip[:, 1000:1004] = 0
    with pytest.raises(DataError):
        parse_drawing(strip, 128)


def test_parse_drawing_applies_exif_rotation(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate clockwise
    upright = ring(side=256)
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "phone.jpg", quality=95, exif=exif)
    assert is_ring(parse_drawing(tmp_path / "phone.jpg", 128))
    with Image.open(tmp_path / "phone.jpg") as image:
        assert is_ring(parse_drawing(image, 128))


def test_parse_drawing_of_a_speck_or_of_blank_noisy_paper_is_empty():
    speck = np.full((380, 380), 255, np.uint8)
    speck[100:103, 200:203] = 0
    for drawing in (speck, 255 - speck, scan(0, contrast=0)):
        with pytest.raises(DataError, match="drawing is empty"):
            parse_drawing(drawing, 128)


def test_parse_drawing_notes_that_an_area_is_filled(tmp_path):
    for mask in (disc(), disc(radius=12), disc(center=(10, 10), radius=50), disc(center=(64, 64), radius=75)):
        Image.fromarray(255 * mask).save(tmp_path / "mask.jpg", quality=75)
        problems = []
        sketch = parse_drawing(tmp_path / "mask.jpg", 128, problems)
        assert len(problems) == 1 and "outline" in problems[0]
        assert (sketch != contour(mask)).mean() < 0.01


def test_parse_drawing_of_a_mask_that_is_not_square_closes_the_outline_at_its_frame():
    mask = np.zeros((96, 128), np.uint8)
    mask[:48, 30:90] = 1  # cut off above
    expected = contour(np.pad(mask, ((16, 16), (0, 0))))
    assert np.array_equal(parse_drawing(255 * mask, 128), expected) and expected[16, 40:80].all()


def test_parse_drawing_of_photographs_raises():
    refused = 0
    for k in range(70):
        image = render(k % 7, k, size=128)[0]
        for photograph in (image, cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)):
            try:
                parse_drawing(photograph, 64)
            except DataError:
                refused += 1
    assert refused >= 126, "of 140; phantoms are flatter than photographs, of which 99.6 % are refused"


def test_read_drawings_page_and_canvas_agree_on_the_same_file(tmp_path):
    ring().save(tmp_path / "ring.png")
    ring("RGBA", (0, 0, 0, 0), "navy", side=256).save(tmp_path / "clear.png")
    ring(side=400, width=3).crop((0, 0, 400, 330)).save(tmp_path / "sheet.jpg", quality=75)
    scan(1).save(tmp_path / "scan.jpg", quality=75)
    Image.fromarray(255 * disc()).save(tmp_path / "mask.png")
    files, problems = {path.stem: path for path in sorted(tmp_path.iterdir())}, []
    sketches = read_drawings(files, 128, problems)
    assert list(sketches) == list(files) and len(problems) == 1 and "mask.png: A filled area" in problems[0]
    for name, path in files.items():
        assert np.array_equal(sketches[name], read_drawing(path, 128)), name
        with Image.open(path) as image:
            assert np.array_equal(sketches[name], sketch_from_canvas({"composite": image}, 128)), name
        assert np.array_equal(sketches[name], sketch_from_canvas(canvas_with(sketches[name]), 128)), name


def test_read_drawings_names_what_it_leaves_out(tmp_path):
    ring().save(tmp_path / "good.png")
    Image.new("L", (64, 64)).save(tmp_path / "empty.png")
    Image.fromarray(render(0, 0, size=128)[0]).save(tmp_path / "photo.png")
    (tmp_path / "text.png").write_text("not an image")
    problems = []
    files = {name: tmp_path / f"{name}.png" for name in ("good", "empty", "photo", "text", "gone")}
    assert list(read_drawings(files, 64, problems)) == ["good"]
    for problem, text in zip(problems, ("is empty", "got a photo", "not an image", "is missing"), strict=True):
        assert text in problem
    assert all(problem.count(str(tmp_path)) >= 1 for problem in problems)


@pytest.mark.parametrize("inverted", [True, False], ids=["dark on light", "light on dark"])
def test_extract_lines_any_polarity_is_white_on_black(inverted):
    line = np.zeros((20, 20, 3), np.uint8)
    line[10] = 255
    assert (extract_lines(255 - line if inverted else line) == line[..., 0]).all()


def test_mask_from_sketch_closes_gaps_but_not_half_circles():
    disc = cv2.circle(np.zeros((128, 128), np.uint8), (60, 70), 40, 1, -1)
    sketch = cv2.circle(np.zeros((128, 128), np.uint8), (60, 70), 39, 255, 2)
    sketch[67:73, 95:105] = 0  # a gap as in hand drawings
    mask = mask_from_sketch(sketch)
    assert mask.shape == sketch.shape and set(np.unique(mask)) == {0, 1}
    assert (mask & disc).sum() / (mask | disc).sum() > 0.93
    sketch[:70] = 0
    assert mask_from_sketch(sketch) is None


@pytest.mark.parametrize("background, ink", [(190, 40), (225, 90), (50, 200), (255, 0)])
def test_read_drawings_accepts_any_background_and_ink(tmp_path, background, ink):
    drawing = np.full((200, 200, 3), background, np.uint8)
    cv2.circle(drawing, (100, 100), 50, (ink,) * 3, 3)
    cv2.imwrite(str(tmp_path / "a.png"), drawing)
    problems = []
    sketch = read_drawings({"a": tmp_path / "a.png"}, 64, problems)["a"]
    assert not problems and 0.01 < (sketch > 0).mean() < 0.1 and sketch[0, 0] == 0
