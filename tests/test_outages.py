"""Whatever happens to MLflow, nothing waits for it long, and in the end it and a browser show the ledger."""

import importlib.util
import shutil
import threading
import time
import warnings
from functools import partial

import numpy as np
import optuna
import pandas as pd
import pytest
from mlflow import MlflowClient
from servers import PASSWORD, mlflow_server, postgres, postgres_programs, proxy, wait_until
from test_curves import cell, noisy
from test_tracking import METHODS, search

from sibcl_ray.deadlines import Deadline
from sibcl_ray.results.figure import learning_curve_figure
from sibcl_ray.results.mlflow import tracking
from sibcl_ray.results.mlflow.background import Tracker
from sibcl_ray.results.mlflow.runs import curve_runs, search_runs, trial_runs
from sibcl_ray.results.mlflow.tracking import Mirror, TrackingUnavailable

REQUEST, SLACK = 2, 4  # seconds: a request's timeout in some tests, and what a busy machine takes for nothing
NOTHING = pd.DataFrame()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST))


@pytest.fixture(scope="module")
def database():
    with postgres() as server:
        yield server


@pytest.fixture(scope="module")
def server(request, tmp_path_factory):
    """An MLflow server: on PostgreSQL where that is installed, else on SQLite."""
    folder = tmp_path_factory.mktemp("server")
    uri = request.getfixturevalue("database").create("mlflow") if postgres_programs() else f"sqlite:///{folder}/db"
    with mlflow_server(uri, folder) as started:
        yield started


@pytest.fixture
def link(server):
    """A proxy in front of the server."""
    with proxy(int(server.address.rsplit(":", 1)[1])) as started:
        yield started


@pytest.fixture
def study(request):
    """A name of its own for each test: they share servers."""
    return request.node.name


def ledgers():
    """An early state of a study's ledger and a late one, in which curves changed and searches grew."""
    matrix = noisy(np.random.default_rng(0), {"SL": 1, "SIB-CL": 8}, seeds=2)
    late = search(3, methods=("SL",)).query("budget == 50")
    return (matrix[matrix["budget"] < 100], late[late["number"] < 2]), (matrix, late)


def assert_shows(uri, study, matrix, trials, artifacts=()):
    """Every run of the ledger is there once, with exactly its points, parameters, tags and artifacts."""
    client = MlflowClient(uri)
    ids = {}
    searches = search_runs(trials) + trial_runs(trials)
    for name, runs in ((study, curve_runs(matrix, artifacts)), (f"{study}/trials", searches)):
        found = client.search_runs([client.get_experiment_by_name(name).experiment_id], max_results=1000)
        by_key = {run.data.tags[tracking.KEY]: run for run in found}
        assert sorted(run.key for run in runs) == sorted(run.data.tags[tracking.KEY] for run in found)
        ids |= {key: run.info.run_id for key, run in by_key.items()}
        for run in runs:
            assert_is(client, by_key[run.key], run, ids.get(run.parent, ""))


def assert_is(client, found, run, parent):
    info, data = found.info, found.data
    assert (info.run_name, info.start_time, info.end_time) == (run.name, run.started, run.ended)
    assert info.status == run.status and data.params == run.params
    points = [
        (name, p.value, p.timestamp, p.step)
        for name in data.metrics
        for p in client.get_metric_history(info.run_id, name)
    ]
    assert sorted(points) == sorted(run.metrics)
    own = {name: text for name, text in data.tags.items() if not name.startswith(("mlflow.", "sibcl."))}
    assert own == {name: text for name, text in run.tags.items() if not name.startswith("mlflow.")}
    assert data.tags[tracking.CONTENT] == run.content(parent) and data.tags.get(tracking.PARENT, "") == parent
    assert sorted(a.path for a in client.list_artifacts(info.run_id)) == sorted(p.name for p in run.artifacts)


def rows(database, name):
    """All that a database holds, as text."""
    import psycopg

    with psycopg.connect(database.plain(name)) as connection:
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1").fetchall()
        return str([connection.execute(f'SELECT * FROM "{table}" ORDER BY 1').fetchall() for (table,) in tables])


