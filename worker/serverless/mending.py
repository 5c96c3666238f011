"""Puts what is mended of the SDK in the places where the SDK looks for it.

Both are inner parts of runpod 1.12, which the images pin; the tests that run the worker as a
process show whether they are still there.
"""

from __future__ import annotations

from functools import partial

from runpod.serverless.modules import rp_http, rp_scale

from worker.serverless.flight import Flight
from worker.serverless.posting import transmit
from worker.serverless.scaler import OrderlyScaler


def mend_sdk(flight: Flight) -> None:
    """To be called before the SDK is started."""
    assert hasattr(rp_http, "_transmit"), "this SDK posts in another way"
    assert hasattr(rp_scale, "JobScaler"), "this SDK takes jobs in another way"
    rp_http._transmit = transmit
    rp_scale.JobScaler = partial(OrderlyScaler, flight=flight)
