"""The memory of a worker that trains one network after the other."""

import contextlib
import ctypes
import gc


def give_memory_back() -> None:
    """Return to the operating system what Python and the C library keep of memory that nobody uses.

    Ray runs each trial in a thread of its own, and glibc keeps what the threads before have freed: workers
    of a benchmark over ten architectures had grown to 6.8 GB each after 34 trainings, of which a training
    uses one. Does nothing where the C library has no `malloc_trim`.
    """
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
