"""Images and labels: stacks and folders of files, and synthetic data with exact truth."""

from unet_fast.data import synthetic
from unet_fast.data.datasets import Dataset, read_dataset
from unet_fast.data.labels import Labels, detect_kind, read_labels, to_classes, to_instances
from unet_fast.data.pages import Pages
from unet_fast.data.pairs import Pair, match_files, read_pair
from unet_fast.data.stacks import normalize, parse_slices, read_images, write_stack

__all__ = [
    "Dataset",
    "Labels",
    "Pages",
    "Pair",
    "detect_kind",
    "match_files",
    "normalize",
    "parse_slices",
    "read_dataset",
    "read_images",
    "read_labels",
    "read_pair",
    "synthetic",
    "to_classes",
    "to_instances",
    "write_stack",
]
