import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.deploy.site import job_variables
from flows.runtime import end_with_parent
from flows.runtime.child_process import ChildError, run_child, stop_signals_exit
from storage_schemas.errors import UserError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_lines_arrive_in_order() -> None:
    lines: list[str] = []
    run_child(python("print('one'); print('two')"), lines.append)
    assert lines == ["one\n", "two\n"]


def test_exit_code_two_is_the_users_error_in_its_own_words() -> None:
    said = "noise\\nerror: no such recipe\\na warning of a library\\n"
    code = f"import sys; sys.stderr.write('{said}'); sys.stdout.buffer.write(b'\\xff'); sys.exit(2)"
    with pytest.raises(UserError, match=r"^no such recipe$"):
        run_child(python(code), lambda _: None)


def test_sighup_stops_the_child_in_order(tmp_path: Path) -> None:
    script = "import sys\nfrom flows.runtime.child_process import run_child, stop_signals_exit\n"
    script += "with stop_signals_exit():\n    run_child(sys.argv[1:], lambda line: print(line, flush=True))\n"
    command = [*python(script), *python(GENTLE), str(tmp_path / "checkpoint")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        starter.stdout.readline()
        starter.send_signal(signal.SIGHUP)
        assert starter.wait(60) == 128 + signal.SIGHUP
    assert (tmp_path / "checkpoint").read_text() == "saved"


def test_any_other_failure_keeps_the_childs_words() -> None:
    with pytest.raises(ChildError, match="ZeroDivisionError"):
        run_child(python("1 / 0"), lambda _: None)


GENTLE = """
import signal, sys, time
from pathlib import Path
def leave(*_):
    Path(sys.argv[1]).write_text("saved"); sys.exit(143)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""


def test_an_exception_in_the_parent_lets_the_child_finish(tmp_path: Path) -> None:
    def cancel(_line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_child([*python(GENTLE), str(tmp_path / "checkpoint")], cancel)
    assert (tmp_path / "checkpoint").read_text() == "saved"


def test_a_child_that_will_not_stop_is_killed() -> None:
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"

    def cancel(_line: str) -> None:
        raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_child(python(stubborn), cancel, grace=0.3)
    assert time.monotonic() - begin < 20


def test_a_child_stopped_from_outside_stops_the_parent_in_order() -> None:
    with pytest.raises(SystemExit) as caught:
        run_child(python("import os; os.kill(os.getpid(), 15)"), lambda _: None)
    assert caught.value.code == 143


def test_sigterm_to_the_parent_reaches_the_child(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys\nfrom flows.runtime.child_process import run_child, stop_signals_exit\n"
        "with stop_signals_exit():\n    run_child(sys.argv[1:], lambda line: print(line, flush=True))\n"
    )
    command = [sys.executable, str(script), *python(GENTLE), str(tmp_path / "checkpoint")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(30) == 143
    assert (tmp_path / "checkpoint").read_text() == "saved"


def test_the_handler_is_given_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit), stop_signals_exit():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_killed_parent_takes_its_child_along_in_order(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text("import sys\nfrom flows.runtime.child_process import run_child\nrun_child(sys.argv[1:], print)\n")
    checkpoint, ready = tmp_path / "checkpoint", tmp_path / "ready"
    gentle = GENTLE.replace('print("ready", flush=True)', f"Path({str(ready)!r}).touch()")
    with subprocess.Popen([sys.executable, str(script), *python(gentle), str(checkpoint)]) as parent:
        wait_for(ready)
        parent.kill()
    wait_for(checkpoint)
    assert checkpoint.read_text() == "saved"


COUNTING = """
import signal, sys, time
from pathlib import Path
count = 0
def note(number, frame):
    global count
    count += 1
signal.signal(signal.SIGTERM, note)
Path(sys.argv[1]).touch()
while not count:
    time.sleep(0.01)
for _ in range(50):  # every signal ends one of these short sleeps
    time.sleep(0.01)
Path(sys.argv[2]).write_text(str(count))
"""


def test_the_end_of_a_parent_with_many_threads_is_one_signal(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(
        "import sys, threading, time\nfrom flows.runtime.child_process import run_child\n"
        "threading.Thread(target=run_child, args=(sys.argv[1:], print)).start()\n"
        "for _ in range(30):\n    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
    )
    ready, counted = tmp_path / "ready", tmp_path / "counted"
    with subprocess.Popen([sys.executable, str(script), *python(COUNTING), str(ready), str(counted)]) as parent:
        wait_for(ready)
        parent.kill()
    wait_for(counted)
    assert counted.read_text() == "1"


def test_a_log_survives_the_end_of_its_reader(tmp_path: Path) -> None:
    """As when a worker is killed: its flow runs must still tell the server how they ended."""
    script = (
        "import logging, os, sys\nfrom prefect.logging.configuration import setup_logging\nsetup_logging()\n"
        "reading, writing = os.pipe()\nos.dup2(writing, 2)\nos.close(writing)\nos.close(reading)\n"
        "for _ in range(3):\n    logging.getLogger('prefect').error('crash detected')\n"
        "sys.exit(7)\n"
    )
    variables = {"PREFECT_HOME": str(tmp_path), **job_variables("/")["env"]}
    done = subprocess.run(python(script), env={**os.environ, **variables}, capture_output=True, text=True, check=False)
    assert done.returncode == 7


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not come"
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("command", "words"),
    [([], "usage: python -m flows.runtime.end_with_parent"), (["/nowhere/command"], "can't run /nowhere/command")],
)
def test_a_line_without_a_command_is_refused(command: list[str], words: str) -> None:
    done = subprocess.run(end_with_parent.ending_with_parent(command), capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert words in done.stderr
