"""A machine that the image is tried on: QEMU without KVM, firmware with Secure Boot, a TPM in software.

    machine = Machine(where, folder)          # disk.raw, vars.fd and the TPM's state lie in `folder`
    with machine.running() as running:        # one at a time: two cores
        running.probe("systemctl is-system-running --wait")
        running.wait_for("recovery key", 600)

The probe is a root shell that comes in as a credential of the virtual machine: images of the profile `dev` let it in,
those of `release` do not. The network is cut off, but for one port of the host that leads to one of the guest.
"""

import base64
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tools.imaging import builder, places
from tools.imaging.places import Places

MQTT_TLS = 8883
PRESS_AGAIN_S = 60.0
POLL_S = 0.5
BOOT_S = 900.0  # for a first boot on two busy cores, without KVM
MADE = "made"  # its time is that of the disk
_PROBE = """[Unit]
Description=A shell for tests
ConditionPathExists=!/etc/initrd-release
DefaultDependencies=no
After=sysinit.target
StartLimitIntervalSec=0
[Service]
ExecStart=/bin/sh -c 'while [ ! -e /dev/virtio-ports/millwright.probe ]; do sleep 1; done; \
exec 3<>/dev/virtio-ports/millwright.probe; exec /bin/sh <&3 >&3 2>&3'
Restart=always
StandardOutput=null
"""
_WANTED = "[Unit]\nWants=probe.service\n"
_START = """set -eu
folder=$1 tpm=$2; shift 2
[ -z "$tpm" ] || swtpm socket --tpm2 --tpmstate dir="$folder/$tpm" --ctrl type=unixio,path="$folder/tpm.sock" \\
    --flags startup-clear --log file="$folder/tpm.log" --daemon
exec "$@"
"""


@dataclass(frozen=True)
class Model:
    """A kind of machine: QEMU's words for it, and the firmware in the builder."""

    qemu: str
    firmware: str
    variables: str  # blank: no keys are enrolled
    tpm: str  # QEMU's device; empty: none that the kernel has a driver for


MODELS = {  # by architecture
    places.X86: Model(
        "qemu-system-x86_64 -machine q35,smm=on -cpu max"
        " -global driver=cfi.pflash01,property=secure,value=on -global ICH9-LPC.disable_s3=1",
        "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
        "tpm-crb",
    ),
    # Not `max`, which signs pointers: slow to emulate. Debian's kernel for arm64 has no driver for the TPM that
    # QEMU has for this machine (tpm_tis): so it has parts of its own, that the data can be bound to.
    places.ARM: Model(
        "qemu-system-aarch64 -machine virt,gic-version=3 -cpu neoverse-n1"
        " -uuid 5b0c7f1e-93d4-4c6a-8f25-7a1e0d9b4c38 -smbios type=1,product=Board,serial=NX27RD5K08",
        "/usr/share/AAVMF/AAVMF_CODE.secboot.fd",
        "/usr/share/AAVMF/AAVMF_VARS.fd",
        "",
    ),
}


class MachineError(Exception):
    """What did not happen in time, with the last lines of the console."""


@dataclass(frozen=True)
class Answer:
    code: int
    text: str


