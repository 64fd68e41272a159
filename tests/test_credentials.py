"""Whoever may use a bucket by the tools of its cloud may use it here: by environment, profile, login or role."""

import hashlib
import json
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from bucket_servers import BUCKET, FAR_BUCKET, KEY, ROLE_KEY, SECRET, TOKEN
from servers import proxy

from sibcl_ray.storage import buckets
from sibcl_ray.storage.store import Store

SOON = datetime.now(UTC) + timedelta(hours=1)
EXPIRY, EXPIRY_SECONDS = f"{SOON:%Y-%m-%dT%H:%M:%SZ}", int(SOON.timestamp())
ROLE = {"Code": "Success", "AccessKeyId": ROLE_KEY, "SecretAccessKey": SECRET, "Token": TOKEN, "Expiration": EXPIRY}
LOGIN = {"accessKeyId": ROLE_KEY, "secretAccessKey": SECRET, "sessionToken": TOKEN, "expiration": EXPIRY_SECONDS * 1000}
PAGES = {
    "/container": json.dumps(ROLE),  # of a pod or a task
    "/latest/api/token": TOKEN,  # of a machine, as are the next two
    "/latest/meta-data/iam/security-credentials/": "role",
    "/latest/meta-data/iam/security-credentials/role": json.dumps(ROLE),
    "/federation/credentials": json.dumps({"roleCredentials": LOGIN}),  # of single sign-on
    "/identity": json.dumps({"access_token": TOKEN, "expires_on": str(EXPIRY_SECONDS), "resource": "storage"}),
}


class Authority(BaseHTTPRequestHandler):
    """Gives credentials as the metadata servers of clouds do, and remembers with what objects were asked for."""

    asked: list[str | None]

    def do_GET(self):
        page = PAGES.get(urlsplit(self.path).path, "")
        if not page:
            self.asked.append(self.headers["Authorization"])
        self.send_response(200 if page else 404)
        self.send_header("Content-Length", str(len(page)))
        self.send_header("X-aws-ec2-metadata-token-ttl-seconds", "600")
        self.end_headers()
        self.wfile.write(page.encode() if self.command != "HEAD" else b"")

    do_PUT = do_HEAD = do_GET

    def log_message(self, format, *arguments):
        """Quiet."""


