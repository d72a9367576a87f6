"""Make the bucket that MLflow and DVC keep their objects in, as soon as the S3 server answers; safe to repeat.

python -m deploy.bucket NAME          # address and credentials from AWS_*
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping

__all__ = ["make_bucket"]

PATIENCE = 120.0  # seconds


def make_bucket(name: str, environment: Mapping[str, str]) -> None:
    """Make a bucket; one that is there already stays.

    Args:
        name: of the bucket.
        environment: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, and as far as needed AWS_ENDPOINT_URL and
            AWS_DEFAULT_REGION.

    Raises:
        botocore.exceptions.BotoCoreError or ClientError: the server does not answer, or refuses.
    """
    import boto3

    keys = {name.lower(): environment[name] for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    region = environment.get("AWS_DEFAULT_REGION", "us-east-1")
    client = boto3.client("s3", endpoint_url=environment.get("AWS_ENDPOINT_URL"), region_name=region, **keys)
    known = {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}
    if name not in known:
        client.create_bucket(Bucket=name)


def main() -> None:
    """Try until it is made or patience ends; exit code 1 then."""
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            make_bucket(sys.argv[1], os.environ)
            return
        except (BotoCoreError, ClientError) as error:
            if time.monotonic() > deadline:
                sys.exit(f"bucket {sys.argv[1]} was not made within {PATIENCE:g} s: {error}")
            time.sleep(1)


if __name__ == "__main__":
    main()
