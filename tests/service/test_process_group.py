"""Several processes of the API on one socket."""

import signal
import subprocess
import sys

import httpx
import psutil

from service.local.process import wait_until
from tests.service.served import environment, free_port


def answers(url: str, path: str = "/readyz") -> bool:
    """Whether the API answers a new connection."""
    try:
        return httpx.get(f"{url}{path}", timeout=5, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_a_killed_process_is_replaced_and_all_end_together(services):
    """Callers are answered meanwhile, by the other one. Metrics have a port once."""
    port, metrics = free_port(), free_port()
    command = [sys.executable, "-m", "service.main", "--processes", "2", "--port", str(port)]
    group = subprocess.Popen(command, env=environment(services, metrics_port=metrics), stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        assert wait_until(lambda: answers(url), 60)
        first, second = psutil.Process(group.pid).children()
        first.kill()
        others = psutil.Process(group.pid).children
        assert wait_until(lambda: first not in others() and len(others()) == 2, 20)
        now = others()
        assert second in now
        assert wait_until(lambda: answers(url), 60)
        assert wait_until(lambda: answers(f"http://127.0.0.1:{metrics}", "/metrics"), 60)
        group.send_signal(signal.SIGTERM)
        assert group.wait(20) == 0
        assert not psutil.wait_procs(now, timeout=1)[1]
    finally:
        for process in (*psutil.Process(group.pid).children(), group) if group.poll() is None else ():
            process.kill()


def test_what_cannot_start_ends_the_group_with_its_exit_code(services):
    """Its reason is said by each process, and an orchestrator sees that to start again changes nothing."""
    command = [sys.executable, "-m", "service.main", "--processes", "2", "--port", "0"]
    broken = environment(services, storage_dir="/proc/none")
    group = subprocess.run(command, env=broken, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert group.returncode == 2
    assert "/proc/none" in group.stderr
