# SPDX-License-Identifier: GPL-3.0-or-later
"""The one place that imports Agora's SDK, which nobody has who did not ask for it.

Its import does more than it should: it fetches the vendor's libraries where they are missing, ends the
process where they cannot be loaded, switches off the checking of TLS certificates for all of the process, and
what it has to say it prints. So it is imported only where its libraries are, and the rest is put right here.
"""

import contextlib
import functools
import importlib
import importlib.util
import logging
import ssl
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

log = logging.getLogger(__name__)

_LIBRARY = "libAgoraRtcKit.dylib" if sys.platform == "darwin" else "libagora_rtc_sdk.so"
_MODULES = ("agora_base", "agora_service", "rtc_connection")


class SdkError(Exception):
    """The SDK cannot be used; its text says why, and what to do."""


def _find() -> None:
    found = importlib.util.find_spec("agora")
    if found is None or found.origin is None:
        raise SdkError("Agora's SDK is not installed: pip install 'sipbridge[agora]'")
    package = Path(found.origin).parent
    if not (package / "rtc").is_dir():
        raise SdkError(f"{package} is another package of the name agora, and not agora-python-server-sdk")
    if not (package / "agora_sdk" / _LIBRARY).exists():
        raise SdkError(
            f"Agora's native library is not in {package / 'agora_sdk'}: python -c 'import agora' fetches it, "
            "once, as somebody who may write there"
        )


def _say(*words: Any, **options: Any) -> None:
    log.debug("the SDK says: %s", " ".join(str(word) for word in words))


@functools.cache
def load() -> Any:
    """Its names, all in one. SdkError. Takes a moment."""
    _find()
    logger = logging.getLogger("agora")
    logger.setLevel(logging.CRITICAL)  # it tells its paths as errors
    before = ssl._create_default_https_context
    names: dict[str, Any] = {}
    try:
        for name in _MODULES:
            names |= vars(importlib.import_module(f"agora.rtc.{name}"))
    except SystemExit as error:
        raise SdkError("Agora's native library cannot be loaded") from error
    except Exception as error:
        raise SdkError(f"Agora's SDK cannot be imported: {error!r}") from error
    finally:
        ssl._create_default_https_context = before
        logger.setLevel(logging.WARNING)  # at debug it has a line for each frame
        with contextlib.suppress(AttributeError):
            for name, module in list(sys.modules.items()):
                if name == "agora" or name.startswith("agora."):
                    vars(module)["print"] = _say
    return SimpleNamespace(**names)
