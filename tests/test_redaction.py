"""No planted secret survives, nothing else is lost, and a second pass changes nothing."""

import re
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sibcl_ray.messages import redact

VISIBLE = "".join(c for c in map(chr, range(33, 127)) if c != "*")
URL_SAFE = string.ascii_letters + string.digits + "-._~%!$'()*+,;"
WORDS = st.lists(st.text(string.ascii_lowercase + "äß()[]", max_size=9), max_size=6).map(" ".join)

# where a secret may stand, and the characters that may occur in it there
PLACES = {
    "postgresql://reader:{}@db.example:5432/mlflow": VISIBLE,
    "redis://:{}@cache:6379": VISIBLE,
    "https://***@company.example:{}@git.example/path": VISIBLE,  # a user with an @ is not told from a token
    "https://{}@mlflow.example/": "".join(set(URL_SAFE) - {"*"}),
    "https://mlflow.example/file?part=1&token={}&more=2": string.ascii_letters + string.digits + "-._~%",
    "https://mlflow.example/file?key={}": string.ascii_letters + string.digits + "-._~%",
    "https://bucket.example/file?X-Amz-Signature={}&X-Amz-Expires=60": string.hexdigits,
    "https://account.example/file?sv=2024&sig={}": string.ascii_letters + string.digits + "%",
    "host=db user=reader password={} dbname=mlflow": "".join(set(VISIBLE) - set("&'\"")),
    "host=db password='{}' user=reader": "".join(set(VISIBLE) - {"'"}) + " ",
    "AWS_SECRET_ACCESS_KEY={}": string.ascii_letters + string.digits + "/+=",
    "aws_secret_access_key = {}": string.ascii_letters + string.digits + "/+=",
    "{{'api_key': '{}', 'retries': 3}}": "".join(set(VISIBLE) - {"'"}),
    '{{"client_secret": "{}"}}': "".join(set(VISIBLE) - {'"'}),
    "Authorization: Bearer {}": string.ascii_letters + string.digits + "-._~+/=",
    "{{'Authorization': 'Basic {}'}}": string.ascii_letters + string.digits + "+/=",
    "authorization={} and so on": string.ascii_letters + string.digits,
}


@pytest.mark.parametrize("place", PLACES)
def test_no_planted_secret_survives(place):
    @given(st.text(PLACES[place], min_size=6, max_size=40), WORDS, WORDS)
    def check(secret, before, after):
        shown = redact(f"{before} {place.format(secret)} {after}")
        assert shown == f"{before} {place.format('***')} {after}"
        assert redact(shown) == shown

    check()


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_TOKEN", "DB_PASSWORD", "PGPASSWD", "my_secret", "OPENAI_API_KEY"])
def test_values_of_secret_variables_are_hidden_wherever_they_stand(name, monkeypatch):
    monkeypatch.setenv(name, "p/ss word:1")
    assert redact("it said p/ss word:1, twice: p/ss word:1") == "it said ***, twice: ***"
    assert "ss" not in redact("https://host/p%2Fss%20word%3A1/file")


def test_short_values_and_other_variables_are_left(monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "false")
    monkeypatch.setenv("SOME_NAME", "photonic-crystal")
    assert redact("photonic-crystal: false") == "photonic-crystal: false"


@pytest.mark.parametrize(
    "text",
    [
        "AKIAIOSFODNN7EXAMPLE",
        "https://ghp_0123456789abcdefghijABCDEFGHIJ:x-oauth-basic@github.example/repo",
        "https://oauthtoken0123456789abcdef:@host",
        "dapi0123456789abcdef0123456789abcdef",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl",
    ],
)
def test_known_forms_are_hidden_without_a_name(text):
    secret = max(re.split(r"[:/@]", text), key=len)
    assert secret not in redact(f"denied: {text}.")


@given(st.text(), st.text())
def test_it_never_fails_and_a_second_pass_changes_nothing(before, after):
    text = f"{before}://{after}:b@c password={before}"
    assert redact(redact(text)) == redact(text)


@given(st.text("".join(set(string.printable) - set("=:@"))))
def test_text_without_the_marks_of_secrets_is_unchanged(text):
    assert redact(text) == text or "eyJ" in text or "earer" in text.lower()


@pytest.mark.parametrize(
    "text",
    [
        "SIB-CL · 50 labels · 3",
        "needs 91 labels for SL's error of 3.71 %. Label saving: 8× (95 % interval: 7.1× to 14×).",
        "http://127.0.0.1:5000/#/experiments/1/runs?workflowType=machine_learning&viewStateShareKey=sibcl",
        "sqlite:////data/runs/mlflow.db",
        "s3://bucket/runs/photonic-dos-quick-0/matrix.parquet",
        "[Errno 111] Connection refused",
        'FATAL: password authentication failed for user "reader"',
        "trial/SIB-CL at 50 labels, 0123456789abcdef0123456789abcdef01234567, trial 3",
        "Param with key='encoder' was already logged with value='invariant'",
    ],
)
def test_what_is_usually_said_is_unchanged(text):
    assert redact(text) == text


@pytest.mark.thorough
def test_long_text_takes_no_time():
    begun = time.process_time()
    for text in ("a" * 100_000, "://" * 10_000, "://a:" * 2_000, "password=" * 10_000):
        redact(text)
    assert time.process_time() - begun < 5
