"""Servers of buckets on loopback, `python bucket_server.py HOST PORT KIND`: moto's.

It looks whether a name is there and writes it in two steps, so requests are answered one at a time here: as in S3, only
one of those who create a name at the same moment wins. KIND is

- s3: with a user who must sign requests;
- gcs: the same in Google's dialect, whose XML interface is made after S3's, for whoever brings a token it has given.
"""

import json
import sys
import threading
from types import SimpleNamespace

from bucket_servers import BUCKET, FAR_BUCKET, FORGETFUL_BUCKET, KEY, REGION, ROLE_KEY, SECRET, TOKEN
from moto import settings
from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.models import iam_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from moto.sts.models import sts_backends
from werkzeug.serving import run_simple

MAY = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'

answering = threading.Lock()
application = DomainDispatcherApplication(create_backend_app)


def set_up():
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    backend.create_bucket(BUCKET, REGION)
    backend.create_bucket(FORGETFUL_BUCKET, REGION)
    backend.create_bucket(FAR_BUCKET, "eu-central-1")


def ask_for_signatures():
    """Of a user with a key, and of whoever has assumed a role, with a token as well."""
    users = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
    users.create_user(REGION, "study")
    users.put_user_policy("study", "may", MAY)
    key = users.create_access_key("study")
    key.access_key_id, key.secret_access_key = KEY, SECRET
    arn = users.create_role("study", MAY, "/", None, "", [], None).arn
    users.put_role_policy("study", "may", MAY)
    assumed = {"access_key_id": ROLE_KEY, "secret_access_key": SECRET, "session_token": TOKEN}
    sessions = sts_backends[DEFAULT_ACCOUNT_ID]["aws"].assumed_roles
    sessions.append(SimpleNamespace(**assumed, role_arn=arn, session_name="study"))
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0  # from now on nobody else may do anything


def s3(request, start_response):
    with answering:
        return application(request, start_response)


def gcs(request, start_response):
    if request["PATH_INFO"] == "/token":
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps({"access_token": TOKEN, "expires_in": 3600, "token_type": "Bearer"}).encode()]
    if request.get("HTTP_AUTHORIZATION") != f"Bearer {TOKEN}":
        start_response("401 Unauthorized", [])
        return [b"<Error><Code>AuthenticationRequired</Code><Message>Authentication required.</Message></Error>"]
    request["HTTP_AUTHORIZATION"] = f"AWS4-HMAC-SHA256 Credential={KEY}/20260101/{REGION}/s3/aws4_request"
    forgetful = request["PATH_INFO"].startswith(f"/{FORGETFUL_BUCKET}/")  # takes no notice of a condition
    if request.pop("HTTP_X_GOOG_IF_GENERATION_MATCH", None) == "0" and not forgetful:
        request["HTTP_IF_NONE_MATCH"] = "*"
    if source := request.pop("HTTP_X_GOOG_COPY_SOURCE", None):
        request["HTTP_X_AMZ_COPY_SOURCE"] = source

    def with_generation(status, headers, *more):
        return start_response(status, [*headers, ("x-goog-generation", "1")], *more)

    with answering:
        return application(request, with_generation)


if __name__ == "__main__":
    host, port, kind = sys.argv[1:]
    set_up()
    if kind == "s3":
        ask_for_signatures()
    run_simple(host, int(port), globals()[kind], threaded=True, request_handler=MotoRequestHandler)
