"""Every error Octavo raises on purpose. The server maps each class to one HTTP status; nothing else does."""

from __future__ import annotations


class OctavoError(Exception):
    """Base of all errors that are meant to be read by a user."""


class ConfigError(OctavoError, ValueError):
    """A flag, option or their combination cannot be honoured. Raised before anything is loaded."""


class ModelLoadError(OctavoError):
    """The model cannot be found, read or trusted (missing files, lying headers, cut-short data)."""


class UnsupportedModelError(ModelLoadError):
    """The checkpoint is sound, but its architecture or tensor type is not one Octavo runs."""


class MemoryPlanError(OctavoError):
    """The memory bill does not fit what the machine or the flags allow."""


class InvalidRequestError(OctavoError, ValueError):
    """The request itself is wrong (HTTP 400).

    Args:
        message: what was wrong and what to do.
        param: the request field at fault, where there is one.
        code: a machine-readable code, such as ``context_length_exceeded``.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


class ModelNotFoundError(OctavoError):
    """The request names a model that is not served (HTTP 404)."""


class QueueFullError(OctavoError):
    """The bounded waiting queue has no room (HTTP 429).

    Args:
        message: what to tell the client.
        retry_after: seconds after which a retry is sensible.
    """

    def __init__(self, message: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class NotReadyError(OctavoError):
    """The engine is loading, draining or restarting (HTTP 503).

    Args:
        message: what to tell the client.
        phase: the phase that ``/health`` reports.
        retry_after: seconds after which a retry is sensible.
    """

    def __init__(self, message: str, phase: str, retry_after: int = 1) -> None:
        super().__init__(message)
        self.phase = phase
        self.retry_after = retry_after


class EngineDeadError(OctavoError):
    """The engine process died while the request was running (HTTP 500, or an error event inside a stream)."""


class InvalidLogitsError(OctavoError):
    """The model produced logits from which no token can be drawn: NaN, +inf, or nothing but -inf (HTTP 500).

    Args:
        rows: the rows of the step's logits at fault.
    """

    def __init__(self, rows: list[int]) -> None:
        listed = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        super().__init__(
            f"The model produced logits that are not numbers (NaN, infinite or all -inf) in row {listed} of the step's logits; "
            "no token can be drawn from them. Check the checkpoint for damaged weights, or try dtype float32 if it overflows."
        )
        self.rows = rows


class FormFailedError(OctavoError):
    """No token can be drawn that goes on with the form that an output is held to.

    Args:
        reasons: what the client is to be told, by row of the step's logits.
    """

    def __init__(self, reasons: dict[int, str]) -> None:
        super().__init__("; ".join(reasons.values()))
        self.reasons = reasons
