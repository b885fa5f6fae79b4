"""What the Hub's client raises, as the one line that a user is meant to read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from ule_hf.errors import UleError


class HubUnavailable(UleError):
    """The Hub does not answer, or answers that the fault is its own: worth another try."""


@contextmanager
def hub_errors(what: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a UleError that begins with ``what`` and says what to do."""
    try:
        yield
    except UleError:
        raise
    except RevisionNotFoundError as error:
        raise UleError(f"{what}: has no such revision") from error
    except RepositoryNotFoundError as error:
        raise UleError(f"{what}: no such repository, or a private one that your token cannot see") from error
    except HFValidationError as error:
        raise UleError(f"{what}: is no Hub id; write it as NAMESPACE/NAME") from error
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).splitlines()[0]
        status = error.response.status_code
        if status == 401:
            raise UleError(f"{what}: the Hub does not accept your token; log in again with hf auth login") from error
        if status == 403:
            raise UleError(f"{what}: your token has no right to do this ({reason})") from error
        if status >= 500 or status in (408, 429):
            raise HubUnavailable(f"{what}: the Hub cannot serve this now ({status}: {reason})") from error
        raise UleError(f"{what}: the Hub refuses this ({status}: {reason})") from error
    except (HTTPError, ConnectionError, LocalEntryNotFoundError) as error:
        raise HubUnavailable(f"{what}: the Hub cannot be reached ({str(error).splitlines()[0]})") from error
    except (OSError, ValueError) as error:
        raise UleError(f"{what}: {' '.join(str(error).split())}") from error
