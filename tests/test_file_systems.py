"""Real file systems, made for the tests, that fill up, fail or vanish while a model trains."""

from __future__ import annotations

import fcntl
import gc
import os
import resource
import shutil
import struct
import subprocess
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from job import VALUE_BYTES, Job, open_job

import fxoffload

IMAGE_BYTES = 40 * 2**20
# _IOR('X', 125, __u32) of ext4, and its flag for "write nothing any more".
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2

pytestmark = pytest.mark.filterwarnings("ignore:.*refuses direct I/O.*:RuntimeWarning")


@dataclass(frozen=True)
class FileSystem:
    """A mounted one: where it is, and the name of its block device."""

    directory: Path
    device: str

    def fill(self) -> None:
        """Take every free block."""
        with open(self.directory / "others", "wb", buffering=0) as file:
            for nbytes in (2**20, 2**10):
                try:
                    while True:
                        file.write(bytes(nbytes))
                except OSError:
                    os.fsync(file.fileno())

    def break_down(self) -> None:
        """Make it read-only, as the kernel does when it finds the file system damaged."""
        Path(f"/sys/fs/ext4/{self.device}/trigger_fs_error").write_text("broken on purpose")

    def shut_down(self) -> None:
        """Let every read and write fail from now on, as if the drive were pulled."""
        fd = os.open(self.directory, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., FileSystem]]:
    """`mount(*options)`: a small ext4 of its own; `options` are those of mkfs.ext4."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    for program in ("mkfs.ext4", "mount", "findmnt"):
        if shutil.which(program) is None:
            pytest.skip(f"there is no {program} here")
    place = tmp_path / "mounted"
    place.mkdir()

    def mount(*options: str) -> FileSystem:
        image = tmp_path / "image"
        with open(image, "wb") as file:
            file.truncate(IMAGE_BYTES)
        run("mkfs.ext4", "-q", "-m", "0", "-E", "lazy_itable_init=0", *options, image)
        try:
            run("mount", "-o", "loop,errors=remount-ro", image, place)
        except subprocess.CalledProcessError as error:
            pytest.skip(f"loop mounts are refused here: {error.stderr.strip()}")
        source = run("findmnt", "-no", "SOURCE", place)
        return FileSystem(place, Path(source.strip()).name)

    yield mount
    if os.path.ismount(place):
        gc.collect()
        run("umount", place)


def run(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


Mount = Callable[..., FileSystem]


@pytest.fixture
def disk(mount: Mount) -> FileSystem:
    """A small ext4 file system with its default options."""
    return mount()


@pytest.fixture
def job(disk: FileSystem) -> Iterator[Job]:
    """A job on `disk`."""
    with open_job(disk.directory) as job:
        yield job


def check_kept(job: Job, done: fxoffload.StoreStatistics, *, at_least: int) -> None:
    """Check that values whose write failed stayed in memory, and that all others were read."""
    assert at_least <= done.write_errors <= job.calls
    kept_bytes = done.offloaded_bytes - done.written_bytes
    assert done.forwarded_bytes == kept_bytes >= done.write_errors
    assert done.read_bytes == done.written_bytes
    assert (done.read_errors, done.live_bytes, done.inflight_bytes) == (0, 0, 0)


def check_one_warning(caught: list[warnings.WarningMessage], reason: str) -> None:
    (warning,) = caught
    message = str(warning.message)
    assert "could not be offloaded" in message
    assert reason in message
    assert "nothing is lost" in message


def test_a_disk_that_others_fill_harms_no_running_job(disk: FileSystem, job: Job) -> None:
    """The space of a step was preallocated."""
    disk.fill()
    done = job.step()  # A warning would be an error here.
    assert done.offloaded_bytes == done.written_bytes == done.read_bytes
    assert done.write_errors == 0


def test_what_a_full_disk_does_not_take_stays_in_memory(disk: FileSystem, job: Job) -> None:
    """Two forwards before their backwards need twice the space of a step."""
    disk.fill()
    with pytest.warns(RuntimeWarning) as caught:
        job.overfill()
    check_one_warning(list(caught), "the spill file needs")
    gc.collect()
    done = fxoffload.statistics()
    assert done.write_errors > 0
    assert done.forwarded_bytes == done.offloaded_bytes - done.written_bytes > 0
    assert done.read_bytes == done.written_bytes > 0
    assert (done.read_errors, done.live_bytes, done.inflight_bytes) == (0, 0, 0)
    (disk.directory / "others").unlink()
    done = job.step()
    assert done.offloaded_bytes == done.written_bytes == done.read_bytes


def test_a_full_disk_without_preallocation_fails_the_writes(mount: Mount) -> None:
    """Without preallocation, the write itself finds that there is no space."""
    disk = mount("-t", "ext2")
    with open_job(disk.directory) as job:
        (fd,) = job.store.engines["nvme"].inner._fds
        for nbytes in (0, os.fstat(fd).st_size):
            os.ftruncate(fd, nbytes)  # As it was before the first step.
        disk.fill()
        with pytest.warns(RuntimeWarning) as caught:
            steps = [job.step() for _ in range(2)]
        check_one_warning(list(caught), "No space left on device")
        for done in steps:
            check_kept(job, done, at_least=job.calls - 1)
        (disk.directory / "others").unlink()
        done = job.step()
        assert done.offloaded_bytes == done.written_bytes == done.read_bytes


def test_a_limit_of_the_file_size_is_as_a_full_disk(spill_directory: Path) -> None:
    with open_job(spill_directory) as job:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2 * VALUE_BYTES, limits[1]))
        try:
            with pytest.warns(RuntimeWarning) as caught:
                steps = [job.step() for _ in range(2)]
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        check_one_warning(list(caught), "File too large")
        for done in steps:
            check_kept(job, done, at_least=1)
            assert done.written_bytes == 2 * VALUE_BYTES
        done = job.step()
        assert done.offloaded_bytes == done.written_bytes == done.read_bytes


def test_a_file_system_that_goes_read_only(disk: FileSystem, job: Job) -> None:
    loss = job.begin()
    disk.break_down()
    loss.backward()  # What was written can still be read.
    job.check_gradients()
    done = fxoffload.statistics()
    assert done.offloaded_bytes == done.written_bytes == done.read_bytes
    assert done.read_errors == 0
    with pytest.warns(RuntimeWarning) as caught:
        steps = [job.step() for _ in range(3)]
    check_one_warning(list(caught), "Read-only file system")
    for done in steps:
        check_kept(job, done, at_least=job.calls)
        assert done.written_bytes == 0


def test_a_running_job_keeps_its_file_system_writable(disk: FileSystem, job: Job) -> None:
    """The kernel refuses to make it read-only in an orderly way while the spill file is open."""
    command = ["mount", "-o", "remount,ro", str(disk.directory)]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "busy" in refused.stderr
    done = job.step()
    assert done.offloaded_bytes == done.written_bytes == done.read_bytes


def test_a_drive_that_is_pulled(disk: FileSystem, job: Job) -> None:
    loss = job.begin()
    disk.shut_down()
    with pytest.raises(fxoffload.TransferError) as caught:
        loss.backward()
    message = str(caught.value)
    for part in ("Input/output error", "twice", f"{VALUE_BYTES} bytes", str(disk.directory)):
        assert part in message
    del loss, caught
    gc.collect()
    done = fxoffload.statistics()
    assert done.read_errors >= 2
    assert (done.live_bytes, done.inflight_bytes) == (0, 0)
    with pytest.warns(RuntimeWarning) as warned:
        done = job.step()  # The process goes on, in memory.
    check_one_warning(list(warned), "Input/output error")
    check_kept(job, done, at_least=job.calls)
    assert done.written_bytes == 0


def test_a_directory_that_is_deleted_under_a_job(spill_directory: Path) -> None:
    directory = spill_directory / "gone"
    directory.mkdir()
    with open_job(directory) as job:
        directory.rmdir()
        done = job.step()
        assert done.offloaded_bytes == done.written_bytes == done.read_bytes > 0
