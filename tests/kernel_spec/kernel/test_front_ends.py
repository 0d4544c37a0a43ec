"""Start, interrupt, restart and end as jupyter_client's own tests ask for them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, ClassVar
from unittest import mock

import jupyter_kernel_test
import pytest
from jupyter_client.manager import KernelManager

from tests.kernel_spec.conftest import is_alive, wait_until
from tests.kernel_spec.kernel.conftest import ANSWER_SECONDS, FrontEnd, open_front_end, text_of


class TestByJupyter(jupyter_kernel_test.KernelTests):
    """The test that Jupyter has for every kernel."""

    kernel_name = "transform"
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('hello, world', file=sys.stderr)"
    completion_samples: ClassVar[Any] = [{"text": "zi", "matches": {"zip"}}]
    complete_code_samples: ClassVar[Any] = ["1", "print('hello')", "def f():\n    return 1\n\n"]
    incomplete_code_samples: ClassVar[Any] = ["def f():", "print('hello',"]
    invalid_code_samples: ClassVar[Any] = ["import = 7"]
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result: ClassVar[Any] = [{"code": "1 + 2", "result": "3"}]
    code_display_data: ClassVar[Any] = [
        {"code": "from IPython.display import HTML, display; display(HTML('<b>1</b>'))", "mime": "text/html"}
    ]
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    @classmethod
    def setUpClass(cls) -> None:
        cls.opened = open_front_end()
        front_end = cls.opened.__enter__()
        cls.km, cls.kc = front_end.manager, front_end.client

    @classmethod
    def tearDownClass(cls) -> None:
        cls.opened.__exit__(None, None, None)

    def execute_helper(self, *args: Any, **kwargs: Any) -> Any:
        """Wait for each message; upstream gives 100 ms, which a busy machine can need."""
        get_msg = self.kc.iopub_channel.get_msg

        def patient(timeout: float) -> Any:
            return get_msg(timeout=ANSWER_SECONDS)

        with mock.patch.object(self.kc.iopub_channel, "get_msg", patient):
            return super().execute_helper(*args, **kwargs)

    def test_history(self) -> None:
        """Not supported: a kernel has no history file (docs/jupyter.md)."""
        self.kc.history(hist_access_type="tail", n=1)
        assert self.kc.get_shell_msg(timeout=ANSWER_SECONDS)["content"]["history"] == []


@pytest.fixture
def own(new_front_end: Callable[[], FrontEnd]) -> FrontEnd:
    return new_front_end()


@pytest.mark.parametrize(
    "code",
    [
        "print('go', flush=True)\nwhile True: pass",
        "import time\nprint('go', flush=True)\ntime.sleep(1000)",
        "import subprocess\nsubprocess.run('echo go; sleep 1000', shell=True)",
    ],
    ids=["loop", "sleep", "child"],
)
def test_interrupt_ends_the_cell_and_its_children(front_end: FrontEnd, code: str) -> None:
    running = front_end.client.execute(code)
    front_end.wait_for_output()
    waiting = front_end.client.execute("print('must not run')")
    front_end.wait_until_received()
    front_end.manager.interrupt_kernel()
    reply, _ = front_end.answer(running)
    assert (reply["status"], reply["ename"]) == ("error", "KeyboardInterrupt")
    reply, messages = front_end.answer(waiting)
    assert (reply["status"], text_of(messages)) == ("aborted", "")
    children = "import subprocess; print(subprocess.run(['pgrep', '-x', 'sleep'], capture_output=True).stdout)"
    assert front_end.printed(children) == "b''\n"


def test_interrupt_while_idle_changes_nothing(front_end: FrontEnd) -> None:
    front_end.run("kept = 1")
    front_end.manager.interrupt_kernel()
    assert front_end.printed("print(kept)") == "1\n"


def test_messages_of_an_error_come_in_order(front_end: FrontEnd) -> None:
    reply, messages = front_end.run("print('before')\n1 / 0")
    assert [message["msg_type"] for message in messages] == ["status", "execute_input", "stream", "error", "status"]
    assert messages[3]["content"] == {name: reply[name] for name in ("ename", "evalue", "traceback")}


def test_restart_serves_the_same_client(own: FrontEnd) -> None:
    own.run("before = 1")
    own.manager.restart_kernel()
    own.client.wait_for_ready(timeout=ANSWER_SECONDS)
    assert own.printed("print('before' in globals())") == "False\n"
    own.client.execute("while True: pass")
    own.manager.restart_kernel(now=True)
    own.client.wait_for_ready(timeout=ANSWER_SECONDS)
    assert own.printed("print(1)") == "1\n"


def test_first_cell_after_a_restart_loses_no_output(own: FrontEnd) -> None:
    """A client that does not wait for the kernel, as the connections of jupyter_server do not."""
    for number in range(5):
        own.manager.restart_kernel(now=True)
        assert own.printed(f"print({number})") == f"{number}\n"


def test_shutdown_is_answered_and_announced(own: FrontEnd) -> None:
    request = own.client.shutdown()
    reply = own.client.get_control_msg(timeout=ANSWER_SECONDS)
    assert (reply["msg_type"], reply["parent_header"]["msg_id"]) == ("shutdown_reply", request)
    _wait_for_announcement(own)
    assert wait_until(lambda: not own.manager.is_alive())


def _wait_for_announcement(own: FrontEnd) -> None:
    while own.client.get_iopub_msg(timeout=ANSWER_SECONDS)["msg_type"] != "shutdown_reply":
        pass


# The last message of the control thread, that it is idle, waits until the thread that publishes has ended, or a second.
_SLOW_CONTROL_THREAD = """
kernel = get_ipython().kernel
publish = kernel._publish_status_and_flush
def wait_and_publish(status, channel, *rest):
    if channel == "control":
        kernel.iopub_thread.thread.join(1)
    publish(status, channel, *rest)
