"""Real servers for tests, each ended by its context manager: PostgreSQL, MLflow, S3, and a proxy in front of any."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote
from urllib.request import urlopen

import pytest

PASSWORD = "planted-password"  # of the database's user; must not be seen anywhere


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_until(ready, seconds, failure=lambda: "it took too long"):
    deadline = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < deadline, failure()
        time.sleep(0.05)


class Process:
    """A command that is started, killed and started again; its output goes to a file."""

    def __init__(self, command, log, ready, **options):
        self.command, self.log, self.ready, self.options = command, log, ready, options
        self.process = None

    def start(self):
        with open(self.log, "a") as log:
            output = {"stdout": log, "stderr": log}
            self.process = subprocess.Popen(self.command, start_new_session=True, **output, **self.options)
        wait_until(self._is_ready, 60, lambda: Path(self.log).read_text())

    def _is_ready(self):
        assert self.process.poll() is None, Path(self.log).read_text()
        return self.ready()

    def kill(self, how=signal.SIGKILL):
        """End it and all that it started, at once."""
        if not self.process:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, how)
        self.process.wait()


class MlflowServer(Process):
    """`mlflow server` on loopback; `address` stays the same when it is started again."""

    def __init__(self, backend_uri, folder):
        port = free_port()
        self.address = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
        command += ["--workers", "1", "--backend-store-uri", backend_uri]
        command += ["--default-artifact-root", str(folder / "mlartifacts")]
        light = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # a dozen processes that nobody asks for
        super().__init__(command, folder / "server.log", self._answers, env=light)

    def _answers(self):
        try:
            urlopen(f"{self.address}/health", timeout=2).close()
        except OSError:
            return False
        return True


@contextmanager
def mlflow_server(backend_uri, folder):
    """A started MlflowServer; its database and files are given."""
    server = MlflowServer(backend_uri, folder)
    try:
        server.start()
        yield server
    finally:
        server.kill()  # it would wait for a browser's idle connections


def postgres_programs():
    """The folder of PostgreSQL's programs, or None. Distributions keep them off the path."""
    found = shutil.which("initdb")
    folders = [Path(found).parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    return next((folder for folder in reversed(folders) if (folder / "initdb").exists()), None)


class Postgres(Process):
    """A PostgreSQL server, of an empty cluster in its own folder, for whoever is in the network of its host."""

    def __init__(self, programs, folder, options, host):
        self.host, self.port = host, free_port()
        secret = folder / "password"
        secret.write_text(PASSWORD)
        if options:
            shutil.chown(secret, options["user"], options["group"])
        data = str(folder / "data")
        initdb = [str(programs / "initdb"), "-D", data, "-U", "study", "--pwfile", str(secret), "-A", "scram-sha-256"]
        initdb += ["-E", "UTF8", "--no-locale", "--no-sync"]
        subprocess.run(initdb, check=True, capture_output=True, cwd=folder, **options)
        with open(folder / "data" / "pg_hba.conf", "a") as rules:
            rules.write("host all all samenet scram-sha-256\n")
        command = [str(programs / "postgres"), "-D", data, "-p", str(self.port), "-F"]
        command += ["-c", f"listen_addresses={host}", "-c", "unix_socket_directories="]
        super().__init__(command, folder / "postgres.log", self._answers, cwd=folder, **options)

    def _answers(self):
        import psycopg

        try:
            psycopg.connect(self.plain("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def plain(self, name, port=None):
        return f"postgresql://study:{PASSWORD}@{self.host}:{port or self.port}/{name}"

    def uri(self, name, port=None):
        """SQLAlchemy's address of a database, perhaps through a proxy's port."""
        return self.plain(name, port).replace("postgresql:", "postgresql+psycopg:")

    def create(self, name):
        """A new database; its address."""
        import psycopg

        with psycopg.connect(self.plain("postgres"), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.uri(name)

    def crash(self):
        """End every process of it at once, as a lost machine does."""
        self.kill(signal.SIGQUIT)


@contextmanager
def postgres(host="127.0.0.1"):
    """A started Postgres, wherever its folder may be; skips the test where it is not installed."""
    pytest.importorskip("psycopg", reason='pip install "psycopg[binary]"')
    programs = postgres_programs()
    if not programs:
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    # it refuses to be run by root, and pytest's folders are closed to its user
    options = {"user": "postgres", "group": "postgres", "extra_groups": []} if os.getuid() == 0 else {}
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder = Path(name)
        if options:
            shutil.chown(folder, "postgres", "postgres")
        server = Postgres(programs, folder, options, host)
        try:
            server.start()
            yield server
        finally:
            server.crash()


BUCKET, REGION = "studies", "us-east-1"
KEY, SECRET = "AKIAPLANTEDPLANTED12", "planted-secret"  # the secret must not be seen anywhere


class S3Server(Process):
    """An S3-compatible server; what it holds is gone when it ends.

    Attributes:
        environment: by which clients find it and sign their requests.
    """

    def __init__(self, folder, host="127.0.0.1"):
        self.host, self.port = host, free_port()
        self.environment = self.variables(self.port) | {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}
        self.environment["AWS_DEFAULT_REGION"] = REGION
        program = Path(__file__).with_name("s3_server.py")
        command = [sys.executable, str(program), host, str(self.port)]
        super().__init__(command, folder / "s3.log", self._serves)

    def variables(self, port):
        """Where it is, if asked by another port, such as a proxy's."""
        return {"AWS_ENDPOINT_URL": f"http://{self.host}:{port}"}

    def requests(self, method, part="", client=""):
        """The paths, with their queries, that a client has asked for so far and that contain a part."""
        line = re.compile(rf'^{re.escape(client)}.*"(?:\x1b\[[0-9;]*m)*{method} (\S+) HTTP', re.MULTILINE)
        return [path for path in map(unquote, line.findall(Path(self.log).read_text())) if part in path]

    def _serves(self):
        return "Running on" in Path(self.log).read_text()


@contextmanager
def s3_server(folder, host="127.0.0.1"):
    """A started S3Server."""
    pytest.importorskip("moto", reason='pip install "moto[server]"')
    server = S3Server(folder, host)
    try:
        server.start()
        yield server
    finally:
        server.kill()


class Proxy:
    """A TCP proxy on loopback in front of `port`, which may be slow, silent or cut off.

    Attributes:
        delay: seconds that each part of an answer is held back.
        silent: nothing is passed on any more, though connections are accepted.
        down: connections are closed at once.
        cut_at: the number of the request, from 1, after which every connection is cut, its answer lost.
        lost: of so many of the next requests the connection is cut when the answer comes.
        requests: how many HTTP requests were passed on.
    """

    def __init__(self, port):
        self.target = port
        self.delay, self.silent, self.down, self.cut_at, self.requests = 0.0, False, False, None, 0
        self.lost = 0
        self._open, self._closed = [], threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self._start(self._accept)

    def _start(self, work, *arguments):
        threading.Thread(target=work, args=arguments, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                try:
                    if self.down:
                        raise OSError
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                self._open += [client, server]
                self._start(self._pass_requests, client, server)
                self._start(self._pass_answers, server, client)

    def _pass_requests(self, client, server):
        with suppress(OSError):
            while part := client.recv(65536):
                if part.split(b" ")[0] in (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE"):
                    self.requests += 1
                self._wait_while_silent()
                server.sendall(part)
        self._end(server)

    def _pass_answers(self, server, client):
        with suppress(OSError):
            while part := server.recv(65536):
                self._wait_while_silent()
                self._closed.wait(self.delay)
                if self.cut_at is not None and self.requests >= self.cut_at:
                    break
                if self.lost:
                    self.lost -= 1
                    break
                client.sendall(part)
        self._end(client)

    def _wait_while_silent(self):
        while self.silent and not self._closed.wait(0.05):
            pass

    def _end(self, connection):
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()

    def close(self):
        self._closed.set()
        for connection in [self._listener, *self._open]:
            self._end(connection)


@contextmanager
def proxy(port):
    """A Proxy."""
    server = Proxy(port)
    try:
        yield server
    finally:
        server.close()
