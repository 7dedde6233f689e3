"""What other libraries print stays off the terminal; errors and the last words of a crash do not."""

import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest

from tests.conftest import save_untrained

START = "import os, sys\nfrom basisnet_jax.host import noise\nnoise.filter_native_stderr()\n"
NOISE = [
    "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR",
    "W0000 00:00:1795876230.096851   11371 tf_tfl_flatbuffer_helpers.cc:364] Ignored output_format.",
    "I0000 00:00:1795876230.096903   11371 cpu_feature_guard.cc:227] To enable the following instructions",
    "To enable the following instructions: AVX2 FMA, in other operations, rebuild TensorFlow with other flags.",
    "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.",
    "2026-11-28 14:30:32.849587: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.",
    "2026-11-28 14:30:32.849587: W tensorflow/core/framework/op.cc:1] an operation is old",
    "2026-11-28 14:30:32.849587103 [W:onnxruntime:, execution_frame.cc:876] Expected shape differs",
    "libpng error: IDAT: incorrect data check",
    "libpng warning: iCCP: known incorrect sRGB profile",
    "Corrupt JPEG data: 126 extraneous bytes before marker 0xd9",
    "Premature end of JPEG file",
    "E1128 14:40:42.449298   18693 slow_operation_alarm.cc:73] ",
    "********************************",
    "[Compiling module jit_train_step for CPU] Very slow compile? If you want to file a bug, run with envvar X",
    "********************************",
    "",
]
KEPT = [
    "E0000 00:00:1795876230.096851   11371 cuda_dnn.cc:8579] Unable to register cuDNN factory",
    "F0000 00:00:1795876230.096851   11371 array.h:5] Check failed: size < 3",
    "2026-11-28 14:30:32.849587: F tensorflow/core/framework/tensor.cc:844] Check failed: 1 == 2",
    "terminate called after throwing an instance of 'std::bad_alloc'",
    "INFORMATION of no known kind",
]


