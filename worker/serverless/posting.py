"""Results, posted until the platform has them.

The SDK (runpod 1.12 with aiohttp-retry 2.9) tries a post three times within five seconds where the
platform answers with 5xx, and once where the connection fails: then the result is lost, and with it
minutes of work. Here both are tried for a minute. An answer of 4xx will not become another one, so
it stays final; but where a result is too large, the job at least ends with an error that says so.
"""

from __future__ import annotations

import asyncio
import json
import logging

from aiohttp import ClientConnectionError, ClientPayloadError, ClientSession, ClientTimeout
from runpod.serverless.modules import rp_http

logger = logging.getLogger(__name__)

PAUSES_S = (0.5, 1, 2, 4, 8, 15, 30)  # between attempts
POST = ClientTimeout(total=120)  # one attempt, of at most 20 MB
TOO_LARGE = 413
TOO_MANY = 429
HEADERS = {"charset": "utf-8", "Content-Type": "application/x-www-form-urlencoded"}  # the SDK's own


async def transmit(session: ClientSession, url: str, data: str) -> None:
    """Posts what the SDK has made of a result, an update, or an item of a stream.

    Raises:
        ClientError: if the platform does not take it.
    """
    for pause_s in PAUSES_S:
        trouble = await _try(session, url, data)
        if trouble is None:
            return
        logger.warning("a post failed (%s); again in %.1f s", trouble, pause_s)
        await asyncio.sleep(pause_s)
    trouble = await _try(session, url, data)
    if trouble is not None:
        raise ClientConnectionError(f"given up after {len(PAUSES_S) + 1} attempts: {trouble}")


async def _try(session: ClientSession, url: str, data: str) -> str | None:
    """Posts once; says what went wrong if that may pass."""
    try:
        async with session.post(url, data=data, headers=HEADERS, timeout=POST) as response:
            if response.status >= 500 or response.status == TOO_MANY:
                return f"status {response.status}"
            if response.status == TOO_LARGE and _is_result(url, data):
                await _post_refusal(session, url, len(data))
            response.raise_for_status()
            return None
    except (ClientConnectionError, ClientPayloadError, asyncio.TimeoutError) as error:
        return type(error).__name__


def _is_result(url: str, data: str) -> bool:
    address = rp_http.JOB_DONE_URL.partition("$ID")[0]
    return url.startswith(address) and not data.startswith('{"status": "IN_PROGRESS"')


async def _post_refusal(session: ClientSession, url: str, size: int) -> None:
    error = (
        f"result_too_large: RunPod refused the result of {size / 1e6:.1f} MB; ask for output s3, a "
        "smaller output_format (flac, mp3, opus) or a shorter text"
    )
    told = {"error_code": "result_too_large", "retryable": False}
    answer = json.dumps({"error": error, "output": told})
    async with session.post(url, data=answer, headers=HEADERS, timeout=POST) as response:
        logger.error("a result was too large; its job failed (status %d)", response.status)
