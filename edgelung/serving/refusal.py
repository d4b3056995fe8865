"""Why a request gets no answer from the model: an HTTP status and a line for people."""

from collections.abc import Mapping

RETRY = {"Retry-After": "1"}  # seconds; tiles that wait are done within about one


class Refusal(Exception):
    """A request that is refused.

    Attributes:
        status: the HTTP status.
        message: what was found, what was expected, what to do.
        headers: more headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, dict(headers or {})


def bad_request(message: str) -> Refusal:
    """A request that can never be answered as it is."""
    return Refusal(400, message)


def too_large(message: str) -> Refusal:
    """A request above a limit that the service was started with."""
    return Refusal(413, message)


def too_many(message: str) -> Refusal:
    """A request that may be sent again a little later."""
    return Refusal(429, message, RETRY)


def unavailable(message: str) -> Refusal:
    """The service cannot answer now: it stops, or the deadline has passed."""
    return Refusal(503, message, RETRY)
