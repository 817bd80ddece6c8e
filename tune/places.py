"""Where a study reads and writes: folders and database URLs, made absolute. Imports nothing heavy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from mmfa.errors import MmfaError

_SECRET = re.compile(r"password|secret|token|access_key|credential", re.IGNORECASE)
"""Marks of a query that holds one; PostgreSQL's passfile and sslkey are names of files."""
_SECRETS = {
    "--ledger": "PGPASSWORD or in ~/.pgpass",
    "--tracking-uri": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (a database's: PGPASSWORD)",
    "--storage": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in ~/.aws/credentials",
}
OBJECT_STORES = ("s3", "gs", "abfss")
"""Schemes that pyarrow opens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Places:
    """Where a study reads and writes; everything that is not given lies under ``out``."""

    out: Path
    storage: str
    """A folder, or the URI of an object store."""
    ledger: str
    tracking: str
    cache_dir: Path
    data_root: Path | None

    @property
    def copy(self) -> Path:
        """Where the driver reads and writes what is on storage: the folder itself, or a copy of the object store."""
        return self.out / "storage" if "://" in self.storage else Path(self.storage)

    def uri_of(self, *parts: str) -> str:
        """Return the URI of something on an object store; "" where storage is a folder."""
        return "/".join((self.storage, *parts)) if "://" in self.storage else ""


def places(
    *,
    out: Path,
    storage: str | None,
    ledger: str | None,
    tracking: str | None,
    cache_dir: Path,
    data_root: Path | None,
) -> Places:
    """Return absolute places, with the defaults under ``out``.

    Raises:
        MmfaError: a URL that is none, a folder as tracking URI, or one database for ledger and MLflow.
    """
    for option, url in (("--ledger", ledger), ("--tracking-uri", tracking), ("--storage", storage)):
        refuse_secrets(option, url or "")
    out = out.expanduser().absolute()
    if "?" in str(out):
        raise MmfaError(f"--out must not contain a question mark, which ends a database's URL, but got {out}.")
    ledger_url = _absolute(ledger or f"sqlite:///{out / 'ledger.db'}", option="--ledger")
    tracking_uri = tracking or f"sqlite:///{out / 'mlflow.db'}"
    if not tracking_uri.startswith(("http://", "https://")):
        tracking_uri = _absolute(tracking_uri, option="--tracking-uri")
        if _database(ledger_url) == _database(tracking_uri):
            raise MmfaError(
                f"--ledger and --tracking-uri must be two databases, but both are {safe_url(ledger_url)}: "
                "each refuses the other's tables. Give one of them another name."
            )
    return Places(
        out=out,
        storage=_storage(storage or str(out / "storage")),
        ledger=ledger_url,
        tracking=tracking_uri,
        cache_dir=cache_dir.expanduser().absolute(),
        data_root=data_root.expanduser().absolute() if data_root else None,
    )


def refuse_secrets(option: str, url: str) -> None:
    """A command is printed, recorded and shown by ``ps``: what is secret must not be part of it."""
    scheme, mark, rest = url.partition("://")
    location, _, query = rest.partition("?")
    user, _, password = location.rpartition("@")[0].partition(":")  # up to the last @: a password may hold slashes
    token = user if scheme in ("http", "https") else ""
    if mark and (password or token or _SECRET.search(query)):
        raise MmfaError(
            f"{option} must not hold a password or a key, since commands are printed and recorded; give it in the "
            f"environment, as {_SECRETS[option]}."
        )


def _storage(where: str) -> str:
    scheme, mark, rest = where.partition("://")
    if not mark:
        return str(Path(where).expanduser().absolute())
    if "?" in rest or ("@" in rest and scheme != "abfss"):
        raise MmfaError(
            "--storage must be a bucket and a path in it, such as s3://bucket/studies, and nothing else; region and "
            "endpoint are set in the environment (AWS_DEFAULT_REGION, AWS_ENDPOINT_URL)."
        )
    if scheme not in OBJECT_STORES:
        raise MmfaError(
            f"--storage must be a folder that all nodes share, or start with one of "
            f"{', '.join(f'{name}://' for name in OBJECT_STORES)}, but got {where}."
        )
    return where.rstrip("/")


def _absolute(url: str, *, option: str) -> str:
    """Return a database URL; SQLite's path made absolute, its folder's existence left to later."""
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise MmfaError(
            f"{option} must be a database URL such as sqlite:///file.db or postgresql://user@host/name"
            f"{' or http://host:port' if option == '--tracking-uri' else ''}, but got {url!r}."
        ) from None
    if parsed.get_backend_name() not in ("sqlite", "postgresql"):
        raise MmfaError(f"{option} must be SQLite or PostgreSQL, but got {safe_url(url)}.")
    if parsed.get_backend_name() == "sqlite" and parsed.database in (None, "", ":memory:"):
        raise MmfaError(f"{option} must name a file, but got {url!r}: nothing could be resumed from memory.")
    if parsed.get_backend_name() == "sqlite":
        path = Path(str(parsed.database)).expanduser().absolute()
        if "?" in str(path):
            raise MmfaError(f"{option}: SQLite cannot be given a path with a question mark, but got {path}; rename it.")
        return f"sqlite:///{path}"
    return url.replace("postgresql://", "postgresql+psycopg://", 1)  # the driver that the extra `cluster` brings


def _database(url: str) -> tuple[object, ...]:
    """Return what tells one database from another: drivers and credentials do not."""
    parsed = sa.make_url(url)
    if parsed.get_backend_name() == "sqlite":
        return ("sqlite", Path(str(parsed.database)).resolve())
    host = parsed.host or parsed.query.get("host")
    here = host in (None, "localhost", "127.0.0.1", "::1")
    return (parsed.get_backend_name(), "here" if here else host, parsed.port or 5432, parsed.database)


def safe_url(url: str) -> str:
    """Return a database URL without its password."""
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return "(not a database URL)"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its type where it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