def stderr_of(code, *, expected_code=0, **environment):
    done = subprocess.run(
        [sys.executable, "-c", START + code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )
    assert done.returncode == expected_code, done.stderr
    return done.stderr.splitlines()


def test_information_and_warnings_of_native_code_are_dropped_and_errors_are_kept():
    lines = [line for pair in zip(NOISE, KEPT, strict=False) for line in pair] + NOISE[len(KEPT) :]
    assert stderr_of(f"os.write(2, {os.linesep.join(lines).encode()!r})") == KEPT


def test_the_last_words_of_a_crash_are_seen():
    code = "os.write(2, b'F0000 00:00:1.1 1 a.cc:1] Check failed: of a crash')\nos.abort()"
    assert stderr_of(code, expected_code=-6) == ["F0000 00:00:1.1 1 a.cc:1] Check failed: of a crash"]


JAX_LOSES_A_PROCESS = """\
E1129 17:48:26.685750   11118 coordination_service.cc:1549] [151] Use error polling to propagate the following error \
to all tasks: UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1
3
The tasks have crashed. Check the task logs for an earlier error, or scheduler events to debug further.
E1129 17:48:26.686169   11129 coordination_service_agent.cc:289] Polled an error from coordination service.
F1129 17:48:26.686311   11129 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. This most likely indicates that another task died. absl::Status: {status}
*** Check failure stack trace: ***
    @     0x7f1349040634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
GONE = "no longer answers; its log says why, or its node or the network is gone"
LOST_PROCESSES = {
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n1\n\nRPC: /x": f"process 1 {GONE}",
    "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):\n3\n1\n2\nThe tasks have crashed.": (
        "processes 1, 2 and 3 no longer answer; their logs say why, or the network is gone"
    ),
    "DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.CoordinationService/Heartbeat": f"process 0 {GONE}",
    "UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted.\n:UNKNOWN:Error": (
        f"process 0 {GONE}"
    ),
    "INTERNAL: a new one\nmore on it": "this process lost the others, whose logs say why (INTERNAL: a new one)",
}


@pytest.mark.parametrize("status", LOST_PROCESSES)
def test_one_sentence_tells_of_a_lost_process_in_place_of_stack_traces(status):
    """JAX's words as it aborts, then Python's, which faulthandler writes."""
    words = JAX_LOSES_A_PROCESS.format(status=status).encode()
    lines = stderr_of(
        f"import faulthandler\nfaulthandler.enable(file=2)\nos.write(2, {words!r})\nos.abort()", expected_code=-6
    )
    assert lines == [f"error: {LOST_PROCESSES[status]}; the same command resumes from the newest checkpoint."]


def test_a_fault_is_told_by_python():
    lines = stderr_of("import faulthandler\nfaulthandler.enable()\nos.kill(os.getpid(), 11)", expected_code=-11)
    assert lines[0] == "Fatal Python error: Segmentation fault"


ABORTED_BY_A_THREAD = """
import ctypes, sys, threading
from absl import app
from basisnet_jax import main
from basisnet_jax.modes import parsing

def aborted(argv):
    main.main(argv)
    threading.Thread(target=ctypes.CDLL(None).abort).start()
    while True:
        pass

sys.argv = ["main.py", "--mode=devices"]
app.run(aborted, flags_parser=parsing.parse_flags)
"""


def test_python_does_not_read_the_frames_of_threads_that_run_while_it_tells_of_a_fault():
    """As JAX's thread aborts a process that lost another one: that ended in a second fault, a segmentation fault."""
    lines = stderr_of(ABORTED_BY_A_THREAD, expected_code=-6)
    assert lines[0] == "Fatal Python error: Aborted"
    assert sum("most recent call first" in line for line in lines) == 1


def test_pythons_own_stderr_goes_past_the_filter():
    assert stderr_of(f"print({NOISE[0]!r}, file=sys.stderr)") == [NOISE[0]]
    assert stderr_of("1 / 0", expected_code=1)[-1] == "ZeroDivisionError: division by zero"


def test_everything_is_shown_to_who_asks():
    assert stderr_of(f"noise.show_everything()\nos.write(2, {NOISE[0].encode()!r})") == [NOISE[0]]


def test_a_process_that_this_one_started_is_filtered_too():
    """Data workers: their descriptor 2 is this one's."""
    code = "import subprocess\nsubprocess.run(['sh', '-c', 'echo INFO: a; echo b >&2; echo INFO: c >&2'])"
    assert stderr_of(code) == ["b"]


def test_stdout_ends_with_the_process():
    """The filter holds no copy of it: a reader of `| head` waits for the last holder."""
    code = "import subprocess\nsubprocess.Popen(['sleep', '20'], stdout=subprocess.DEVNULL)\nprint(1, flush=True)\n"
    with subprocess.Popen(
        [sys.executable, "-c", START + code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as done:
        assert done.stdout.read() == b"1\n"
        assert done.wait(timeout=10) == 0


RECORDS = """
import logging, types
from basisnet_jax.host import terminal
from absl import logging as absl_logging
noise.log_own_lines(terminal.log)
def record(name, path, level, text):
    logging.getLogger(name).handle(logging.LogRecord(name, level, path, 1, text, (), None))
own = noise.PACKAGE + '/train.py'
record('absl', own, logging.INFO, 'ours')
record('absl', own, logging.WARNING, 'our warning')
record('absl', '/site/orbax/checkpoint_manager.py', logging.INFO, 'orbax')
record('absl', '/site/orbax/checkpoint_manager.py', logging.WARNING, 'orbax warns')
record('absl', '/site/orbax/checkpoint_manager.py', logging.ERROR, 'orbax fails')
record('jax._src.xla_bridge', '/site/jax/xla_bridge.py', logging.INFO, 'jax')
record('jax._src.xla_bridge', '/site/jax/xla_bridge.py', logging.WARNING, 'falling back to CPU')
absl_logging.info('somebody else')
"""


def test_the_converters_own_warnings_are_dropped():
    code = "from basisnet_jax.host import terminal\nimport warnings\nnoise.log_own_lines(terminal.log)\n"
    for module in ("tensorflow.lite.python.interpreter", "tf2onnx.tfonnx", "basisnet_jax.train"):
        code += f"warnings.warn_explicit('of {module}', UserWarning, 'a.py', 1, {module!r})\n"
    assert stderr_of(code) == ["a.py:1: UserWarning: of basisnet_jax.train"]


def test_python_prints_our_lines_the_warnings_of_jax_and_all_errors():
    dated = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
    lines = stderr_of(RECORDS)
    texts = ["ours", "warning: our warning", "error: orbax fails", "warning: falling back to CPU"]
    assert len(lines) == len(texts)
    for line, text in zip(lines, texts, strict=True):
        assert re.fullmatch(dated + text, line), line


DATED = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d "
STAGES = (
    *("opening run and data", "evaluating", "choosing thresholds", "drawing", "classifying"),
    *(r"exporting (preview|specialist)\.(tflite|stablehlo)", "checking every file on every image"),
    r"evaluating: compiling, once( \(.*\))?: \d+ s",
)


@pytest.mark.parametrize("mode", ["evaluate", "export", "predict"])
def test_a_command_prints_its_own_lines_alone(mode, config, tmp_path):
    """Training's are in tests/system/test_main.py, where it is stopped."""
    save_untrained(config, tmp_path)
    (tmp_path / "photo.png").write_bytes(cv2.imencode(".png", np.zeros((9, 9), np.uint8))[1].tobytes())
    run = [sys.executable, "-m", "basisnet_jax.main", "--config=tests/configs/tiny.py", f"--workdir={tmp_path}"]
    run += [f"--mode={mode}", f"--config.data.dir={config.data.dir}"]
    run += ["--threshold=0.5", f"--images={tmp_path}/*.png"] if mode == "predict" else []
    done = subprocess.run(run, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    foreign = [line for line in done.stderr.splitlines() if not re.fullmatch(f"{DATED}({'|'.join(STAGES)})", line)]
    assert foreign == []
    assert "WARNING" not in done.stdout
