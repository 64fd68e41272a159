"""Buckets of S3, Google Cloud Storage and Azure, through obstore, with the credentials that their users have.

obstore's asynchronous calls are not used: a process that ends soon after one may be aborted.
"""

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property, lru_cache, partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import AlreadyExistsError, GenericError
from obstore.fsspec import FsspecStore
from obstore.store import AzureStore, GCSStore, MemoryStore, ObjectStore, S3Store
from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

from sibcl_ray.deadlines import Deadline, within

AT_ONCE = 32  # requests
SILENCE = "30s"  # after which a request is sent again
BACKOFF = {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=5), "base": 2}  # between tries
TRIES = 3  # of what obstore does not try again by itself

_process: list[int] = []  # in which obstore's threads are; a process that is forked from it has none


@dataclass(frozen=True)
class Bucket:
    """A place in a bucket; failures raise exceptions of obstore, or of a provider of credentials."""

    url: str  # SCHEME://BUCKET/PREFIX
    patience: float  # seconds for which a request that fails is sent again

    @cached_property
    def _store(self) -> ObjectStore:
        if _process and _process[0] != os.getpid():
            raise RuntimeError("this process was forked from one that uses the bucket; start it by 'spawn' instead")
        _process[:] = [os.getpid()]
        scheme, _, rest = self.url.partition("://")
        if not (bucket := rest.partition("/")[0]):
            raise ValueError(f"{self.url} names no bucket; give {scheme}://BUCKET/PREFIX")
        retry = {"max_retries": 10**6, "retry_timeout": timedelta(seconds=self.patience), "backoff": BACKOFF}
        for credentials in ("azure.identity", "botocore.credentials"):
            logging.getLogger(credentials).setLevel(logging.ERROR)  # without pages of what they have tried
        return SCHEMES[scheme](bucket, {"retry_config": retry})

    def path(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}"

    def _key(self, name: str) -> str:
        return self.path(name).split("/", 3)[3]

    def exists(self, name: str) -> bool:
        try:
            _wait(obstore.head, self._store, self._key(name))
        except FileNotFoundError:
            return False
        return True

    def read(self, name: str) -> bytes:
        return _wait(self._get, name)

    def _get(self, name: str) -> bytes:
        return obstore.get(self._store, self._key(name)).bytes().to_bytes()

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        def read(name: str) -> bytes | None:
            with suppress(FileNotFoundError):
                return self._get(name)
            return None

        return {name: data for name, data in zip(names, _side_by_side(read, names), strict=True) if data is not None}

    def write(self, name: str, data: bytes) -> None:
        _wait(obstore.put, self._store, self._key(name), data)

    def create(self, name: str, data: bytes) -> bool:
        try:
            _insist(obstore.put, self._store, self._key(name), data, mode="create")
        except AlreadyExistsError:  # by this call, perhaps, if an answer was lost
            with suppress(FileNotFoundError):
                return self.read(name) == data
            return False
        return True

    def names(self, folder: str) -> list[str]:
        found = _wait(obstore.list_with_delimiter, self._store, self._key(folder))
        keys = [*found["common_prefixes"], *(o["path"] for o in found["objects"])]
        return sorted(key.removeprefix(self._key("")) for key in keys)

    def move(self, source: str, target: str) -> None:
        old, new = self._key(source), self._key(target)
        keys = self._under(source)
        _side_by_side(lambda key: obstore.copy(self._store, key, new + key[len(old) :]), keys)
        self._delete(keys)

    def remove(self, name: str) -> None:
        self._delete([self._key(name)])

    def clear(self, folder: str) -> None:
        self._delete(self._under(folder))

    def arrow(self, name: str) -> tuple[FileSystem, str]:
        return PyFileSystem(FSSpecHandler(_Files(self.url))), self.path(name).split("://")[1]

    def _under(self, name: str) -> list[str]:
        """The key of a name, or the keys of all that is in a folder."""
        if self.exists(name):
            return [self._key(name)]
        return [o["path"] for o in _wait(obstore.list(self._store, self._key(name)).collect)]

    def _delete(self, keys: Sequence[str]) -> None:
        with suppress(FileNotFoundError):
            _insist(obstore.delete, self._store, keys)


def _side_by_side(work: Callable[[str], Any], items: Sequence[str]) -> list[Any]:
    with ThreadPool(max(1, min(AT_ONCE, len(items)))) as threads:
        return threads.map(work, items)


