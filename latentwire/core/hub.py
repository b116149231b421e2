"""What every conversation with the Hub needs: an end to waiting, and reasons in one line."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from latentwire.core.errors import one_line

HUB_SECONDS, FIRST_HUB_SECONDS = 2.0, 10.0
"""How long the Hub may take to answer the first question, where there is something to fall back on and where there is
nothing. Downloads themselves try again for a minute."""


def hub_reason(error: Exception, repository: str) -> str:
    """Why the Hub could not do something, in one line that says what would help."""
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on"
    if isinstance(error, HFValidationError):
        return "not the name of a repository"
    if isinstance(error, GatedRepoError):
        return f"its licence must be accepted at {constants.ENDPOINT}/{repository}, then: hf auth login"
    if isinstance(error, RepositoryNotFoundError):
        return "no such repository there, or no right to read it"
    if isinstance(error, RevisionNotFoundError):
        return "no such revision there"
    if isinstance(error, RemoteEntryNotFoundError):
        return "no such file there"
    if isinstance(error, HfHubHTTPError) and error.response.status_code in (401, 403):
        return "no right to do that; hf auth login"
    return f"no answer: {one_line(error, 100)}"


def ask_hub(repository: str, seconds: float, revision: str | None = None) -> None:
    """Ask the Hub a short question on a repository; what its client raises, or TimeoutError, where it cannot be had.

    To be asked before anything is downloaded: that tries again for a minute where nobody answers.
    """
    _within(seconds, lambda: HfApi().model_info(repository, revision=revision, timeout=seconds))


def _within(seconds: float, call: Callable[[], Any]) -> None:
    """Make a call, or raise TimeoutError: an HTTP timeout does not bound the look-up of a host's name."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"nothing heard for {seconds:g} s")
    if raised:
        raise raised[0]
