"""Images in: digits, folders, arrays, parquet files and hub data sets, all as one `Images` object."""

from scoreline.data.arrays import from_arrays
from scoreline.data.grid import picture_grid, write_png
from scoreline.data.images import Batch, Images
from scoreline.data.load import load_images
from scoreline.data.stream import ImageStream
from scoreline.data.transforms import from_uint8, to_uint8

__all__ = [
    "Batch",
    "ImageStream",
    "Images",
    "from_arrays",
    "from_uint8",
    "load_images",
    "picture_grid",
    "to_uint8",
    "write_png",
]
