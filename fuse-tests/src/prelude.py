# SPDX-License-Identifier: MIT OR Apache-2.0
# What every Python script of the tests begins with.
import ctypes, errno, fcntl, mmap, os, signal, socket, stat, struct, subprocess, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)


def call(name, *args):
    """A function of the C library; raises as Python's own do."""
    wrapped = [a.encode() if isinstance(a, str) else ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    function = getattr(libc, name)
    function.restype = ctypes.c_long
    result = function(*wrapped)
    if ctypes.c_int(result).value == -1 or result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def t(label, function, *args):
    """Prints what a call gives: its value, or the name of its errno."""
    try:
        value = function(*args)
    except OSError as error:
        value = errno.errorcode.get(error.errno, error.errno)
    print(label, value)


def content(path):
    with open(path, 'rb') as file:
        return file.read()


def put(path, data, mode='wb'):
    with open(path, mode) as file:
        file.write(data)


def mode_of(path):
    return oct(stat.S_IMODE(os.lstat(path).st_mode))
