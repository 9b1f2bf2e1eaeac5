"""What a stream says of its usage, and how it is framed: the ``stream`` and ``stream_options`` fields of every dialect."""

from __future__ import annotations

from octavo.errors import InvalidRequestError
from octavo.server.protocol import SamplingFields


class StreamUsage:
    """Where the usage goes.

    Attributes:
        at_end: a last chunk holds it. in_chunks: every chunk does.

    Raises:
        InvalidRequestError: stream options without a stream.
    """

    def __init__(self, body: SamplingFields) -> None:
        options = body.stream_options
        if options is not None and not body.stream:
            raise InvalidRequestError("stream_options is only for streams; set stream to true or leave it out.", "stream_options")
        self.at_end = bool(options is not None and options.include_usage)
        self.in_chunks = bool(options is not None and options.continuous_usage_stats)
        if self.in_chunks and not self.at_end:
            raise InvalidRequestError(
                "stream_options.continuous_usage_stats needs stream_options.include_usage.", "stream_options.continuous_usage_stats"
            )
