"""From what a user says about a data set to data that was looked through."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from evals.errors import DatasetError
from evals.segmentation.check import Inspected, check_samples, highest_id, inspect_samples
from evals.segmentation.data import SegmentationData
from evals.segmentation.labels import HIGHEST_ID, ClassMap, read_lines
from evals.segmentation.layouts import LAYOUTS, LayoutName
from evals.segmentation.pairs import SplitName

CLASS_FILE = "classes.txt"
"""In the folder of a data set: the names of its classes, one a line, in the order of their ids."""


@dataclass(frozen=True)
class DataSource:
    """Where a data set is and how it is to be read.

    Attributes:
        root: Its folder.
        layout: A key of `LAYOUTS`.
        class_map: A file that says which class each id stands for, see `ClassMap.read`.
        reduce_zero_label: Whether 0 does not count and classes start at 1.
        ignore_label: The id of pixels that do not count.

    Raises:
        DatasetError: If these contradict each other.
    """

    root: str
    layout: LayoutName = "folder"
    class_map: str | None = None
    reduce_zero_label: bool = False
    ignore_label: int = 255

    def __post_init__(self) -> None:
        if not 0 <= self.ignore_label <= HIGHEST_ID:
            raise DatasetError(f"--ignore_label cannot be {self.ignore_label}; allowed is 0 to {HIGHEST_ID}")
        if self.class_map is not None and (self.reduce_zero_label or self.ignore_label != 255):
            raise DatasetError(
                "--class_map says itself which ids do not count, so --reduce_zero_label and --ignore_label have no "
                f"effect beside it; leave them out, and map these ids to null in {self.class_map}"
            )

    def check_place(self, *splits: SplitName) -> None:
        """Makes sure that the folders of these splits are there; nothing in them is looked at.

        Raises:
            DatasetError: If they are not.
        """
        for split in splits:
            LAYOUTS[self.layout].find(self.root, split)

    def open(
        self, *splits: SplitName, check: bool = True, classes: Sequence[str] = (), ids: ClassMap | None = None
    ) -> list[SegmentationData]:
        """Finds the samples of these splits, and looks through them before any work starts.

        Args:
            splits: Which parts.
            check: Whether to look through all images and masks.
            classes: Their names, where neither the user nor the layout says what they are.
            ids: What the ids mean, unless the user or the names in a `classes.txt` say otherwise.

        Raises:
            DatasetError: If something is wrong with them.
        """
        if ids is None:
            self._refuse_ade20k(splits)
        found = [LAYOUTS[self.layout].list_samples(self.root, split) for split in splits]
        inspected = inspect_samples([sample for samples in found for sample in samples]) if check else []
        class_map = self._known_classes(classes, ids) or self._derive_classes(inspected)
        check_samples(inspected, class_map)
        return [SegmentationData(samples, class_map, self.layout) for samples in found]

    def _refuse_ade20k(self, splits: Sequence[SplitName]) -> None:
        """Refuses ADE20K's own folders as a plain folder, in which 0 would be a class and all others be shifted."""
        if self.layout != "folder" or self.class_map is not None or self.reduce_zero_label:
            return
        for split in splits:
            _, parts = LAYOUTS["folder"].find(self.root, split)
            if parts in LAYOUTS["ade20k"].ways(split):
                raise DatasetError(
                    f"{self.root}/{parts[0].masks} is a name of ADE20K, where 0 does not count and classes start at 1; "
                    "use --layout ade20k, or --class_map FILE if its ids mean something else"
                )

    def _known_classes(self, default: Sequence[str], ids: ClassMap | None) -> ClassMap | None:
        """The class map that the user, a `classes.txt`, the layout or the caller gives, in this order."""
        if self.class_map is not None:
            return ClassMap.read(self.class_map)
        own = LAYOUTS[self.layout].class_map
        names = self._read_names()
        if ids is not None and names in ([], ids.names):
            return ids
        if names:
            zero_is_ignored = own is not None and own.ids[0] is None
            return self._number(names, self.reduce_zero_label or zero_is_ignored)
        if own is not None and (self.reduce_zero_label or self.ignore_label != 255):
            raise DatasetError(f"the layout {self.layout} has a class map of its own; change it with --class_map FILE")
        return self._number(default, self.reduce_zero_label) if own is None and default else own

    def _read_names(self) -> list[str]:
        path = Path(self.root) / CLASS_FILE
        if not path.is_file():
            return []
        names = read_lines(path)
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise DatasetError(f"{path} names '{repeated[0]}' twice; to join ids into one class use --class_map")
        return names

    def _derive_classes(self, inspected: list[Inspected]) -> ClassMap:
        """One class for each id up to the highest that occurs."""
        if not inspected:
            raise DatasetError(
                f"the classes are not known; write their names to {self.root}/{CLASS_FILE}, or use --check true"
            )
        ignored = {self.ignore_label} | ({0} if self.reduce_zero_label else set())
        highest = highest_id(inspected, ignored)
        first = 1 if self.reduce_zero_label else 0
        if highest == first:
            raise DatasetError(
                f"the masks have only id {first} besides those that do not count; if {self.ignore_label} is a class "
                'here, use --class_map with {"0": "background", "255": "object"} or the like'
            )
        return self._number([f"class {key}" for key in range(first, highest + 1)], self.reduce_zero_label)

    def _number(self, names: Sequence[str], reduce_zero: bool) -> ClassMap:
        return ClassMap.of(names, int(reduce_zero), (self.ignore_label, 0) if reduce_zero else (self.ignore_label,))
