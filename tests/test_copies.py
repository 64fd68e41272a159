"""What is far away is fetched once per node; a copy that is damaged, foreign or has no room does no harm."""

import os
import subprocess
import sys
import time
from pathlib import Path
from subprocess import PIPE

import pytest
from processes import environment
from test_dataset import make
from toy import Moments

from sibcl_ray.data.dataset import SHARD, TARGET, TEST, Dataset, Shard
from sibcl_ray.storage import node_cache
from sibcl_ray.storage.node_cache import UNUSED, copy_of, read_once
from sibcl_ray.storage.store import Damaged, Store, StoreError

NAME = "artefacts/a"


@pytest.fixture
def place(monkeypatch, tmp_path):
    """Where the copies of this node are to be."""
    place = tmp_path / "node"
    place.mkdir()
    monkeypatch.setattr(node_cache.tempfile, "tempdir", str(place))
    return place / f"sibcl_ray-{os.getuid()}"


@pytest.fixture
def store(bucket, place):
    store = Store(bucket)
    store.write(NAME, b"whole")
    return store


@pytest.fixture
def distant(bucket, place):
    """A data set in a bucket: three shards of target labels, one of the test split."""
    found = Dataset(Moments(), 3, Store(bucket))
    for shard in (Shard(TARGET, 0), Shard(TARGET, 1), Shard(TARGET, 2), Shard(TEST, 0)):
        make(found, shard.role, shard.index)
    Dataset.read.cache_clear()
    return found


def check(data):
    if data != b"whole":
        raise Damaged(f"{data!r} is not whole")
    return data.decode()


def kept(place):
    return [path for path in place.glob("*") if path.suffix != ".lock"]


TOGETHER = """
import sys
from sibcl_ray.storage.node_cache import read_once
from sibcl_ray.storage.store import Store
store = Store(sys.argv[1])
print("ready", store.exists(sys.argv[2]), flush=True)
input()
print(read_once(store, sys.argv[2], bytes.decode))
"""


def test_processes_that_ask_at_once_fetch_an_object_once(store, place, s3):
    before = len(s3.requests("GET", store.uri.split("/")[-1]))
    command, there = [sys.executable, "-c", TOGETHER, store.uri, NAME], environment(TMPDIR=str(place.parent))
    readers = [subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True, env=there) for _ in range(4)]
    assert {reader.stdout.readline() for reader in readers} == {"ready True\n"}
    for reader in readers:
        reader.stdin.write("\n")
        reader.stdin.flush()
    assert {reader.communicate(timeout=60)[0] for reader in readers} == {"whole\n"}
    assert len(s3.requests("GET", store.uri.split("/")[-1])) == before + 1


READER = """
import sys
import time
from pathlib import Path
sys.path.insert(0, {tests!r})
from toy import Moments
from sibcl_ray.data.dataset import SHARD, TARGET, TEST, Dataset
from sibcl_ray.storage.store import Store
dataset = Dataset(Moments(), 3, Store(sys.argv[1]))
folder = Path(sys.argv[2])
(folder / sys.argv[3]).touch()
while not (folder / "go").exists():
    time.sleep(0.005)
print(dataset.read(TARGET, 3 * SHARD).inputs.double().sum().item(), len(dataset.read(TEST, SHARD).inputs))
"""


@pytest.mark.thorough
def test_processes_of_a_node_that_start_at_once_fetch_every_object_once(distant, s3, tmp_path):
    there = environment(TMPDIR=str(tmp_path / "node"))
    program = READER.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", program, distant.store.uri, str(tmp_path)]
    before = len(s3.requests("GET", distant.line(TARGET).folder))
    readers = [
        subprocess.Popen([*command, f"ready{i}"], stdout=subprocess.PIPE, text=True, env=there) for i in range(2)
    ]
    while len(list(tmp_path.glob("ready*"))) < 2 and all(reader.poll() is None for reader in readers):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    printed = {reader.communicate(timeout=120)[0] for reader in readers}
    inputs = [distant.read_shard(TARGET, i).inputs.double().sum().item() for i in range(3)]
    (line,) = printed
    assert float(line.split()[0]) == pytest.approx(sum(inputs)) and line.split()[1] == str(SHARD)
    asked = s3.requests("GET", distant.line(TARGET).folder)[before:-3]  # the last three are those of this process
    assert len(asked) == len(set(asked)) == 4, asked


def test_copies_are_for_their_user_alone(store, place):
    assert read_once(store, NAME, check) == "whole" and len(kept(place)) == 1
    assert place.stat().st_mode & 0o777 == 0o700