@pytest.fixture
def authority():
    Authority.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Authority)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def nobody(monkeypatch, tmp_path):
    """An environment and a home without any credentials; sets variables, which may name a file by its text."""
    for name in (*ENVIRONMENT, "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))

    def give(variables, **texts):
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        for name, value in variables.items():
            monkeypatch.setenv(name, value.format(**{name: tmp_path / name for name in texts}))

    return give


ENVIRONMENT = [
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_PROFILE", "AWS_CONFIG_FILE"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "AZURE_STORAGE_ACCOUNT_KEY", "AZURE_STORAGE_CONNECTION_STRING"),
]
KEYS = f"aws_access_key_id = {KEY}\naws_secret_access_key = {SECRET}\n"
SSO = "https://lab/start"
WAYS = {  # variables, with {authority} for its address; what is in the configuration file
    "environment": ({"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}, ""),
    "profile": ({}, f"[default]\n{KEYS}"),
    "named profile": ({"AWS_PROFILE": "lab"}, f"[default]\naws_access_key_id = wrong\n[profile lab]\n{KEYS}"),
    "single sign-on": (
        {"AWS_ENDPOINT_URL_SSO": "{authority}"},
        f"[default]\nsso_start_url = {SSO}\nsso_region = us-east-1\nsso_account_id = 1\nsso_role_name = lab\n",
    ),
    "role of a pod": ({"AWS_CONTAINER_CREDENTIALS_FULL_URI": "{authority}/container"}, ""),
    "role of a machine": ({"AWS_EC2_METADATA_SERVICE_ENDPOINT": "{authority}"}, ""),
}


@pytest.mark.parametrize(("variables", "profiles"), WAYS.values(), ids=WAYS)
def test_s3_is_used_by_whatever_credentials_its_users_have(
    variables, profiles, bucket, nobody, authority, tmp_path, monkeypatch
):
    nobody({"AWS_CONFIG_FILE": "{config}"}, config=profiles)
    nobody({name: value.replace("{authority}", authority) for name, value in variables.items()})
    monkeypatch.setattr("botocore.credentials.SSOProvider._SSO_TOKEN_CACHE_DIR", str(tmp_path))  # of a home, otherwise
    (tmp_path / f"{hashlib.sha1(SSO.encode()).hexdigest()}.json").write_text(
        json.dumps({"startUrl": SSO, "accessToken": TOKEN, "expiresAt": EXPIRY})
    )
    store = Store(bucket)
    store.open()
    store.write("a", b"1")
    assert store.read("a") == b"1"


def test_an_endpoint_and_a_region_may_stand_in_a_profile(s3, nobody, tmp_path, monkeypatch):
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    endpoint = s3.environment["AWS_ENDPOINT_URL"]
    nobody({"AWS_CONFIG_FILE": "{config}"}, config=f"[default]\n{KEYS}region = eu-north-1\nendpoint_url = {endpoint}\n")
    store = Store(s3.url(tmp_path.name))
    store.write("a", b"1")
    assert store.read("a") == b"1"


@pytest.mark.parametrize(("name", "region"), [(BUCKET, "us-east-1"), (FAR_BUCKET, "eu-central-1")])
def test_requests_are_signed_for_the_region_of_the_bucket(name, region, s3):
    """Of which another cannot be asked."""
    found = buckets.Bucket(f"s3://{name}/a", 10.0)._store
    assert found.config["region"] == region


def test_azure_is_used_by_a_connection_string(azure, nobody, tmp_path, monkeypatch):
    for name in azure.environment:
        monkeypatch.delenv(name, raising=False)
    nobody({"AZURE_STORAGE_CONNECTION_STRING": azure.connection})
    store = Store(azure.url(tmp_path.name))
    store.open()
    store.write("a", b"1")
    assert store.read("a") == b"1"


def test_azure_is_used_by_the_identity_of_a_machine(nobody, authority):
    pytest.importorskip("azure.identity")
    nobody({"IDENTITY_ENDPOINT": f"{authority}/identity", "IDENTITY_HEADER": "planted"})
    nobody({"AZURE_STORAGE_ACCOUNT_NAME": "study", "AZURE_STORAGE_ENDPOINT": authority})
    assert not Store("az://studies/runs").exists("a")
    assert Authority.asked[-1] == f"Bearer {TOKEN}"


def test_the_account_may_stand_in_the_url_as_for_other_tools(nobody):
    nobody({"AZURE_STORAGE_ACCOUNT_KEY": "cGxhbnRlZA=="})
    found = buckets.Bucket("abfss://studies@lab.dfs.core.windows.net/runs", 10.0)
    assert found._store.config["account_name"] == "lab" and found._store.config["container_name"] == "studies"
    assert found._key("a") == "runs/a"


def test_an_emulator_of_google_is_used_without_credentials(nobody, authority):
    nobody({"STORAGE_EMULATOR_HOST": authority})
    assert not Store("gs://studies/runs").exists("a")
    assert Authority.asked[-1] is None


NOBODY = {
    "s3": "no AWS credentials are in the environment or a profile",
    "gs": "default credentials were not found",
    "az": "no Azure credentials are in the environment",
}


@pytest.mark.parametrize(("scheme", "expected"), NOBODY.items(), ids=NOBODY)
def test_without_credentials_there_is_one_line_though_no_metadata_server_answers(
    scheme, expected, nobody, monkeypatch, tmp_path, capfd
):
    from sibcl_ray import driver
    from sibcl_ray.cli.main import command_line

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["label_sweep.py", "--scale", "smoke", "--storage", f"{scheme}://nowhere/runs"])
    with proxy(0) as silent:
        silent.silent = True
        host = silent.address.removeprefix("http://")
        nobody({"AWS_EC2_METADATA_SERVICE_ENDPOINT": silent.address, "AZURE_STORAGE_ACCOUNT_NAME": "study"})
        nobody({"AZURE_POD_IDENTITY_AUTHORITY_HOST": silent.address})
        nobody(dict.fromkeys(("GCE_METADATA_HOST", "GCE_METADATA_IP", "GCE_METADATA_ROOT"), host))
        begun = time.monotonic()
        assert command_line("sweep") == 2
    assert time.monotonic() - begun < driver.ANSWER
    printed = capfd.readouterr().err
    assert printed.startswith(f"error: --storage {scheme}://nowhere/runs") and expected in printed, printed
    assert printed.count("\n") == 1
