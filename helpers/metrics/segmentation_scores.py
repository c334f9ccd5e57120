"""Scores of a segmenter: every image at its own size, against its original mask file."""

import pandas as pd

from helpers.data.files import image_shape, read_image, read_mask
from helpers.data.store import StoreConfig, resize
from helpers.metrics.overlap import scores
from helpers.models.segmenter import Segmenter, segment

CHUNK = 16  # images in memory at a time


def score_images(segmenter: Segmenter, table: pd.DataFrame) -> pd.DataFrame:
    """Scores of every image of a store's `table`, at its own size and against its original mask file, as in the ISIC
    challenges: `image_id`, `group` (lesion id, or image id if it is not known), the measures of `overlap.scores`, and
    `area`, the fraction of the image that the lesion covers."""
    rows, store_config = [], StoreConfig(segmenter.size, crop="none")
    for start in range(0, len(table), CHUNK):
        chunk = table.iloc[start : start + CHUNK]
        shapes = [image_shape(path) for path in chunk["path"]]
        images = [resize(read_image(path, size=segmenter.size), store_config) for path in chunk["path"]]
        for row, shape, pred in zip(chunk.itertuples(), shapes, segment(segmenter, images, shapes), strict=True):
            target = read_mask(row.mask_path, shape)
            group = row.image_id if pd.isna(row.lesion_id) else row.lesion_id
            rows.append({"image_id": row.image_id, "group": group, **scores(pred, target), "area": target.mean()})
    return pd.DataFrame(rows)