kernel._publish_status_and_flush = wait_and_publish
"""


def test_shutdown_waits_for_what_the_control_thread_publishes(own: FrontEnd) -> None:
    own.run(_SLOW_CONTROL_THREAD)
    request, states = own.client.shutdown(), []
    while "idle" not in states:
        message = own.client.get_iopub_msg(timeout=ANSWER_SECONDS)
        if message["parent_header"].get("msg_id") == request:
            states.append(message["content"].get("execution_state", message["msg_type"]))
    assert states == ["busy", "shutdown_reply", "idle"]


# A subscriber in a process of its own, which can be stopped. It says that it is welcomed, then counts printed characters.
_READER = f"""
import json, sys, zmq
socket = zmq.Context().socket(zmq.SUB)
socket.rcvtimeo = {ANSWER_SECONDS * 1000}
socket.subscribe(b"")
socket.subscribe(b"a topic that is new to the kernel, which welcomes the first subscriber of each")
socket.connect(sys.argv[1])
kind, characters = "", 0
while kind != "shutdown_reply":
    frames = socket.recv_multipart()
    header = frames.index(b"<IDS|MSG>") + 2
    kind, content = json.loads(frames[header])["msg_type"], json.loads(frames[header + 3])
    if kind == "iopub_welcome":
        print("welcome", flush=True)
    characters += len(content["text"]) if kind == "stream" else 0
print(characters)
"""


def test_shutdown_loses_no_message_for_a_slow_client(own: FrontEnd) -> None:
    address = f"ipc://{own.manager.ip}-{own.manager.iopub_port}"
    with subprocess.Popen([sys.executable, "-c", _READER, address], stdout=subprocess.PIPE, text=True) as reader:
        try:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "welcome\n"
            reader.send_signal(signal.SIGSTOP)
            # more than the buffers of the stopped client's socket hold
            own.run("for _ in range(250): print('x' * 20_000, flush=True)")
            own.client.shutdown()
            _wait_for_announcement(own)
            reader.send_signal(signal.SIGCONT)
            assert reader.communicate(timeout=ANSWER_SECONDS)[0] == f"{250 * 20_001}\n"
        finally:
            reader.kill()


def test_kernels_of_one_front_end_are_independent(new_front_end: Callable[[], FrontEnd]) -> None:
    first, second = new_front_end(), new_front_end()
    requests = [end.client.execute(f"here = {number}; print(here)") for number, end in enumerate((first, second))]
    assert [text_of(end.answer(each)[1]) for end, each in zip((first, second), requests, strict=True)] == ["0\n", "1\n"]
    first.manager.shutdown_kernel(now=True)
    assert second.printed("print(here)") == "1\n"


def test_second_start_takes_the_place_of_the_first_kernel(own: FrontEnd) -> None:
    manager: KernelManager = own.manager
    own.run("before = 1")
    first = manager.provisioner.pid
    manager.start_kernel()
    assert manager.provisioner.pid != first
    assert wait_until(lambda: not is_alive(first))
    own.client.wait_for_ready(timeout=ANSWER_SECONDS)
    assert own.printed("print('before' in globals())") == "False\n"
