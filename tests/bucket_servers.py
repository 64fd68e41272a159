"""Real servers of buckets for tests, each ended by its context manager: S3, Google Cloud Storage, Azure."""

import json
import os
import re
import shutil
import sys
from base64 import b64encode
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest
from servers import Process, free_port

BUCKET, REGION = "studies", "us-east-1"
FAR_BUCKET, FORGETFUL_BUCKET = "far-studies", "forgetful"  # of another region; of an old server, without conditions
KEY, SECRET = "AKIAPLANTEDPLANTED12", "planted-secret"  # the secret must not be seen anywhere
ROLE_KEY, TOKEN = "ASIAPLANTEDPLANTED12", "planted-token"  # of a role, whose secret is the same
PROGRAM = str(Path(__file__).with_name("bucket_server.py"))


class Buckets(Process):
    """A server of buckets; what it holds is gone when it ends.

    Attributes:
        environment: by which clients find it and are let in.
        scheme: of its URLs.
    """

    scheme: str
    environment: dict[str, str]

    def url(self, name):
        """Of a place in its bucket."""
        return f"{self.scheme}://{BUCKET}/{name}"


class S3Server(Buckets):
    """An S3-compatible server."""

    scheme = "s3"

    def __init__(self, folder, host="127.0.0.1"):
        self.host, self.port = host, free_port()
        self.environment = self.variables(self.port) | {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        self.environment["AWS_DEFAULT_REGION"] = REGION
        super().__init__([sys.executable, PROGRAM, host, str(self.port), "s3"], folder / "s3.log", self._serves)

    def variables(self, port):
        """Where it is, if asked by another port, such as a proxy's."""
        return {"AWS_ENDPOINT_URL": f"http://{self.host}:{port}"}

    def requests(self, method, part="", client="", answer=""):
        """The paths, with their queries, that a client has asked for so far and that contain a part; by the answer."""
        line = re.compile(rf'^{re.escape(client)}.*"(?:\x1b\[[0-9;]*m)*{method} (\S+) HTTP\S*" {answer}', re.MULTILINE)
        return [path for path in map(unquote, line.findall(Path(self.log).read_text())) if part in path]

    def _serves(self):
        return "Running on" in Path(self.log).read_text()


class GcsServer(Buckets):
    """A server that speaks as Google's, and gives its tokens to a service account."""

    scheme = "gs"

    def __init__(self, folder):
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        port, account = free_port(), folder / "account.json"
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        about = {"type": "service_account", "client_email": "study@lab", "private_key": key.decode()}
        account.write_text(json.dumps({**about, "token_uri": f"http://127.0.0.1:{port}/token"}))
        self.environment = {
            "GOOGLE_BASE_URL": f"http://127.0.0.1:{port}",
            "GOOGLE_APPLICATION_CREDENTIALS": str(account),
        }
        super().__init__([sys.executable, PROGRAM, "127.0.0.1", str(port), "gcs"], folder / "gcs.log", self._serves)

    def _serves(self):
        return "Running on" in Path(self.log).read_text()


class Azurite(Buckets):
    """Microsoft's own emulator of Azure's storage."""

    scheme = "az"

    def __init__(self, folder):
        port, key = free_port(), b64encode(SECRET.encode()).decode()
        address = f"http://127.0.0.1:{port}/study"
        self.environment = {
            "AZURE_STORAGE_ACCOUNT_NAME": "study",
            "AZURE_STORAGE_ACCOUNT_KEY": key,
            "AZURE_STORAGE_ENDPOINT": address,
        }
        self.connection = f"AccountName=study;AccountKey={key};BlobEndpoint={address};"
        command = ["azurite-blob", "--blobPort", str(port), "--inMemoryPersistence", "--skipApiVersionCheck"]
        command += ["--disableTelemetry"]
        environment = os.environ | {"AZURITE_ACCOUNTS": f"study:{key}"}
        super().__init__(command, folder / "azurite.log", self._serves, env=environment, cwd=folder)

    def start(self):
        from azure.storage.blob import ContainerClient

        super().start()
        ContainerClient.from_connection_string(self.connection, BUCKET).create_container()

    def _serves(self):
        return "successfully listens" in Path(self.log).read_text()


@contextmanager
def _started(kind, *arguments):
    server = kind(*arguments)
    try:
        server.start()
        yield server
    finally:
        server.kill()


def s3_server(folder, host="127.0.0.1"):
    """A started S3Server."""
    pytest.importorskip("moto", reason='pip install "moto[server]"')
    return _started(S3Server, folder, host)


def gcs_server(folder):
    """A started GcsServer."""
    pytest.importorskip("moto", reason='pip install "moto[server]"')
    return _started(GcsServer, folder)


def azurite(folder):
    """A started Azurite."""
    if not shutil.which("azurite-blob"):
        pytest.skip("needs Azurite: npm install -g azurite")
    return _started(Azurite, folder)
