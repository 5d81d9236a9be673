"""What the scripts share that start real processes: commands that have to succeed, waiting, an orderly end, a status."""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

PATIENCE_S = 180


def fail(text):
    sys.exit(f"{os.path.basename(sys.argv[0])}: {text}")


def say(text):
    print(text, file=sys.stderr, flush=True)


def run(*command, **options):
    """What a command prints; the end of the script if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    if done.returncode != 0:
        fail(f"{' '.join(words)} failed ({done.returncode}): {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout


def wait(what, holds, seconds=PATIENCE_S, every=0.05):
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            fail(f"{what}: not within {seconds} s")
        time.sleep(every)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def cpu_s(pid):
    """Processor time of a process's threads, by the scheduler's account."""
    ns = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/schedstat") as schedstat:
            ns += int(schedstat.read().split()[0])
    return ns / 1e9


def status(towline, state, group):
    return json.loads(run(towline, "status", group, "--state", state, "--json"))["groups"][0]


class Processes:
    """All that was started, each with a log in a folder; ended in the opposite order.

    `rings` is a folder in shared memory for a proxy's `--ring-dir`: a ring stays behind its proxy, here it goes with the rest.
    """

    def __init__(self, folder):
        self.folder, self.running = folder, []
        self.rings = tempfile.mkdtemp(dir="/dev/shm", prefix="towline-lab-")

    def start(self, name, *command, environment=None):
        log = open(f"{self.folder}/{name}.log", "ab")
        words = [str(word) for word in command]
        process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)
        process.name, process.log = name, log.name
        self.running.append(process)
        return process

    def alive(self, process):
        if process.poll() is not None:
            with open(process.log) as log:
                fail(f"{process.name} ended ({process.returncode}): {log.read()[-800:]}")
        return True

    def all_alive(self):
        return all(self.alive(process) for process in self.running)

    def ready(self, process, text="ready"):
        def said():
            with open(process.log) as log:
                return self.alive(process) and text in log.read()
        wait(f"{process.name} says {text!r}", said)

    def end(self, process, how=signal.SIGTERM):
        if process.poll() is None:
            process.send_signal(how)
            process.send_signal(signal.SIGCONT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            # Some servers do not hear TERM for a while, and have nothing to keep.
            process.kill()
            process.wait()
        self.running.remove(process)

    def end_all(self):
        for process in reversed(self.running[:]):
            self.end(process)
        shutil.rmtree(self.rings)
