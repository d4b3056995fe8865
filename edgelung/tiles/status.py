"""The status of a row: was the file predicted, and if not, why."""

from enum import StrEnum


class Status(StrEnum):
    """One fixed word per row. Only `corrupt` and `truncated` mean damage."""

    OK = "ok"
    REVIEW = "review"  # predicted, but less confident than --min-confidence
    UNKNOWN = "unknown"  # predicted, but unlike the tissue that the model was trained on
    BLANK = "blank"  # predicted, but it shows no tissue: glass, pen, out of focus
    OTHER_SIZE = "other-size"  # predicted, but of a size that the model was not trained on
    SKIPPED = "skipped"  # no image by its name and its first bytes
    EMPTY = "empty"
    UNREADABLE = "unreadable"  # the operating system cannot give its bytes
    UNSUPPORTED = "unsupported"  # a valid image of a kind that is not read
    SEVERAL_PAGES = "several-pages"
    SLIDE = "slide"
    CORRUPT = "corrupt"
    TRUNCATED = "truncated"
    TOO_LARGE = "too-large"
    FAILED = "failed"  # no usable probabilities, or it ended the worker of a cluster


# A row with one of these has probabilities; only 'ok' has a label.
PREDICTED = frozenset([Status.OK, Status.REVIEW, Status.UNKNOWN, Status.BLANK, Status.OTHER_SIZE])
# A row with one of these is no failure: it was predicted, or it never was a tile.
NO_FAILURE = PREDICTED | {Status.SKIPPED}