def refused(act, seconds):
    """The line of a sync that has to fail within `seconds`, and some slack."""
    begun = time.monotonic()
    with pytest.raises(TrackingUnavailable) as caught:
        act()
    assert time.monotonic() - begun < seconds + SLACK
    assert "\n" not in str(caught.value) and PASSWORD not in str(caught.value)
    return str(caught.value)


def test_the_server_shows_the_ledger_once(server, study, tmp_path):
    early, late = ledgers()
    figure = learning_curve_figure([late[0]], tmp_path / "curves", "planted")
    Mirror(server.address, study).sync(*early)
    for _ in range(2):
        Mirror(server.address, study).sync(*late, figure)
        assert_shows(server.address, study, *late, figure)


@pytest.mark.thorough
def test_a_database_without_a_server_shows_it_too_and_through_a_restart(database, study):
    uri = database.create("direct")
    early, late = ledgers()
    Mirror(uri, study).sync(*early)
    database.crash()
    database.start()
    assert PASSWORD not in Mirror(uri, study).sync(*late)  # the pool's connections are of before
    assert_shows(uri, study, *late)
    before = rows(database, "direct")
    Mirror(uri, study).sync(*late)
    assert rows(database, "direct") == before


def test_searches_can_be_kept_in_the_database(database):
    study = optuna.create_study(storage=optuna.storages.RDBStorage(database.create("searches")))
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    assert len(study.trials) == 2


def test_runs_stay_themselves_while_they_grow(server, study):
    early, late = ledgers()
    client = MlflowClient(server.address)

    def searches():
        experiment = client.get_experiment_by_name(f"{study}/trials").experiment_id
        return {run.data.tags[tracking.KEY]: run.info.run_id for run in client.search_runs([experiment])}

    Mirror(server.address, study).sync(*early)
    before = searches()
    Mirror(server.address, study).sync(*late)
    after = searches()
    assert before.items() <= after.items() and len(after) == len(before) + 1


@pytest.mark.slow
@pytest.mark.parametrize("step", [16, pytest.param(1, marks=pytest.mark.thorough)])
def test_cut_off_after_any_request_the_next_sync_completes_it(step, server, link, study):
    early, late = ledgers()
    Mirror(link.address, f"{study} whole").sync(*early)
    begun = link.requests
    Mirror(link.address, f"{study} whole").sync(*late)
    for requests in range(2, link.requests - begun + 1, step):
        name = f"{study} {requests}"
        Mirror(server.address, name).sync(*early)
        link.cut_at = link.requests + requests
        refused(partial(Mirror(link.address, name).sync, *late), 1)
        link.cut_at = None
        Mirror(server.address, name).sync(*late)
        assert_shows(server.address, name, *late)


@pytest.mark.thorough  # a sync cut off after any request is completed too
def test_killed_in_the_middle_and_started_again(server, link, study):
    early, late = ledgers()
    Mirror(server.address, study).sync(*early)
    link.delay = 0.1  # so that there is a middle
    outcome = []
    mirror = Mirror(link.address, study)
    thread = threading.Thread(target=lambda: outcome.append(refused(lambda: mirror.sync(*late), 30)))
    thread.start()
    wait_until(lambda: link.requests == 15, 30)
    server.kill()
    thread.join()
    assert "cannot be written" in outcome[0]
    refused(lambda: Mirror(server.address, study).sync(*late), 1)
    server.start()
    Mirror(server.address, study).sync(*late)
    assert_shows(server.address, study, *late)


def test_a_slow_server_is_given_up_between_two_requests(server, link, study):
    ledger = ledgers()[1]
    link.delay = 1
    line = refused(lambda: Mirror(link.address, study).sync(*ledger, deadline=Deadline(2)), 2 + 2)
    assert "of 6 runs up to date" in line and "next synchronisation completes" in line
    link.delay = 0
    Mirror(link.address, study).sync(*ledger, deadline=Deadline(60))
    assert_shows(server.address, study, *ledger)


def test_a_server_that_goes_silent_is_given_up(server, link, study, impatient):
    ledger = ledgers()[1]
    link.silent = True
    refused(lambda: Mirror(link.address, study).sync(*ledger, deadline=Deadline(0)), REQUEST)
    link.silent = False
    thread = hang(link, study, ledger)
    refused(lambda: Mirror(link.address, study).sync(*ledger, deadline=Deadline(0.5)), 0.5 + REQUEST)
    thread.join()
    link.silent = False
    Mirror(link.address, study).sync(*ledger)
    assert_shows(server.address, study, *ledger)


