"""Memory that a trial has freed does not stay with its worker."""

import ctypes
import json
import subprocess
import sys

import pytest

MB = 1 << 20

A_WORKER_OF_ITS_OWN = """
import ctypes, json, threading, psutil
from darkarc.tuning.memory import give_memory_back
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
kept = []

def trial():
    blocks = [libc.malloc(60_000) for _ in range(5000)]
    for block in blocks:
        ctypes.memset(block, 1, 60_000)
    # Every hundredth stays in use: nothing above it can go by itself.
    for number, block in enumerate(blocks):
        kept.append(block) if number % 100 == 99 else libc.free(block)

resident = psutil.Process().memory_info
rss = [resident().rss]
thread = threading.Thread(target=trial)
thread.start()
thread.join()
rss.append(resident().rss)
give_memory_back()
rss.append(resident().rss)
print(json.dumps(rss))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_what_a_thread_has_freed_goes_back_to_the_system():
    """In a process of its own: where tests have freed memory before, a thread gets that and grows nothing."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("a C library without malloc_trim")
    run = subprocess.run(
        [sys.executable, "-c", A_WORKER_OF_ITS_OWN], capture_output=True, text=True, check=True
    )
    before, freed, after = json.loads(run.stdout)
    assert freed - before > 200 * MB
    assert after - before < 50 * MB


def test_every_trial_gives_its_memory_back(monkeypatch):
    from darkarc.tuning import trial

    called = []
    monkeypatch.setenv("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")  # else it would be set for other tests too
    monkeypatch.setattr(trial, "give_memory_back", lambda: called.append(1))
    monkeypatch.setattr(trial, "_run", lambda settings, one: called.append(one["number"]))
    run = trial.make_trainable(trial.TrialSettings({}, {}, ""))
    run({"number": 7})
    assert called == [7, 1]

    def failing(settings, one):
        raise RuntimeError("out of luck")

    monkeypatch.setattr(trial, "_run", failing)
    with pytest.raises(RuntimeError, match="out of luck"):
        run({"number": 8})
    assert called == [7, 1, 1]
