"""Folders of a local disk or a shared file system, in which a name is whole or absent, and survives a loss of power."""

import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pyarrow.fs import FileSystem, LocalFileSystem

DRAFTS = "drafts"  # where files are written before they get their names
DRAFTS_KEPT = 3600.0  # seconds; no write takes so long


def private_folder(place: Path, name: str) -> Path:
    """A folder in one that many write to, which is this user's alone; PermissionError where it is not."""
    folder = place / f"{name}-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid() or stat.S_IMODE(about.st_mode) & 0o077:
        raise PermissionError(f"{folder} is there, and not a folder of this user alone; remove it")
    return folder


def expanded(path: str) -> str:
    """The path with ~ as a shell has it, which leaves it alone inside of --option=~/path."""
    whole = os.path.expanduser(path)
    if whole.startswith("~"):
        raise ValueError(f"{path} is in a home folder that is not known; give the whole path")
    return whole


@dataclass(frozen=True)
class Folder:
    """A folder; failures raise OSError."""

    root: str

    def path(self, name: str) -> str:
        return os.path.join(self.root, name)

    def exists(self, name: str) -> bool:
        return os.path.exists(self.path(name))

    def read(self, name: str) -> bytes:
        return Path(self.path(name)).read_bytes()

    def read_all(self, names: Sequence[str]) -> dict[str, bytes]:
        found = {}
        for name in names:
            with suppress(FileNotFoundError):
                found[name] = self.read(name)
        return found

    def write(self, name: str, data: bytes) -> None:
        self._publish(name, data, os.replace)

    def create(self, name: str, data: bytes) -> bool:
        try:
            self._publish(name, data, _give_new_name)
        except FileExistsError:
            return False
        return True

    def _publish(self, name: str, data: bytes, give_name: Callable[[str, str], None]) -> None:
        path, draft = self.path(name), self.path(f"{DRAFTS}/{uuid.uuid4().hex}")
        for folder in (os.path.dirname(path), os.path.dirname(draft)):
            os.makedirs(folder, exist_ok=True)
        try:
            with open(draft, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            give_name(draft, path)
            _sync_folder(os.path.dirname(path))
        finally:
            Path(draft).unlink(missing_ok=True)

    def names(self, folder: str) -> list[str]:
        with suppress(FileNotFoundError):
            return sorted(f"{folder}/{name}" for name in os.listdir(self.path(folder)))
        return []

    def move(self, source: str, target: str) -> None:
        if self.exists(source):
            os.makedirs(os.path.dirname(self.path(target)), exist_ok=True)
            os.rename(self.path(source), self.path(target))

    def remove(self, name: str) -> None:
        os.unlink(self.path(name))

    def clear(self, folder: str) -> None:
        shutil.rmtree(self.path(folder))

    def arrow(self, name: str) -> tuple[FileSystem, str]:
        return LocalFileSystem(), self.path(name)

    def check_permission(self, wanted: int) -> None:
        """OSError where the folder is none, or cannot be read, or written and made, as far as that shows untried."""
        there = next(place for place in (Path(self.root), *Path(self.root).parents) if place.exists())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(there))
        if not os.access(there, wanted | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))

    def clear_drafts(self, clock: str) -> None:
        """Remove what writers that died have left, by the time of a draft that was just written."""
        before = os.stat(self.path(clock)).st_mtime - DRAFTS_KEPT
        for draft in Path(self.path(DRAFTS)).iterdir():
            with suppress(FileNotFoundError):
                if draft.stat().st_mtime < before:
                    draft.unlink()


def _give_new_name(draft: str, path: str) -> None:
    """Like a rename, but FileExistsError where there is something."""
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        with open(path, "xb") as file:
            file.write(Path(draft).read_bytes())


def _sync_folder(folder: str) -> None:
    """Make a new name in a folder survive a loss of power, where the file system can do that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
