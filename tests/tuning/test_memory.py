"""Memory that a trial has freed does not stay with its worker."""

import ctypes
import sys
import threading

import psutil
import pytest

from darkarc.tuning.memory import give_memory_back

MB = 1 << 20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
def test_what_a_thread_has_freed_goes_back_to_the_system():
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("a C library without malloc_trim")
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
    before = resident().rss
    thread = threading.Thread(target=trial)
    thread.start()
    thread.join()
    freed = resident().rss
    give_memory_back()
    after = resident().rss
    for block in kept:
        libc.free(block)
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
