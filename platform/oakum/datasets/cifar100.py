"""CIFAR-100: 50,000 training and 10,000 test pictures of 100 kinds of things, 32x32 RGB."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from oakum.datasets._cifar import Layout, batches_content, fetch_archive, read_batches
from oakum.datasets._download import Progress, SourceUnavailableError
from oakum.datasets._prepared import Content, DataError
from oakum.datasets.base import DataSource
from oakum.registry import Source

_CLASS_NAMES = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle "
    "caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant "
    "flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man "
    "maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree "
    "plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train "
    "trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)


class Cifar100(DataSource):
    """The pickled files with their fine labels: the user's own, or from the official address.

    Rows are in the official order: the training file, then the test file.
    """

    source: ClassVar[Source | None] = Source(
        title="Learning Multiple Layers of Features from Tiny Images",
        authors="Krizhevsky",
        venue="University of Toronto, Technical Report",
        year=2009,
        link="https://www.cs.toronto.edu/~kriz/cifar.html",
    )
    summary = "60,000 pictures of things, animals and people, 32x32 RGB, 100 classes (parts train and test)"
    public = False
    license_note = (
        "CIFAR-100 has no formal license; free for research with credit: cite Krizhevsky (2009). Five of its classes "
        "show people: do not publish single pictures."
    )
    layout: ClassVar[Layout] = Layout(
        archive="cifar-100-python.tar.gz",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        checksums={"train": "16019d7e3df5f24257cddd939b257f8d", "test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        label_key="fine_labels",
        num_classes=100,
    )

    @classmethod
    def read(cls, source: Path | None, scratch: Path, progress: Progress) -> Content:
        """Read `cifar-100-python.tar.gz`, the unpacked `cifar-100-python`, or a folder that holds one of them."""
        archive, origin = source, str(source)
        if archive is None:
            try:
                archive, origin = fetch_archive(cls.layout, scratch, progress), cls.layout.url
            except SourceUnavailableError as error:
                raise DataError(
                    f"cifar100 could not be fetched: {error}\nTry again, or give {cls.layout.archive}: "
                    f"oakum data prepare cifar100 --source {cls.layout.archive}"
                ) from error
        batches, official = read_batches(archive, cls.layout, progress)
        return batches_content(batches, cls.layout, tuple(_CLASS_NAMES.split()), origin, official)
