"""Connections to MLflow: which addresses it takes, and a client of a store that answers."""

import logging
import os
import re
import shlex
import socket
import sqlite3
import ssl
from contextlib import closing, suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, unquote, urlsplit
from urllib.request import urlopen

from sibcl_ray.messages import redact
from sibcl_ray.results.mlflow.runs import VIEW

# Read by MLflow on import and at each request. Its own defaults retry a dead server for minutes, report usage
# over the network, and print. It would retry requests that are not idempotent, too: the next sync does that better.
# Importing it takes a second, so that is left to the functions that need it.
for _name, _value in {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}.items():
    os.environ.setdefault(_name, _value)

PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
SCHEMES = ("http", "https", "sqlite", *PORTS)


def takes(tracking_uri: str) -> bool:
    """Whether this is a place that MLflow writes to: a server, a database, Databricks, or one with a plugin's scheme.

    A folder is one only where MLFLOW_ALLOW_FILE_STORE is true, without which MLflow refuses it.
    """
    found, rest = re.match(r"([a-z][a-z0-9+.-]*):", tracking_uri, re.I), tracking_uri.partition("://")[2]
    scheme = found[1].lower() if found else ""
    if is_databricks(tracking_uri) or (rest and scheme.split("+")[0] in SCHEMES):
        return True
    if tracking_uri and scheme in ("", "file") and tracking_uri != "databricks-uc":
        return os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1")
    return scheme in {plugin.name for plugin in entry_points(group="mlflow.tracking_store")}


def is_databricks(tracking_uri: str) -> bool:
    """Whether it is a workspace of Databricks, the default one or that of a profile."""
    return tracking_uri == "databricks" or tracking_uri.startswith("databricks://")


def sqlite_uri(path: Path) -> str:
    """The URI of an SQLite file, whose name may have any characters."""
    from sqlalchemy import URL, make_url

    # With the driver's name, as else MLflow makes a folder of the quoted name; SQLAlchemy quotes from version 2.1 on.
    quoted = URL.create("sqlite+pysqlite", database=str(path)).render_as_string()
    offered = (f"sqlite:///{path}", quoted, f"sqlite+pysqlite:///file:{quote(str(path))}?uri=true")
    return next((uri for uri in offered if make_url(uri).database == str(path)), offered[-1])


def connect(tracking_uri: str) -> Any:
    """An MlflowClient of a store that answers."""
    _probe(tracking_uri)
    from mlflow import MlflowClient

    for name in ("mlflow", "alembic", "databricks"):  # now, as they set up their logging themselves
        logging.getLogger(name).setLevel(logging.CRITICAL)  # they print the errors that they raise as well
    client = MlflowClient(tracking_uri)
    if urlsplit(tracking_uri).scheme.split("+")[0] in PORTS:
        with suppress(Exception):  # its pool may hold connections from before a restart; the first error empties it
            client.search_experiments(max_results=1)
    return client


def _probe(tracking_uri: str) -> None:
    """The quick checks that MLflow itself would spread over a hundred seconds of retries."""
    parts = urlsplit(tracking_uri)
    database = parts.scheme.split("+")[0]
    if database == "sqlite":
        path = sqlite_file(tracking_uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("PRAGMA user_version")
    elif database in ("http", "https"):
        # only whether it answers: certificates and credentials are MLflow's business
        with suppress(HTTPError):
            urlopen(_without_credentials(tracking_uri), timeout=5, context=ssl._create_unverified_context()).close()
    elif not tracking_uri:
        raise OSError("it is neither a server nor a database; give http://HOST:PORT or sqlite:////FOLDER/FILE")
    elif database in PORTS:
        if parts.hostname:
            socket.create_connection((parts.hostname, parts.port or PORTS[database]), timeout=5).close()
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        create_engine(tracking_uri, poolclass=NullPool).connect().close()


def sqlite_file(tracking_uri: str) -> Path:
    from sqlalchemy import make_url

    path = make_url(tracking_uri).database
    if not path:
        raise OSError("it names no file; give sqlite:////FOLDER/FILE")
    return Path(unquote(path.removeprefix("file:")) if path.startswith("file:") else path).absolute()


def address_of(tracking_uri: str, experiment: str) -> str:
    """How to open the learning curves; a browser asks for the credentials itself."""
    view = f"workflowType=machine_learning&compareRunsMode=CHART&viewStateShareKey={VIEW}"
    page = f"#/experiments/{experiment}/runs?{view}"
    if tracking_uri.startswith("http"):
        return redact(f"{_without_credentials(tracking_uri).rstrip('/')}/{page}")
    if is_databricks(tracking_uri):
        from mlflow.utils.databricks_utils import get_databricks_host_creds

        return redact(f"{get_databricks_host_creds(tracking_uri).host.rstrip('/')}/ml/experiments/{experiment}")
    quoted = shlex.quote(tracking_uri) if "'" in tracking_uri else f"'{tracking_uri}'"
    server = f"MLFLOW_DISABLE_TELEMETRY=true mlflow server --backend-store-uri {quoted}"
    return redact(f"{server}  and open  http://127.0.0.1:5000/{page}")


def _without_credentials(uri: str) -> str:
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.split('@')[-1]}{parts.path}"
