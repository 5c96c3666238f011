"""How finished audio reaches whoever asked for it: in the answer, or in an S3 bucket.

Knows what an answer may weigh, and where else the audio can go. Does not know how audio is made:
it is handed a file and a way to have the same speech as another one.

    parcel     what is delivered, where to, and what came of it
    room       how much JSON an answer may be, and how much one is
    fitting    which way the audio takes, and what is tried when that one is closed
    keeping    the same, and a copy in a folder
    bucket     which bucket is meant, by the settings or by a job's `s3Config`
    keys       what a job's audio is called in a bucket or a folder
    s3         the upload; the one module with boto3, imported when the first upload begins
"""

from worker.delivery.bucket import Bucket, bucket_of_job, bucket_of_settings
from worker.delivery.fitting import FittingDelivery
from worker.delivery.keeping import KeepingDelivery
from worker.delivery.parcel import Answer, Delivered, Delivery, Parcel, Route, Store

__all__ = [
    "Answer",
    "Bucket",
    "Delivered",
    "Delivery",
    "FittingDelivery",
    "KeepingDelivery",
    "Parcel",
    "Route",
    "Store",
    "bucket_of_job",
    "bucket_of_settings",
]