def hang(link, study, ledger):
    """A sync that, in a thread, waits for an answer of a link that went silent in its middle."""
    begun = link.requests
    thread = threading.Thread(target=lambda: refused(lambda: Mirror(link.address, study).sync(*ledger), 30))
    thread.start()
    wait_until(lambda: link.requests > begun + 4, 20)
    link.silent = True
    return thread


def test_a_silent_database_is_left_behind(database, study, impatient):
    """Its driver would wait for ever; the request that is left behind then does no harm."""
    uri, ledger = database.create("silent"), ledgers()[1]
    Mirror(uri, study).sync(*ledger)
    with proxy(database.port) as link:
        link.silent = True
        through = database.uri("silent", link.port)
        refused(lambda: Mirror(through, study).sync(*ledger, deadline=Deadline(1)), 1 + REQUEST)
        line = refused(lambda: Mirror(through, study).sync(*ledger, deadline=Deadline(0.5)), 0.5 + REQUEST)
        assert "given up" in line and "***" in line
        link.silent = False
        Mirror(through, study).sync(*ledger, deadline=Deadline(10))
    assert_shows(uri, study, *ledger)


@pytest.mark.parametrize(
    "uri",
    [
        f"http://me:{PASSWORD}@no-such-host.invalid:5000",
        f"postgresql+psycopg://me:{PASSWORD}@no-such-host.invalid/mlflow",
        f"http://me:{PASSWORD}@[::1",
        f"http://me:{PASSWORD}@127.0.0.1:port",
        f"http://me:{PASSWORD}@",
        "http://",
        f"http://{'a' * 300}.example",
        f"postgresql+psycopg://me:{PASSWORD}@127.0.0.1:99999/mlflow",
        f"postgresql+nothing://me:{PASSWORD}@127.0.0.1/mlflow",
        f"nothing://me:{PASSWORD}@127.0.0.1",
        "sqlite://",
        "sqlite:///",
        "",
    ],
)
def test_addresses_that_cannot_be_are_refused_in_one_line(uri, study, impatient):
    refused(lambda: Mirror(uri, study).sync(*ledgers()[1], deadline=Deadline(3)), 3 + REQUEST)


def test_a_refused_password_is_said_at_once_and_not_shown(database, study):
    wrong = database.uri("postgres").replace(PASSWORD, f"{PASSWORD}-wrong")
    line = refused(lambda: Mirror(wrong, study).sync(*ledgers()[1]), 1)
    assert "password authentication failed" in line and "study:***@" in line


def test_no_secret_is_written(database, study, monkeypatch):
    uri = database.create("secrets")
    monkeypatch.setenv("SOME_API_KEY", "planted-in-the-environment")
    matrix, trials = ledgers()[1]
    parameters = {"source": f"postgresql://me:{PASSWORD}@host/db", "key": "planted-in-the-environment"}
    trials["parameters"] = [parameters] * len(trials)
    matrix["problem"] = "from https://host/file?token=planted-in-a-query"
    Mirror(uri, f"{study} planted-in-the-environment").sync(matrix, trials)
    stored = rows(database, "secrets")
    assert f"{study} ***" in stored and "me:***@host" in stored and "token=***" in stored
    assert "planted-in" not in stored and PASSWORD not in stored


def test_a_study_that_has_hardly_begun(server, study):
    rows = [cell("SL", 25, 0, 0.1, np.full(9, 0.1)), cell("SL", 25, 1, 0.1, None, "missing")]
    rows += [cell("SL", 50, 0, 0.1, None, "failed"), cell("SIB-CL", 25, 0, 0.1, None, "missing")]
    missing = pd.DataFrame(rows[1:])
    missing["finished"] = np.nan
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for matrix, trials in [
            (NOTHING, NOTHING),
            (missing, search(0)),
            (missing, search(1)),
            (pd.DataFrame(rows), search(1)),
            (pd.concat([pd.DataFrame(rows), pd.DataFrame([cell("SIB-CL", 25, 1, 0.05)])]), search(1)),
        ]:
            Mirror(server.address, study).sync(matrix, trials)
    assert_shows(server.address, study, matrix, trials)


