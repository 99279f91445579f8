"""Ctrl-C and SIGTERM: stop within seconds, whatever the main thread is busy with."""

import os
import signal
import socket
import sys
import threading
from types import FrameType

EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143
# Native code is left alone for so long to finish its batch; the promise is 5 s in all.
PATIENCE_SECONDS = 4.0
STOPPED = "Stopped. Finished work is kept and nothing was half-written: give the same command again to go on."


class Stopped(KeyboardInterrupt):
    """A signal asked the process to end; a KeyboardInterrupt, so that no library takes it for an error of its own."""

    def __init__(self, code: int) -> None:
        super().__init__()
        self.code = code


def leave_on_signals() -> None:
    """End at a signal, with the same words and code: while a script still imports, nothing can be lost."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)


def _leave(number: int, _frame: FrameType | None) -> None:
    os.write(1, f"{STOPPED}\n".encode())
    os._exit(_code_of(number))


def stop_on_signals() -> None:
    """Turn SIGINT and SIGTERM into :class:`Stopped` in the main thread, and end the process if that does not help.

    Python runs its handlers between two bytecodes, so a long call into native code holds them up. The number of the
    signal reaches a second thread through a pipe at once; after ``PATIENCE_SECONDS`` it ends the process as a kill
    would, which loses no more than the block in hand: whatever is on disk is whole at any moment.
    """
    receiving, sending = socket.socketpair()
    sending.setblocking(False)
    signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    threading.Thread(target=_watch, args=(receiving, sending), daemon=True, name="signals").start()


def _stop(number: int, _frame: FrameType | None) -> None:
    raise Stopped(_code_of(number))


def _code_of(number: int) -> int:
    return EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_TERMINATED


def _watch(receiving: socket.socket, _sending: socket.socket) -> None:
    while True:
        number = receiving.recv(1)[0]
        if number in {signal.SIGINT, signal.SIGTERM}:
            break
    threading.Event().wait(PATIENCE_SECONDS)
    sys.stdout.write(STOPPED + "\n")
    sys.stdout.flush()
    os._exit(_code_of(number))
