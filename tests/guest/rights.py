# SPDX-License-Identifier: GPL-2.0
"""Processes of other users, and with other capabilities."""

import ctypes
import os
import struct

from tap import true

CAP_SYS_ADMIN = 21
ALL = (1 << 41) - 1
PR_SET_KEEPCAPS = 8
NOBODY = 65534
LIBC = ctypes.CDLL(None, use_errno=True)


def checked(result):
    if result:
        raise OSError(ctypes.get_errno(), "a call of the C library")


def become(user, capabilities):
    """Changes this process to that user with just these capabilities."""
    checked(LIBC.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0))
    if user:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    low, high = capabilities & 0xffffffff, capabilities >> 32
    header = ctypes.create_string_buffer(struct.pack("2I", 0x20080522, 0))
    checked(LIBC.capset(header, ctypes.create_string_buffer(struct.pack("6I", low, low, 0, high, high, 0))))


def outcome(prepare, action):
    """What an action gives in a process that is made so: an errno or 0."""
    child = os.fork()
    if not child:
        status = 255
        try:
            prepare()
            status = 0
            action()
        except OSError as error:
            status = 254 if status else error.errno
        except BaseException:
            status = 253
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    true(status < 253, f"the process could not be made so, or failed otherwise: {status}")
    return status
