"""Real servers for tests, each ended by its context manager: PostgreSQL, MLflow, and a proxy in front of any."""

import os
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


class Proxy:
    """A TCP proxy on loopback in front of `port`, which may be slow, silent or cut off.

    Attributes:
        delay: seconds that each part of an answer is held back.
        silent: nothing is passed on any more, though connections are accepted.
        down: connections are closed at once.
        cut_after: after so many bytes of answers a connection is cut, once.
        cut_at: the number of the request, from 1, after which every connection is cut, its answer lost.
        lost: of so many of the next requests the connection is cut when the answer comes.
        refused: so many of the next requests are answered as by a server that has too much to do.
        requests: how many HTTP requests were passed on.
    """

    def __init__(self, port):
        self.target = port
        self.delay, self.silent, self.down, self.cut_at, self.requests = 0.0, False, False, None, 0
        self.lost, self.refused, self.cut_after = 0, 0, None
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
                    if self.refused:
                        self.refused -= 1
                        client.sendall(b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                        break
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
                if self.cut_after is not None:
                    self.cut_after -= len(part)
                    if self.cut_after < 0:
                        self.cut_after = None
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
