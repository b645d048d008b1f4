"""The API as the supervisor runs it: on a socket that the supervisor holds."""

import signal
import sys
import threading

import httpx

from service.address import listen, url
from service.local.process import Process, wait_until
from service.local.restarts import Restarter
from tests.service.served import environment

LINE = "event=request method=GET route=/readyz http_status=200"


def test_a_restarted_api_goes_on_with_the_same_socket(services, tmp_path):
    """A caller between two API processes is neither refused nor answered by somebody else: it waits."""
    answers: list[int] = []
    with listen("127.0.0.1", 0) as listener:

        def ask() -> None:
            answers.append(httpx.get(f"{url(listener)}/readyz", timeout=120, trust_env=False).status_code)

        command = [sys.executable, "-m", "service.main", "--fd", str(listener.fileno())]
        log = tmp_path / "api.log"
        process = Process("api", command, log, environment=environment(services), pass_fds=(listener.fileno(),))
        process.start()
        try:
            ask()
            assert wait_until(lambda: LINE in log.read_text(), 60)  # a killed process loses those of the last moment
            process.running.send_signal(signal.SIGKILL)
            process.running.wait(60)
            caller = threading.Thread(target=ask)
            caller.start()
            Restarter(process).look()
            assert wait_until(lambda: len(answers) == 2 or process.exited() is not None, 120)
            caller.join()
            assert answers == [200, 200], log.read_text()
        finally:
            process.ask_to_stop()
            process.wait()
    assert log.read_text().count(LINE) == 2
