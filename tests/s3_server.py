"""An S3-compatible server, `python s3_server.py HOST PORT`: moto's, with one bucket, and a user who must sign requests.

It looks whether a name is there and writes it in two steps, so requests are answered one at a time here: as in S3, only
one of those who create a name at the same moment wins.
"""

import sys
import threading

from moto import settings
from moto.core import DEFAULT_ACCOUNT_ID
from moto.iam.models import iam_backends
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.models import s3_backends
from servers import BUCKET, KEY, REGION, SECRET
from werkzeug.serving import run_simple

MAY = '{"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}'


def set_up():
    s3_backends[DEFAULT_ACCOUNT_ID]["aws"].create_bucket(BUCKET, REGION)
    users = iam_backends[DEFAULT_ACCOUNT_ID]["aws"]
    users.create_user(REGION, "study")
    users.put_user_policy("study", "may", MAY)
    key = users.create_access_key("study")
    key.access_key_id, key.secret_access_key = KEY, SECRET
    settings.INITIAL_NO_AUTH_ACTION_COUNT = 0  # from now on nobody else may do anything


answering = threading.Lock()
application = DomainDispatcherApplication(create_backend_app)


def one_at_a_time(environment, start_response):
    with answering:
        return application(environment, start_response)


if __name__ == "__main__":
    set_up()
    run_simple(sys.argv[1], int(sys.argv[2]), one_at_a_time, threaded=True, request_handler=MotoRequestHandler)