def _wait(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """The result of a call, from another thread, as this one may be the one that hears signals."""
    return within(Deadline(), partial(call, *arguments, **options), 0.0)


def _insist(call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Of requests that obstore does not send again after silence, as they may have been heard."""
    for tries_left in reversed(range(TRIES)):
        try:
            return _wait(call, *arguments, **options)
        except GenericError:
            if not tries_left:
                raise


class _Files(FsspecStore):
    """The bucket of a URL for those who want a file system; reaches another process by its URL alone."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        super().__init__(url.partition("://")[0], **options)  # type: ignore[call-overload]

    def _construct_store(self, bucket: str) -> ObjectStore:
        return Bucket(self._url, 180.0)._store

    def _open(self, path: str, mode: Any = "rb", **options: Any) -> Any:  # type: ignore[override]
        file: Any = super()._open(path, mode, **options)
        write = file.write
        file.write = lambda data: write(bytes(data))  # obstore takes no buffers of Arrow
        return file


def _s3(bucket: str, options: dict[str, Any]) -> ObjectStore:
    """By all that boto3 knows: environment, profiles, single sign-on, roles of pods and machines."""
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError
    from obstore.auth.boto3 import Boto3CredentialProvider

    session = boto3.Session()
    if session.get_credentials() is None:
        raise PermissionError(
            "no AWS credentials are in the environment or a profile, and this machine has no role; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or log in with `aws sso login`"
        )
    client = session.client("s3", config=Config(connect_timeout=5, read_timeout=5, retries={"total_max_attempts": 1}))
    region = client.meta.region_name
    try:
        about = client.head_bucket(Bucket=bucket)
    except ClientError as error:
        about = error.response
    except BotoCoreError:  # obstore will say so, or be luckier
        about = {}
    headers = about.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    if region != (found := headers.get("x-amz-bucket-region", region)):
        client = session.client("s3", region_name=found)
    endpoint = client.meta.endpoint_url
    virtual = (client.meta.config.s3 or {}).get("addressing_style") == "virtual"
    return S3Store(
        bucket,
        config={
            "endpoint": endpoint.replace("://", f"://{bucket}.") if virtual else endpoint,
            "region": found,
            "virtual_hosted_style_request": virtual,
        },
        # botocore's credentials are good for ten minutes more whenever it gives them
        credential_provider=Boto3CredentialProvider(session, ttl=timedelta(minutes=10)),
        client_options=_client(endpoint, os.environ.get("AWS_CA_BUNDLE")),
        **options,
    )


def _gcs(bucket: str, options: dict[str, Any]) -> ObjectStore:
    """By Google's application default credentials."""
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        config: Any = {"base_url": emulator, "skip_signature": True}
        return GCSStore(bucket, config=config, client_options=_client(emulator), **options)
    os.environ.setdefault("GCE_METADATA_DETECT_RETRIES", "1")  # for a server that is there, or is not
    import google.auth
    from obstore.auth.google import GoogleCredentialProvider

    credentials, _ = google.auth.default(scopes=["https://www.googleapis.com/auth/devstorage.read_write"])
    client = _client(os.environ.get("GOOGLE_BASE_URL"))  # a private endpoint
    return GCSStore(bucket, credential_provider=GoogleCredentialProvider(credentials), client_options=client, **options)


AZURE_SECRETS = ("ACCOUNT_KEY", "ACCESS_KEY", "SAS_TOKEN", "SAS_KEY", "CLIENT_SECRET", "TOKEN")
AZURE_PARTS = {  # of a connection string, as obstore names them
    "AccountName": "account_name",
    "AccountKey": "account_key",
    "SharedAccessSignature": "sas_key",
    "BlobEndpoint": "endpoint",
}


def _azure(container: str, options: dict[str, Any]) -> ObjectStore:
    """By a key, token or connection string in the environment, else by all that azure-identity knows."""
    container, _, host = container.partition("@")
    config: Any = {"account_name": host.partition(".")[0]} if host else {}
    parts = (part.partition("=") for part in os.environ.get("AZURE_STORAGE_CONNECTION_STRING", "").split(";"))
    config |= {AZURE_PARTS[name]: value for name, _, value in parts if name in AZURE_PARTS}
    if not config.keys() & {"account_key", "sas_key"} and not any(
        f"AZURE_STORAGE_{name}" in os.environ for name in AZURE_SECRETS
    ):
        from azure.core.exceptions import ClientAuthenticationError
        from azure.identity import DefaultAzureCredential
        from obstore.auth.azure import AzureCredentialProvider

        # By default it waits for a metadata server for minutes.
        provider = AzureCredentialProvider(DefaultAzureCredential(retry_total=1, connection_timeout=3, read_timeout=3))
        try:
            provider()
        except ClientAuthenticationError:
            raise PermissionError(
                "no Azure credentials are in the environment, and this machine has no identity; set "
                "AZURE_STORAGE_ACCOUNT_KEY or AZURE_STORAGE_CONNECTION_STRING, or log in with `az login`"
            ) from None
        options = {**options, "credential_provider": provider}
    endpoint = config.get("endpoint") or os.environ.get("AZURE_STORAGE_ENDPOINT")
    return AzureStore(container, config=config, client_options=_client(endpoint), **options)


def _client(endpoint: str | None = None, certificates: str | None = None) -> Any:
    plain = (endpoint or "").startswith("http:")
    options = {"timeout": "1h", "read_timeout": SILENCE, "allow_http": plain}  # what goes on may take its time
    return {**options, "root_certificate": Path(certificates).read_bytes()} if certificates else options


_memory = lru_cache(lambda bucket: MemoryStore())  # of this process, for tests

SCHEMES: Mapping[str, Callable[[str, dict[str, Any]], ObjectStore]] = {
    **dict.fromkeys(("s3", "s3a"), _s3),
    **dict.fromkeys(("gs", "gcs"), _gcs),
    **dict.fromkeys(("az", "abfs", "abfss"), _azure),
    "memory": lambda bucket, options: _memory(bucket),
}
