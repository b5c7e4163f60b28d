"""Every exception a caller may catch.

RecsysError
├── InputError            the caller's fault: the command line ends with exit code 2
│   ├── ConfigError       a configuration names an unknown key or holds a value out of range
│   ├── DataError         a source file or a prepared dataset cannot be used as asked
│   │   └── MixedIds      a column of integers holds a text further on; read it again as texts
│   ├── BundleError       a bundle is damaged, incomplete or of an unknown format version
│   ├── CheckpointError   a checkpoint is damaged or does not belong to this run
│   ├── DeltaError        a delta is damaged, of another bundle or of an unknown format version
│   │   ├── GapError      deltas before this one are missing; fetch them, or a base
│   │   └── StaleError    it is of an older epoch: another trainer took over
│   └── MissingExtraError a feature needs a package that is not installed
├── TrainingDiverged      the loss or the weights stopped being finite
├── OutOfMemory           memory, or the GPU's, is spent; the last checkpoint is kept
├── StorageError          a disk is full or failed; what was stored before is kept
├── TrackingError         the tracking server cannot be reached, or refuses; the run folder still holds everything
└── JournalError          the journal can no longer promise durability; restart the writer
"""

from typing import Never


class RecsysError(Exception):
    """Base of all errors of this package."""


class InputError(RecsysError, ValueError):
    """The caller's fault: the message says what, where, what was wanted, and the remedy."""


class ConfigError(InputError):
    """A configuration names an unknown key or holds a value out of range."""


class DataError(InputError):
    """A source file or a prepared dataset cannot be used as asked."""


class MixedIds(DataError):
    """A column of integers holds a text further on; read the source again with this column as texts.

    Attributes:
        column: `user_id` or `item_id`.
    """

    def __init__(self, column: str, message: str) -> None:
        """Name the column."""
        super().__init__(message)
        self.column = column


class BundleError(InputError):
    """A bundle is damaged, incomplete or of an unknown format version."""


class CheckpointError(InputError):
    """A checkpoint is damaged or does not belong to this run."""


class DeltaError(InputError):
    """A delta is damaged, of another bundle or of an unknown format version."""


class GapError(DeltaError):
    """Deltas before this one are missing; fetch them, or a base."""


class StaleError(DeltaError):
    """A delta or its writer is of an older epoch: another trainer took over."""


class MissingExtraError(InputError):
    """A feature needs a package that is not installed."""


class TrainingDiverged(RecsysError):
    """The loss or the weights stopped being finite."""


class OutOfMemory(RecsysError):
    """Memory, or the GPU's, is spent; the last checkpoint is kept."""


class StorageError(RecsysError):
    """A disk is full or failed; what was stored before is kept."""


class TrackingError(RecsysError):
    """The tracking server cannot be reached, or refuses; the run folder still holds everything."""


class JournalError(RecsysError):
    """The journal can no longer promise durability; restart the writer."""


def missing_extra(package: str, extra: str, cause: ImportError) -> Never:
    """Raise MissingExtraError that names the command which installs `package`."""
    raise MissingExtraError(f"{package} is not installed; run: pip install -e '.[{extra}]'") from cause
