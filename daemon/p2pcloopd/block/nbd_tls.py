"""The certificates of an NBD server, in a directory as for QEMU and libnbd.

The files have the names of QEMU's `tls-creds-x509`: `server-cert.pem`, `server-key.pem`, and, to
ask clients for a certificate, `ca-cert.pem` and perhaps `ca-crl.pem`.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from p2pcloop.errors import NotHereError, UsageError, storage_error
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

_HINT = "docs/nbd.md tells how to make it (certtool, or openssl)"


@dataclass(frozen=True, slots=True)
class NbdTls:
    """How clients are to start TLS.

    Attributes:
        directory: of the certificates.
        verify_peer: clients must have a certificate of the directory's authority.
    """

    directory: Path
    verify_peer: bool = False

    def context(self) -> ssl.SSLContext:
        """Read the certificates; TLS 1.2 at least.

        Raises:
            NotHereError: one of the files is not there.
            UsageError: they cannot be used, or do not belong together.
            StorageError: they cannot be read.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        certificate, key = self._file("server-cert.pem"), self._file("server-key.pem")
        try:
            # A server starts without a terminal, so it cannot ask for a passphrase.
            context.load_cert_chain(certificate, key, password="")
        except ssl.SSLError as err:
            raise UsageError(
                tr(
                    "{certificate} and {key} cannot be used: {err}",
                    certificate=certificate,
                    key=key,
                    err=err,
                ),
                hint=_HINT,
            ) from err
        if self.verify_peer:
            self._believe(context)
        return context

    def _believe(self, context: ssl.SSLContext) -> None:
        authority = self._file("ca-cert.pem")
        revoked = self.directory / "ca-crl.pem"
        try:
            context.load_verify_locations(authority)
            if revoked.exists():
                context.load_verify_locations(revoked)
                context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
        except ssl.SSLError as err:
            raise UsageError(
                tr("{authority} cannot be used: {err}", authority=authority, err=err), hint=_HINT
            ) from err
        context.verify_mode = ssl.CERT_REQUIRED

    def _file(self, name: str) -> Path:
        path = self.directory / name
        if not path.is_file():
            raise NotHereError(tr("there is no {path}, which TLS needs", path=path), hint=_HINT)
        if not os.access(path, os.R_OK):
            raise storage_error(
                tr("cannot read {path}", path=path), PermissionError(13, "Permission denied")
            )
        return path