def test_what_is_on_this_machine_is_not_copied(place, tmp_path):
    for uri in (str(tmp_path / "store"), f"memory://{tmp_path.name}"):
        Store(uri).write(NAME, b"whole")
        assert read_once(Store(uri), NAME, check) == "whole"
    assert not place.exists()


@pytest.mark.parametrize("damage", [b"", b"whol", b"other"])
def test_a_damaged_copy_is_fetched_again(damage, store, place, s3):
    def fetched():
        return len(s3.requests("GET", store.uri.split("/")[-1]))

    before = fetched()
    for _ in range(3):
        assert read_once(store, NAME, check) == "whole"
    assert fetched() == before + 1
    (copy,) = kept(place)
    copy.write_bytes(damage)
    for _ in range(3):
        assert read_once(store, NAME, check) == "whole"
    assert fetched() == before + 2


def test_what_is_damaged_or_absent_in_the_store_is_not_kept(store, place):
    store.write(NAME, b"damaged")
    with pytest.raises(Damaged):
        read_once(store, NAME, check)
    with pytest.raises(FileNotFoundError):
        read_once(store, "never/written", check)
    assert kept(place) == []
    store.write(NAME, b"whole")
    assert read_once(store, NAME, check) == "whole"


def test_copies_that_nobody_has_read_for_long_are_removed_by_the_next_process(store, place):
    for i in range(3):
        store.write(f"{NAME}{i}", b"whole")
        read_once(store, f"{NAME}{i}", check)
    old, used, young = kept(place)
    for copy in (old, used):
        os.utime(copy, (time.time() - UNUSED - 60,) * 2)
    (number,) = (i for i in range(3) if copy_of(store, f"{NAME}{i}") == used.name)
    read_once(store, f"{NAME}{number}", check)
    node_cache._folder.cache_clear()
    read_once(store, NAME, check)
    assert not old.exists() and used.exists() and young.exists()


@pytest.mark.parametrize("obstacle", ["others may read it", "a link", "a file", "a full disk"])
def test_without_a_safe_place_everything_is_read_where_it_lies(obstacle, store, place, monkeypatch):
    if obstacle == "others may read it":
        place.mkdir()
        place.chmod(0o755)
    elif obstacle == "a link":
        (place.parent / "elsewhere").mkdir(mode=0o700)
        place.symlink_to(place.parent / "elsewhere")
    elif obstacle == "a file":
        place.touch()
    else:
        monkeypatch.setattr(node_cache, "FREE", 1.0)
    for _ in range(2):
        assert read_once(store, NAME, check) == "whole"
    assert kept(place) == [] and not list(place.parent.glob("elsewhere/*"))


# A data set that is far away


def test_what_is_missing_of_a_distant_data_set_is_seen_in_one_listing(distant, s3):
    before = [len(s3.requests(method)) for method in ("GET", "HEAD")]
    assert distant.missing({TARGET: 4 * SHARD, TEST: SHARD}) == [Shard(TARGET, 3)]
    after = [len(s3.requests(method)) for method in ("GET", "HEAD")]
    assert after[0] - before[0] == 1 and after[1] == before[1]
    assert "list-type=2" in s3.requests("GET")[-1]


@pytest.mark.parametrize("damage", [b"PAR1 and then nothing", None])
def test_who_reads_a_damaged_shard_sets_it_aside_and_says_that_it_is_to_be_made_again(damage, distant):
    name = distant.shard_name(TARGET, 1)
    if damage:
        distant.store.write(name, damage)
        assert distant.missing({TARGET: 3 * SHARD}) == [], "nobody has looked yet"
    else:
        distant.store.remove(name)
    with pytest.raises(StoreError, match="made again") as error:
        distant.read(TARGET, 3 * SHARD)
    assert name in str(error.value) and "\n" not in str(error.value)
    assert distant.missing({TARGET: 3 * SHARD}) == [Shard(TARGET, 1)]
    assert len(distant.store.names("aside/damaged")) == (damage is not None)
    make(distant, TARGET, 1)
    assert len(distant.read(TARGET, 3 * SHARD).inputs) == 3 * SHARD


def test_whether_a_shard_is_to_be_made_is_asked_of_the_store_not_of_a_copy(distant):
    assert len(distant.read(TARGET, SHARD).inputs) == SHARD
    distant.store.remove(distant.shard_name(TARGET, 0))
    assert not distant.holds(Shard(TARGET, 0), pytest.fail)