def test_a_tracker_follows_a_study_through_an_outage_and_says_so_once(server, link, study):
    early, late = ledgers()
    ledger, said = early, []
    link.down = True
    with Tracker(link.address, study, lambda: ledger, warn=said.append, interval=0.1) as tracker:
        wait_until(lambda: said, 30)
        time.sleep(0.5)  # some more vain attempts
        assert len(said) == 1 and "cannot be written" in said[0] and "\n" not in said[0]
        link.down = False
        wait_until(lambda: len(said) == 2, 60)
        assert "again" in said[1]
        assert_shows(server.address, study, *early)
        ledger = late
        assert link.address in tracker.finish(seconds=30)
    assert_shows(server.address, study, *late)
    assert len(said) == 2


def test_a_tracker_does_not_wait_for_a_request_that_hangs(server, link, study, impatient):
    ledger = ledgers()[1]
    with Tracker(link.address, study, lambda: ledger, warn=print, interval=0.1) as tracker:
        wait_until(lambda: link.requests > 10, 60)
        link.silent = True
        refused(lambda: tracker.finish(seconds=0.5), 0.5 + REQUEST)
    with Tracker(link.address, study, lambda: ledger, warn=print, interval=0.1):
        begun = time.monotonic()
    assert time.monotonic() - begun < 2
    link.silent = False
    tracker.finish(seconds=30)
    assert_shows(server.address, study, *ledger)


def test_a_tracker_stops_between_two_requests_and_the_last_sync_is_alone(server, link, study):
    ledger = ledgers()[1]
    link.delay = 0.3
    with Tracker(link.address, study, lambda: ledger, warn=print) as tracker:
        wait_until(lambda: link.requests > 6, 60)
        link.delay = 0
        tracker.finish(seconds=30)
        done = link.requests
        assert_shows(server.address, study, *ledger)
        time.sleep(0.5)
        assert link.requests == done


# In a browser

CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)


def drawn(page):
    """Type of the x axis of the page's only line chart, and the labels at which each run has a point."""
    lines = page.locator(".js-plotly-plot .scatterlayer .trace .lines path")
    lines.first.wait_for()
    plots = page.locator(".js-plotly-plot", has=page.locator(".scatterlayer .trace"))
    assert plots.count() == 1
    axis, traces = plots.evaluate(
        "p => [p._fullLayout.xaxis.type, p._fullData.map(t => [t.name, [...t.x].map(Number)])]"
    )
    return axis, {name.split(" (")[0]: steps for name, steps in traces if name}


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="needs a browser: apt-get install chromium")
@pytest.mark.skipif(not importlib.util.find_spec("playwright"), reason="pip install playwright")
def test_the_browser_shows_learning_curves(server, study, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    matrix = noisy(np.random.default_rng(0), METHODS, seeds=3)
    figure = learning_curve_figure([matrix], tmp_path / "curves", "planted")
    address = Mirror(server.address, study).sync(matrix, search(2), figure)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.set_default_timeout(60_000)
        expect.set_options(timeout=60_000)
        elsewhere: list[str] = []
        page.on("request", lambda r: elsewhere.append(r.url) if r.url.startswith("http") else None)

        page.goto(address)
        for method in METHODS:
            expect(page.get_by_role("link", name=method, exact=True)).to_be_visible()
        expect(page.get_by_text("matching runs")).to_contain_text("3")
        assert drawn(page) == ("log", {method: [25, 50, 100, 200, 400] for method in METHODS})
        page.screenshot(path=tmp_path / "charts.png")

        # two methods selected, "Compare", then the metric: their two learning curves
        for method in ("SL", "SIB-CL"):
            page.get_by_role("row").filter(has=page.get_by_role("link", name=method, exact=True)).get_by_role(
                "checkbox"
            ).first.click()
        page.get_by_role("button", name="Compare").click()
        page.get_by_role("link", name="test_error", exact=True).click()
        assert drawn(page) == ("linear", {m: [25, 50, 100, 200, 400] for m in ("SL", "SIB-CL")})
        page.screenshot(path=tmp_path / "compare.png")
        browser.close()
    assert [url for url in elsewhere if not url.startswith(server.address)] == []
