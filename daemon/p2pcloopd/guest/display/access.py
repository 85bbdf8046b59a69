"""What opens a display: the cookie that X clients show, and the password of VNC."""

from __future__ import annotations

import secrets
import string
import struct

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

COOKIE_NAME = b"MIT-MAGIC-COOKIE-1"
_COOKIE_SIZE = 16
_ANY_HOST = 0xFFFF
"""FamilyWild of libXau: the cookie is for whatever display a client is told of."""

_PASSWORD_LENGTH = 8
"""VNC knows no longer ones. With letters and digits that is 47 bits."""

_FILE_KEY = bytes([23, 82, 107, 6, 35, 78, 88, 7])
"""With this key, known to all, every VNC program writes passwords to files."""


def new_cookie() -> bytes:
    """Return a new cookie of MIT-MAGIC-COOKIE-1."""
    return secrets.token_bytes(_COOKIE_SIZE)


def authority_file(cookie: bytes) -> bytes:
    """Return the content of an Xauthority file with one cookie (libXau, AuFileName(3))."""
    fields = (b"", b"", COOKIE_NAME, cookie)
    return struct.pack(">H", _ANY_HOST) + b"".join(
        struct.pack(">H", len(field)) + field for field in fields
    )


def new_password() -> str:
    """Return a new password for VNC."""
    letters = string.ascii_letters + string.digits
    return "".join(secrets.choice(letters) for _ in range(_PASSWORD_LENGTH))


def password_file(password: str) -> bytes:
    """Return the content of a password file, as vncpasswd(1) writes it."""
    return vnc_des(_FILE_KEY, password.encode().ljust(_PASSWORD_LENGTH, b"\0"))


def vnc_des(key: bytes, data: bytes) -> bytes:
    """Encrypt blocks of 8 bytes as VNC does: by DES, the bits of each byte of the key reversed."""
    mirrored = bytes(int(f"{byte:08b}"[::-1], 2) for byte in key)
    # One DES is three with the same key.
    encryptor = Cipher(TripleDES(mirrored * 3), modes.ECB()).encryptor()  # noqa: S305  VNC's own
    return encryptor.update(data) + encryptor.finalize()
