"""The system's crypt(3), for the password hashes of Unix: SHA-crypt, bcrypt, yescrypt, MD5-crypt and older ones.

Called through ctypes, which gives up the interpreter lock meanwhile; the
standard library's `crypt` keeps it, and is gone from Python 3.13 on.
"""

from __future__ import annotations

import ctypes

# libxcrypt's struct crypt_data has 32 KiB; glibc's own, before it, had 128.
_DATA_OCTETS = 256 * 1024
_NAMES = ("libcrypt.so.1", "libcrypt.so.2", "libcrypt.so")


def _load() -> ctypes.CDLL | None:
    for name in _NAMES:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.crypt_r.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
        library.crypt_r.restype = ctypes.c_char_p
        return library
    return None


_LIBRARY = _load()
# libxcrypt: CRYPT_SALT_INVALID and CRYPT_SALT_METHOD_DISABLED; the other answers are about making new hashes.
_REFUSED = (1, 2)


def knows(stored: bytes) -> bool:
    """Whether the system's crypt(3) can compute a hash like `stored`. Quick: nothing is hashed."""
    if _LIBRARY is None or b"\0" in stored:
        return False
    try:
        check = _LIBRARY.crypt_checksalt
    except AttributeError:
        # Not libxcrypt: `crypt` will tell.
        return True
    check.argtypes = (ctypes.c_char_p,)
    check.restype = ctypes.c_int
    return check(stored) not in _REFUSED


def crypt(password: bytes, stored: bytes) -> bytes | None:
    """Hash `password` with the method, salt and cost of `stored`; None when the system does not know the method.

    Slow on purpose, safe to call from any thread. Neither may hold a NUL: C
    would end the string there.
    """
    if _LIBRARY is None or b"\0" in password or b"\0" in stored:
        return None
    hashed: bytes | None = _LIBRARY.crypt_r(password, stored, ctypes.create_string_buffer(_DATA_OCTETS))
    # "*0" and "*1" are how libxcrypt says no.
    return None if hashed is None or hashed.startswith(b"*") else hashed
