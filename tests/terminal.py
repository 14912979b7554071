# SPDX-License-Identifier: GPL-2.0
"""A person's terminal, given to a shell in the guest.

What is typed goes to the guest's console hvc0 as it is, Ctrl-C included, and what comes from it is
shown. A port named `size` says how large the terminal is, at first and when that changes: a line
`rows columns` each time. tests/guest/shell is at the other end of both.
"""

import os
import selectors
import signal
import socket
import sys
import termios
import threading
import tty

# Ctrl-], as in telnet.
ESCAPE = b"\x1d"


class Terminal:
    """Use: give qemu() to qemu, with `fds` open; then `with terminal.given_to(process)`."""

    def __init__(self):
        self.shell, shell = socket.socketpair()
        self.size, size = socket.socketpair()
        self.guest_ends = [shell, size]
        self.fds = [end.fileno() for end in self.guest_ends]
        self.escaped = False

    def qemu(self):
        """The arguments for it."""
        shell, size = self.fds
        return ["-chardev", f"socket,id=shell,fd={shell}", "-device", "virtconsole,chardev=shell,name=shell",
                "-chardev", f"socket,id=size,fd={size}",
                "-device", "virtserialport,chardev=size,name=size"]

    def given_to(self, process):
        """Says which qemu it is."""
        self.process = process
        for end in self.guest_ends:
            end.close()
        return self

    def __enter__(self):
        self.before = termios.tcgetattr(0)
        self.resized = signal.signal(signal.SIGWINCH, self.tell_size)
        self.size.setblocking(False)
        self.tell_size()
        self.copier = threading.Thread(target=self.copy, daemon=True)
        tty.setraw(0, termios.TCSADRAIN)
        self.copier.start()

    def __exit__(self, *_):
        # With the process ends what can be read from the shell.
        self.process.kill()
        self.process.wait()
        self.copier.join(10)
        termios.tcsetattr(0, termios.TCSADRAIN, self.before)
        signal.signal(signal.SIGWINCH, self.resized)
        self.shell.close()
        self.size.close()

    def tell_size(self, *_):
        columns, rows = os.get_terminal_size(0)
        try:
            self.size.send(f"{rows} {columns}\n".encode())
        except OSError:
            pass  # The guest does not read it, or has ended.

    def copy(self):
        """Until the guest closes its end. Never waits for the guest alone, so that what hangs can be
        ended from the terminal."""
        typed = b""
        self.shell.setblocking(False)
        with selectors.DefaultSelector() as selector:
            selector.register(0, selectors.EVENT_READ)
            selector.register(self.shell, selectors.EVENT_READ)
            while True:
                selector.modify(self.shell, selectors.EVENT_READ | bool(typed) * selectors.EVENT_WRITE)
                for key, events in selector.select():
                    try:
                        if key.fd == 0:
                            data = os.read(0, 4096)
                            if ESCAPE in data:
                                self.escaped = True
                                self.process.kill()
                            if not data:
                                selector.unregister(0)
                            typed += data
                            continue
                        if events & selectors.EVENT_WRITE:
                            typed = typed[self.shell.send(typed):]
                        if events & selectors.EVENT_READ:
                            data = self.shell.recv(65536)
                            if not data:
                                return
                            sys.stdout.buffer.write(data)
                            sys.stdout.buffer.flush()
                    except BlockingIOError:
                        pass
                    except OSError:
                        return  # The machine, or the terminal, has gone.
