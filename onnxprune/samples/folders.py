"""Folders: which of them are classes, and which are the splits of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from onnxprune.errors import CalibrationError

SPLITS = (
    "train",
    "training",
    "val",
    "valid",
    "validation",
    "dev",
    "eval",
    "evaluation",
    "holdout",
    "test",
    "testing",
)
"""Names that the splits of a data set bear, in any case: those to fit on, then those to evaluate
on, the likeliest first."""

FITTED = SPLITS[:2]

_SYSTEM = {"__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found"}
_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"}


@dataclass(frozen=True)
class Splits:
    """The splits of a data set, by what they serve for.

    Attributes:
        fit: to calibrate on.
        report: to evaluate on; None if there is no other.
        others: names of those that serve for nothing.
    """

    fit: Path
    report: Path | None
    others: tuple[str, ...] = ()

    def note(self, *, evaluates: bool) -> str:
        """Return a line on what is used; of both, or of the one to calibrate on only."""
        root, fit, report = self.fit.parent, self.fit.name, self.report
        unused = [*self.others]
        text = f"{root} holds splits of a data set, not classes: '{fit}' is calibrated on"
        if report is not None and evaluates:
            text += f", '{report.name}' evaluated on"
        elif report is not None:
            unused.insert(0, report.name)
        return f"{text}; not used: {', '.join(unused)}" if unused else text


def find_splits(root: Path) -> Splits | None:
    """Find the splits of a data set in a folder; None if it holds anything else.

    All its folders have to bear names of splits, at least two, and one or more have to hold
    folders: so a class that is called "train" among others is a class. A folder that cannot be
    read holds none.
    """
    try:
        return _splits(_folders(root)) if root.is_dir() else None
    except (OSError, ValueError):  # a path that cannot be; whoever reads it says so
        return None


def _splits(folders: list[Path]) -> Splits | None:
    if len(folders) < 2 or any(f.name.lower() not in SPLITS for f in folders):
        return None
    usable = sorted(filter(_folders, folders), key=lambda f: SPLITS.index(f.name.lower()))
    if not usable:
        return None
    fit, *rest = usable
    report = next((f for f in rest if f.name.lower() not in FITTED), None)
    return Splits(fit, report, tuple(f.name for f in folders if f not in (fit, report)))


def class_folders(root: Path) -> list[Path]:
    """Return the folders of the classes, in their order: by number if all are numbers.

    Raises:
        CalibrationError: if there are only images.
    """
    folders = _folders(root)
    if not folders and images_under(root):
        raise CalibrationError("no class folders; put each class in its own folder")
    numeric = all(f.name.isascii() and f.name.isdigit() for f in folders)
    return sorted(folders, key=lambda folder: int(folder.name)) if numeric else folders


def images_under(folder: Path) -> list[Path]:
    """Return the images in a folder and in those below it."""
    found: list[Path] = []
    for entry in _visible(folder):
        if entry.suffix.lower() in _SUFFIXES:
            found.append(entry)
        elif entry.is_dir():
            found += images_under(entry)
    return found


def _folders(root: Path) -> list[Path]:
    return [entry for entry in _visible(root) if entry.is_dir()]


def _visible(folder: Path) -> list[Path]:
    """Return what a folder holds, without what systems and archives leave there."""
    return [
        entry
        for entry in sorted(folder.iterdir())
        if not entry.name.startswith(".") and entry.name.lower() not in _SYSTEM
    ]