@dataclass(frozen=True)
class Machine:
    where: Places
    folder: Path  # short enough for sockets in it
    disk: str = "disk.raw"
    tpm: str = "tpm"  # another name: another TPM; empty: none
    memory_mb: int = 2048
    probe: bool = True
    attached: str = "virtio-blk-pci"  # QEMU's device that the disk is, with what it wants to know beside the drive
    opened: int = MQTT_TLS  # the port of the guest that one of the host leads to
    watchdog: str = "i6300esb"  # of the board; empty: none
    network: str = "virtio-net-pci"  # the card; empty: none
    recording: str = ""  # the file in `folder` that gets what is written on the disk: see `writes`; empty: none
    extra: tuple[str, ...] = ()

    @property
    def model(self) -> Model:
        return MODELS[self.where.architecture]

    @property
    def _tpm(self) -> str:
        return self.tpm if self.model.tpm else ""

    def prepare(self, image: Path, size_gb: int = 12) -> None:
        """A fresh disk from `image`, blank firmware variables, a new TPM."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        disk = self.folder / self.disk
        subprocess.run(["cp", "--sparse=always", str(image), str(disk)], check=True)
        with disk.open("r+b") as file:
            file.truncate(size_gb << 30)
        shutil.copyfile(f"{self.where.builder}{self.model.variables}", self.folder / "vars.fd")
        if self._tpm:
            (self.folder / self._tpm).mkdir()
        (self.folder / MADE).touch()

    def is_older_than(self, image: Path) -> bool:
        """Whether its disk was made before `image` was, or not at all."""
        made = self.folder / MADE
        return not made.exists() or made.stat().st_mtime < image.stat().st_mtime

    @contextmanager
    def running(self) -> "Iterator[Running]":
        """It is killed at the end, as by a power cut: shut it down before where that matters."""
        port = _free_port()
        for name in ("probe.sock", "serial.sock", "monitor.sock", "tpm.sock"):
            (self.folder / name).unlink(missing_ok=True)
        if self.recording:
            (self.folder / self.recording).write_bytes(b"")
        command = builder.entered(
            self.where, ["sh", "-c", _START, "start", str(self.folder), self._tpm, *self._qemu(port)]
        )
        log = (self.folder / "qemu.log").open("ab")
        with (
            log,
            subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            ) as process,
        ):
            running = Running(self, process, port)
            try:
                yield running
            finally:
                running.kill()

    def _qemu(self, port: int) -> list[str]:
        folder = self.folder
        arguments = [
            *shlex.split(f"{self.model.qemu} -nodefaults -display none -accel tcg,thread=multi -smp 2"),
            *["-m", str(self.memory_mb)],
            *["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={self.model.firmware}"],
            *["-drive", f"if=pflash,format=raw,unit=1,file={folder}/vars.fd"],
            *["-drive", f"if=none,id=disk,{self._drive}"],
            *["-device", f"{self.attached},drive=disk,bootindex=1"],
            *["-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:{self.opened}"],
            *(["-device", f"{self.network},netdev=net"] if self.network else []),
            *["-device", "virtio-rng-pci"],
            *["-chardev", f"socket,id=serial,path={folder}/serial.sock,server=on,wait=off,logfile={folder}/serial.log"],
            *["-serial", "chardev:serial"],
            *["-qmp", f"unix:{folder}/monitor.sock,server=on,wait=off"],
        ]
        if self.watchdog:
            arguments += ["-device", self.watchdog, "-action", "watchdog=reset"]
        if self._tpm:
            arguments += ["-chardev", f"socket,id=tpm,path={folder}/tpm.sock", "-tpmdev", "emulator,id=tpm,chardev=tpm"]
            arguments += ["-device", f"{self.model.tpm},tpmdev=tpm"]
        if self.probe:
            arguments += ["-device", "virtio-serial-pci"]
            arguments += ["-chardev", f"socket,id=probe,path={folder}/probe.sock,server=on,wait=off"]
            arguments += ["-device", "virtserialport,chardev=probe,name=millwright.probe"]
            arguments += _credential("systemd.extra-unit.probe.service", _PROBE)
            arguments += _credential("systemd.unit-dropin.multi-user.target~probe", _WANTED)
        return [*arguments, *self.extra]

    @property
    def _drive(self) -> str:
        disk = self.folder / self.disk
        if self.recording:
            log = f"log.driver=file,log.filename={self.folder / self.recording}"
            return f"driver=blklogwrites,file.driver=file,file.filename={disk},{log}"
        form = "qcow2" if self.disk.endswith(".qcow2") else "raw"
        return f"format={form},file={disk},discard=unmap"


@dataclass
class Running:
    machine: Machine
    process: "subprocess.Popen[bytes]"
    port: int  # of the host, leads to `Machine.opened`
    _shell: socket.socket | None = None
    _read: bytes = field(default=b"", repr=False)

    # ---- the console -------------------------------------------------------------------------------------------

    def console(self) -> str:
        """All that was written on the serial line, of this and earlier boots, without its colours."""
        path = self.machine.folder / "serial.log"
        text = path.read_bytes().decode("utf-8", "replace") if path.exists() else ""
        return re.sub(r"\x1b\[[0-9;?=]*[A-Za-z]|\x1b[()][A-Z0-9]|\r", "", text)

    def wait_for(self, pattern: str, seconds: float, start: int = 0) -> re.Match[str]:
        """On the console, behind its first `start` characters. MachineError."""
        found = self._wait(lambda: re.search(pattern, self.console()[start:]), seconds, f"'{pattern}' on the console")
        assert isinstance(found, re.Match)
        return found

    def type(self, text: str) -> None:
        """On the serial line."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.machine.folder / "serial.sock"))
            for character in text:
                line.sendall(character.encode())
                time.sleep(0.05)

    # ---- the probe ---------------------------------------------------------------------------------------------

    def wait_probe(self, seconds: float = BOOT_S) -> None:
        """Until the system has started so far that the shell answers. MachineError."""
        self._hang_up()
        end = time.monotonic() + seconds
        while True:
            with suppress(MachineError):
                if self.run("true", 20).code == 0:
                    return
            self._check_time(end, "an answer of the probe")
            self._hang_up()

    def run(self, command: str, seconds: float = 300) -> Answer:
        """A command in the guest, as root. MachineError where it does not end in time."""
        mark = secrets.token_hex(8)
        packed = base64.b64encode(command.encode()).decode()
        script = f"echo {packed} | base64 -d >/run/probe.sh; sh /run/probe.sh >/run/probe.out 2>&1 </dev/null; c=$?; "
        script += f'printf "\\n{mark}<"; base64 -w0 /run/probe.out; printf ">%s;\\n" "$c"\n'
        self._send(b"\n" + script.encode())
        pattern = re.compile(rb"\n" + mark.encode() + rb"<([A-Za-z0-9+/=]*)>(\d+);")
        found = self._wait(
            lambda: self._receive(pattern), seconds, f"the end of `{command[:80]}` in the guest", tell=False
        )
        assert isinstance(found, re.Match)
        return Answer(int(found[2]), base64.b64decode(found[1]).decode("utf-8", "replace"))

    def check(self, command: str, seconds: float = 300) -> str:
        """What it writes. MachineError where it fails."""
        answer = self.run(command, seconds)
        if answer.code:
            raise MachineError(f"`{command}` ended with {answer.code} in the guest:\n{answer.text}")
        return answer.text

    def _send(self, data: bytes) -> None:
        if self._shell is None:
            self._shell = socket.socket(socket.AF_UNIX)
            end = time.monotonic() + 60
            while True:
                try:
                    self._shell.connect(str(self.machine.folder / "probe.sock"))
                    break
                except OSError:
                    self._check_time(end, "QEMU")
                    time.sleep(POLL_S)
            self._shell.setblocking(False)
            self._read = b""
        with suppress(BlockingIOError):  # the guest has not opened its end
            self._shell.sendall(data)

    def _receive(self, pattern: "re.Pattern[bytes]") -> "re.Match[bytes] | None":
        assert self._shell is not None
        with suppress(BlockingIOError):
            while data := self._shell.recv(1 << 16):
                self._read += data
        return pattern.search(self._read)

    def _hang_up(self) -> None:
        if self._shell is not None:
            self._shell.close()
            self._shell = None

    def converse(self) -> int:
        """The console in this terminal, until the machine is off."""
        command = ["socat", "-,raw,echo=0,escape=0x18", f"UNIX-CONNECT:{self.machine.folder}/serial.sock"]
        self._wait(lambda: (self.machine.folder / "serial.sock").exists() or None, 60, "QEMU")
        return subprocess.run(command, check=False).returncode

    # ---- its life ----------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """The button: no warning to the guest."""
        self._monitor("system_reset")
        self._hang_up()

    def shut_down(self, seconds: float = 300) -> None:
        """By the power button, which is pressed again where nothing in the guest was listening yet."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end - PRESS_AGAIN_S:
            with suppress(OSError, MachineError):  # it may end at this moment
                self._monitor("system_powerdown")
                self.wait_for_end(PRESS_AGAIN_S)
        self.wait_for_end(max(0.0, end - time.monotonic()))

    def wait_for_end(self, seconds: float) -> None:
        """Until the guest has switched the machine off. MachineError."""
        self._hang_up()
        self._wait(lambda: self.process.poll() is not None or None, seconds, "the guest's end")

    def kill(self) -> None:
        """A power cut."""
        self._hang_up()
        _end(self.process)

    def _monitor(self, command: str) -> None:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(30)
            line.connect(str(self.machine.folder / "monitor.sock"))
            with line.makefile("rwb") as file:
                file.readline()
                for word in ("qmp_capabilities", command):
                    file.write(json.dumps({"execute": word}).encode() + b"\n")
                    file.flush()
                    file.readline()

    def _wait(self, look: Callable[[], object], seconds: float, what: str, *, tell: bool = True) -> object:
        end = time.monotonic() + seconds
        while True:
            found = look()
            if found is not None:
                return found
            self._check_time(end, what, tell=tell)
            time.sleep(POLL_S)

    def _check_time(self, end: float, what: str, *, tell: bool = True) -> None:
        ended = self.process.poll() is not None
        if not ended and time.monotonic() < end:
            return
        last = "\n".join(self.console().splitlines()[-40:]) if tell else ""
        how = "QEMU ended before" if ended else "in vain waited for"
        raise MachineError(f"{last}\n{how} {what}; see {self.machine.folder}")


def dropin(unit: str, name: str, text: str) -> tuple[str, ...]:
    """For `Machine.extra`: more lines for a unit of an image that takes credentials."""
    return tuple(_credential(f"systemd.unit-dropin.{unit}~{name}", text))


def _credential(name: str, value: str) -> list[str]:
    packed = base64.b64encode(value.encode()).decode()
    return ["-smbios", f"type=11,value=io.systemd.credential.binary:{name}={packed}"]


def _end(process: "subprocess.Popen[bytes]") -> None:
    """unshare takes everything in its namespace of processes with it: QEMU and the TPM."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
